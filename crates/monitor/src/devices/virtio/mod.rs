//! Virtio devices. What a device *is* (its configuration: a disk's file and length, its features) is given when it is made; what
//! it is *at* (its state: queues, status, selectors) is saved and set. The guest is hostile: every ring and length is bounded
//! by rust-vmm's queue, and what makes no sense ends the request, not the monitor.

pub mod block;
pub mod entropy;
mod mmio;

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

pub use mmio::{LENGTH, State, Transport};

/// VIRTIO_F_VERSION_1.
pub const VERSION_1: u64 = 1 << 32;

/// A virtio device behind a transport.
pub trait Device: Send {
    /// Its number in the specification, section 5.
    fn kind(&self) -> u32;

    /// Its own feature bits; VERSION_1 is the transport's.
    fn features(&self) -> u64;

    /// The sizes of its queues.
    fn queues(&self) -> &'static [u16];

    /// Its configuration space, as the guest reads it.
    fn config(&self) -> Vec<u8>;

    /// The guest has something for a queue. Returns whether something was put into a used ring.
    fn notify(&mut self, index: usize, queue: &mut Queue, memory: &GuestMemoryMmap, features: u64) -> bool;
}
