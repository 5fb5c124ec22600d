//! One file to poll for all that can wake a device: its own back-end while it is wanted, and work that it left over.
//!
//! It is an epoll, which is itself readable as long as anything in it is. What the device does not want now is not in it, so that
//! a back-end with something for a guest that takes nothing does not keep a thread busy.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;

use crate::Error;

/// What of a back-end is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// That it can be read.
    pub read: bool,
    /// That it can be written.
    pub write: bool,
}

/// The file, and what is waited for.
#[derive(Debug)]
pub struct Bell {
    epoll: OwnedFd,
    left_over: OwnedFd,
    wanted: Wanted,
}

impl Bell {
    /// One that is silent.
    ///
    /// # Errors
    /// The process has no more files.
    pub fn new() -> Result<Bell, Error> {
        let failed = |e: Errno| Error::Device(format!("a file to be woken by: {e}"));
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        let left_over = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed)?;
        epoll::add(&epoll, &left_over, epoll::EventData::new_u64(0), epoll::EventFlags::IN)
            .map_err(failed)?;
        Ok(Bell { epoll, left_over, wanted: Wanted::default() })
    }

    /// What is polled.
    pub fn source(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// There is work left over.
    pub fn ring(&self) {
        // It fails only when it was rung 2^64 - 2 times.
        let _ = rustix::io::write(&self.left_over, &1_u64.to_ne_bytes());
    }

    /// The work is begun.
    pub fn silence(&self) {
        // Nothing to read is silence, too.
        let _ = rustix::io::read(&self.left_over, &mut [0; 8]);
    }

    /// From now on this, and only this, of the back-end is waited for. A file that cannot be waited for (a regular one) never
    /// blocks either: it rings at once.
    pub fn want(&mut self, back: BorrowedFd<'_>, wanted: Wanted) {
        let nothing = Wanted::default();
        if wanted == self.wanted {
            return;
        }
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN, wanted.read);
        flags.set(epoll::EventFlags::OUT, wanted.write);
        let data = epoll::EventData::new_u64(1);
        let done = if wanted == nothing {
            epoll::delete(&self.epoll, back)
        } else if self.wanted == nothing {
            epoll::add(&self.epoll, back, data, flags)
        } else {
            epoll::modify(&self.epoll, back, data, flags)
        };
        match done {
            Ok(()) => self.wanted = wanted,
            Err(_) if wanted == nothing => self.wanted = nothing,
            Err(_) => self.ring(),
        }
    }
}
