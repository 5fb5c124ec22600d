//! One client: what it sent and has not finished, what it is sent and has not read, each with a bound.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, send, sendmsg,
};

use super::protocol::{Code, Event, Happened, LONGEST, Line, Lost, Refused};

/// Bytes that a client may leave unread before it is not listened to any more, and before events are not kept for it.
const UNREAD: usize = 256 << 10;
/// As many descriptors come with a line: that of a snapshot, and those of copies of disks.
pub const PASSED: usize = 10;
/// For how long it may take nothing of what it is sent.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A client.
pub struct Connection {
    /// Its number: never used again.
    pub number: u64,
    socket: UnixStream,
    input: Vec<u8>,
    output: VecDeque<u8>,
    passed: Vec<OwnedFd>,
    /// Descriptors that go with a byte of the output, each with how many bytes of it come before.
    attached: VecDeque<(usize, OwnedFd)>,
    /// It is told what happens.
    pub subscribed: bool,
    /// Jobs of it that are not done.
    pub waits: usize,
    /// When it last said or took something.
    pub active: Instant,
    lost: u64,
    /// What was written is all that it gets.
    closing: bool,
}

/// Why a connection is over.
#[derive(Debug)]
pub struct Gone;

impl Connection {
    /// Of a socket that does not block.
    pub fn new(number: u64, socket: UnixStream) -> Connection {
        Connection {
            number,
            socket,
            input: Vec::new(),
            output: VecDeque::new(),
            passed: Vec::new(),
            attached: VecDeque::new(),
            subscribed: false,
            waits: 0,
            active: Instant::now(),
            lost: 0,
            closing: false,
        }
    }

    /// Whether it is listened to now.
    pub fn hears(&self) -> bool {
        !self.closing && self.output.len() < UNREAD
    }

    /// Whether it has something to read.
    pub fn owes(&self) -> bool {
        !self.output.is_empty()
    }

