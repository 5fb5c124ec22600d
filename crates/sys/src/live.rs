//! The kernel itself.

use std::cell::RefCell;
use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};

use crate::ram::Mapping;
use crate::requests::{KVM_GET_DIRTY_LOG, KVM_SET_USER_MEMORY_REGION, KVM_X86_SET_MSR_FILTER};
use crate::{
    Arg, Backend, Creates, Errno, Error, FdKind, Handle, Ram, Refusal, Request, RunPage, Slot, Source,
    environment,
};

/// Memory that a VM was given, by VM and slot.
type Given = ((Handle, u32), Arc<Ram>);

/// Real ioctls on real file descriptors.
#[derive(Debug, Default)]
pub struct Live {
    /// By handle number; a closed one stays empty, so that numbers are never used again.
    fds: RwLock<Vec<Option<Arc<OwnedFd>>>>,
    /// Memory that VMs were given, by VM and slot. A VM lives as long as any of its vCPUs and devices, which nobody
    /// counts here: so memory stays until its slot is given other memory, or this value goes.
    memory: Mutex<Vec<Given>>,
    /// What is another VMM's, and may live and run after this value is gone.
    lent: RwLock<Vec<Handle>>,
}

/// Descriptors to use instead of opening a path: of the process, as whoever passed them meant.
static LENT: RwLock<Vec<(String, OwnedFd)>> = RwLock::new(Vec::new());

impl Live {
    /// Nothing open yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lends it a file descriptor of another VMM: a VM, a vCPU, a device. `owner` is what owns it, such as `kvm-ioctls`' `VmFd`.
    /// The descriptor is duplicated and the VMM's own stays open whatever happens here; [`crate::Vm::of`] and its like make
    /// the typed values. The other VMM keeps its memory; what it gives its VM with [`crate::Vm::set_memory`] instead stays
    /// mapped when this value goes, since the VM may go on.
    ///
    /// # Errors
    /// `owner` names no open descriptor, or the process has too many open files.
    pub fn lend(&self, owner: &impl AsRawFd) -> Result<Handle, Error> {
        let failed = |why: Errno| Error {
            ioctl: "fcntl",
            argument: "F_DUPFD_CLOEXEC".to_owned(),
            why: Refusal::Errno(why),
        };
        let number = owner.as_raw_fd();
        if number < 0 {
            return Err(failed(Errno::EBADF));
        }
        // SAFETY: it is not -1, and its owner is borrowed by the caller, which keeps it open until this returns. A number that is
        // nobody's is refused by the kernel, which looks it up in this one call; the duplicate is the only thing kept of it.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let fd = rustix::io::fcntl_dupfd_cloexec(fd, 0).map_err(|e| failed(Errno(e.raw_os_error())))?;
        let handle = self.keep(fd);
        self.lent.write().unwrap_or_else(PoisonError::into_inner).push(handle);
        Ok(handle)
    }

    /// From now on this descriptor stands for the path, for every `Live` of the process: a device node that it may not open
    /// itself, and was passed by one that may.
    pub fn stand_in(path: &str, fd: OwnedFd) {
        LENT.write().unwrap_or_else(PoisonError::into_inner).push((path.to_owned(), fd));
    }

    fn keep(&self, fd: OwnedFd) -> Handle {
        let mut fds = self.fds.write().unwrap_or_else(PoisonError::into_inner);
        fds.push(Some(Arc::new(fd)));
        Handle(fds.len() as u32 - 1)
    }

    /// The kernel writes as many bits as the slot has pages; a slot has no more than its memory.
    fn check_dirty_log(&self, vm: Handle, arg: &Arg<'_>) -> Result<(), Refusal> {
        let Arg::Pointing { head, payload } = arg else { return Err(shape(&KVM_GET_DIRTY_LOG)) };
        let place = (vm, crate::layout::word(head, 0));
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        match memory.iter().find(|(given, _)| *given == place) {
            Some((_, ram)) if payload.len() >= crate::vm::dirty_bytes(ram.len() as u64) => Ok(()),
            _ => {
                Err(Refusal::Nonsense("no such slot, or no room for a bit for each of its pages".to_owned()))
            }
        }
    }

