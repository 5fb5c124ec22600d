//! How a saved machine is made again on arm64.

use std::sync::Arc;

use evenkeel_monitor::Error;
use evenkeel_monitor::aarch64::Machine;
use evenkeel_monitor::board::{Board, Records};
use evenkeel_monitor::devices::virtio::Device;
use evenkeel_monitor::virt::Virt;
use evenkeel_state::{Image, Made, Manifest, Refused, Report, arm64};
use evenkeel_sys::{Ram, Slot, System, layout::word};

use crate::commands::guest::Console;
use crate::failure::Failure;

/// KVM_ARM_VCPU_POWER_OFF, which only the vCPUs behind the first are initialized with.
const POWER_OFF: u32 = 1;

/// A VM that was made again; its state is not set yet.
pub struct Again<'b>(Made<'b>);

impl<'b> Again<'b> {
    /// Makes it as the manifest says.
    pub fn make(
        system: &System<'b>,
        manifest: &Manifest,
        slot: Slot,
        ram: &Arc<Ram>,
    ) -> Result<Again<'b>, Refused> {
        arm64::remake(system, manifest, &[(slot, ram.clone())]).map(Again)
    }

    /// Sets its state and reads it back. The guest's time stood still.
    pub fn set(mut self, system: &System<'b>, image: &Image) -> Result<(Made<'b>, Report), Refused> {
        let later = std::mem::take(&mut self.0.later);
        let report = arm64::restore(&mut self.0.parts(system), image, &later, arm64::Time::Stopped)?;
        Ok((self.0, report))
    }
}

/// The machine around it.
pub fn machine<'s, 'b>(
    system: &'s System<'b>,
    made: Made<'b>,
    ram: Arc<Ram>,
    _: &Board,
    image: &Image,
) -> Result<Machine<'s, 'b>, Failure> {
    let init = image.manifest.calls.iter().find(|call| call.call == "KVM_ARM_VCPU_INIT");
    let with = init.map_or((0, 0), |c| (word(&c.argument, 0), word(&c.argument, 4) & !POWER_OFF));
    Ok(Machine::adopt(system, made.vm, made.vcpus, made.devices, ram, with))
}

/// Its board, at what was saved.
pub fn board<'m, 'b>(
    machine: &'m Machine<'m, 'b>,
    board: &Board,
    records: &Records,
    devices: Vec<Box<dyn Device>>,
    console: Console,
) -> Result<Virt<'m, 'b, Console>, Error> {
    Virt::restored(machine, board, records, devices, console)
}