    /// Reads what is there, at most a line's length, so that everybody has a turn.
    ///
    /// # Errors
    /// It is gone.
    pub fn receive(&mut self) -> Result<(), Gone> {
        let mut bytes = [0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PASSED))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = match recvmsg(&self.socket, &mut parts, &mut ancillary, flags) {
            Ok(got) => got,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(_) => return Err(Gone),
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                // What nothing used is closed by this.
                self.passed = fds.collect();
            }
        }
        if got.bytes == 0 {
            return Err(Gone);
        }
        self.active = Instant::now();
        self.input.extend_from_slice(&bytes[..got.bytes]);
        if got.flags.contains(ReturnFlags::CTRUNC) {
            self.close(Refused::new(Code::TooLong, format!("more than {PASSED} descriptors with a line")));
        }
        Ok(())
    }

    /// The next whole line, without its end; none if there is none, or if it is not its turn. One that is too long ends the
    /// connection.
    pub fn line(&mut self) -> Option<Vec<u8>> {
        if !self.hears() {
            return None;
        }
        match self.input.iter().position(|byte| *byte == b'\n') {
            Some(end) if end < LONGEST => {
                let rest = self.input.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.input, rest);
                line.pop();
                Some(line)
            }
            None if self.input.len() < LONGEST => None,
            _ => {
                self.close(Refused::new(Code::TooLong, format!("a line has at most {LONGEST} bytes")));
                None
            }
        }
    }

    /// Whether a whole line waits to be done.
    pub fn has_line(&self) -> bool {
        self.hears() && self.input.contains(&b'\n')
    }

    /// The file that was passed, if a snapshot can go there, and those behind it.
    ///
    /// # Errors
    /// There is none, or one that nothing can go to.
    pub fn targets(&mut self) -> Result<Vec<File>, Refused> {
        let passed = std::mem::take(&mut self.passed);
        if passed.is_empty() {
            return Err(Refused::new(Code::Target, "no descriptor came with the line")
                .hinting("pass a new file, open for writing, with the line (SCM_RIGHTS)"));
        }
        passed.into_iter().map(Connection::target).collect()
    }

    fn target(fd: OwnedFd) -> Result<File, Refused> {
        let refused = |why: &str| {
            Refused::new(Code::Target, why)
                .hinting("pass a new file, open for writing, with the line (SCM_RIGHTS)")
        };
        let kind = fstat(&fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
        // A pipe or a terminal that nobody reads would hold up everybody else's work.
        if kind != Ok(FileType::RegularFile) {
            return Err(refused("the descriptor is no regular file"));
        }
        let flags = fcntl_getfl(&fd).map_err(|_| refused("the descriptor cannot be asked about"))?;
        let writable = matches!(flags & OFlags::RWMODE, OFlags::WRONLY | OFlags::RDWR);
        if !writable || flags.intersects(OFlags::APPEND | OFlags::PATH) {
            return Err(refused("the descriptor is not open for writing anywhere"));
        }
        Ok(File::from(fd))
    }

    /// Says a line.
    pub fn say(&mut self, line: &Line) {
        // Types of ours: they always can be written.
        if let Ok(text) = serde_json::to_vec(line) {
            if self.output.is_empty() {
                // It has its time from now on.
                self.active = Instant::now();
            }
            self.output.extend(text);
            self.output.push_back(b'\n');
        }
    }

    /// Says a line that a descriptor goes with.
    pub fn say_with(&mut self, line: &Line, fd: Option<OwnedFd>) {
        let at = self.output.len();
        self.say(line);
        if let Some(fd) = fd {
            self.attached.push_back((at, fd));
        }
    }

    /// Tells it what happened, if it wants to know and reads.
    pub fn tell(&mut self, event: &Event) {
        if !self.subscribed || self.closing {
            return;
        }
        if self.output.len() >= UNREAD {
            self.lost += 1;
            return;
        }
        if self.lost > 0 {
            let lost = Lost { events: std::mem::take(&mut self.lost) };
            self.say(&Line::Event(Event { at: event.at, event: Happened::Lost(lost) }));
        }
        self.say(&Line::Event(event.clone()));
    }

    /// Says why, and nothing after that.
    pub fn close(&mut self, why: Refused) {
        self.say(&Line::Reply(super::protocol::Reply {
            id: None,
            reply: super::protocol::Answer::Error(why),
        }));
        self.closing = true;
        self.input = Vec::new();
        self.passed.clear();
    }

    /// Writes what it takes now.
    ///
    /// # Errors
    /// It is gone, has taken nothing for too long, or got all that it gets.
    pub fn send(&mut self) -> Result<(), Gone> {
        while !self.output.is_empty() {
            let (first, _) = self.output.as_slices();
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let sent = match self.attached.front() {
                Some((0, fd)) => {
                    let fds = [fd.as_fd()];
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                    let mut ancillary = SendAncillaryBuffer::new(&mut space);
                    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
                    sendmsg(&self.socket, &[IoSlice::new(first)], &mut ancillary, flags)
                }
                Some((before, _)) => send(&self.socket, &first[..first.len().min(*before)], flags),
                None => send(&self.socket, first, flags),
            };
            match sent {
                Ok(sent) => {
                    self.output.drain(..sent);
                    if self.attached.front().is_some_and(|(before, _)| *before == 0) {
                        self.attached.pop_front();
                    }
                    self.attached.iter_mut().for_each(|(before, _)| *before -= sent.min(*before));
                    self.active = Instant::now();
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.active.elapsed() < PATIENCE => return Ok(()),
                Err(_) => return Err(Gone),
            }
        }
        // A burst is not kept.
        self.output.shrink_to(LONGEST);
        if self.closing { Err(Gone) } else { Ok(()) }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether who is at the other end is this process' user, or root.
pub fn is_ours(socket: &UnixStream) -> io::Result<bool> {
    let peer = rustix::net::sockopt::socket_peercred(socket)?;
    Ok(peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}
