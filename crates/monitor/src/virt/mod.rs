//! An arm64 machine for Linux: a GICv3, a serial port and virtio devices on MMIO, PSCI by KVM, and a thread a vCPU. What it is
//! the guest reads in a [device tree](crate::fdt).

mod save;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::View;
use evenkeel_sys::{Exit, Runner, System, Vcpu};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::aarch64::{self, MEMORY_BASE, Machine};
use crate::board::{Board, Records, Runs};
use crate::chassis::Chassis;
use crate::devices::interrupts::Interrupts;
use crate::devices::serial::{Edge, PORTS, Port};
use crate::devices::virtio::{Device, LENGTH};
use crate::fdt::{self, Place};
use crate::life::End;
use crate::linux::{Boot, aarch64 as linux};
use crate::slots::{self, Slots};
use crate::threads::Rig;
use crate::{Error, Irqchip};

/// Where the serial port's registers are.
const SERIAL: Place = Place { address: 0x0900_0000, length: 0x1000, spi: 0 };
/// Where those of virtio devices begin; their first shared interrupt.
const VIRTIO: u64 = 0x0a00_0000;
const FIRST_SPI: u32 = 1;
/// The most devices.
pub const MOST_DEVICES: usize = 32;

/// KVM_IRQ_LINE: a wire of the GIC (KVM_ARM_IRQ_TYPE_SPI), and the first number of those that are shared.
const LINE_SPI: u32 = 1 << 24;
const FIRST_SHARED: u32 = 32;

/// KVM_SYSTEM_EVENT_SHUTDOWN, KVM_SYSTEM_EVENT_RESET.
const SHUTDOWN: u32 = 1;
const RESET: u32 = 2;

/// The serial port's wire: whatever pin it names, here it has one.
#[derive(Debug)]
struct Wire<'m, 'b>(Arc<Interrupts<'m, 'b>>);

impl Edge for Wire<'_, '_> {
    fn edge(&self, _: u32) {
        self.0.pulse(line(SERIAL.spi));
    }
}

/// The devices, behind one lock: what a guest does with them is rare.
struct Devices<'m, 'b, W: Write> {
    serial: Port<Wire<'m, 'b>, W>,
    virtio: Slots,
}

/// A machine that is ready to run.
pub struct Virt<'m, 'b, W: Write> {
    machine: &'m Machine<'m, 'b>,
    interrupts: Arc<Interrupts<'m, 'b>>,
    memory: View,
    devices: Mutex<Devices<'m, 'b, W>>,
    chassis: Chassis,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// KVM's number of a shared interrupt's wire.
fn line(spi: u32) -> u32 {
    LINE_SPI | (FIRST_SHARED + spi)
}

impl<'m, 'b, W: Write + Send> Virt<'m, 'b, W> {
    /// Puts devices into a machine and loads what is to be booted. The first vCPU is put at the kernel's entry, the others
    /// wait to be started by it.
    ///
    /// # Errors
    /// There are too many devices, or what is to be booted cannot be.
    pub fn new(
        machine: &'m Machine<'m, 'b>,
        devices: Vec<Box<dyn Device>>,
        output: W,
        boot: &mut Boot,
    ) -> Result<Self, Error> {
        let virt = Virt::with(machine, devices, output)?;
        let loaded = linux::load(&virt.memory, boot)?;
        let mut seed = [0; 64];
        let got = getrandom(&mut seed[..], GetRandomFlags::empty()).unwrap_or(0);
        let places: Vec<Place> = lock(&virt.devices)
            .virtio
            .places()
            .map(|place| Place { address: place.address, length: LENGTH, spi: place.irq })
            .collect();
        let tree = fdt::tree(&fdt::Told {
            memory: machine.ram().len() as u64,
            vcpus: machine.vcpus().len() as u64,
            pmu: machine.has_pmu(),
            command_line: &boot.command_line,
            initramfs: loaded.initramfs,
            seed: &seed[..got],
            serial: SERIAL,
            virtio: &places,
        });
        let tree = tree.map_err(|e| Error::Image(format!("device tree: {e}")))?;
        linux::put_tree(&virt.memory, &tree)?;
        if let Some(first) = machine.vcpus().first() {
            aarch64::enter(first, loaded.entry, linux::TREE)?;
        }
        Ok(virt)
    }

