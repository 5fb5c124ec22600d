//! Watching the system calls of a thread without stopping any: SECCOMP_RET_USER_NOTIF, and an answer that lets each go on
//! (SECCOMP_USER_NOTIF_FLAG_CONTINUE; Linux 5.5).
//!
//! This is no confinement, but how one is measured: which of a filter's rules does a thread use? Who watches must not allocate
//! or lock what the watched threads do: one of them may be inside the allocator when its call is looked at.

use std::ffi::{c_int, c_long, c_void};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use syscalls::Sysno;

use crate::Errno;

const SET_MODE_FILTER: usize = 1;
const NEW_LISTENER: usize = 8;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
/// BPF_RET | BPF_K.
const RETURN: u16 = 6;
const CONTINUE: u32 = 1;
/// _IOWR('!', 0, struct seccomp_notif) and _IOWR('!', 1, struct seccomp_notif_resp).
const RECEIVE: c_long = 0xc050_2100;
const SEND: c_long = 0xc018_2101;

#[repr(C)]
struct Instruction {
    code: u16,
    jumps: [u8; 2],
    k: u32,
}

#[repr(C)]
struct Program {
    length: u16,
    instructions: *const Instruction,
}

/// `struct seccomp_notif`.
#[repr(C)]
#[derive(Default)]
struct Notice {
    id: u64,
    thread: u32,
    flags: u32,
    call: i32,
    arch: u32,
    place: u64,
    arguments: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

// SAFETY: as glibc declares it (unistd.h).
unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

fn last() -> Errno {
    Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

/// From now on every system call of this thread waits until a [`Watcher`] has seen it. The number of the descriptor for it
/// goes to `place`, at once and without any further call: the watcher waits for it there.
///
/// # Errors
/// The kernel has no such filter (before 5.5), the process may still gain privileges (no_new_privs is not set), or this
/// thread is watched already.
pub fn watch_this_thread(place: &AtomicI32) -> Result<(), Errno> {
    let all = [Instruction { code: RETURN, jumps: [0; 2], k: RET_USER_NOTIF }];
    let program = Program { length: 1, instructions: all.as_ptr() };
    // SAFETY: a program of the length that it says, which the kernel copies.
    let made = unsafe { syscall(Sysno::seccomp as c_long, SET_MODE_FILTER, NEW_LISTENER, &program) };
    if made < 0 {
        return Err(last());
    }
    place.store(made as i32, Ordering::Release);
    Ok(())
}

/// A system call that a watched thread is about to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub number: i32,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// The other end of [`watch_this_thread`].
#[derive(Debug)]
pub struct Watcher(OwnedFd);

impl Watcher {
    /// Waits until the thread has put its descriptor into `place`, at most this long.
    pub fn of(place: &AtomicI32, limit: Duration) -> Option<Watcher> {
        let step = Duration::from_micros(200);
        let mut waited = Duration::ZERO;
        while waited < limit {
            let number = place.swap(-1, Ordering::AcqRel);
            if number >= 0 {
                // SAFETY: `watch_this_thread` has just made it, and the swap takes it from there once.
                return Some(Watcher(unsafe { OwnedFd::from_raw_fd(number) }));
            }
            std::thread::sleep(step);
            waited += step;
        }
        None
    }

    /// Shows the next call to `look`, and lets it go on. Returns false when the thread is gone.
    pub fn next(&self, look: impl FnOnce(&Call)) -> bool {
        let mut notice = Notice::default();
        // SAFETY: structures of the sizes that the two requests say.
        unsafe {
            loop {
                if syscall(Sysno::ioctl as c_long, self.0.as_raw_fd(), RECEIVE, pointer(&mut notice)) == 0 {
                    break;
                }
                // A call that a signal took back before it was seen; or a signal here.
                if !matches!(last(), Errno::ENOENT | Errno::EINTR) || self.hung_up() {
                    return false;
                }
                notice = Notice::default();
            }
        }
        look(&Call { number: notice.call, arguments: notice.arguments });
        let mut answer = Answer { id: notice.id, value: 0, error: 0, flags: CONTINUE };
        // SAFETY: as above. That the call is gone meanwhile is an error that means nothing here.
        unsafe { syscall(Sysno::ioctl as c_long, self.0.as_raw_fd(), SEND, pointer(&mut answer)) };
        true
    }

    /// The thread ended: POLLHUP (Linux 5.8).
    fn hung_up(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&at_once)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
    }
}

fn pointer<T>(it: &mut T) -> *mut c_void {
    std::ptr::from_mut(it).cast()
}

const _: () = assert!(size_of::<Notice>() == 80 && size_of::<Answer>() == 24 && size_of::<c_int>() == 4);
