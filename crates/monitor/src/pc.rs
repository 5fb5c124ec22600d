//! A PC for Linux: in-kernel or split irqchip, a serial port, virtio devices on MMIO, and a thread a vCPU.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use evenkeel_sys::{Deadline, Errno, Exit, Runner, Vcpu};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::acpi::{self, Place};
use crate::devices::interrupts::Interrupts;
use crate::devices::keyboard::{self, Keyboard};
use crate::devices::serial::{PORTS, Port};
use crate::devices::virtio::{Device, LENGTH, Transport};
use crate::linux::{Boot, x86_64 as linux};
use crate::{Error, Machine};

/// Where the registers of virtio devices are: in the hole below 4 GiB, away from APICs and firmware.
const MMIO: u32 = 0xd000_0000;
/// Their first pin of the IOAPIC.
const FIRST_IRQ: u32 = 5;
/// The most devices: the pins behind the first.
pub const MOST_DEVICES: usize = 16;
/// Where the ACPI tables are: the BIOS' read-only area.
const TABLES: u64 = 0xe_0000;
/// How long a vCPU runs before it looks whether the machine is over.
const LOOK: Duration = Duration::from_millis(200);

/// Why a machine stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest asked for a reset, by the keyboard controller or by a triple fault.
    Reset,
    /// The time was over.
    TimeOver,
}

/// The devices, behind one lock: what a guest does with them is rare.
struct Devices<'v, 'b, W: Write> {
    serial: Port<Arc<Interrupts<'v, 'b>>, W>,
    keyboard: Keyboard,
    virtio: Vec<(Transport, Place, bool)>,
}

/// A machine that is ready to run.
pub struct Pc<'m, 'b, W: Write> {
    interrupts: Arc<Interrupts<'m, 'b>>,
    memory: GuestMemoryMmap,
    devices: Mutex<Devices<'m, 'b, W>>,
    over: AtomicBool,
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
        machine: &'m Machine<'_, 'b>,
        vcpus: &[Vcpu<'b>],
        devices: Vec<Box<dyn Device>>,
        output: W,
        boot: &mut Boot,
    ) -> Result<Self, Error> {
        if devices.len() > MOST_DEVICES {
            return Err(Error::Device(format!("{} devices; at most {MOST_DEVICES}", devices.len())));
        }
        let memory = crate::view(machine.ram(), 0)?;
        let entry = linux::load(&memory, machine.ram(), boot, TABLES)?;
        let mut virtio = Vec::with_capacity(devices.len());
        for (index, device) in (0_u32..).zip(devices) {
            let place = Place { address: MMIO + index * LENGTH as u32, irq: FIRST_IRQ + index };
            virtio.push((Transport::new(device)?, place, false));
        }
        let places: Vec<Place> = virtio.iter().map(|(_, place, _)| *place).collect();
        let ids: Vec<u8> = (0..vcpus.len()).map(|id| id as u8).collect();
        let tables = acpi::tables(TABLES, &ids, &places, LENGTH as u32);
        memory
            .write_slice(&tables, GuestAddress(TABLES))
            .map_err(|e| Error::Image(format!("ACPI tables: {e}")))?;
        if let Some(first) = vcpus.first() {
            linux::enter(first, entry)?;
        }
        let interrupts = Arc::new(Interrupts::new(machine.vm(), machine.shape().irqchip)?);
        let serial = Port::new(interrupts.clone(), output);
        let devices = Devices { serial, keyboard: Keyboard::default(), virtio };
        Ok(Pc { interrupts, memory, devices: Mutex::new(devices), over: AtomicBool::new(false) })
    }