    pub(crate) fn fd(&self, handle: Handle) -> Result<Arc<OwnedFd>, Refusal> {
        let fds = self.fds.read().unwrap_or_else(PoisonError::into_inner);
        // The clone keeps the descriptor open for as long as the ioctl runs, without holding the lock meanwhile.
        fds.get(handle.0 as usize).cloned().flatten().ok_or(Refusal::Errno(Errno::EBADF))
    }
}

impl Backend for Live {
    fn open(&self, path: &str, _: FdKind) -> Result<Handle, Refusal> {
        let passed = LENT.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, fd)) = passed.iter().find(|(of, _)| of == path) {
            return Ok(self.keep(fd.try_clone().map_err(|e| Errno(e.raw_os_error().unwrap_or(0)))?));
        }
        let fd = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| Errno(e.raw_os_error()))?;
        Ok(self.keep(fd))
    }

    fn call(&self, handle: Handle, request: &Request, arg: Arg<'_>) -> Result<i32, Refusal> {
        let fd = self.fd(handle)?;
        if request.number == KVM_SET_USER_MEMORY_REGION.number {
            // The kernel would write to whatever address the caller makes up.
            return Err(shape(request));
        }
        check(request, &arg)?;
        if request.number == KVM_GET_DIRTY_LOG.number {
            self.check_dirty_log(handle, &arg)?;
        }
        let mut made = None;
        let returned = match arg {
            Arg::Int(value) => ioctl(&fd, request, value as usize as *mut c_void),
            Arg::In(bytes) if request.slack == 0 => ioctl(&fd, request, bytes.as_ptr().cast_mut().cast()),
            Arg::In(bytes) => GIVEN.with_borrow_mut(|room| {
                ioctl(&fd, request, room.of(bytes, request.slack, true).as_mut_ptr().cast())
            }),
            Arg::Out(bytes) if request.slack == 0 => {
                let returned = ioctl(&fd, request, bytes.as_mut_ptr().cast())?;
                if let Some(Creates::Field(_, at)) = request.creates {
                    made = Some((crate::layout::word(bytes, at) as i32, at, bytes));
                }
                Ok(returned)
            }
            Arg::Out(bytes) => TAKEN.with_borrow_mut(|room| {
                let room = room.of(bytes, request.slack, false);
                let returned = ioctl(&fd, request, room.as_mut_ptr().cast());
                bytes.copy_from_slice(&room[..bytes.len()]);
                returned
            }),
            Arg::Pointing { head, payload } => {
                let mut head = head.to_vec();
                let mut room = roomy(payload, request.slack);
                let (at, _) = request.payload.ok_or_else(|| shape(request))?;
                if request.number == KVM_X86_SET_MSR_FILTER.number {
                    // Sixteen pointers instead of one: `check` has seen that there is enough to point at.
                    let mut offset = 0;
                    for range in head[8..].chunks_exact_mut(24) {
                        let address = room.as_mut_ptr().wrapping_add(offset) as u64;
                        range[16..].copy_from_slice(&address.to_ne_bytes());
                        offset += bitmap(range);
                    }
                } else {
                    head[at..at + 8].copy_from_slice(&(room.as_mut_ptr() as u64).to_ne_bytes());
                }
                let returned = ioctl(&fd, request, head.as_mut_ptr().cast());
                payload.copy_from_slice(&room[..payload.len()]);
                returned
            }
        }?;
        match (request.creates, made) {
            (Some(Creates::Returned(_)), _) => Ok(self.keep(own(returned)).0 as i32),
            (Some(Creates::Field(..)), Some((number, at, bytes))) => {
                let handle = self.keep(own(number));
                bytes[at..at + 4].copy_from_slice(&handle.0.to_ne_bytes());
                Ok(returned)
            }
            _ => Ok(returned),
        }
    }

    fn read(&self, source: Source<'_>) -> Result<Vec<u8>, Refusal> {
        environment::read(source)
    }

    fn set_memory(&self, vm: Handle, slot: Slot, ram: Option<&Arc<Ram>>) -> Result<(), Refusal> {
        let fd = self.fd(vm)?;
        let outside = || Refusal::Nonsense("a slot must lie within its memory".to_owned());
        let end = slot.offset.checked_add(slot.length).ok_or_else(outside)?;
        let address = match ram {
            Some(ram) if slot.length > 0 && end <= ram.len() as u64 => ram.address() + slot.offset,
            None if slot.length == 0 => 0,
            _ => return Err(outside()),
        };
        let mut bytes = [0u8; crate::layout::MEMORY_REGION];
        bytes[..4].copy_from_slice(&slot.number.to_ne_bytes());
        bytes[4..8].copy_from_slice(&slot.flags.to_ne_bytes());
        for (at, value) in [(8, slot.guest), (16, slot.length), (24, address)] {
            bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        }
        // Held over the ioctl: the books must not say otherwise than the kernel.
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        ioctl(&fd, &KVM_SET_USER_MEMORY_REGION, bytes.as_mut_ptr().cast())?;
        memory.retain(|(place, _)| *place != (vm, slot.number));
        memory.extend(ram.map(|ram| ((vm, slot.number), ram.clone())));
        Ok(())
    }

    fn map_run(&self, vcpu: Handle, length: usize) -> Result<Arc<RunPage>, Refusal> {
        Ok(Arc::new(RunPage::new(Mapping::new(self.fd(vcpu)?, length)?)))
    }

    fn close(&self, handle: Handle) {
        let mut fds = self.fds.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(fd) = fds.get_mut(handle.0 as usize) {
            *fd = None;
        }
    }
}

