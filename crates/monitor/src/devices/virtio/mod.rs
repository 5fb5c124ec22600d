//! Virtio devices. What a device *is* (its configuration: a disk's file and length, its features) is given when it is made; what
//! it is *at* (its state: queues, status, selectors) is saved and set. The guest is hostile: every ring and length is bounded
//! by rust-vmm's queue, and what makes no sense ends the request, not the monitor.

pub mod bell;
pub mod block;
pub mod chain;
pub mod console;
pub mod entropy;
mod mmio;
pub mod net;
pub mod turn;

use std::os::fd::{BorrowedFd, OwnedFd};

use crate::View;
use virtio_queue::Queue;

pub use mmio::{LENGTH, QueueState, State, Transport};

use self::bell::Bell;
use crate::Error;
use crate::board::Disk;

/// VIRTIO_F_VERSION_1.
pub const VERSION_1: u64 = 1 << 32;

/// What a device did since it was made: for those who watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests or frames.
    pub requests: u64,
    /// Bytes of data, both ways.
    pub bytes: u64,
}

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
    fn notify(&mut self, index: usize, queue: &mut Queue, memory: &View, features: u64) -> bool;

    /// What wakes it, if anything does: its own back-end, and work that is left over.
    fn bell(&self) -> Option<&Bell> {
        None
    }

    /// A file that becomes readable when the device has something for the guest, or work left over. It is the same one for as
    /// long as the device lives, and it is readable only when [`Device::incoming`] has something to do: to poll it never spins.
    fn source(&self) -> Option<BorrowedFd<'_>> {
        self.bell().map(Bell::source)
    }

    /// [`Device::source`] became readable. Returns whether something was put into a used ring.
    fn incoming(&mut self, queues: &mut [Queue], memory: &View, features: u64) -> bool {
        let _ = (queues, memory, features);
        false
    }

    /// After this nothing is in flight, and nothing begins until the next `notify` or `incoming`.
    ///
    /// # Errors
    /// What was in flight cannot be brought to an end.
    fn quiesce(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Another process may use what is behind it: what the guest wrote is there, and nothing is held any more. It is not used here
    /// before [`Device::claim`].
    ///
    /// # Errors
    /// What was written cannot be made to last.
    fn release(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// What is behind it is used here, and by nobody else. Nothing changes where that is so already.
    ///
    /// # Errors
    /// Another process has it.
    fn claim(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// The driver is gone, or another one begins: what belonged to the old one is forgotten, and [`Device::source`] is not readable.
    fn reset(&mut self) {
        if let Some(bell) = self.bell() {
            bell.silence();
        }
    }

    /// The queues were set from saved state: what waits in them is looked at soon, by way of [`Device::source`].
    fn resume(&mut self) {
        if let Some(bell) = self.bell() {
            bell.ring();
        }
    }

    /// The disk that it is, if the guest may write to it.
    fn disk(&self) -> Option<Result<Disk, Error>> {
        None
    }

    /// What it did.
    fn counts(&self) -> Counts {
        Counts::default()
    }

    /// What it is, for making it again: CBOR.
    fn config_record(&self) -> Vec<u8>;

    /// What it is at beyond its queues: CBOR, or nothing.
    fn state(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Puts it there.
    ///
    /// # Errors
    /// These bytes are no state of such a device.
    fn set_state(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        Err(Error::Device(format!("saved state: {} bytes for a device that has none", bytes.len())))
    }
}

/// The devices' sources, each with its device's number: descriptors of one's own, of the same open files, because a device keeps
/// its source for as long as it lives.
pub(crate) fn sources<'t>(
    transports: impl Iterator<Item = &'t Transport>,
) -> Result<Vec<(usize, OwnedFd)>, Error> {
    let sources = transports.enumerate().filter_map(|(index, t)| Some((index, t.source()?)));
    let own = sources.map(|(index, source)| Ok((index, source.try_clone_to_owned()?)));
    own.collect::<Result<_, std::io::Error>>().map_err(|e| Error::Device(format!("a device's source: {e}")))
}
