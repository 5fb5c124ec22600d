//! Machines that are lent to be saved, and made from what was saved.

use std::sync::Arc;

use evenkeel_catalog::Arch;
use evenkeel_monitor::Error as MonitorError;
use evenkeel_monitor::aarch64::Machine;
use evenkeel_state::order::{Order, Phase};
use evenkeel_state::{Cpu, Image, Parts, Report, arm64};
use evenkeel_sys::layout::word;
use evenkeel_sys::{Ram, Runner, Slot, System};

use super::Error;

/// KVM_ARM_VCPU_POWER_OFF.
const POWER_OFF: u32 = 1;

/// A machine, lent. The runners are of its first vCPUs, in their order; the others never ran.
pub fn parts<'g, 'v: 'g, 'b: 'g>(
    machine: &'g Machine<'g, 'b>,
    runners: Vec<&'g mut Runner<'v, 'b>>,
) -> Parts<'g, 'b> {
    let ran = runners.len();
    let mut cpus: Vec<Cpu<'g, 'b>> = runners.into_iter().map(Cpu::running).collect();
    cpus.extend(machine.vcpus().iter().skip(ran).map(Cpu::still));
    let devices = machine.devices().iter().collect();
    Parts { devices, ..Parts::new(machine.system(), machine.vm(), cpus) }
}

/// Guest memory, as it was at a moment.
#[derive(Clone, Debug)]
pub struct Copied(pub(super) Vec<(Slot, Vec<u8>)>);

impl Copied {
    /// A copy of this memory.
    ///
    /// # Errors
    /// A slot is not within its memory.
    pub fn of(memory: &[(Slot, Arc<Ram>)]) -> Result<Copied, Error> {
        let copy = |(slot, ram): &(Slot, Arc<Ram>)| {
            let mut bytes = vec![0; slot.length as usize];
            ram.read(slot.offset as usize, &mut bytes)?;
            Ok((Slot { offset: 0, ..*slot }, bytes))
        };
        memory.iter().map(copy).collect::<Result<_, Error>>().map(Copied)
    }

    /// Memory of its own that holds it.
    ///
    /// # Errors
    /// The kernel has no memory.
    pub fn filled(&self) -> Result<Vec<(Slot, Arc<Ram>)>, Error> {
        let fill = |(slot, bytes): &(Slot, Vec<u8>)| {
            let ram = Ram::new(bytes.len()).map_err(MonitorError::Memory)?;
            ram.write(0, bytes)?;
            Ok((*slot, Arc::new(ram)))
        };
        self.0.iter().map(fill).collect()
    }
}

/// A machine that was restored.
#[derive(Debug)]
pub struct Revived<'s, 'b> {
    /// The machine.
    pub machine: Machine<'s, 'b>,
    /// Where its memory is.
    pub slot: Slot,
}

/// Makes a VM from an image and this memory, and restores it.
///
/// # Errors
/// As the engine says; or the image is not of a machine with one slot of memory.
pub fn revive<'s, 'b>(
    system: &'s System<'b>,
    image: &Image,
    memory: &Copied,
) -> Result<(Revived<'s, 'b>, Report), Error> {
    revive_in(system, image, memory, Order::catalogued(Arch::Aarch64, Phase::Restore))
}

/// The same in another order than the catalog's.
///
/// # Errors
/// As [`revive`].
pub fn revive_in<'s, 'b>(
    system: &'s System<'b>,
    image: &Image,
    memory: &Copied,
    order: &Order,
) -> Result<(Revived<'s, 'b>, Report), Error> {
    let memory = memory.filled()?;
    let (slot, ram) = memory.first().cloned().ok_or_else(|| {
        Error::from(MonitorError::Memory(evenkeel_sys::Refusal::Nonsense("there is none".to_owned())))
    })?;
    let mut made = arm64::remake(system, &image.manifest, &memory)?;
    let later = std::mem::take(&mut made.later);
    let time = arm64::Time::Stopped;
    let report = arm64::restore_in(&mut made.parts(system), image, &later, time, order)?;
    let init = image.manifest.calls.iter().find(|call| call.call == "KVM_ARM_VCPU_INIT");
    let with = init.map_or((0, 0), |c| (word(&c.argument, 0), word(&c.argument, 4) & !POWER_OFF));
    let machine = Machine::adopt(system, made.vm, made.vcpus, made.devices, ram, with);
    Ok((Revived { machine, slot }, report))
}