impl Drop for Live {
    /// A VM of another VMM goes on without this: unmapped, the addresses in its slots would soon be somebody else's memory, which
    /// the guest would write to.
    fn drop(&mut self) {
        let lent = self.lent.get_mut().unwrap_or_else(PoisonError::into_inner);
        let memory = self.memory.get_mut().unwrap_or_else(PoisonError::into_inner);
        for ((vm, _), ram) in memory.drain(..) {
            if lent.contains(&vm) {
                std::mem::forget(ram);
            }
        }
    }
}

fn shape(request: &Request) -> Refusal {
    Refusal::Nonsense(format!("{} does not take an argument of this form", request.name))
}

/// The buffer holds all that the kernel will touch, as far as the request says; the rest is what `slack` is for.
fn check(request: &Request, arg: &Arg<'_>) -> Result<(), Refusal> {
    let fits = |bytes: &[u8]| {
        let tail = request.tail.map_or(0, |t| {
            (crate::layout::word(bytes, t.count_at) as usize).saturating_mul(t.each).saturating_add(t.base)
        });
        bytes.len() >= request.size().max(tail)
    };
    let (right, fits) = match arg {
        Arg::Int(_) => (!request.flow.goes_in() && !request.flow.comes_out(), true),
        Arg::In(bytes) => {
            (!request.flow.comes_out() && request.flow.goes_in() && request.payload.is_none(), fits(bytes))
        }
        Arg::Out(bytes) => (request.flow.comes_out(), fits(bytes)),
        Arg::Pointing { head, payload } => {
            let enough = match request.name {
                "KVM_ARM_GET_REG_WRITABLE_MASKS" => crate::layout::ARM_FEATURE_ID_RANGE * 8,
                "KVM_CLEAR_DIRTY_LOG" if fits(head) => {
                    (crate::layout::word(head, 4) as usize).div_ceil(64) * 8
                }
                "KVM_X86_SET_MSR_FILTER" if fits(head) => head[8..].chunks_exact(24).map(bitmap).sum(),
                _ => 0,
            };
            (
                request.payload.is_some_and(|(at, _)| at + 8 <= head.len()),
                fits(head) && payload.len() >= enough,
            )
        }
    };
    match (right, fits) {
        (false, _) => Err(shape(request)),
        (_, false) => Err(Refusal::Nonsense(format!("the buffer is too small for {}", request.name))),
        _ => Ok(()),
    }
}

