//! How a saved machine is made again on x86.

use std::sync::Arc;

use evenkeel_monitor::board::{Board, Records};
use evenkeel_monitor::devices::virtio::Device;
use evenkeel_monitor::pc::Pc;
use evenkeel_monitor::{Error, Irqchip, Machine, Shape};
use evenkeel_state::x86::{self, Options};
use evenkeel_state::{Image, Made, Refused, Report};
use evenkeel_sys::{Ram, Slot, System, Vcpu};

use crate::commands::guest::{Console, failed};
use crate::failure::Failure;

/// A machine, and its vCPUs.
pub type Whole<'s, 'b> = (Machine<'s, 'b>, Vec<Vcpu<'b>>);

/// Makes the VM again, sets its state and reads it back.
pub fn again<'b>(
    system: &System<'b>,
    image: &Image,
    slot: Slot,
    ram: &Arc<Ram>,
) -> Result<(Made<'b>, Report), Refused> {
    let made = x86::remake(system, &image.manifest, &[(slot, ram.clone())])?;
    let report = x86::restore(&mut made.parts(system), image, &Options::default())?;
    Ok((made, report))
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
