//! The virtio devices of a board, each at its place and with its wire: what all boards do with them.

use std::os::fd::OwnedFd;

use evenkeel_capsule::cbor::Bytes;

use crate::board::{Placed, Record, Records, virtio_kind};
use crate::devices::interrupts::Interrupts;
use crate::devices::virtio::{self, Device, LENGTH, Transport};
use crate::{Error, View};

/// Where a device is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Guest-physical address of its registers.
    pub address: u64,
    /// Its interrupt, as the board counts them.
    pub irq: u32,
    /// The same, as KVM_IRQ_LINE counts them.
    pub line: u32,
}

struct Slot {
    transport: Transport,
    place: Place,
    /// The level of its interrupt's wire.
    level: bool,
}

impl Slot {
    /// Brings the wire to the level that the device asks for.
    fn wire(&mut self, interrupts: &Interrupts<'_, '_>) {
        if self.level != self.transport.raised() {
            self.level = self.transport.raised();
            interrupts.set(self.place.line, self.level);
        }
    }
}

/// The devices, in order.
pub(crate) struct Slots(Vec<Slot>);

fn name(index: usize) -> String {
    format!("virtio{index}")
}

impl Slots {
    /// Puts devices where `place` says.
    ///
    /// # Errors
    /// There are more than `most`, or one of them has queues that none can have.
    pub fn new(
        devices: Vec<Box<dyn Device>>,
        most: usize,
        place: impl Fn(u32) -> Place,
    ) -> Result<Slots, Error> {
        if devices.len() > most {
            return Err(Error::Device(format!("{} devices; at most {most}", devices.len())));
        }
        let slot = |(index, device): (u32, Box<dyn Device>)| {
            Ok(Slot { transport: Transport::new(device)?, place: place(index), level: false })
        };
        (0..).zip(devices).map(slot).collect::<Result<_, Error>>().map(Slots)
    }

    /// Where they are.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        self.0.iter().map(|slot| slot.place)
    }

    /// The same, as a board has it.
    pub fn placed(&self) -> impl Iterator<Item = Placed> {
        self.0.iter().enumerate().map(|(index, slot)| Placed {
            name: name(index),
            kind: virtio_kind(slot.transport.device().kind()),
            at: slot.place.address,
            irq: slot.place.irq,
        })
    }

    pub fn transports(&self) -> impl Iterator<Item = &Transport> {
        self.0.iter().map(|slot| &slot.transport)
    }

    /// What becomes readable when there is something for a device, with its number.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn sources(&self) -> Result<Vec<(usize, OwnedFd)>, Error> {
        virtio::sources(self.transports())
    }

    /// An access to the registers at this address, and the device's wire afterwards; false if nobody is there.
    pub fn access(
        &mut self,
        address: u64,
        interrupts: &Interrupts<'_, '_>,
        access: impl FnOnce(&mut Transport, u64),
    ) -> bool {
        let within = |slot: &Slot| address.checked_sub(slot.place.address).filter(|at| *at < LENGTH);
        let Some((slot, at)) = self.0.iter_mut().find_map(|slot| within(slot).map(|at| (slot, at))) else {
            return false;
        };
        access(&mut slot.transport, at);
        slot.wire(interrupts);
        true
    }

    /// The source of the device of this number became readable.
    pub fn incoming(&mut self, device: usize, memory: &View, interrupts: &Interrupts<'_, '_>) {
        if let Some(slot) = self.0.get_mut(device) {
            slot.transport.incoming(memory);
            slot.wire(interrupts);
        }
    }

    /// After this nothing is in flight in any of them.
    ///
    /// # Errors
    /// What was in flight cannot be brought to an end.
    pub fn quiesce(&mut self, interrupts: &Interrupts<'_, '_>) -> Result<(), Error> {
        self.0.iter_mut().try_for_each(|slot| {
            let quiet = slot.transport.quiesce();
            slot.wire(interrupts);
            quiet
        })
    }

    /// Another process may use what is behind them: [`Device::release`].
    ///
    /// # Errors
    /// As a device says.
    pub fn release(&mut self) -> Result<(), Error> {
        self.0.iter_mut().try_for_each(|slot| slot.transport.release())
    }

    /// It is used here: [`Device::claim`].
    ///
    /// # Errors
    /// As a device says.
    pub fn claim(&mut self) -> Result<(), Error> {
        self.0.iter_mut().try_for_each(|slot| slot.transport.claim())
    }

    /// What they are and are at.
    pub fn records(&self) -> impl Iterator<Item = (String, Record)> {
        self.0.iter().enumerate().map(|(index, slot)| {
            let device = slot.transport.device();
            let config = Bytes(device.config_record());
            let state = Bytes(slot.transport.record());
            (name(index), Record { kind: virtio_kind(device.kind()), config, state })
        })
    }

    /// Puts them where these records say.
    ///
    /// # Errors
    /// One of them cannot be there.
    pub fn set_records(
        &mut self,
        records: &Records,
        memory: &View,
        interrupts: &Interrupts<'_, '_>,
    ) -> Result<(), Error> {
        for (index, slot) in self.0.iter_mut().enumerate() {
            let state = records.get(&name(index)).map_or(&[][..], |record| &record.state.0);
            slot.transport.set_record(state, memory)?;
            // A controller keeps what a wire led to, and not its level.
            slot.wire(interrupts);
        }
        Ok(())
    }
}