/// Bytes of the bitmap that a range of `struct kvm_msr_filter` points at: a bit an MSR, in words of 64.
fn bitmap(range: &[u8]) -> usize {
    (crate::layout::word(range, 4) as usize).div_ceil(64) * 8
}

fn roomy(bytes: &[u8], slack: usize) -> Vec<u8> {
    let mut room = Vec::with_capacity(bytes.len() + slack);
    room.extend_from_slice(bytes);
    room.resize(bytes.len() + slack, 0);
    room
}

/// Room for a buffer and for what the kernel may touch behind it, kept by each thread: the largest is many times what the
/// kernel uses of it, and would have to be made and cleared for every call.
#[derive(Default)]
struct Room {
    bytes: Vec<u8>,
    /// Bytes that may not be 0.
    used: usize,
}

thread_local! {
    /// For what the kernel reads: behind the buffer there are zeroes.
    static GIVEN: RefCell<Room> = RefCell::default();
    /// For what the kernel writes.
    static TAKEN: RefCell<Room> = RefCell::default();
}

impl Room {
    /// These bytes with slack behind them, cleared where that counts.
    fn of(&mut self, bytes: &[u8], slack: usize, clear: bool) -> &mut [u8] {
        let need = bytes.len() + slack;
        if self.bytes.len() < need {
            self.bytes.resize(need, 0);
        }
        self.bytes[..bytes.len()].copy_from_slice(bytes);
        if clear {
            let end = self.used.max(bytes.len());
            self.bytes[bytes.len()..end].fill(0);
            self.used = bytes.len();
        }
        &mut self.bytes[..need]
    }
}

pub(crate) fn own(number: i32) -> OwnedFd {
    // SAFETY: the ioctl that returned this number has just created the descriptor and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// A request with its argument as the kernel takes it.
struct Raw {
    number: u32,
    argument: *mut c_void,
}

// SAFETY: number and argument are passed as they are, and `output_from_ptr` does not look at the pointer.
unsafe impl Ioctl for Raw {
    type Output = i32;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.number as Opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(returned: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(returned)
    }
}

/// The memory that KVM_SET_USER_MEMORY_REGION points at is not this structure: see [`Live::set_memory`], its only user.
pub(crate) fn ioctl(fd: &OwnedFd, request: &Request, argument: *mut c_void) -> Result<i32, Refusal> {
    // SAFETY: `check` has seen that the argument is an integer where the request takes one, or else points at a buffer
    // that holds the structure with its array; requests whose structure the kernel sizes by itself get `slack` bytes
    // more. `Request`s are made in this crate only, so these bounds are those of the kernel's headers.
    let returned = unsafe { rustix::ioctl::ioctl(fd, Raw { number: request.number, argument }) };
    returned.map_err(|e| Refusal::Errno(Errno(e.raw_os_error())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{System, Vm};

    #[test]
    fn what_owns_no_descriptor_is_not_lent() {
        for number in [-1, i32::MIN, i32::MAX] {
            assert_eq!(Live::new().lend(&number).unwrap_err().errno(), Some(Errno::EBADF), "{number}");
        }
    }

    #[test]
    #[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
    fn kvm_memory_of_a_lent_vm_stays_when_its_lender_goes() {
        let owner = Live::new();
        let vm = System::open(&owner).unwrap().create_vm(0).unwrap();
        let (own, lent) = [(); 2].map(|()| Arc::new(Ram::new(1 << 16).unwrap())).into();
        vm.set_memory(0, 0, &own).unwrap();
        let live = Live::new();
        let handle = live.lend(&*owner.fd(vm.handle()).unwrap()).unwrap();
        Vm::of(&live, handle).set_memory(1, 1 << 20, &lent).unwrap();
        let weak = [&own, &lent].map(Arc::downgrade);
        drop((own, lent, live));
        assert!(weak[1].upgrade().is_some(), "the VM is there and has it");
        drop(vm);
        drop(owner);
        assert!(weak[0].upgrade().is_none(), "nobody else has this VM");
    }
}
