//! A machine that stands: its state, and what its devices are at, out of it and into it.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use evenkeel_capsule::Section;
use evenkeel_capsule::cbor::Bytes;
use evenkeel_state::{Manifest, Parts, x86};
use evenkeel_sys::{Ram, Vm};

use super::{PLUG_IRQ, Pc, lock};
use crate::Error;
use crate::board::{self, Board, Disk, Placed, Record, Records, Runs, SavedMachine};
use crate::confine::Confinement;
use crate::control::metrics::{self, Metrics};
use crate::devices::serial::PORTS;
use crate::devices::{ioapic, keyboard, plug};
use crate::life::{End, Life, Phase};
use crate::threads::{self, cpus, standing};

/// The names of devices that every machine has, or one with a split irqchip.
const SERIAL: &str = "serial";
const KEYBOARD: &str = "keyboard";
const IOAPIC: &str = "ioapic";
/// Name and kind of what plugs vCPUs, where some can be.
pub(super) const PLUG: &str = "vcpu-plug";
const SERIAL_IRQ: u32 = 4;

impl<W: Write + Send> Runs for Pc<'_, '_, W> {
    fn board(&self) -> Board {
        let shape = self.machine.shape();
        let placed = |name: &str, kind: &str, at: u64, irq: u32| Placed {
            name: name.to_owned(),
            kind: kind.to_owned(),
            at,
            irq,
        };
        let mut devices = vec![
            placed(SERIAL, "serial", PORTS.start.into(), SERIAL_IRQ),
            placed(KEYBOARD, "keyboard", keyboard::DATA.into(), 0),
        ];
        if self.interrupts.records().is_some() {
            devices.push(placed(IOAPIC, "ioapic", ioapic::BASE, 0));
        }
        if self.plug.is_some() {
            devices.push(placed(PLUG, PLUG, plug::PORTS.start.into(), PLUG_IRQ));
        }
        devices.extend(lock(&self.devices).virtio.placed());
        Board {
            memory: shape.memory as u64,
            vcpus: self.vcpus.len() as u32,
            irqchip: shape.irqchip.name().to_owned(),
            devices,
        }
    }

    fn save(&self, manifest: &Manifest) -> Result<SavedMachine, Error> {
        if self.chassis.life.phase() != Phase::Paused {
            return Err(Error::Device("a machine is saved while it is paused".to_owned()));
        }
        let mut standing = standing(&self.chassis.life, self.vcpus.len());
        let cpus = cpus(self.vcpus, &mut standing);
        let saved = x86::save(&mut Parts::new(self.machine.system(), self.machine.vm(), cpus), manifest)?;
        Ok(SavedMachine { saved, sections: self.sections() })
    }

    fn sections(&self) -> Vec<Section> {
        self.board().sections(&self.records())
    }

    fn release(&self) -> Result<(), Error> {
        lock(&self.devices).virtio.release()
    }

    fn claim(&self) -> Result<(), Error> {
        lock(&self.devices).virtio.claim()
    }

    fn vm(&self) -> &Vm<'_> {
        self.machine.vm()
    }

    fn disks(&self) -> Result<Vec<Disk>, Error> {
        lock(&self.devices).virtio.transports().filter_map(|transport| transport.device().disk()).collect()
    }

    fn life(&self) -> &Life {
        &self.chassis.life
    }

    fn run(&self, limit: Option<Duration>) -> End {
        threads::run(self, limit)
    }

    fn ram(&self) -> &Arc<Ram> {
        self.machine.ram()
    }

    fn confine(&self, confinement: Confinement) {
        self.chassis.confine(confinement);
    }

    fn plug(&self) -> Option<&plug::Plug> {
        self.plug.as_ref()
    }

    fn metrics(&self) -> &Arc<Metrics> {
        &self.chassis.metrics
    }

    fn device_counts(&self) -> Vec<metrics::Device> {
        let devices = self.devices.try_lock().ok();
        self.chassis.counts(devices.as_ref().map(|d| d.virtio.transports()))
    }
}

impl<'b, W: Write + Send> Pc<'_, 'b, W> {
    /// What the devices are at.
    fn records(&self) -> Records {
        let devices = lock(&self.devices);
        let record = |kind: &str, config: Vec<u8>, state: Vec<u8>| Record {
            kind: kind.to_owned(),
            config: Bytes(config),
            state: Bytes(state),
        };
        let mut records = Records::new();
        let (serial, keyboard) = (&devices.serial, &devices.keyboard);
        records.insert(SERIAL.to_owned(), record("serial", serial.config_record(), serial.state()));
        records.insert(KEYBOARD.to_owned(), record("keyboard", keyboard.config_record(), keyboard.state()));
        if let Some((config, state)) = self.interrupts.records() {
            records.insert(IOAPIC.to_owned(), record("ioapic", config, state));
        }
        if let Some(plug) = &self.plug {
            records.insert(PLUG.to_owned(), record(PLUG, plug.config_record(), plug.state()));
        }
        records.extend(devices.virtio.records());
        records
    }

    /// Puts the devices where these records say; they are of this board.
    pub(super) fn set_records(&self, records: &Records) -> Result<(), Error> {
        let own = self.records();
        board::alike(&own, records)?;
        let mut devices = lock(&self.devices);
        let state = |name: &str| records.get(name).map_or(&[][..], |record| &record.state.0);
        if own.contains_key(IOAPIC) {
            self.interrupts.set_state(state(IOAPIC))?;
        }
        if let Some(plug) = &self.plug {
            plug.set_state(state(PLUG))?;
            plug.hear(|high| self.interrupts.set(PLUG_IRQ, high));
        }
        devices.serial.set_state(state(SERIAL))?;
        devices.keyboard.set_state(state(KEYBOARD))?;
        devices.virtio.set_records(records, &self.memory, &self.interrupts)
    }
}
