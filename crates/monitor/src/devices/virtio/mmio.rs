//! Virtio over MMIO (virtio 1.2, section 4.2).

use std::os::fd::BorrowedFd;

use crate::View;
use evenkeel_capsule::cbor;
use virtio_queue::{Queue, QueueT};

use super::{Device, VERSION_1};
use crate::Error;

mod state;

pub use state::{QueueState, State};

/// The length of a device's registers.
pub const LENGTH: u64 = 0x1000;

const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "evkl".
const VENDOR: u32 = 0x6c6b_7665;
const CONFIG: u64 = 0x100;

const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 0x40;
/// Every bit of the status register: those above, ACKNOWLEDGE, DRIVER and FAILED.
const STATUS: u32 = 0xcf;
const USED_RING: u32 = 1;
/// The device's configuration changed, or it needs a reset.
const CONFIGURATION: u32 = 2;

/// A device's registers.
pub struct Transport {
    device: Box<dyn Device>,
    status: u32,
    features: u64,
    selectors: [u32; 3],
    interrupts: u32,
    queues: Vec<Queue>,
}

impl Transport {
    /// Of a device that nobody has touched.
    ///
    /// # Errors
    /// A queue's size is no power of two.
    pub fn new(device: Box<dyn Device>) -> Result<Transport, Error> {
        let made: Result<Vec<Queue>, _> = device.queues().iter().map(|size| Queue::new(*size)).collect();
        let queues = made.map_err(|e| Error::Device(e.to_string()))?;
        Ok(Transport { device, status: 0, features: 0, selectors: [0; 3], interrupts: 0, queues })
    }

    /// The device behind it.
    pub fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// What it is at.
    pub fn state(&self) -> State {
        State {
            status: self.status,
            features: self.features,
            selectors: self.selectors,
            interrupts: self.interrupts,
            queues: self.queues.iter().map(|queue| QueueState::from(queue.state())).collect(),
            device: cbor::Bytes(self.device.state()),
        }
    }

    /// Puts it there, in this memory. The device goes on with what waits in its queues once it is asked to by its
    /// [`Device::source`].
    ///
    /// # Errors
    /// It is the state of another device, or none that a device can be at.
    pub fn set_state(&mut self, state: &State, memory: &View) -> Result<(), Error> {
        let queues = state.check(self.device.queues(), self.offered(), memory)?;
        self.device.reset();
        self.device.set_state(&state.device.0)?;
        self.queues = queues;
        self.status = state.status;
        self.features = state.features;
        self.selectors = state.selectors;
        self.interrupts = state.interrupts;
        if self.alive() {
            self.device.resume();
        }
        Ok(())
    }

    /// What it is at, as CBOR: [`State`].
    pub fn record(&self) -> Vec<u8> {
        cbor::print(&self.state())
    }

    /// Puts it where a [`Transport::record`] says.
    ///
    /// # Errors
    /// As [`Transport::set_state`], or it is no such record.
    pub fn set_record(&mut self, bytes: &[u8], memory: &View) -> Result<(), Error> {
        let state: State = cbor::read(bytes)
            .map_err(|(at, what)| Error::Device(format!("saved state, byte {at}: {what}")))?;
        self.set_state(&state, memory)
    }

    /// The interrupt line's level.
    pub fn raised(&self) -> bool {
        self.interrupts != 0
    }

