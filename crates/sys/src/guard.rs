//! What a filter of system calls refused, told by the thread that tried, as the last thing that the process does.
//!
//! A filter that answers with SECCOMP_RET_TRAP (see seccomp(2)) makes the kernel send SIGSYS to the thread. The handler here
//! writes one line to standard error, if that takes it at once, and then makes another call that no filter knows: SIGSYS is
//! blocked while it is handled, so this second one ends the whole process, by SIGSYS. Nothing in the handler allocates,
//! locks, or makes a call that a filter of ours does not have.

use std::cell::Cell;
use std::ffi::{c_int, c_long, c_void};
use std::sync::Once;

use syscalls::Sysno;

const SIGSYS: c_int = 31;
const SA_SIGINFO: c_int = 4;
const SA_ONSTACK: c_int = 0x0800_0000;
const POLLOUT: i16 = 4;
const STDERR: c_int = 2;
/// A number that no kernel has a call for.
const NO_CALL: c_long = 0x1fff_ffff;

/// glibc's `struct sigaction` on x86_64 and arm64.
#[repr(C)]
struct Action {
    handler: extern "C" fn(c_int, *const Info, *const c_void),
    mask: [u64; 16],
    flags: c_int,
    restorer: usize,
}

/// The head of `siginfo_t`, as it is for SIGSYS.
#[repr(C)]
struct Info {
    signal: c_int,
    errno: c_int,
    code: c_int,
    _padding: c_int,
    /// The instruction behind the call.
    place: usize,
    call: c_int,
    arch: u32,
}

#[repr(C)]
struct PollFd {
    fd: c_int,
    events: i16,
    happened: i16,
}

// SAFETY: as glibc declares them (signal.h, unistd.h).
unsafe extern "C" {
    fn sigaction(number: c_int, new: *const Action, old: *mut c_void) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn abort() -> !;
    fn mallopt(parameter: c_int, value: c_int) -> c_int;
}

/// M_ARENA_MAX and M_TRIM_THRESHOLD of `mallopt` (malloc.h).
const ARENA_MAX: c_int = -8;
const TRIM_THRESHOLD: c_int = -1;

/// From now on the allocator makes no more arenas than this for threads that meet in it, and keeps what they had. Otherwise it opens
/// two files, whenever that is: one for how many CPUs there are (sysdeps/unix/sysv/linux/getsysstats.c), and, before it gives
/// memory of an arena back, /proc/sys/vm/overcommit_memory (malloc-sysdep.h). A confined thread may open none.
pub fn bound_arenas(most: u16) {
    // SAFETY: numbers for glibc's allocator. One that it does not take changes nothing.
    unsafe {
        mallopt(ARENA_MAX, most.into());
        mallopt(TRIM_THRESHOLD, c_int::MAX);
    }
}

thread_local! {
    /// What this thread is for: constant from its start on, without a destructor, so that a handler may read it.
    static ROLE: Cell<&'static str> = const { Cell::new("unnamed") };
}

/// Tells what this thread is for, in the line that says which thread made a call that is refused.
pub fn name_role(role: &'static str) {
    ROLE.set(role);
}

/// From now on a call that a filter answers with SECCOMP_RET_TRAP ends the process, with a line that names thread and call.
/// It takes the process' handler of SIGSYS.
pub fn tell_refused_calls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let action = Action { handler: refused, mask: [0; 16], flags: SA_SIGINFO | SA_ONSTACK, restorer: 0 };
        // SAFETY: a structure as glibc has it, and a handler that only uses its own stack and the thread's constant.
        unsafe { sigaction(SIGSYS, &action, std::ptr::null_mut()) };
    });
}

/// A line that is put together without allocating.
struct Line {
    bytes: [u8; 240],
    length: usize,
}

impl Line {
    fn text(&mut self, text: &str) {
        for byte in text.bytes() {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = byte;
                self.length += 1;
            }
        }
    }

    fn number(&mut self, number: u64, base: u64) {
        let mut digits = [0_u8; 20];
        let (mut left, mut at) = (number, digits.len());
        loop {
            at -= 1;
            digits[at] = b"0123456789abcdef"[(left % base) as usize];
            left /= base;
            if left == 0 || at == 0 {
                break;
            }
        }
        self.text(std::str::from_utf8(&digits[at..]).unwrap_or("?"));
    }
}

fn line(role: &str, info: &Info) -> Line {
    let mut line = Line { bytes: [0; 240], length: 0 };
    line.text("evenkeel: confinement: the thread `");
    line.text(role);
    line.text("` made the system call ");
    let number = info.call as u32;
    line.text(Sysno::new(number as usize).map_or("that has no name", |call| call.name()));
    line.text(" (");
    line.number(u64::from(number), 10);
    line.text(") before 0x");
    line.number(info.place as u64, 16);
    line.text(", which its filter does not have: the process is ended\n");
    line
}

extern "C" fn refused(_: c_int, info: *const Info, _: *const c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a whole siginfo_t.
    let line = line(ROLE.get(), unsafe { &*info });
    let mut out = PollFd { fd: STDERR, events: POLLOUT, happened: 0 };
    let at_once = [0_u64; 2];
    // SAFETY: structures on this stack, of the sizes that the calls take; the line is shorter than PIPE_BUF, so that a pipe
    // that is ready takes it whole and nobody who does not read can keep the process alive. The last call is refused
    // while SIGSYS is blocked, which ends the process.
    unsafe {
        let ready = syscall(Sysno::ppoll as c_long, &mut out, 1_usize, &at_once, 0_usize, 8_usize);
        if ready == 1 && out.happened & POLLOUT != 0 {
            syscall(Sysno::write as c_long, STDERR as usize, line.bytes.as_ptr(), line.length);
        }
        syscall(NO_CALL);
        abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_thread_and_call() {
        let info = Info {
            signal: SIGSYS,
            errno: 0,
            code: 1,
            _padding: 0,
            place: 0xabc,
            call: Sysno::openat as c_int,
            arch: 0,
        };
        let line = line("vcpu", &info);
        let text = std::str::from_utf8(&line.bytes[..line.length]).unwrap();
        let number = Sysno::openat as u32;
        assert!(
            text.contains(&format!("the thread `vcpu` made the system call openat ({number}) before 0xabc,"))
        );
        assert!(text.ends_with("ended\n"));
    }
}
