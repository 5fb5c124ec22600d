//! A source of random bytes (virtio 1.2, section 5.4).

use std::os::fd::BorrowedFd;

use crate::View;
use evenkeel_capsule::cbor;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};

use super::bell::Bell;
use super::chain::{Popped, pop};
use super::{Counts, Device};
use crate::Error;

/// The most bytes for one request.
const MOST: usize = 4096;

/// What it is made from: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

/// The host's random bytes.
#[derive(Debug)]
pub struct Entropy {
    bell: Bell,
    counts: Counts,
}

impl Entropy {
    /// A source.
    ///
    /// # Errors
    /// The process has no more files.
    pub fn new() -> Result<Entropy, Error> {
        Ok(Entropy { bell: Bell::new()?, counts: Counts::default() })
    }

    fn serve(&mut self, queue: &mut Queue, memory: &View) -> bool {
        let mut used = false;
        for _ in 0..queue.size() {
            let (head, given) = match pop(queue, memory) {
                Some(Popped::Chain(mut chain)) => {
                    let mut bytes = [0; MOST];
                    let wanted = chain.writable.left().min(MOST);
                    let got = getrandom(&mut bytes[..wanted], GetRandomFlags::empty()).unwrap_or(0);
                    chain.writable.write(&bytes[..got], memory);
                    self.counts.requests += 1;
                    self.counts.bytes += chain.writable.moved() as u64;
                    (chain.head, chain.writable.moved() as u32)
                }
                Some(Popped::Malformed(head)) => (head, 0),
                None => break,
            };
            used |= queue.add_used(memory, head, given).is_ok();
        }
        used
    }
}

impl Device for Entropy {
    fn kind(&self) -> u32 {
        4
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &'static [u16] {
        &[64]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn config_record(&self) -> Vec<u8> {
        cbor::print(&Config {})
    }

    fn counts(&self) -> Counts {
        self.counts
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.bell.source())
    }

    fn notify(&mut self, _: usize, queue: &mut Queue, memory: &View, _: u64) -> bool {
        self.serve(queue, memory)
    }

    fn incoming(&mut self, queues: &mut [Queue], memory: &View, _: u64) -> bool {
        self.bell.silence();
        let ready = queues.first_mut().filter(|queue| queue.ready());
        ready.is_some_and(|queue| self.serve(queue, memory))
    }

    fn reset(&mut self) {
        self.bell.silence();
    }

    fn resume(&mut self, _: &[Queue]) {
        self.bell.ring();
    }
}
