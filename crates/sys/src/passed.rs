//! File descriptors that whoever started the process passed to it, by number.

use std::collections::BTreeSet;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::fd::BorrowedFd;
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

use crate::Errno;

/// Those that were taken: a second owner would close what the first one uses.
static TAKEN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Takes the descriptor of this number, once. It is not passed on to programs that this process may start.
///
/// Call it first thing: a number that nobody passed may by then be a file that the process itself has opened. Such files
/// are recognized by being closed on exec, as all that the standard library opens is, and refused.
///
/// # Errors
/// EBADF: it is not open, was taken before, was opened by this process, or is one of the three standard streams.
pub fn passed(number: i32) -> Result<OwnedFd, Errno> {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if number < 3 || taken.contains(&number) {
        return Err(Errno::EBADF);
    }
    // SAFETY: only asked about here; a number that is not open is an error.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl_getfd(borrowed).map_err(|e| Errno(e.raw_os_error()))?;
    if flags.contains(FdFlags::CLOEXEC) {
        return Err(Errno::EBADF);
    }
    fcntl_setfd(borrowed, FdFlags::CLOEXEC).map_err(|e| Errno(e.raw_os_error()))?;
    taken.insert(number);
    // SAFETY: open, inherited over exec (it was not closed on it), and handed out once: nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, IntoRawFd};

    #[test]
    fn a_descriptor_is_taken_once_and_only_if_it_was_passed() {
        assert_eq!(passed(0).unwrap_err(), Errno::EBADF);
        assert_eq!(passed(9999).unwrap_err(), Errno::EBADF);
        let own = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(passed(own.as_raw_fd()).unwrap_err(), Errno::EBADF, "opened by this process");
        fcntl_setfd(&own, FdFlags::empty()).unwrap();
        let number = own.into_raw_fd();
        let taken = passed(number).unwrap();
        assert_eq!(taken.as_raw_fd(), number);
        assert!(fcntl_getfd(&taken).unwrap().contains(FdFlags::CLOEXEC));
        assert_eq!(passed(number).unwrap_err(), Errno::EBADF, "a second time");
    }
}
