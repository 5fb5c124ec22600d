//! What a transport and its queues are at, as it is saved.

use crate::View;
use evenkeel_capsule::cbor::Bytes;
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};

use super::{CONFIGURATION, DRIVER_OK, FEATURES_OK, NEEDS_RESET, STATUS, USED_RING, VERSION_1};
use crate::Error;

/// What a transport and its queues are at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The status register.
    pub status: u32,
    /// Features that the driver took.
    pub features: u64,
    /// Selectors of device features, driver features and the queue.
    pub selectors: [u32; 3],
    /// The interrupt status register.
    pub interrupts: u32,
    /// The queues.
    pub queues: Vec<QueueState>,
    /// What the device is at beyond its queues.
    pub device: Bytes,
}

/// What a queue is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueState {
    /// The most elements that the device offers.
    pub max_size: u16,
    /// How many the driver chose.
    pub size: u16,
    /// Whether the driver has set it up.
    pub ready: bool,
    /// Guest-physical address of the descriptors.
    pub desc_table: u64,
    /// Guest-physical address of the ring of available chains.
    pub avail_ring: u64,
    /// Guest-physical address of the ring of used chains.
    pub used_ring: u64,
    /// The next available chain that the device takes.
    pub next_avail: u16,
    /// The next place in the used ring.
    pub next_used: u16,
}

impl From<virtio_queue::QueueState> for QueueState {
    fn from(it: virtio_queue::QueueState) -> QueueState {
        QueueState {
            max_size: it.max_size,
            size: it.size,
            ready: it.ready,
            desc_table: it.desc_table,
            avail_ring: it.avail_ring,
            used_ring: it.used_ring,
            next_avail: it.next_avail,
            next_used: it.next_used,
        }
    }
}

impl From<QueueState> for virtio_queue::QueueState {
    fn from(it: QueueState) -> virtio_queue::QueueState {
        virtio_queue::QueueState {
            max_size: it.max_size,
            next_avail: it.next_avail,
            next_used: it.next_used,
            // VIRTIO_F_EVENT_IDX is never offered.
            event_idx_enabled: false,
            size: it.size,
            ready: it.ready,
            desc_table: it.desc_table,
            avail_ring: it.avail_ring,
            used_ring: it.used_ring,
        }
    }
}

impl State {
    /// The queues, if a device with queues of these sizes that offers these features can be at this in this memory.
    pub(super) fn check(&self, sizes: &[u16], offered: u64, memory: &View) -> Result<Vec<Queue>, Error> {
        let wrong = |what: String| Error::Device(format!("saved state: {what}"));
        if self.queues.len() != sizes.len() {
            return Err(wrong(format!("{} queues of a device with {}", self.queues.len(), sizes.len())));
        }
        let strange = self.features & !offered;
        if strange != 0 {
            return Err(wrong(format!("the driver uses features that are not offered: {strange:#x}")));
        }
        if self.status & !STATUS != 0 || self.interrupts & !(USED_RING | CONFIGURATION) != 0 {
            return Err(wrong(format!("status {:#x}, interrupts {:#x}", self.status, self.interrupts)));
        }
        if self.status & FEATURES_OK != 0 && self.features & VERSION_1 == 0 {
            return Err(wrong("features are agreed on, and none is version 1".to_owned()));
        }
        let running = self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK;
        let mut queues = Vec::with_capacity(sizes.len());
        for (index, (saved, own)) in self.queues.iter().zip(sizes).enumerate() {
            if saved.max_size != *own {
                return Err(wrong(format!("queue {index} has room for {}, not {own}", saved.max_size)));
            }
            let queue = Queue::try_from(virtio_queue::QueueState::from(*saved))
                .map_err(|e| wrong(format!("queue {index}: {e}")))?;
            // Before the driver is ready, it may still be about to give better addresses.
            if running && queue.ready() && !queue.is_valid(memory) {
                return Err(wrong(format!("queue {index} is not within memory")));
            }
            queues.push(queue);
        }
        Ok(queues)
    }
}
