//! An arm64 machine that stands: its state, and what its devices are at, out of it and into it.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use evenkeel_capsule::Section;
use evenkeel_capsule::cbor::Bytes;
use evenkeel_state::{Manifest, Parts, arm64};
use evenkeel_sys::{Ram, Vm};

use super::{SERIAL, Virt, lock};
use crate::Error;
use crate::board::{self, Board, Disk, Placed, Record, Records, Runs, SavedMachine};
use crate::confine::Confinement;
use crate::control::metrics::{self, Metrics};
use crate::life::{End, Life, Phase};
use crate::threads::{self, cpus, standing};

/// The serial port's name and kind.
const PORT: &str = "serial";

impl<W: Write + Send> Runs for Virt<'_, '_, W> {
    fn board(&self) -> Board {
        let serial =
            Placed { name: PORT.to_owned(), kind: PORT.to_owned(), at: SERIAL.address, irq: SERIAL.spi };
        let mut devices = vec![serial];
        devices.extend(lock(&self.devices).virtio.placed());
        Board {
            memory: self.machine.ram().len() as u64,
            vcpus: self.machine.vcpus().len() as u32,
            irqchip: "gicv3".to_owned(),
            devices,
        }
    }

    fn save(&self, manifest: &Manifest) -> Result<SavedMachine, Error> {
        if self.chassis.life.phase() != Phase::Paused {
            return Err(Error::Device("a machine is saved while it is paused".to_owned()));
        }
        let machine = self.machine;
        let mut standing = standing(&self.chassis.life, machine.vcpus().len());
        let cpus = cpus(machine.vcpus(), &mut standing);
        let mut parts = Parts {
            devices: machine.devices().iter().collect(),
            ..Parts::new(machine.system(), machine.vm(), cpus)
        };
        let saved = arm64::save(&mut parts, manifest)?;
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

    fn metrics(&self) -> &Arc<Metrics> {
        &self.chassis.metrics
    }

    fn device_counts(&self) -> Vec<metrics::Device> {
        let devices = self.devices.try_lock().ok();
        self.chassis.counts(devices.as_ref().map(|d| d.virtio.transports()))
    }
}

impl<W: Write + Send> Virt<'_, '_, W> {
    /// What the devices are at.
    fn records(&self) -> Records {
        let devices = lock(&self.devices);
        let serial = &devices.serial;
        let one = Record {
            kind: PORT.to_owned(),
            config: Bytes(serial.config_record()),
            state: Bytes(serial.state()),
        };
        let mut records = Records::from([(PORT.to_owned(), one)]);
        records.extend(devices.virtio.records());
        records
    }

    /// Puts the devices where these records say; they are of this board.
    pub(super) fn set_records(&self, records: &Records) -> Result<(), Error> {
        board::alike(&self.records(), records)?;
        let mut devices = lock(&self.devices);
        let state = |name: &str| records.get(name).map_or(&[][..], |record| &record.state.0);
        devices.serial.set_state(state(PORT))?;
        devices.virtio.set_records(records, &self.memory, &self.interrupts)
    }
}
