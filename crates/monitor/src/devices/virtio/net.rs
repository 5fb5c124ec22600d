//! A network card (virtio 1.2, section 5.1) with one pair of queues, over a tap or over a socket with a frame a message.
//!
//! What the guest is offered is what its contract says: no offload unless it is named there. An offload that the host's tap does
//! not take refuses the card when it is made, also for a guest that comes from a host whose tap did, because a guest
//! that has negotiated it goes on using it.

use evenkeel_capsule::cbor;
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::bell::{Bell, Wanted};
use super::chain::Chain;
use super::turn::{Next, Turn};
use super::{Counts, Device};
use crate::Error;
use crate::View;

mod link;

pub use link::Link;
use link::Moved;

/// VIRTIO_NET_F_MAC.
const MAC: u64 = 1 << 5;
/// VIRTIO_NET_F_CSUM, and VIRTIO_NET_F_HOST_* that follow from what a tap takes.
const SENDS: u64 = 1 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 56;
/// VIRTIO_NET_F_GUEST_CSUM.
const GUEST_CSUM: u64 = 1 << 1;

/// TUN_F_* bits (`include/uapi/linux/if_tun.h`), and the features that go with each: what the guest takes, and what it may send.
const OFFLOADS: [(u32, u64); 7] = [
    (0x01, GUEST_CSUM | 1),
    (0x02, 1 << 7 | 1 << 11),
    (0x04, 1 << 8 | 1 << 12),
    (0x08, 1 << 9 | 1 << 13),
    (0x10, 1 << 10 | 1 << 14),
    (0x20, 1 << 54 | 1 << 56),
    (0x40, 1 << 55 | 1 << 56),
];

/// `struct virtio_net_hdr_v1`.
const HEADER: usize = 12;
/// Where it says how many buffers a frame has.
const BUFFERS: usize = 10;
/// The longest frame: the largest packet behind an Ethernet header with a VLAN tag.
const FRAME: usize = 65_535 + 18;
/// So many bytes are moved before others have their turn.
const TURN: usize = 2 << 20;
/// What a frame counts as beside its bytes.
const EACH: usize = 512;
const QUEUE: u16 = 256;

/// What a card is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its address.
    pub mac: [u8; 6],
    /// The offloads that the guest was promised: TUN_F_* bits, as in the facet `net.tap.offloads`.
    pub offloads: u32,
}

impl Config {
    /// The features that the guest is offered.
    pub fn features(&self) -> u64 {
        OFFLOADS.iter().filter(|(bit, _)| self.offloads & bit != 0).fold(MAC, |all, (_, more)| all | more)
    }
}

/// The offloads that a guest with these features takes.
fn taken(features: u64) -> u32 {
    let guest = |feature: u64| feature & !SENDS;
    OFFLOADS.iter().filter(|(_, f)| features & guest(*f) != 0).fold(0, |all, (bit, _)| all | bit)
}

/// A card.
#[derive(Debug)]
pub struct Net {
    link: Link,
    config: Config,
    bell: Bell,
    /// The guest has buffers for frames.
    hears: bool,
    /// A frame of the guest's waits for the link to take it.
    waits: bool,
    /// The offloads that the link was told.
    told: Option<u32>,
    buffer: Vec<u8>,
    counts: Counts,
}

impl Net {
    /// A card on this link.
    ///
    /// # Errors
    /// The host cannot do what the guest was promised.
    pub fn new(link: Link, config: Config) -> Result<Net, Error> {
        let known = OFFLOADS.iter().fold(0, |all, (bit, _)| all | bit);
        let strange = config.offloads & !known;
        if strange != 0 {
            return Err(Error::Device(format!(
                "net.tap.offloads: {strange:#x} is promised and unknown here; run it with an evenkeel that knows it, or \
                 under a contract without it"
            )));
        }
        if config.mac[0] & 1 != 0 {
            return Err(Error::Device(format!("network card: {:02x?} is an address of a group", config.mac)));
        }
        link.offer(config.offloads)?;
        Ok(Net {
            link,
            config,
            bell: Bell::new()?,
            hears: false,
            waits: false,
            told: None,
            buffer: vec![0; HEADER + FRAME],
            counts: Counts::default(),
        })
    }

    /// What it is.
    pub fn described(&self) -> &Config {
        &self.config
    }