    /// Runs all vCPUs, a thread each, until the guest asks for a reset or the time is over.
    ///
    /// # Errors
    /// KVM stops a vCPU in a way that no guest can go on from.
    pub fn run(
        &self,
        machine: &Machine<'_, 'b>,
        vcpus: &[Vcpu<'b>],
        limit: Option<Duration>,
    ) -> Result<End, Error> {
        let until = limit.map(|limit| Instant::now() + limit);
        std::thread::scope(|scope| {
            let threads: Vec<_> = vcpus
                .iter()
                .map(|vcpu| {
                    scope.spawn(move || {
                        let ended = vcpu.runner(machine.system()).map_err(Error::from);
                        let ended = ended.and_then(|runner| self.run_one(runner, until));
                        self.over.store(true, Ordering::Release);
                        ended
                    })
                })
                .collect();
            let mut end = End::TimeOver;
            for thread in threads {
                match thread
                    .join()
                    .unwrap_or_else(|_| Err(Error::Device("a vCPU's thread panicked".to_owned())))?
                {
                    End::Reset => end = End::Reset,
                    End::TimeOver => {}
                }
            }
            Ok(end)
        })
    }

    fn run_one(&self, mut runner: Runner<'_, 'b>, until: Option<Instant>) -> Result<End, Error> {
        let deadline = Deadline::new();
        deadline.arm(LOOK);
        loop {
            if self.over.load(Ordering::Acquire) || until.is_some_and(|until| Instant::now() >= until) {
                return Ok(End::TimeOver);
            }
            if deadline.expired() {
                deadline.arm(LOOK);
            }
            match runner.run() {
                Ok(exit) => {
                    if let Some(end) = self.exit(&mut runner, exit)? {
                        return Ok(end);
                    }
                }
                // A vCPU that waits for INIT or SIPI got it.
                Err(error) if error.errno() == Some(Errno::EAGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn exit(&self, runner: &mut Runner<'_, 'b>, exit: Exit) -> Result<Option<End>, Error> {
        match exit {
            Exit::PortWrite { port, data, .. } if PORTS.contains(&port) => {
                lock(&self.devices).serial.write(port, &data);
            }
            Exit::PortRead { port, size, count } if PORTS.contains(&port) => {
                let length = usize::from(size).saturating_mul(count as usize).min(4096);
                let data = lock(&self.devices).serial.read(port, length);
                runner.answer(&data);
            }
            Exit::PortWrite { port: port @ (keyboard::DATA | keyboard::COMMAND), data, .. } => {
                let mut devices = lock(&self.devices);
                if data.iter().any(|byte| devices.keyboard.write(port, *byte)) {
                    return Ok(Some(End::Reset));
                }
            }
            Exit::PortRead { port: port @ (keyboard::DATA | keyboard::COMMAND), .. } => {
                let byte = lock(&self.devices).keyboard.read(port);
                runner.answer(&[byte]);
            }
            Exit::IoapicEoi(vector) => self.interrupts.eoi(vector),
            Exit::MemoryWrite { address, data } if self.interrupts.write(address, &data) => {}
            Exit::MemoryWrite { address, data } => self.mmio(address, |transport, at, memory| {
                transport.write(at, &data, memory);
            }),
            Exit::MemoryRead { address, length } => {
                let mut data = vec![0xff; length];
                if !self.interrupts.read(address, &mut data) {
                    self.mmio(address, |transport, at, _| transport.read(at, &mut data));
                }
                runner.answer(&data);
            }
            Exit::PortRead { .. } => runner.answer(&[]),
            Exit::Interrupted | Exit::PortWrite { .. } => {}
            Exit::Shutdown => return Ok(Some(End::Reset)),
            other => return Err(Error::Ended(other)),
        }
        Ok(None)
    }

    /// An access to a virtio device's registers, and its interrupt line afterwards.
    fn mmio(&self, address: u64, access: impl FnOnce(&mut Transport, u64, &GuestMemoryMmap)) {
        let Some(from) = address.checked_sub(u64::from(MMIO)) else { return };
        let (index, at) = ((from / LENGTH) as usize, from % LENGTH);
        let mut devices = lock(&self.devices);
        let Some((transport, place, level)) = devices.virtio.get_mut(index) else { return };
        access(transport, at, &self.memory);
        if *level != transport.raised() {
            *level = transport.raised();
            self.interrupts.set(place.irq, *level);
        }
    }
}
