//! A console (virtio 1.2, section 5.3) with one port: what comes out of a file is its input, what the guest says goes to an output.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::View;
use evenkeel_capsule::cbor;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::bell::{Bell, Wanted};
use super::chain::Chain;
use super::turn::{Next, Turn};
use super::{Counts, Device};
use crate::Error;

/// What is read of the input at once.
const PIECE: usize = 4096;
/// The most bytes of one buffer of the guest's: more than any driver's. What is behind it is lost.
const MOST: usize = 1 << 20;
/// So many bytes are moved before others have their turn.
const TURN: usize = 256 << 10;
/// What a buffer counts as beside its bytes.
const EACH: usize = 512;

/// What it is made from: nothing, since input and output are the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

/// A console.
pub struct Console {
    input: Option<OwnedFd>,
    output: Box<dyn Write + Send>,
    bell: Bell,
    hears: bool,
    counts: Counts,
}

impl Console {
    /// A console with this input, which need not be one that does not block, and this output.
    ///
    /// # Errors
    /// The process has no more files.
    pub fn new(input: Option<OwnedFd>, output: Box<dyn Write + Send>) -> Result<Console, Error> {
        Ok(Console { input, output, bell: Bell::new()?, hears: false, counts: Counts::default() })
    }

    /// Input to the guest. What is read goes into a buffer at once: nothing is in between that would have to be saved.
    fn receive(&mut self, queue: &mut Queue, memory: &View) -> bool {
        let mut turn = Turn::new(TURN, EACH);
        self.hears = self.input.is_some();
        while self.hears {
            let mut chain = match turn.next(queue, memory) {
                Next::Chain(chain) => chain,
                Next::Skipped => continue,
                Next::Empty => {
                    self.hears = false;
                    break;
                }
                Next::Over => {
                    self.bell.ring();
                    break;
                }
            };
            let mut bytes = [0; PIECE];
            let room = chain.writable.left().min(PIECE);
            if room == 0 {
                turn.done(queue, memory, chain.head, 0, 0);
                continue;
            }
            match self.input.as_ref().map(|input| read(input.as_fd(), &mut bytes[..room])) {
                Some(Some(0)) | None => {
                    queue.go_to_previous_position();
                    // It has come to its end, and nothing is waited for any more.
                    self.hears = false;
                    self.listen();
                    self.input = None;
                }
                Some(None) => {
                    queue.go_to_previous_position();
                    break;
                }
                Some(Some(length)) => {
                    chain.writable.write(&bytes[..length], memory);
                    self.counts.requests += 1;
                    self.counts.bytes += length as u64;
                    turn.done(queue, memory, chain.head, length as u32, length);
                }
            }
        }
        turn.used()
    }

    /// Output of the guest's. What the output does not take is lost, as on a line that nobody listens to.
    fn send(&mut self, queue: &mut Queue, memory: &View) -> bool {
        let mut turn = Turn::new(TURN, EACH);
        if turn.serve(queue, memory, |chain| Some((0, self.say(chain, memory)))) {
            self.bell.ring();
        }
        let _ = self.output.flush();
        turn.used()
    }

    fn say(&mut self, mut chain: Chain, memory: &View) -> usize {
        let mut bytes = [0; PIECE];
        while chain.readable.left() > 0 && chain.readable.moved() < MOST {
            let part = &mut bytes[..chain.readable.left().min(PIECE)];
            if !chain.readable.read(part, memory) || self.output.write_all(part).is_err() {
                break;
            }
        }
        self.counts.requests += 1;
        self.counts.bytes += chain.readable.moved() as u64;
        chain.readable.moved()
    }

    fn listen(&mut self) {
        if let Some(input) = &self.input {
            self.bell.want(input.as_fd(), Wanted { read: self.hears, write: false });
        }
    }
}

/// What there is to read: nothing yet, or so many bytes, of which 0 is the end. It does not block, and it leaves the file as it is:
/// whoever started this process may have it, too.
fn read(input: BorrowedFd<'_>, into: &mut [u8]) -> Option<usize> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut waited = [PollFd::new(&input, PollFlags::IN)];
    match poll(&mut waited, Some(&now)) {
        Ok(0) => None,
        Ok(_) => match rustix::io::read(input, into) {
            Ok(length) => Some(length),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => None,
            Err(_) => Some(0),
        },
        Err(_) => None,
    }
}

impl Device for Console {
    fn kind(&self) -> u32 {
        3
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &'static [u16] {
        &[64, 64]
    }

    fn config(&self) -> Vec<u8> {
        // Columns, rows, ports, emergency write: their features are not offered.
        vec![0; 12]
    }

    fn config_record(&self) -> Vec<u8> {
        cbor::print(&Config {})
    }

    fn counts(&self) -> Counts {
        self.counts
    }

    fn bell(&self) -> Option<&Bell> {
        Some(&self.bell)
    }

    fn notify(&mut self, index: usize, queue: &mut Queue, memory: &View, _: u64) -> bool {
        let used = match index {
            0 => self.receive(queue, memory),
            _ => self.send(queue, memory),
        };
        self.listen();
        used
    }

    fn incoming(&mut self, queues: &mut [Queue], memory: &View, _: u64) -> bool {
        self.bell.silence();
        let [receive, send] = queues else { return false };
        let mut used = false;
        if receive.ready() {
            used |= self.receive(receive, memory);
        }
        if send.ready() {
            used |= self.send(send, memory);
        }
        self.listen();
        used
    }

    fn reset(&mut self) {
        self.bell.silence();
        self.hears = false;
        self.listen();
    }
}
