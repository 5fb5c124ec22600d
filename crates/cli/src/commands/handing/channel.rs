//! What a mover and the process that a guest comes to say to each other: a message a packet, with at most one descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The longest message.
const LONGEST: usize = 64 << 10;

/// What a mover asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// Use this memory, of so many bytes, whose file comes with it: before [`Ask::Accept`].
    Memory(u64),
    /// Make the machine whose capsule without memory comes with this.
    Accept,
    /// Set what it is at: the capsule comes with this.
    Restore,
    /// Run it, with this epoch.
    Run(u64),
}

/// What is said to that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    /// It is done.
    Done,
    /// It is done, and the file of its memory, of so many bytes, comes with this.
    Memory(u64),
    /// It was not done: why.
    Failed(String),
}

/// One end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Both ends. The second one is inherited by programs that are started until it is dropped.
    pub fn pair() -> io::Result<(Channel, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        let (own, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Channel(own), other))
    }

    /// The end that this process was started with.
    pub fn of(fd: OwnedFd) -> Channel {
        Channel(fd)
    }

    /// Says something.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn say(&self, what: &impl Serialize, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut text = serde_json::to_vec(what).map_err(io::Error::other)?;
        text.truncate(LONGEST);
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        }
        sendmsg(self.0.as_fd(), &[IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Waits for something; none: the other end is gone.
    ///
    /// # Errors
    /// What came is nothing that can be said.
    pub fn hear<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Option<OwnedFd>)>> {
        let mut text = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = loop {
            match recvmsg(self.0.as_fd(), &mut [IoSliceMut::new(&mut text)], &mut ancillary, flags) {
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                got => break got?,
            }
        };
        let mut fd = None;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                fd = fds.last().or(fd);
            }
        }
        if got.bytes == 0 {
            return Ok(None);
        }
        if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::Error::other("a message that is too long"));
        }
        let said = serde_json::from_slice(&text[..got.bytes]).map_err(io::Error::other)?;
        Ok(Some((said, fd)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard_with_its_descriptor_until_the_other_end_is_gone() {
        let (one, other) = Channel::pair().unwrap();
        let other = Channel::of(other);
        one.say(&Ask::Memory(7), Some(std::io::stderr().as_fd())).unwrap();
        one.say(&Ask::Run(3), None).unwrap();
        let (asked, fd) = other.hear::<Ask>().unwrap().unwrap();
        assert_eq!((asked, fd.is_some()), (Ask::Memory(7), true));
        assert!(other.hear::<Told>().is_err(), "something else was said");
        other.say(&Told::Failed("x".repeat(10)), None).unwrap();
        assert!(matches!(one.hear::<Told>().unwrap(), Some((Told::Failed(_), None))));
        drop(one);
        assert!(other.hear::<Ask>().unwrap().is_none());
    }
}
