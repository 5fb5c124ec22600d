//! How a saved machine is made again on x86.

use std::sync::Arc;

use evenkeel_monitor::board::{Board, Records};
use evenkeel_monitor::devices::virtio::Device;
use evenkeel_monitor::pc::Pc;
use evenkeel_monitor::{Error, Irqchip, Machine, Shape};
use evenkeel_state::x86::{self, Options};
use evenkeel_state::{Image, Made, Manifest, Refused, Report};
use evenkeel_sys::{Ram, Slot, System, Vcpu};

use crate::commands::guest::{Console, failed};
use crate::failure::Failure;

/// A machine, and its vCPUs.
pub type Whole<'s, 'b> = (Machine<'s, 'b>, Vec<Vcpu<'b>>);

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
        x86::remake(system, manifest, &[(slot, ram.clone())]).map(Again)
    }

    /// Sets its state and reads it back.
    pub fn set(self, system: &System<'b>, image: &Image) -> Result<(Made<'b>, Report), Refused> {
        let report = x86::restore(&mut self.0.parts(system), image, &Options::default())?;
        Ok((self.0, report))
    }
}

/// The machine around it.
pub fn machine<'s, 'b>(
    system: &'s System<'b>,
    made: Made<'b>,
    ram: Arc<Ram>,
    board: &Board,
    _: &Image,
) -> Result<Whole<'s, 'b>, Failure> {
    let irqchip = Irqchip::by_name(&board.irqchip)
        .ok_or_else(|| failed(&format!("the board has an irqchip `{}`", board.irqchip)))?;
    let shape = Shape { irqchip, pit: irqchip == Irqchip::Kernel, memory: ram.len() };
    Ok((Machine::adopt(system, made.vm, ram, shape), made.vcpus))
}

/// Its board, at what was saved.
pub fn board<'m, 'b>(
    (machine, vcpus): &'m Whole<'m, 'b>,
    board: &Board,
    records: &Records,
    devices: Vec<Box<dyn Device>>,
    console: Console,
) -> Result<Pc<'m, 'b, Console>, Error> {
    Pc::restored(machine, vcpus, board, records, devices, console)
}
