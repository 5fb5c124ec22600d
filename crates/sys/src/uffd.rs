//! userfaultfd: this process deals with faults in guest memory, whoever makes them.
//!
//! Numbers and structures are from `include/uapi/linux/userfaultfd.h`. Everything here speaks of registered memory by its
//! number and an offset in it, so that no address can be made up, and memory stays mapped for as long as it is registered.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::mm::UserfaultfdFlags;

use crate::layout::long;
use crate::live::{ioctl, own};
use crate::{Errno, Flow, Ram, Refusal, Request};

const KIND: u8 = 0xaa;
const NEW: Request = Request::io("USERFAULTFD_IOC_NEW", KIND, 0x00);
const API: Request = Request::iowr("UFFDIO_API", KIND, 0x3f, 24);
/// `UFFDIO_REGISTER`.
pub const REGISTER: Request = Request::iowr("UFFDIO_REGISTER", KIND, 0x00, 32);
/// `UFFDIO_UNREGISTER`.
pub const UNREGISTER: Request = Request::ior("UFFDIO_UNREGISTER", KIND, 0x01, 16).flowing(Flow::In);
/// `UFFDIO_WAKE`.
pub const WAKE: Request = Request::ior("UFFDIO_WAKE", KIND, 0x02, 16).flowing(Flow::In);
/// `UFFDIO_COPY`.
pub const COPY: Request = Request::iowr("UFFDIO_COPY", KIND, 0x03, 40);
/// `UFFDIO_ZEROPAGE`.
pub const ZEROPAGE: Request = Request::iowr("UFFDIO_ZEROPAGE", KIND, 0x04, 32);
/// `UFFDIO_WRITEPROTECT`.
pub const WRITEPROTECT: Request = Request::iowr("UFFDIO_WRITEPROTECT", KIND, 0x06, 24);
const CONTINUE: Request = Request::iowr("UFFDIO_CONTINUE", KIND, 0x07, 32);
/// `UFFDIO_POISON`.
pub const POISON: Request = Request::iowr("UFFDIO_POISON", KIND, 0x08, 32);

/// `UFFD_API`.
const VERSION: u64 = 0xaa;
/// `struct uffd_msg`.
const MESSAGE: usize = 32;
/// `UFFD_EVENT_PAGEFAULT`.
const PAGEFAULT: u8 = 0x12;
/// `UFFD_PAGEFAULT_FLAG_*`.
const FLAG_WRITE: u64 = 1;
const FLAG_WP: u64 = 2;
const FLAG_MINOR: u64 = 4;
/// `UFFDIO_WRITEPROTECT_MODE_WP`.
const MODE_WP: u64 = 1;