    /// Puts devices into a machine that was made again, with its memory and the state that KVM keeps, and sets what they
    /// were at. `devices` are those that the board names, in its order.
    ///
    /// # Errors
    /// They are other devices, or cannot be at what was saved.
    pub fn restored(
        machine: &'m Machine<'m, 'b>,
        board: &Board,
        records: &Records,
        devices: Vec<Box<dyn Device>>,
        output: W,
    ) -> Result<Self, Error> {
        let virt = Virt::with(machine, devices, output)?;
        let own = virt.board();
        board.goes_on(&own)?;
        virt.set_records(records)?;
        Ok(virt)
    }

    fn with(machine: &'m Machine<'m, 'b>, devices: Vec<Box<dyn Device>>, output: W) -> Result<Self, Error> {
        if let Some(why) = &machine.no_gic {
            return Err(Error::Device(format!("no GICv3: {why}")));
        }
        let memory = crate::view(machine.ram(), MEMORY_BASE)?;
        let place = |index: u32| {
            let irq = FIRST_SPI + index;
            slots::Place { address: VIRTIO + u64::from(index) * LENGTH, irq, line: line(irq) }
        };
        let virtio = Slots::new(devices, MOST_DEVICES, place)?;
        let interrupts = Arc::new(Interrupts::new(machine.vm(), Irqchip::Kernel)?);
        let serial = Port::new(Wire(interrupts.clone()), output);
        let devices = Mutex::new(Devices { serial, virtio });
        Ok(Virt { machine, interrupts, memory, devices, chassis: Chassis::new()? })
    }

    /// An access to a device's registers; false if nobody is at this address.
    fn mmio(&self, address: u64, data: Access<'_>) -> bool {
        let mut devices = lock(&self.devices);
        if let Some(at) = within(SERIAL, address) {
            // Its registers are those of a PC's port, one after the other.
            let port = PORTS.start + (at & 7) as u16;
            match data {
                Access::Read(data) => data.copy_from_slice(&devices.serial.read(port, data.len())),
                Access::Write(data) => devices.serial.write(port, data),
            }
            return true;
        }
        devices.virtio.access(address, &self.interrupts, |transport, at| match data {
            Access::Read(data) => transport.read(at, data),
            Access::Write(data) => transport.write(at, data, &self.memory),
        })
    }
}

/// What a guest does with registers.
enum Access<'d> {
    Read(&'d mut [u8]),
    Write(&'d [u8]),
}

fn within(place: Place, address: u64) -> Option<u64> {
    address.checked_sub(place.address).filter(|at| *at < place.length)
}

impl<'b, W: Write + Send> Rig<'b> for Virt<'_, 'b, W> {
    fn chassis(&self) -> &Chassis {
        &self.chassis
    }

    fn system(&self) -> &System<'b> {
        self.machine.system()
    }

    fn vcpus(&self) -> &[Vcpu<'b>] {
        self.machine.vcpus()
    }

    fn exit(&self, runner: &mut Runner<'_, 'b>, exit: Exit) -> Result<Option<End>, Error> {
        match exit {
            Exit::MemoryWrite { address, data } => {
                self.mmio(address, Access::Write(&data));
            }
            Exit::MemoryRead { address, length } => {
                let mut data = vec![0xff; length];
                self.mmio(address, Access::Read(&mut data));
                runner.answer(&data);
            }
            Exit::Interrupted => {}
            Exit::SystemEvent(SHUTDOWN, _) => return Ok(Some(End::Off)),
            Exit::SystemEvent(RESET, _) => return Ok(Some(End::Reset)),
            other => return Err(Error::Ended(other)),
        }
        Ok(None)
    }

    fn sources(&self) -> Result<Vec<(usize, OwnedFd)>, Error> {
        lock(&self.devices).virtio.sources()
    }

    fn incoming(&self, device: usize) {
        lock(&self.devices).virtio.incoming(device, &self.memory, &self.interrupts);
    }

    fn quiesce(&self) -> Result<(), Error> {
        lock(&self.devices).virtio.quiesce(&self.interrupts)
    }
}
