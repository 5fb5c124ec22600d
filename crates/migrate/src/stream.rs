//! What carries bytes between two sides: sockets here, and what other modules make of them.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// What carries bytes between two sides.
pub trait Stream: Read + Write + Send {
    /// Another handle of the same stream: one thread reads, another one writes, and a third one may close it.
    ///
    /// # Errors
    /// There is no room for one.
    fn again(&self) -> io::Result<Box<dyn Stream>>;

    /// Nothing more is sent or received on any handle; whoever waits for it on another one stops waiting.
    fn close(&self);

    /// Writes that take longer than this fail.
    ///
    /// # Errors
    /// The stream is unusable.
    fn patience(&self, patience: Duration) -> io::Result<()>;
}

macro_rules! stream {
    ($kind:ty, $ready:expr) => {
        impl Stream for $kind {
            fn again(&self) -> io::Result<Box<dyn Stream>> {
                Ok(Box::new(self.try_clone()?))
            }
            fn close(&self) {
                // A peer that is gone already has closed it.
                let _ = self.shutdown(Shutdown::Both);
            }
            fn patience(&self, patience: Duration) -> io::Result<()> {
                let ready: fn(&$kind) -> io::Result<()> = $ready;
                ready(self)?;
                self.set_write_timeout(Some(patience))
            }
        }
    };
}

stream!(UnixStream, |_| Ok(()));
// The last small frame of a phase must not wait for an acknowledgement.
stream!(TcpStream, |stream| stream.set_nodelay(true));
