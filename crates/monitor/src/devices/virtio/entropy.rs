//! A source of random bytes (virtio 1.2, section 5.4).

use evenkeel_capsule::cbor;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT as _};

use super::bell::Bell;
use super::chain::Chain;
use super::turn::Turn;
use super::{Counts, Device};
use crate::Error;
use crate::View;

/// The most bytes for one request.
const MOST: usize = 4096;
const QUEUE: u16 = 64;
/// A turn is a full ring.
const TURN: usize = QUEUE as usize * MOST;

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
        let mut turn = Turn::new(TURN, 0);
        if turn.serve(queue, memory, |chain| Some(self.request(chain, memory))) {
            self.bell.ring();
        }
        turn.used()
    }

    /// One request; returns how many bytes were written into the guest's memory, and what it counts as.
    fn request(&mut self, mut chain: Chain, memory: &View) -> (u32, usize) {
        let mut bytes = [0; MOST];
        let wanted = chain.writable.left().min(MOST);
        let got = getrandom(&mut bytes[..wanted], GetRandomFlags::empty()).unwrap_or(0);
        chain.writable.write(&bytes[..got], memory);
        let given = chain.writable.moved();
        self.counts.requests += 1;
        self.counts.bytes += given as u64;
        (given as u32, given)
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
        &[QUEUE]
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

    fn bell(&self) -> Option<&Bell> {
        Some(&self.bell)
    }

    fn notify(&mut self, _: usize, queue: &mut Queue, memory: &View, _: u64) -> bool {
        self.serve(queue, memory)
    }

    fn incoming(&mut self, queues: &mut [Queue], memory: &View, _: u64) -> bool {
        self.bell.silence();
        let ready = queues.first_mut().filter(|queue| queue.ready());
        ready.is_some_and(|queue| self.serve(queue, memory))
    }
}
