//! Where a destination lets its peers in: those who may move guests here, and nobody else.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::ServerConfig;

use crate::address::{known, wanted};
use crate::connection::locked;
use crate::pipe::Pipe;
use crate::tls::Tls;
use crate::{Address, Credentials, Stream};

/// The most strangers that are in the midst of showing a certificate.
const MOST: usize = 16;
/// How often a device is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// The most refusals that are kept until somebody looks.
const KEPT: usize = 64;

/// Listens, checks who comes in threads of its own, and lets nobody wait for a stranger.
pub struct Listener {
    address: Address,
    came: Mutex<Receiver<Box<dyn Stream>>>,
    refused: Arc<Mutex<Vec<String>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    path: Option<PathBuf>,
}

enum Socket {
    Unix(UnixListener),
    Tls(TcpListener, Arc<ServerConfig>),
}

impl Listener {
    /// Listens there; with port 0, [`Listener::address`] says on which one.
    ///
    /// # Errors
    /// It is taken, or the certificates cannot be used.
    pub fn bind(
        address: &Address,
        credentials: Option<&Credentials>,
        patience: Duration,
    ) -> io::Result<Listener> {
        let taken = |error: io::Error| {
            io::Error::new(
                error.kind(),
                format!("{address} cannot be listened on ({error}): choose another one"),
            )
        };
        let (sender, came) = sync_channel(MOST);
        let mut listener = Listener {
            address: address.clone(),
            came: Mutex::new(came),
            refused: Arc::default(),
            over: Arc::default(),
            thread: None,
            path: None,
        };
        let socket = match address {
            Address::Unix(path) => {
                // What a process left that was killed; one that lives answers.
                if UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
                    std::fs::remove_file(path).map_err(taken)?;
                }
                let socket = UnixListener::bind(path).map_err(taken)?;
                listener.path = Some(path.clone());
                Socket::Unix(socket)
            }
            Address::Tls { host, port } => {
                let config = wanted(credentials)?.server()?;
                let socket = TcpListener::bind((host.as_str(), *port)).map_err(taken)?;
                let port = socket.local_addr()?.port();
                listener.address = Address::Tls { host: host.clone(), port };
                Socket::Tls(socket, config)
            }
            Address::Stdio => {
                // There is one, and it is there.
                let _ = sender.send(Box::new(Pipe::stdio()?));
                return Ok(listener);
            }
            Address::Device(path) => {
                let pipe = Pipe::device(path).map_err(taken)?;
                let over = listener.over.clone();
                listener.thread = Some(std::thread::spawn(move || {
                    // Who is at its other end begins some time; until then it may read as if that were over.
                    while !over.load(Ordering::SeqCst) {
                        if pipe.speaks() {
                            drop(sender.try_send(Box::new(pipe)));
                            return;
                        }
                        std::thread::sleep(LOOK);
                    }
                }));
                return Ok(listener);
            }
        };
        let (over, refused) = (listener.over.clone(), listener.refused.clone());
        listener.thread = Some(std::thread::spawn(move || socket.serve(&over, &sender, &refused, patience)));
        Ok(listener)
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Who came within this time and may: for [`crate::receive`].
    ///
    /// # Errors
    /// Nobody can come any more.
    pub fn accept(&self, wait: Duration) -> io::Result<Option<Box<dyn Stream>>> {
        match locked(&self.came).recv_timeout(wait) {
            Ok(stream) => Ok(Some(stream)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(io::Error::other(format!("nobody can come on {} any more", self.address)))
            }
        }
    }

    /// Who was refused since the last call, and why.
    pub fn refused(&self) -> Vec<String> {
        std::mem::take(&mut locked(&self.refused))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // It panics nowhere.
            let _ = thread.join();
        }
        if let Some(path) = &self.path {
            // Somebody may have taken it away.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn refuse(refused: &Mutex<Vec<String>>, why: String) {
    let mut refused = locked(refused);
    if refused.len() < KEPT {
        refused.push(why);
    }
}

impl Socket {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Unix(socket) => socket.as_fd(),
            Socket::Tls(socket, _) => socket.as_fd(),
        }
    }

    fn serve(
        &self,
        over: &AtomicBool,
        came: &SyncSender<Box<dyn Stream>>,
        refused: &Arc<Mutex<Vec<String>>>,
        patience: Duration,
    ) {
        let shaking = Arc::new(AtomicUsize::new(0));
        while !over.load(Ordering::SeqCst) {
            let look = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
            let fd = self.fd();
            if !matches!(poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&look)), Ok(1..)) {
                continue;
            }
            match self {
                Socket::Unix(socket) => {
                    let Ok((stream, _)) = socket.accept() else { continue };
                    match known(&stream) {
                        // Where too many wait for the move, this one goes.
                        Ok(()) => drop(came.try_send(Box::new(stream))),
                        Err(error) => refuse(refused, error.to_string()),
                    }
                }
                Socket::Tls(socket, config) => {
                    let Ok((stream, from)) = socket.accept() else { continue };
                    if shaking.fetch_add(1, Ordering::SeqCst) >= MOST {
                        shaking.fetch_sub(1, Ordering::SeqCst);
                        refuse(refused, format!("{from}: too many connections show no certificate"));
                        continue;
                    }
                    let (config, came, shaking) = (config.clone(), came.clone(), shaking.clone());
                    let refused = refused.clone();
                    std::thread::spawn(move || {
                        match Tls::accept(stream, config, patience) {
                            Ok(tls) => drop(came.try_send(Box::new(tls))),
                            Err(error) => refuse(&refused, format!("{from}: {error}")),
                        }
                        shaking.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn nobody_comes_on_a_device_before_something_is_said_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let address = Address::Device(path.clone());
        let listener = Listener::bind(&address, None, Duration::from_secs(1)).unwrap();
        assert!(listener.accept(Duration::from_millis(100)).unwrap().is_none());
        std::fs::File::options().write(true).open(&path).unwrap().write_all(b"x").unwrap();
        let mut came = listener.accept(Duration::from_secs(10)).unwrap().expect("it speaks");
        let mut byte = [0];
        came.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
        assert!(listener.accept(Duration::from_millis(50)).is_err(), "there is one, and it came");
    }
}
