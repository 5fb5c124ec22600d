//! A chain of descriptors, walked once and bounded (virtio 1.2, section 2.7).
//!
//! rust-vmm's readers follow an indirect table of 65,535 entries in every chain, and walk the chain anew for each side. Here a chain
//! has at most as many descriptors as its queue, what the driver must not do is refused, and nothing is kept but addresses.

use crate::View;
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// One side of a chain: where to read, or where to write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// Address and length, none empty.
    parts: Vec<(GuestAddress, usize)>,
    /// How many parts are done, and how many bytes of the next one.
    done: (usize, usize),
    /// How many bytes are left.
    left: usize,
    /// How many are done.
    moved: usize,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Chain {
    /// What it is called in the used ring.
    pub head: u16,
    /// What the device reads.
    pub readable: Side,
    /// What the device writes.
    pub writable: Side,
}

/// What came out of the ring.
#[derive(Clone, Debug)]
pub enum Popped {
    /// A request.
    Chain(Chain),
    /// The driver made something that is none; it is used with no bytes written.
    Malformed(u16),
}

/// The next request of a queue, if there is one.
pub fn pop(queue: &mut Queue, memory: &View) -> Option<Popped> {
    let most = usize::from(queue.size());
    let chain = queue.pop_descriptor_chain(memory)?;
    let head = chain.head_index();
    Some(match walk(chain, most, memory) {
        Some((readable, writable)) => Popped::Chain(Chain { head, readable, writable }),
        None => Popped::Malformed(head),
    })
}

fn walk(mut chain: DescriptorChain<&View>, most: usize, memory: &View) -> Option<(Side, Side)> {
    let (mut readable, mut writable) = (Side::default(), Side::default());
    let mut more = true;
    for _ in 0..most {
        let Some(part) = chain.next() else { break };
        more = part.has_next();
        if part.len() == 0 {
            continue;
        }
        let length = part.len() as usize;
        // Through all parts of it: what is told by one length must be there as a whole.
        if !memory.check_range(part.addr(), length) {
            return None;
        }
        if part.is_write_only() {
            writable.push(part.addr(), length);
        } else if writable.parts.is_empty() {
            readable.push(part.addr(), length);
        } else {
            // What the device writes comes behind all that it reads.
            return None;
        }
    }
    // A chain that goes on behind this is longer than its queue, has a circle in it, or a descriptor that is not there.
    (!more).then_some((readable, writable))
}

impl Side {
    fn push(&mut self, address: GuestAddress, length: usize) {
        self.parts.push((address, length));
        // At most 32,768 lengths of 32 bits.
        self.left += length;
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.left
    }

    /// How many bytes were read or written.
    pub fn moved(&self) -> usize {
        self.moved
    }

    /// Takes the last byte off: where a block device's status goes.
    pub fn split_last(&mut self) -> Option<GuestAddress> {
        let (address, length) = self.parts.last_mut()?;
        *length -= 1;
        self.left -= 1;
        let last = GuestAddress(address.0 + *length as u64);
        if *length == 0 {
            self.parts.pop();
        }
        Some(last)
    }

    /// The next place of at most this many bytes.
    fn next(&self, most: usize) -> Option<(GuestAddress, usize)> {
        let (address, length) = self.parts.get(self.done.0)?;
        Some((GuestAddress(address.0 + self.done.1 as u64), (length - self.done.1).min(most)))
    }

    fn advance(&mut self, count: usize) {
        self.done.1 += count;
        self.left -= count;
        self.moved += count;
        if self.parts.get(self.done.0).is_some_and(|(_, length)| self.done.1 >= *length) {
            self.done = (self.done.0 + 1, 0);
        }
    }

    /// Fills this from the guest's memory; false if there is not as much.
    pub fn read(&mut self, mut into: &mut [u8], memory: &View) -> bool {
        while !into.is_empty() {
            let Some((address, length)) = self.next(into.len()) else { return false };
            let (now, later) = into.split_at_mut(length);
            if memory.read_slice(now, address).is_err() {
                return false;
            }
            self.advance(length);
            into = later;
        }
        true
    }

    /// Puts this into the guest's memory; false if there is not as much room.
    pub fn write(&mut self, mut from: &[u8], memory: &View) -> bool {
        while !from.is_empty() {
            let Some((address, length)) = self.next(from.len()) else { return false };
            let (now, later) = from.split_at(length);
            if memory.write_slice(now, address).is_err() {
                return false;
            }
            self.advance(length);
            from = later;
        }
        true
    }
}
