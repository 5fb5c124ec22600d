//! Where the other side is, and how it is reached.

use std::fmt;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::pipe::Pipe;
use crate::tls::Tls;
use crate::{Credentials, Stream};

/// Where a destination listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `unix:PATH`: on this host; who is not this user or root is refused.
    Unix(PathBuf),
    /// `tls:HOST:PORT`: TCP with TLS 1.3, and a certificate on both sides.
    Tls {
        /// Its name or address; the destination's certificate is for it.
        host: String,
        /// The port.
        port: u16,
    },
    /// `stdio`: standard input and output, one stream.
    Stdio,
    /// `device:PATH`: what can be read and written and has somebody at its other end, as a virtio-serial port; one stream.
    Device(PathBuf),
}

/// An address that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no address of a move: use unix:PATH, tls:HOST:PORT, device:PATH or stdio")]
pub struct NoAddress(pub String);

impl FromStr for Address {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Address, NoAddress> {
        let no = || NoAddress(text.to_owned());
        if text == "stdio" {
            return Ok(Address::Stdio);
        }
        match text.split_once(':').ok_or_else(no)? {
            ("unix", path) if !path.is_empty() => Ok(Address::Unix(path.into())),
            ("device", path) if !path.is_empty() => Ok(Address::Device(path.into())),
            ("tls", rest) => {
                let (host, port) = rest.rsplit_once(':').ok_or_else(no)?;
                let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
                if host.is_empty() || bare.is_none() && host.contains(':') {
                    return Err(no());
                }
                let port = port.parse().map_err(|_| no())?;
                Ok(Address::Tls { host: bare.unwrap_or(host).to_owned(), port })
            }
            _ => Err(no()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tls { host, port } if host.contains(':') => write!(f, "tls:[{host}]:{port}"),
            Address::Tls { host, port } => write!(f, "tls:{host}:{port}"),
            Address::Stdio => f.write_str("stdio"),
            Address::Device(path) => write!(f, "device:{}", path.display()),
        }
    }
}

impl Address {
    /// Opens a connection to who listens there.
    ///
    /// # Errors
    /// Nobody does, or it is not who it should be; in words that say what helps.
    pub fn connect(
        &self,
        credentials: Option<&Credentials>,
        patience: Duration,
    ) -> io::Result<Box<dyn Stream>> {
        match self {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(|error| self.unreachable(&error))?;
                known(&stream)?;
                Ok(Box::new(stream))
            }
            Address::Tls { host, port } => {
                let config = wanted(credentials)?.client()?;
                let mut last = io::Error::other("the name has no address");
                for address in (host.as_str(), *port).to_socket_addrs().map_err(|e| self.unreachable(&e))? {
                    match TcpStream::connect_timeout(&address, patience) {
                        Ok(socket) => {
                            return Ok(Box::new(Tls::connect(socket, config, host, patience)?));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(self.unreachable(&last))
            }
            Address::Stdio => Ok(Box::new(Pipe::stdio()?)),
            Address::Device(path) => Ok(Box::new(Pipe::device(path).map_err(|e| self.unreachable(&e))?)),
        }
    }

    fn unreachable(&self, error: &io::Error) -> io::Error {
        let words = format!(
            "{self} cannot be reached ({error}): is the destination started, and is this its address?"
        );
        io::Error::new(error.kind(), words)
    }
}

pub(crate) fn wanted(credentials: Option<&Credentials>) -> io::Result<&Credentials> {
    credentials.ok_or_else(|| {
        io::Error::other(
            "tls: needs a certificate of the CA, one of this side, and its key: name the three files",
        )
    })
}

/// Refuses who is neither this user nor root.
pub(crate) fn known(stream: &UnixStream) -> io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?.uid;
    may(peer.as_raw(), rustix::process::geteuid().as_raw())
}

fn may(peer: u32, own: u32) -> io::Result<()> {
    if peer == own || peer == 0 {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "the peer is user {peer}, and only user {own} and root may move guests here: run both sides as one user"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_shown() {
        for text in [
            "unix:/run/x:y",
            "tls:host.example:4433",
            "tls:[::1]:4433",
            "tls:10.0.0.1:1",
            "stdio",
            "device:/dev/x",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in
            ["", "unix:", "unix", "tls:host", "tls::1", "tls:::1:5", "tls:host:70000", "tcp:host:1", "Stdio"]
        {
            let refused = text.parse::<Address>().unwrap_err().to_string();
            assert!(refused.contains("use unix:PATH"), "{text}");
        }
    }

    #[test]
    fn other_users_are_refused() {
        assert!(may(1000, 1000).is_ok() && may(0, 1000).is_ok() && may(0, 0).is_ok());
        let refused = may(1001, 1000).unwrap_err().to_string();
        assert!(refused.contains("user 1001") && refused.contains("run both sides as one user"));
        assert!(may(1000, 0).is_err());
    }
}
