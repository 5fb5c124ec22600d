//! The other vCPUs.

use evenkeel_monitor::aarch64::Machine;
use evenkeel_sys::Deadline;

use super::super::{Error, Trial};
use super::probes::{CNTVCT, all};
use crate::aarch64::abi;
use crate::aarch64::probe::{Probe, Reg};
use crate::aarch64::programs::CPU_ON;
use crate::aarch64::session::{Session, area};

/// The second vCPU, where there is one, is brought up and asked something; all others stay off.
pub(in super::super) fn bring_up<'m, 's, 'b>(
    machine: &'m Machine<'s, 'b>,
    first: &mut Session<'m, 's, 'b>,
    deadline: &'m Deadline,
    trial: Trial,
) -> Result<Vec<Session<'m, 's, 'b>>, Error> {
    if trial.vcpus < 2 {
        return Ok(Vec::new());
    }
    all(first, &[Probe::call(CPU_ON, &[1, abi::CODE, area(1)])])?;
    let mut second = Session::new(machine, 1, deadline)?;
    all(&mut second, &[Probe::read(CNTVCT)])?;
    Ok(vec![second])
}

/// After a restore, the second vCPU goes on, and one that was off is brought up.
pub(in super::super) fn others_go_on(
    machine: &Machine<'_, '_>,
    deadline: &Deadline,
    trial: Trial,
) -> Result<Vec<String>, Error> {
    let mut wrong = Vec::new();
    for number in 1..trial.vcpus.min(abi::AREAS as u64) {
        if number > 1 {
            let mut first = Session::new(machine, 0, deadline)?;
            let on = all(&mut first, &[Probe::call(CPU_ON, &[number, abi::CODE, area(number as usize)])])?;
            if on != [0] {
                wrong.push(format!("vCPU {number}: CPU_ON returned {on:x?}"));
                continue;
            }
        }
        let mut session = Session::new(machine, number as usize, deadline)?;
        let mpidr = all(&mut session, &[Probe::read(Reg(3, 0, 0, 0, 5))])?[0];
        if mpidr & 0xff != number {
            wrong.push(format!("vCPU {number}: it says that it is {mpidr:#x}"));
        }
    }
    Ok(wrong)
}
