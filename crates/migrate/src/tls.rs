//! TLS over TCP as a stream of which one thread reads while another one writes.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use crate::Stream;
use crate::connection::locked;
use crate::credentials::explain;

/// What is read from the socket at once.
const PIECE: usize = 64 << 10;

/// A connection whose peer has shown a certificate that the CA signed.
pub(crate) struct Tls {
    inner: Arc<Inner>,
    /// What came and was not decrypted yet; only of the handle that reads.
    arrived: Vec<u8>,
    from: usize,
}

struct Inner {
    session: Mutex<Connection>,
    socket: TcpStream,
    /// Held while records are made and sent, so that they are sent in their order.
    out: Mutex<Vec<u8>>,
}

impl Tls {
    /// As the side that connects, to a host of this name.
    pub fn connect(
        socket: TcpStream,
        config: Arc<ClientConfig>,
        name: &str,
        patience: Duration,
    ) -> io::Result<Tls> {
        let name = ServerName::try_from(name.to_owned()).map_err(|_| {
            io::Error::other(format!("`{name}` is no name of a host: give its name or address"))
        })?;
        let session = ClientConnection::new(config, name).map_err(io::Error::other)?;
        Tls::shaken(socket, session.into(), patience)
    }

    /// As the side that accepted.
    pub fn accept(socket: TcpStream, config: Arc<ServerConfig>, patience: Duration) -> io::Result<Tls> {
        let session = ServerConnection::new(config).map_err(io::Error::other)?;
        Tls::shaken(socket, session.into(), patience)
    }

    fn shaken(mut socket: TcpStream, mut session: Connection, patience: Duration) -> io::Result<Tls> {
        let begin = Instant::now();
        socket.set_nodelay(true)?;
        socket.set_write_timeout(Some(patience))?;
        while session.is_handshaking() || session.wants_write() {
            let left = patience.saturating_sub(begin.elapsed());
            if left.is_zero() {
                let words = "the peer did not complete the TLS handshake in time: look at whether it is one of evenkeel";
                return Err(io::Error::new(io::ErrorKind::TimedOut, words));
            }
            if session.wants_write() {
                session.write_tls(&mut socket)?;
                continue;
            }
            socket.set_read_timeout(Some(left))?;
            match session.read_tls(&mut socket) {
                Ok(0) => {
                    let words =
                        "the peer ended the connection during the TLS handshake: look at what it says";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, words));
                }
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            }
            if let Err(error) = session.process_new_packets() {
                // The peer hears why, if it still listens.
                let _ = session.write_tls(&mut socket);
                return Err(io::Error::other(explain(&error)));
            }
        }
        socket.set_read_timeout(None)?;
        let inner = Inner { session: Mutex::new(session), socket, out: Mutex::default() };
        Ok(Tls { inner: Arc::new(inner), arrived: Vec::new(), from: 0 })
    }
}

impl Read for Tls {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            {
                let mut session = locked(&self.inner.session);
                match session.reader().read(into) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    other => return other,
                }
                if self.from < self.arrived.len() {
                    let mut rest = &self.arrived[self.from..];
                    let taken = session.read_tls(&mut rest)?;
                    self.from += taken;
                    if let Err(error) = session.process_new_packets() {
                        // Whoever writes is not waited for: what is said last need not arrive.
                        if let Ok(_out) = self.inner.out.try_lock() {
                            let _ = session.write_tls(&mut &self.inner.socket);
                        }
                        return Err(io::Error::other(explain(&error)));
                    }
                    continue;
                }
            }
            self.arrived.resize(PIECE, 0);
            let count = (&self.inner.socket).read(&mut self.arrived)?;
            self.arrived.truncate(count);
            self.from = 0;
            if count == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed it"));
            }
        }
    }
}

impl Write for Tls {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut out = locked(&self.inner.out);
        out.clear();
        let count = {
            let mut session = locked(&self.inner.session);
            let count = session.writer().write(bytes)?;
            while session.wants_write() {
                session.write_tls(&mut *out)?;
            }
            count
        };
        (&self.inner.socket).write_all(&out)?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Tls {
    fn again(&self) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(Tls { inner: self.inner.clone(), arrived: Vec::new(), from: 0 }))
    }

    fn close(&self) {
        // A peer that is gone already has closed it.
        let _ = self.inner.socket.shutdown(Shutdown::Both);
    }

    fn patience(&self, patience: Duration) -> io::Result<()> {
        self.inner.socket.set_write_timeout(Some(patience))
    }
}
