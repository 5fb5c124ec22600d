//! The other end: for the commands, and for whoever writes another one.

use std::io::{self, BufRead as _, BufReader, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::connection::PASSED;
use super::protocol::{Answer, Command, Event, Line, Refused, Request};

/// The longest line that is taken from a machine.
const MOST: u64 = 1 << 20;

/// Why nothing came of it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The machine said no.
    #[error("{}", .0.message)]
    Refused(Refused),
    /// It said something that is none of what it may say.
    #[error("the machine said something that is no answer: {0}")]
    Nonsense(String),
    /// It closed the connection before it answered.
    #[error("the machine is gone")]
    Gone,
}

/// Reads what comes, and keeps the last descriptor that came with it.
#[derive(Debug)]
struct Socket {
    socket: UnixStream,
    passed: Option<OwnedFd>,
}

impl io::Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(into)];
        let got = recvmsg(&self.socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.passed = fds.last().or(self.passed.take());
            }
        }
        Ok(got.bytes)
    }
}

/// A connection to a machine.
#[derive(Debug)]
pub struct Client {
    socket: BufReader<Socket>,
    next: u64,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there, or nobody who is not another user.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        Ok(Client {
            socket: BufReader::new(Socket { socket: UnixStream::connect(path)?, passed: None }),
            next: 1,
        })
    }

    /// How long to wait for a line.
    ///
    /// # Errors
    /// It is zero.
    pub fn set_limit(&self, limit: Option<Duration>) -> Result<(), ClientError> {
        Ok(self.socket.get_ref().socket.set_read_timeout(limit)?)
    }

    /// Asks, and waits for the answer. What happens meanwhile is given to `happened`, for who subscribed.
    ///
    /// # Errors
    /// It was refused, or the connection broke.
    pub fn ask(
        &mut self,
        command: Command,
        passed: &[BorrowedFd<'_>],
        happened: &mut dyn FnMut(Event),
    ) -> Result<Answer, ClientError> {
        let id = self.next;
        self.next += 1;
        let request = Request { id: Some(id), command };
        let mut line = serde_json::to_vec(&request).map_err(|e| ClientError::Nonsense(e.to_string()))?;
        line.push(b'\n');
        let mut sent = 0;
        if passed.len() > PASSED {
            return Err(ClientError::Io(io::Error::other(format!(
                "more than {PASSED} files with a request"
            ))));
        }
        if !passed.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PASSED))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(passed));
            let parts = [IoSlice::new(&line)];
            sent = sendmsg(&self.socket.get_ref().socket, &parts, &mut ancillary, SendFlags::NOSIGNAL)
                .map_err(io::Error::from)?;
        }
        let written = self.socket.get_mut().socket.write_all(&line[sent..]);
        loop {
            // A machine that has no room says so before it closes: that is worth more than that nobody listened.
            let heard = match (self.line(), &written) {
                (Err(_), Err(error)) => return Err(ClientError::Io(error.kind().into())),
                (heard, _) => heard?,
            };
            match heard {
                Line::Event(event) => happened(event),
                Line::Reply(reply) if reply.id.is_none() || reply.id == Some(id) => match reply.reply {
                    Answer::Error(refused) => return Err(ClientError::Refused(refused)),
                    answer => return Ok(answer),
                },
                Line::Reply(reply) => {
                    return Err(ClientError::Nonsense(format!("a reply to {:?}", reply.id)));
                }
            }
        }
    }

    /// The last descriptor that came with a line, and was not taken yet.
    pub fn passed(&mut self) -> Option<OwnedFd> {
        self.socket.get_mut().passed.take()
    }

    /// The next line.
    ///
    /// # Errors
    /// The connection broke, or what came is no line of a machine.
    pub fn line(&mut self) -> Result<Line, ClientError> {
        let mut text = Vec::new();
        (&mut self.socket).take(MOST).read_until(b'\n', &mut text)?;
        if text.is_empty() {
            return Err(ClientError::Gone);
        }
        serde_json::from_slice(&text).map_err(|e| ClientError::Nonsense(e.to_string()))
    }
}