    /// A file that becomes readable when [`Transport::incoming`] has something to do.
    pub fn source(&self) -> Option<BorrowedFd<'_>> {
        self.device.source()
    }

    /// The [`Transport::source`] became readable. The interrupt line may be another afterwards.
    pub fn incoming(&mut self, memory: &View) {
        if !self.alive() {
            return self.device.reset();
        }
        if self.queues.iter().any(|queue| queue.ready() && !queue.is_valid(memory)) {
            return self.fail();
        }
        if self.device.incoming(&mut self.queues, memory, self.features) {
            self.interrupts |= USED_RING;
        }
    }

    /// After this nothing is in flight, and nothing begins until the guest or a source asks for it.
    ///
    /// # Errors
    /// As the device says.
    pub fn quiesce(&mut self) -> Result<(), Error> {
        self.device.quiesce()
    }

    /// Another process may use what is behind the device: [`Device::release`].
    ///
    /// # Errors
    /// As the device says.
    pub fn release(&mut self) -> Result<(), Error> {
        self.device.release()
    }

    /// It is used here: [`Device::claim`].
    ///
    /// # Errors
    /// As the device says.
    pub fn claim(&mut self) -> Result<(), Error> {
        self.device.claim()
    }

    fn offered(&self) -> u64 {
        self.device.features() | VERSION_1
    }

    /// A driver has set it up, and has done nothing yet that only a reset helps against.
    fn alive(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    /// The driver did what makes no sense: nothing but a reset helps (section 2.1.1).
    fn fail(&mut self) {
        self.status |= NEEDS_RESET;
        self.interrupts |= CONFIGURATION;
        self.device.reset();
    }

    /// A read of the guest at this offset.
    pub fn read(&self, at: u64, data: &mut [u8]) {
        data.fill(0);
        if at >= CONFIG {
            let config = self.device.config();
            let from = (at - CONFIG).min(config.len() as u64) as usize;
            let length = data.len().min(config.len() - from);
            data[..length].copy_from_slice(&config[from..from + length]);
            return;
        }
        let half = |word: u64, select: u32| match select {
            0 => word as u32,
            1 => (word >> 32) as u32,
            _ => 0,
        };
        let queue = self.queues.get(self.selectors[2] as usize);
        let value = match at {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.device.kind(),
            0x0c => VENDOR,
            0x10 => half(self.offered(), self.selectors[0]),
            0x34 => queue.map_or(0, |q| u32::from(q.max_size())),
            0x44 => queue.map_or(0, |q| u32::from(q.ready())),
            0x60 => self.interrupts,
            0x70 => self.status,
            // Shared memory regions: there are none.
            0xb0 | 0xb4 => u32::MAX,
            _ => 0,
        };
        let length = data.len().min(4);
        data[..length].copy_from_slice(&value.to_le_bytes()[..length]);
    }

    /// A write of the guest at this offset.
    pub fn write(&mut self, at: u64, data: &[u8], memory: &View) {
        // Configuration spaces here have nothing to write.
        let Ok(word) = <[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(word);
        let selected = self.selectors[2] as usize;
        match at {
            0x14 => self.selectors[0] = value,
            0x24 => self.selectors[1] = value,
            0x30 => self.selectors[2] = value,
            0x20 if self.status & FEATURES_OK == 0 => self.accept(value),
            0x50 => self.notified(value as usize, memory),
            0x64 => self.interrupts &= !value,
            0x70 => self.set_status(value),
            0x38..=0xa4 if self.status & DRIVER_OK == 0 => {
                if let Some(queue) = self.queues.get_mut(selected) {
                    set_queue(queue, at, value);
                }
            }
            _ => {}
        }
    }

    fn accept(&mut self, value: u32) {
        let word = match self.selectors[1] {
            0 => u64::from(value),
            1 => u64::from(value) << 32,
            _ => return,
        };
        let mask = if self.selectors[1] == 0 { 0xffff_ffff } else { 0xffff_ffff << 32 };
        self.features = self.features & !mask | word & self.offered();
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.queues.iter_mut().for_each(Queue::reset);
            (self.status, self.features, self.selectors, self.interrupts) = (0, 0, [0; 3], 0);
            self.device.reset();
            return;
        }
        // A driver cannot take back what only a reset helps against.
        let value = value & STATUS | self.status & NEEDS_RESET;
        // A driver that wants less than version 1 is told by the bit that does not stay set.
        let refused = value & FEATURES_OK != 0 && self.features & VERSION_1 == 0;
        self.status = if refused { value & !FEATURES_OK } else { value };
    }

    fn notified(&mut self, index: usize, memory: &View) {
        if !self.alive() {
            return;
        }
        let Some(queue) = self.queues.get_mut(index) else { return };
        if !queue.ready() {
            return;
        }
        if !queue.is_valid(memory) {
            // The driver gave a ring that is not in memory.
            return self.fail();
        }
        if self.device.notify(index, queue, memory, self.features) {
            self.interrupts |= USED_RING;
        }
    }
}

fn set_queue(queue: &mut Queue, at: u64, value: u32) {
    match at {
        0x38 => queue.set_size(u16::try_from(value).unwrap_or(0)),
        0x44 => queue.set_ready(value == 1),
        0x80 => queue.set_desc_table_address(Some(value), None),
        0x84 => queue.set_desc_table_address(None, Some(value)),
        0x90 => queue.set_avail_ring_address(Some(value), None),
        0x94 => queue.set_avail_ring_address(None, Some(value)),
        0xa0 => queue.set_used_ring_address(Some(value), None),
        0xa4 => queue.set_used_ring_address(None, Some(value)),
        _ => {}
    }
}