    /// The link takes what the driver negotiated, and nothing else.
    fn negotiated(&mut self, features: u64) {
        let taken = taken(features);
        if self.told != Some(taken) {
            // A part of what it took when it was made.
            let _ = self.link.offer(taken);
            self.told = Some(taken);
        }
    }

    /// Frames to the guest.
    fn receive(&mut self, queue: &mut Queue, memory: &View, features: u64) -> bool {
        let mut turn = Turn::new(TURN, EACH);
        self.hears = true;
        // Each round of the loop takes a chain, or a frame that fits in none.
        loop {
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
            let length = match self.link.receive(&mut self.buffer) {
                Moved::Bytes(length) => length,
                nothing => {
                    queue.go_to_previous_position();
                    self.hears = nothing == Moved::Later;
                    break;
                }
            };
            if length > chain.writable.left() || length <= HEADER {
                // Lost, as on a wire; the chain serves the next one.
                turn.spend(length);
                queue.go_to_previous_position();
                continue;
            }
            if features & GUEST_CSUM == 0 {
                self.buffer[..HEADER].fill(0);
            }
            self.buffer[BUFFERS..HEADER].copy_from_slice(&1_u16.to_le_bytes());
            chain.writable.write(&self.buffer[..length], memory);
            self.count(length);
            turn.done(queue, memory, chain.head, length as u32, length);
        }
        turn.used()
    }

    /// Frames of the guest's.
    fn send(&mut self, queue: &mut Queue, memory: &View, features: u64) -> bool {
        let mut turn = Turn::new(TURN, EACH);
        self.waits = false;
        let left_over = turn.serve(queue, memory, |chain| {
            let length = self.frame(chain, memory, features);
            if length > 0 {
                match self.link.send(&self.buffer[..length]) {
                    Moved::Bytes(_) => self.count(length),
                    Moved::Later => {
                        self.waits = true;
                        return None;
                    }
                    Moved::Never => {}
                }
            }
            Some((0, length))
        });
        if left_over {
            self.bell.ring();
        }
        turn.used()
    }

    /// Takes a frame with its header out of a chain; 0 if it is none.
    fn frame(&mut self, mut chain: Chain, memory: &View, features: u64) -> usize {
        let length = chain.readable.left();
        if length <= HEADER || length > self.buffer.len() {
            return 0;
        }
        if !chain.readable.read(&mut self.buffer[..length], memory) {
            return 0;
        }
        if features & SENDS == 0 {
            self.buffer[..HEADER].fill(0);
        }
        length
    }

    fn count(&mut self, length: usize) {
        self.counts.requests += 1;
        self.counts.bytes += (length - HEADER) as u64;
    }

    /// Waits for what the guest can use, and no more.
    fn listen(&mut self) {
        let wanted = Wanted { read: self.hears, write: self.waits };
        self.bell.want(self.link.file(), wanted);
    }
}

impl Device for Net {
    fn kind(&self) -> u32 {
        1
    }

    fn features(&self) -> u64 {
        self.config.features()
    }

    fn queues(&self) -> &'static [u16] {
        &[QUEUE, QUEUE]
    }

    fn config(&self) -> Vec<u8> {
        let mut space = self.config.mac.to_vec();
        // Status and the number of pairs: their features are not offered.
        space.extend([0; 4]);
        space
    }

    fn config_record(&self) -> Vec<u8> {
        cbor::print(&self.config)
    }

    fn counts(&self) -> Counts {
        self.counts
    }

    fn bell(&self) -> Option<&Bell> {
        Some(&self.bell)
    }

    fn notify(&mut self, index: usize, queue: &mut Queue, memory: &View, features: u64) -> bool {
        self.negotiated(features);
        let used = match index {
            0 => self.receive(queue, memory, features),
            _ => self.send(queue, memory, features),
        };
        self.listen();
        used
    }

    fn incoming(&mut self, queues: &mut [Queue], memory: &View, features: u64) -> bool {
        self.bell.silence();
        self.negotiated(features);
        let [receive, send] = queues else { return false };
        let mut used = false;
        if receive.ready() {
            used |= self.receive(receive, memory, features);
        }
        if send.ready() {
            used |= self.send(send, memory, features);
        }
        self.listen();
        used
    }

    fn reset(&mut self) {
        self.bell.silence();
        (self.hears, self.waits, self.told) = (false, false, None);
        self.listen();
    }
}
