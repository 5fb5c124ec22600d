//! Any two file descriptors as a stream: standard input and output, a virtio-serial port.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::Stream;

/// A pipe takes so much at once without waiting, once it says that it takes anything.
const ATOMIC: usize = 4096;
/// How long a handle that waits does not look whether it was closed.
const LOOK: Duration = Duration::from_millis(50);

/// Bytes in from one descriptor, and out to another. Neither needs to be a socket.
#[derive(Debug)]
pub struct Pipe {
    from: File,
    to: File,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    closed: AtomicBool,
    /// Milliseconds.
    patience: AtomicU64,
}

impl Pipe {
    /// These two.
    pub fn new(from: OwnedFd, to: OwnedFd) -> Pipe {
        let shared = Shared { closed: AtomicBool::new(false), patience: AtomicU64::new(10_000) };
        Pipe { from: from.into(), to: to.into(), shared: Arc::new(shared) }
    }

    /// A file that has somebody at its other end.
    ///
    /// # Errors
    /// It cannot be opened for both directions.
    pub fn device(path: &Path) -> io::Result<Pipe> {
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Pipe::new(file.try_clone()?.into(), file.into()))
    }

    /// Whether there is something to be read now.
    pub(crate) fn speaks(&self) -> bool {
        let mut one = [PollFd::new(&self.from, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ready = matches!(poll(&mut one, Some(&now)), Ok(1..));
        // A virtio-serial port whose other end is closed hangs up, and is readable without a byte.
        ready && one[0].revents().contains(PollFlags::IN) && !one[0].revents().contains(PollFlags::HUP)
    }

    /// Standard input and standard output, of which nobody else in this process may make use.
    ///
    /// # Errors
    /// They are closed.
    pub fn stdio() -> io::Result<Pipe> {
        let from = io::stdin().as_fd().try_clone_to_owned()?;
        Ok(Pipe::new(from, io::stdout().as_fd().try_clone_to_owned()?))
    }

    /// Waits until this descriptor is ready, at most so long; `false` when the stream is closed.
    fn ready(&self, file: &File, flags: PollFlags, patience: Option<Duration>) -> io::Result<bool> {
        let begin = Instant::now();
        while !self.shared.closed.load(Ordering::SeqCst) {
            let look = Timespec { tv_sec: 0, tv_nsec: LOOK.as_nanos() as i64 };
            let mut one = [PollFd::new(file, flags)];
            match poll(&mut one, Some(&look)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
            if patience.is_some_and(|patience| begin.elapsed() > patience) {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the peer takes nothing of what is sent",
                ));
            }
        }
        Ok(false)
    }
}

impl Read for Pipe {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.ready(&self.from, PollFlags::IN, None)? {
            true => self.from.read(into),
            false => Ok(0),
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let patience = Duration::from_millis(self.shared.patience.load(Ordering::SeqCst));
        match self.ready(&self.to, PollFlags::OUT, Some(patience))? {
            true => self.to.write(&bytes[..bytes.len().min(ATOMIC)]),
            false => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Pipe {
    fn again(&self) -> io::Result<Box<dyn Stream>> {
        let (from, to) = (self.from.try_clone()?, self.to.try_clone()?);
        Ok(Box::new(Pipe { from, to, shared: self.shared.clone() }))
    }

    fn close(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
    }

    fn patience(&self, patience: Duration) -> io::Result<()> {
        let millis = patience.as_millis().try_into().unwrap_or(u64::MAX);
        self.shared.patience.store(millis, Ordering::SeqCst);
        Ok(())
    }
}
