//! A PC for Linux: in-kernel or split irqchip, a serial port, virtio devices on MMIO, and a thread a vCPU.
//!
//! * [`Pc::new`] boots a kernel, [`Pc::restored`] goes on with a saved guest.
//! * [`Runs::run`] runs it to its end; its [`Life`](crate::Life) pauses and resumes it meanwhile.
//! * [`Runs::save`], while it is paused, gives its state and its sections for a capsule.

mod exits;
mod run;
mod save;

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::View;
use evenkeel_sys::Vcpu;
use vm_memory::{Bytes, GuestAddress};

use crate::acpi::{self, Place};
use crate::board::{Board, Records, Runs};
use crate::chassis::Chassis;
use crate::devices::interrupts::Interrupts;
use crate::devices::keyboard::Keyboard;
use crate::devices::plug::Plug;
use crate::devices::serial::Port;
use crate::devices::virtio::{Device, LENGTH};
use crate::linux::{Boot, x86_64 as linux};
use crate::slots::{self, Slots};
use crate::{Error, Machine};

/// Where the registers of virtio devices are: in the hole below 4 GiB, away from APICs and firmware.
const MMIO: u32 = 0xd000_0000;
/// Their first pin of the IOAPIC.
const FIRST_IRQ: u32 = 5;
/// The most devices: the pins behind the first.
pub const MOST_DEVICES: usize = 16;
/// The pin of what tells of plugged vCPUs: behind the devices'.
const PLUG_IRQ: u32 = FIRST_IRQ + MOST_DEVICES as u32;
/// What tells of plugged vCPUs, among the sources of the devices.
const PLUG_SOURCE: usize = MOST_DEVICES;
/// Where the ACPI tables are: the BIOS' read-only area.
const TABLES: u64 = 0xe_0000;

/// The devices, behind one lock: what a guest does with them is rare.
struct Devices<'v, 'b, W: Write> {
    serial: Port<Arc<Interrupts<'v, 'b>>, W>,
    keyboard: Keyboard,
    virtio: Slots,
}

/// A machine that is ready to run.
pub struct Pc<'m, 'b, W: Write> {
    machine: &'m Machine<'m, 'b>,
    vcpus: &'m [Vcpu<'b>],
    interrupts: Arc<Interrupts<'m, 'b>>,
    memory: View,
    devices: Mutex<Devices<'m, 'b, W>>,
    /// Where some vCPUs are not there from the beginning.
    plug: Option<Plug>,
    chassis: Chassis,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'m, 'b, W: Write + Send> Pc<'m, 'b, W> {
    /// Puts devices and tables into a machine and loads what is to be booted. The vCPUs have been configured by now; the first
    /// one is put at the kernel's entry, the others wait to be started by it.
    ///
    /// # Errors
    /// There are too many devices, or what is to be booted cannot be.
    pub fn new(
        machine: &'m Machine<'m, 'b>,
        vcpus: &'m [Vcpu<'b>],
        devices: Vec<Box<dyn Device>>,
        output: W,
        boot: &mut Boot,
    ) -> Result<Self, Error> {
        Pc::pluggable(machine, vcpus, vcpus.len() as u32, devices, output, boot)
    }

    /// As [`Pc::new`], but only the first so many of the vCPUs are there from the beginning: the others are plugged ([`Runs::plug`]).
    ///
    /// # Errors
    /// As there, or there are not so many.
    pub fn pluggable(
        machine: &'m Machine<'m, 'b>,
        vcpus: &'m [Vcpu<'b>],
        first: u32,
        devices: Vec<Box<dyn Device>>,
        output: W,
        boot: &mut Boot,
    ) -> Result<Self, Error> {
        let most = vcpus.len() as u32;
        let plug = (first != most).then(|| Plug::new(first, most)).transpose()?;
        let pc = Pc::with(machine, vcpus, plug, devices, output)?;
        let entry = linux::load(&pc.memory, machine.ram(), boot, TABLES)?;
        let places: Vec<Place> = lock(&pc.devices)
            .virtio
            .places()
            .map(|place| Place { address: place.address as u32, irq: place.irq })
            .collect();
        let vcpus_told = acpi::Vcpus { first: first as u8, most: most as u8, irq: PLUG_IRQ };
        let tables = acpi::tables(TABLES, vcpus_told, &places, LENGTH as u32);
        pc.memory
            .write_slice(&tables, GuestAddress(TABLES))
            .map_err(|e| Error::Image(format!("ACPI tables: {e}")))?;
        if let Some(first) = vcpus.first() {
            linux::enter(first, entry)?;
        }
        Ok(pc)
    }

    /// Puts devices into a machine that was made again, with its memory and the state that KVM keeps, and sets what they
    /// were at. `devices` are those that the board names, in its order.
    ///
    /// # Errors
    /// They are other devices, or cannot be at what was saved.
    pub fn restored(
        machine: &'m Machine<'m, 'b>,
        vcpus: &'m [Vcpu<'b>],
        board: &Board,
        records: &Records,
        devices: Vec<Box<dyn Device>>,
        output: W,
    ) -> Result<Self, Error> {
        let most = vcpus.len() as u32;
        let plug = board.devices.iter().any(|device| device.kind == save::PLUG);
        let plug = plug.then(|| Plug::new(most, most)).transpose()?;
        let pc = Pc::with(machine, vcpus, plug, devices, output)?;
        let own = pc.board();
        board.goes_on(&own)?;
        pc.set_records(records)?;
        Ok(pc)
    }

    fn with(
        machine: &'m Machine<'m, 'b>,
        vcpus: &'m [Vcpu<'b>],
        plug: Option<Plug>,
        devices: Vec<Box<dyn Device>>,
        output: W,
    ) -> Result<Self, Error> {
        let memory = crate::view(machine.ram(), 0)?;
        let place = |index: u32| {
            let irq = FIRST_IRQ + index;
            slots::Place { address: u64::from(MMIO) + u64::from(index) * LENGTH, irq, line: irq }
        };
        let virtio = Slots::new(devices, MOST_DEVICES, place)?;
        let interrupts = Arc::new(Interrupts::new(machine.vm(), machine.shape().irqchip)?);
        let serial = Port::new(interrupts.clone(), output);
        let devices = Mutex::new(Devices { serial, keyboard: Keyboard::default(), virtio });
        Ok(Pc { machine, vcpus, interrupts, memory, devices, plug, chassis: Chassis::new()? })
    }
}
