//! A driver: what a guest does with a virtio device on MMIO, in memory of the test's.

use evenkeel_monitor::View;
use evenkeel_monitor::devices::virtio::{Device, Transport};
use vm_memory::{Bytes, GuestAddress};

/// Where a queue's parts are: 64 KiB each.
const RINGS: u64 = 0x10_0000;
/// Where buffers are.
const BUFFERS: u64 = 0x20_0000;
pub const MEMORY: usize = 16 << 20;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A part of a request.
pub enum Part<'a> {
    /// The device reads this.
    Out(&'a [u8]),
    /// The device writes as much.
    In(usize),
}

/// A queue as the driver sees it.
struct Ring {
    size: u16,
    next: u16,
    added: u16,
    seen: u16,
}

pub struct Driver {
    pub memory: View,
    pub transport: Transport,
    rings: Vec<Ring>,
    buffer: u64,
}

fn at(queue: usize, part: u64) -> u64 {
    RINGS + queue as u64 * 0x3_0000 + part * 0x1_0000
}

/// Where a queue's used ring begins.
pub fn used_ring(queue: usize) -> u64 {
    at(queue, 2)
}

impl Driver {
    /// Finds the device, takes these of its features, and sets its queues up.
    pub fn new(device: Box<dyn Device>, features: u64) -> Driver {
        let sizes = device.queues().to_vec();
        let memory = View::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let transport = Transport::new(device).unwrap();
        let rings = sizes.iter().map(|size| Ring { size: *size, next: 0, added: 0, seen: 0 }).collect();
        let mut it = Driver { memory, transport, rings, buffer: BUFFERS };
        assert_eq!(it.read(0), 0x7472_6976);
        it.write(0x70, 3);
        let features = features | 1 << 32;
        assert_eq!(features & !it.offered(), 0, "the device does not offer this");
        for half in [0, 1] {
            it.write(0x24, half);
            it.write(0x20, (features >> (32 * half)) as u32);
        }
        it.write(0x70, 3 | 8);
        assert_eq!(it.read(0x70), 3 | 8, "features are agreed on");
        for (queue, size) in sizes.iter().enumerate() {
            it.write(0x30, queue as u32);
            assert_eq!(it.read(0x34), u32::from(*size));
            it.write(0x38, u32::from(*size));
            for (part, register) in [0x80, 0x90, 0xa0].into_iter().enumerate() {
                it.write(register, at(queue, part as u64) as u32);
                it.write(register + 4, 0);
            }
            it.write(0x44, 1);
        }
        it.write(0x70, 3 | 8 | 4);
        it
    }

    /// The same driver, to whom the device is another one now: made from what was saved.
    pub fn moved(mut self, device: Box<dyn Device>) -> Driver {
        let saved = self.transport.record();
        self.transport = Transport::new(device).unwrap();
        self.transport.set_record(&saved, &self.memory).unwrap();
        assert_eq!(self.transport.record(), saved, "what was set is saved again");
        self
    }

    pub fn read(&self, register: u64) -> u32 {
        let mut word = [0; 4];
        self.transport.read(register, &mut word);
        u32::from_le_bytes(word)
    }

    pub fn write(&mut self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes(), &self.memory);
    }

    pub fn offered(&mut self) -> u64 {
        let mut half = |which| {
            self.write(0x14, which);
            u64::from(self.read(0x10))
        };
        half(0) | half(1) << 32
    }

    /// Makes a request available; returns its head and where its parts are.
    pub fn add(&mut self, queue: usize, parts: &[Part<'_>]) -> (u16, Vec<u64>) {
        let head = self.rings[queue].next;
        let mut places = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            let ring = &mut self.rings[queue];
            let index = ring.next;
            ring.next = (index + 1) % ring.size;
            let (length, mut flags) = match part {
                Part::Out(bytes) => {
                    self.memory.write_slice(bytes, GuestAddress(self.buffer)).unwrap();
                    (bytes.len(), 0)
                }
                Part::In(length) => (*length, WRITE),
            };
            if i + 1 < parts.len() {
                flags |= NEXT;
            }
            places.push(self.buffer);
            self.descriptor(queue, index, self.buffer, length as u32, flags, self.rings[queue].next);
            self.buffer += (length as u64).next_multiple_of(64);
        }
        self.offer(queue, head);
        (head, places)
    }

    /// Writes a descriptor.
    pub fn descriptor(&self, queue: usize, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(at(queue, 0) + 16 * u64::from(index))).unwrap();
    }

    /// Puts a head into the available ring.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let place = at(queue, 1) + 4 + 2 * u64::from(ring.added % ring.size);
        ring.added = ring.added.wrapping_add(1);
        self.memory.write_obj(head, GuestAddress(place)).unwrap();
        self.memory.write_obj(ring.added, GuestAddress(at(queue, 1) + 2)).unwrap();
    }

    pub fn kick(&mut self, queue: usize) {
        self.write(0x50, queue as u32);
    }

    /// What the device is done with since this was last asked: heads and lengths.
    pub fn used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let ring = &mut self.rings[queue];
        let end: u16 = self.memory.read_obj(GuestAddress(at(queue, 2) + 2)).unwrap();
        assert!(end.wrapping_sub(ring.seen) <= ring.size, "more than the ring holds");
        let mut done = Vec::new();
        while ring.seen != end {
            let place = at(queue, 2) + 4 + 8 * u64::from(ring.seen % ring.size);
            let head: u32 = self.memory.read_obj(GuestAddress(place)).unwrap();
            let length: u32 = self.memory.read_obj(GuestAddress(place + 4)).unwrap();
            done.push((head as u16, length));
            ring.seen = ring.seen.wrapping_add(1);
        }
        done
    }

    pub fn bytes(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Whether the device asks to be looked at.
    pub fn wakes(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let Some(source) = self.transport.source() else { return false };
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&source, PollFlags::IN)], Some(&now)).unwrap() > 0
    }

    /// What an I/O thread does until the device has enough; it must come to an end.
    pub fn serve(&mut self) {
        for _ in 0..10_000 {
            if !self.wakes() {
                return;
            }
            self.transport.incoming(&self.memory);
        }
        panic!("the device asks without end");
    }
}