/// What a userfaultfd can do: `UFFD_FEATURE_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// Missing pages of memfds (4.11).
    pub const MISSING_SHMEM: Features = Features(1 << 5);
    /// Pages of memfds that are there and not mapped (5.14).
    pub const MINOR_SHMEM: Features = Features(1 << 10);
    /// Write protection of anonymous memory (5.7).
    pub const WP: Features = Features(1 << 0);
    /// Write protection of memfds, also of what is not there yet (5.19).
    pub const WP_SHMEM: Features = Features(1 << 12);
    /// Pages whose access raises SIGBUS (6.6).
    pub const POISON: Features = Features(1 << 14);

    /// All of these too.
    pub const fn and(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }

    /// Whether these are among them.
    pub const fn has(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What shall be dealt with here: `UFFDIO_REGISTER_MODE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Accesses to pages that are not there.
    Missing,
    /// Writes to pages that are protected.
    WriteProtect,
    /// Accesses to pages that are there and not mapped.
    Minor,
}

/// Why somebody waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The page is not there.
    Missing,
    /// The page is protected.
    WriteProtect,
    /// The page is not mapped.
    Minor,
}

/// Somebody waits for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// The memory's number, from [`Uffd::register`].
    pub ram: usize,
    /// Where in it.
    pub at: u64,
    /// Why.
    pub cause: Cause,
    /// It is going to be written to.
    pub write: bool,
}

/// Why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoUffd {
    /// It may not take faults of the kernel, of which KVM's are: `/dev/userfaultfd` cannot be opened, and the system call is for
    /// those with CAP_SYS_PTRACE, or for all where `vm.unprivileged_userfaultfd` is 1.
    Forbidden(Errno),
    /// The kernel has not all of what was asked for.
    Lacks {
        /// What was asked for.
        asked: Features,
        /// What there is.
        there: Features,
    },
    /// Anything else.
    Failed(Refusal),
}

impl std::fmt::Display for NoUffd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NoUffd::Forbidden(errno) => write!(
                f,
                "no userfaultfd that takes faults of the kernel: {errno}; pass an open /dev/userfaultfd, or set vm.unprivileged_userfaultfd to 1"
            ),
            NoUffd::Lacks { asked, there } => write!(
                f,
                "this kernel's userfaultfd has not all of {:#x}, but {:#x}: it is older than Linux 5.19, or was built without it",
                asked.0, there.0
            ),
            NoUffd::Failed(why) => write!(f, "userfaultfd: {why}"),
        }
    }
}

impl std::error::Error for NoUffd {}

/// A userfaultfd of this process. When it is dropped, all memory is as though it had never been registered: what is missing is
/// zero then, so whoever loads memory with it keeps it until all is there.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
    features: Features,
    memory: RwLock<Vec<Arc<Ram>>>,
}

fn make(device: Option<BorrowedFd<'_>>) -> Result<OwnedFd, NoUffd> {
    let raw = |e: rustix::io::Errno| Errno(e.raw_os_error());
    let flags = OFlags::CLOEXEC | OFlags::NONBLOCK;
    let ask = |device: OwnedFd| {
        ioctl(&device, &NEW, flags.bits() as usize as *mut std::ffi::c_void).map_err(NoUffd::Failed)
    };
    if let Some(device) = device {
        let device = device.try_clone_to_owned();
        let device =
            device.map_err(|e| NoUffd::Failed(Errno(e.raw_os_error().unwrap_or_default()).into()))?;
        return ask(device).map(own);
    }
    match rustix::fs::open("/dev/userfaultfd", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(device) => return ask(device).map(own),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => {}
        Err(e) => return Err(NoUffd::Failed(raw(e).into())),
    }
    // SAFETY: a new descriptor; it does nothing to any memory before memory is registered with it.
    let made = unsafe { rustix::mm::userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) };
    made.map_err(|e| match e {
        rustix::io::Errno::PERM | rustix::io::Errno::ACCESS => NoUffd::Forbidden(raw(e)),
        other => NoUffd::Failed(raw(other).into()),
    })
}

/// UFFDIO_API: what was turned on, of what there is.
fn greet(fd: &OwnedFd, features: Features) -> Result<Features, Refusal> {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&VERSION.to_ne_bytes());
    bytes[8..16].copy_from_slice(&features.0.to_ne_bytes());
    ioctl(fd, &API, bytes.as_mut_ptr().cast())?;
    Ok(Features(long(&bytes, 8)))
}

impl Uffd {
    /// One that also takes faults of the kernel, with all of these features, and of `wanted` those that there are. `device` is an open
    /// `/dev/userfaultfd` that was passed, if one was.
    ///
    /// # Errors
    /// There is none, or none with these features.
    pub fn new(device: Option<BorrowedFd<'_>>, asked: Features, wanted: Features) -> Result<Uffd, NoUffd> {
        // What there is, is told by one of which nothing is asked; it can be greeted only once.
        let there = greet(&make(device)?, Features::default()).map_err(NoUffd::Failed)?;
        if !there.has(asked) {
            return Err(NoUffd::Lacks { asked, there });
        }
        let fd = make(device)?;
        let asked = Features(asked.0 | wanted.0 & there.0);
        let features = greet(&fd, asked).map_err(NoUffd::Failed)?;
        if !features.has(asked) {
            return Err(NoUffd::Lacks { asked, there: features });
        }
        Ok(Uffd { fd, features: asked, memory: RwLock::default() })
    }

    /// What was turned on.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Becomes readable when somebody waits.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Takes over faults of this memory; gives the number by which it is known here.
    ///
    /// # Errors
    /// As the kernel says, or it cannot do with such memory what it is needed for.
    pub fn register(&self, ram: &Arc<Ram>, watch: &[Watch]) -> Result<usize, Refusal> {
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        let (mut mode, mut needed) = (0, 0);
        for watch in watch {
            let (bit, call) = match watch {
                Watch::Missing => (1, &COPY),
                Watch::WriteProtect => (2, &WRITEPROTECT),
                Watch::Minor => (4, &CONTINUE),
            };
            mode |= bit;
            needed |= 1_u64 << (call.number & 0xff);
        }
        let mut bytes = [0; 32];
        put(&mut bytes, &[ram.address(), ram.len() as u64, mode]);
        ioctl(&self.fd, &REGISTER, bytes.as_mut_ptr().cast())?;
        let offered = long(&bytes, 24);
        if offered & needed != needed {
            let why = format!("of the calls {needed:#x} this memory has {offered:#x}");
            // It has no number: nobody could give its faults back later.
            let mut range = [0; 16];
            put(&mut range, &[ram.address(), ram.len() as u64]);
            let _ = ioctl(&self.fd, &UNREGISTER, range.as_mut_ptr().cast());
            return Err(Refusal::Nonsense(why));
        }
        memory.push(ram.clone());
        Ok(memory.len() - 1)
    }

    /// Gives a part of the memory's faults back to the kernel, and wakes who waits there: what is missing is zero, what is protected
    /// is not.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn unregister(&self, ram: usize, at: u64, length: u64) -> Result<(), Refusal> {
        let mut bytes = [0; 16];
        put(&mut bytes, &[self.address(ram, at, length)?, length]);
        ioctl(&self.fd, &UNREGISTER, bytes.as_mut_ptr().cast()).map(drop)
    }

    /// UFFDIO_WRITEPROTECT: from now on writes wait, or no longer do (and who waited is woken).
    ///
    /// # Errors
    /// As the kernel says.
    pub fn protect(&self, ram: usize, at: u64, length: u64, on: bool) -> Result<(), Refusal> {
        let mut bytes = [0; 24];
        put(&mut bytes, &[self.address(ram, at, length)?, length, if on { MODE_WP } else { 0 }]);
        loop {
            match ioctl(&self.fd, &WRITEPROTECT, bytes.as_mut_ptr().cast()) {
                // Mappings are being changed; the protection is to be tried again.
                Err(Refusal::Errno(Errno::EAGAIN)) => {}
                other => return other.map(drop),
            }
        }
    }

    /// UFFDIO_COPY: puts pages where none are, all at once, and wakes who waits. Pages that are there already stay as they are
    /// (EEXIST); gives how many bytes were put, up to the first such.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn copy(&self, ram: usize, at: u64, from: &[u8]) -> Result<u64, Refusal> {
        let mut bytes = [0; 40];
        put(
            &mut bytes,
            &[self.address(ram, at, from.len() as u64)?, from.as_ptr() as u64, from.len() as u64],
        );
        self.fill(&COPY, &mut bytes, 32)
    }

    /// UFFDIO_ZEROPAGE: the same, with zeros.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn zero(&self, ram: usize, at: u64, length: u64) -> Result<u64, Refusal> {
        let mut bytes = [0; 32];
        put(&mut bytes, &[self.address(ram, at, length)?, length]);
        self.fill(&ZEROPAGE, &mut bytes, 24)
    }

    /// UFFDIO_CONTINUE: maps pages that the file has, and wakes who waits.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn proceed(&self, ram: usize, at: u64, length: u64) -> Result<u64, Refusal> {
        let mut bytes = [0; 32];
        put(&mut bytes, &[self.address(ram, at, length)?, length]);
        self.fill(&CONTINUE, &mut bytes, 24)
    }

    /// UFFDIO_POISON: whoever touches these pages gets SIGBUS; a vCPU that does comes back with an error.
    ///
    /// # Errors
    /// As the kernel says; it has it only with [`Features::POISON`].
    pub fn poison(&self, ram: usize, at: u64, length: u64) -> Result<u64, Refusal> {
        let mut bytes = [0; 32];
        put(&mut bytes, &[self.address(ram, at, length)?, length]);
        self.fill(&POISON, &mut bytes, 24)
    }

    /// UFFDIO_WAKE: who waits there looks again.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn wake(&self, ram: usize, at: u64, length: u64) -> Result<(), Refusal> {
        let mut bytes = [0; 16];
        put(&mut bytes, &[self.address(ram, at, length)?, length]);
        ioctl(&self.fd, &WAKE, bytes.as_mut_ptr().cast()).map(drop)
    }

    /// Waits until somebody waits for a page, or `bell` becomes readable; says whether `bell` did. `faults` is then who waits, as far
    /// as it was not told yet.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn hear(&self, bell: &File, faults: &mut Vec<PageFault>) -> Result<bool, Refusal> {
        faults.clear();
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN), PollFd::new(bell, PollFlags::IN)];
        let rung = match poll(&mut fds, None) {
            Ok(_) => !fds[1].revents().is_empty(),
            Err(rustix::io::Errno::INTR) => false,
            Err(e) => return Err(Errno(e.raw_os_error()).into()),
        };
        self.read(faults)?;
        Ok(rung)
    }

    /// Who waits; nobody: nothing is added. Does not block.
    fn read(&self, faults: &mut Vec<PageFault>) -> Result<(), Refusal> {
        let mut bytes = [0; 64 * MESSAGE];
        let length = match rustix::io::read(&self.fd, &mut bytes) {
            Ok(length) => length,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(()),
            Err(e) => return Err(Errno(e.raw_os_error()).into()),
        };
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        for message in bytes[..length].chunks_exact(MESSAGE).filter(|message| message[0] == PAGEFAULT) {
            let (flags, address) = (long(message, 8), long(message, 16));
            let within =
                |ram: &Arc<Ram>| (ram.address()..ram.address() + ram.len() as u64).contains(&address);
            let Some(ram) = memory.iter().position(within) else { continue };
            let cause = match flags {
                _ if flags & FLAG_WP != 0 => Cause::WriteProtect,
                _ if flags & FLAG_MINOR != 0 => Cause::Minor,
                _ => Cause::Missing,
            };
            let at = address - memory[ram].address();
            faults.push(PageFault { ram, at, cause, write: flags & FLAG_WRITE != 0 });
        }
        Ok(())
    }

    /// Fills pages; the kernel says at `told` how far it came.
    fn fill(&self, request: &Request, bytes: &mut [u8], told: usize) -> Result<u64, Refusal> {
        let length = long(bytes, if request.name == COPY.name { 16 } else { 8 });
        let mut done = 0;
        loop {
            let failed = match ioctl(&self.fd, request, bytes.as_mut_ptr().cast()) {
                Ok(_) => return Ok(length),
                Err(failed) => failed,
            };
            let filled = long(bytes, told) as i64;
            let filled = u64::try_from(filled).unwrap_or(0);
            done += filled;
            match failed {
                Refusal::Errno(Errno::EEXIST) => return Ok(done),
                Refusal::Errno(Errno::EAGAIN) => {
                    // It was interrupted, or mappings changed meanwhile: the rest.
                    let rest = if request.name == COPY.name { 3 } else { 2 };
                    for word in 0..rest {
                        let value = long(bytes, 8 * word);
                        let value = if word + 1 == rest { value - filled } else { value + filled };
                        bytes[8 * word..8 * word + 8].copy_from_slice(&value.to_ne_bytes());
                    }
                }
                other => return Err(other),
            }
        }
    }

    /// The address, if it is all within the memory.
    fn address(&self, ram: usize, at: u64, length: u64) -> Result<u64, Refusal> {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        let end = at.checked_add(length);
        match (memory.get(ram), end) {
            (Some(ram), Some(end)) if length > 0 && end <= ram.len() as u64 => Ok(ram.address() + at),
            _ => Err(Refusal::Nonsense(format!("{length:#x} bytes at {at:#x} are not within memory {ram}"))),
        }
    }
}

fn put(bytes: &mut [u8], words: &[u64]) {
    for (word, place) in words.iter().zip(bytes.chunks_exact_mut(8)) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
}
