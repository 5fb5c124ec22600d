//! What a network card is plugged into: a file whose every read and write is a frame.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use evenkeel_sys::{open_tap, set_tap_header, set_tap_offload, tap_kind};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketType};

use super::HEADER;
use crate::Error;

/// A tap or a socket.
#[derive(Debug)]
pub struct Link {
    file: OwnedFd,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A tap with a virtio header before each frame.
    TapWithHeader,
    /// A tap with frames alone.
    Tap,
    /// A socket: one frame a message, and none when the other end is closed.
    Messages,
    /// A socket without a connection: one frame a message, and an empty one is just that.
    Datagrams,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// So many bytes, the header's among them.
    Bytes(usize),
    /// Not now.
    Later,
    /// There is nobody at the other end, or nobody who takes this.
    Never,
}

impl Link {
    /// The tap of this name.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn tap(name: &str) -> Result<Link, Error> {
        let file = open_tap(name).map_err(|e| {
            Error::Device(format!(
                "net.tap: {e}; make the tap for this user (`ip tuntap add {name} mode tap user ...`) or pass it as a file"
            ))
        })?;
        Link::passed(file)
    }

    /// A file that was passed: an open tap, or a socket that keeps messages apart.
    ///
    /// # Errors
    /// It is neither.
    pub fn passed(file: OwnedFd) -> Result<Link, Error> {
        let failed = |e: Errno| Error::Device(format!("network card: {e}"));
        let kind = match tap_kind(file.as_fd()) {
            Some((true, true)) => Kind::TapWithHeader,
            Some((true, false)) => Kind::Tap,
            Some((false, _)) => {
                let what = "net.tap: the interface is no tap without packet information; open it with IFF_TAP | IFF_NO_PI";
                return Err(Error::Device(what.to_owned()));
            }
            None => match rustix::net::sockopt::socket_type(&file) {
                Ok(SocketType::DGRAM) => Kind::Datagrams,
                Ok(SocketType::SEQPACKET) => Kind::Messages,
                _ => {
                    let what = "network card: the file is neither a tap nor a socket of kind SOCK_DGRAM or SOCK_SEQPACKET";
                    return Err(Error::Device(what.to_owned()));
                }
            },
        };
        let flags = fcntl_getfl(&file).map_err(failed)?;
        fcntl_setfl(&file, flags | OFlags::NONBLOCK).map_err(failed)?;
        if kind == Kind::TapWithHeader {
            set_tap_header(file.as_fd(), HEADER as i32)
                .map_err(|e| Error::Device(format!("net.tap: {e}")))?;
        }
        Ok(Link { file, kind })
    }

    /// The file.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Whoever reads frames from here can do this with them: TUN_F_* bits.
    pub(super) fn offer(&self, offloads: u32) -> Result<(), Error> {
        match self.kind {
            Kind::TapWithHeader => set_tap_offload(self.file.as_fd(), offloads).map_err(|e| {
                Error::Device(format!(
                    "net.tap.offloads: the guest was promised {offloads:#x}, and this host's tap does not take that ({e}); \
                     run it where `evenkeel capture --tap` shows it, or start guests under a contract without it"
                ))
            }),
            _ if offloads == 0 => Ok(()),
            Kind::Tap => Err(Error::Device(format!(
                "net.tap.offloads: the guest was promised {offloads:#x}, and this tap has no header to tell of it; open it \
                 with IFF_VNET_HDR"
            ))),
            Kind::Messages | Kind::Datagrams => Err(Error::Device(format!(
                "net.tap.offloads: the guest was promised {offloads:#x}, and a socket does none of it; pass a tap that was \
                 opened with IFF_VNET_HDR"
            ))),
        }
    }

    /// The next frame, behind a header.
    pub(super) fn receive(&self, into: &mut [u8]) -> Moved {
        let from = match self.kind {
            Kind::TapWithHeader => 0,
            Kind::Tap | Kind::Messages | Kind::Datagrams => HEADER,
        };
        into[..from].fill(0);
        match rustix::io::read(&self.file, &mut into[from..]) {
            // The other end is closed; taps have no empty frames.
            Ok(0) if self.kind != Kind::Datagrams => Moved::Never,
            Ok(length) => Moved::Bytes(from + length),
            Err(Errno::AGAIN | Errno::INTR) => Moved::Later,
            Err(_) => Moved::Never,
        }
    }

    /// Sends a frame, which is behind a header.
    pub(super) fn send(&self, frame: &[u8]) -> Moved {
        let done = match self.kind {
            Kind::TapWithHeader => rustix::io::write(&self.file, frame),
            Kind::Tap => rustix::io::write(&self.file, &frame[HEADER..]),
            // Without the flag, a closed other end would end this process.
            Kind::Messages | Kind::Datagrams => {
                rustix::net::send(&self.file, &frame[HEADER..], SendFlags::NOSIGNAL)
            }
        };
        match done {
            Ok(length) => Moved::Bytes(length),
            Err(Errno::AGAIN | Errno::INTR) => Moved::Later,
            Err(_) => Moved::Never,
        }
    }
}
