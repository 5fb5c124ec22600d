//! What guests are asked to do in several scenarios: registers, interrupts, and the probes for them.

use evenkeel_monitor::Error as MonitorError;
use evenkeel_monitor::aarch64::Machine;
use evenkeel_sys::Exit;
use evenkeel_sys::requests::KVM_IRQ_LINE;

use super::Error;
use crate::Error as WitnessError;
use crate::aarch64::abi;
use crate::aarch64::probe::{DSB, ISB, Outcome, Probe, Reg, str_w, str_x};
use crate::aarch64::session::Session;

pub(super) const ICC_SRE: Reg = Reg(3, 0, 12, 12, 5);
pub(super) const ICC_PMR: Reg = Reg(3, 0, 4, 6, 0);
pub(super) const ICC_IGRPEN1: Reg = Reg(3, 0, 12, 12, 7);
pub(super) const ICC_IAR1: Reg = Reg(3, 0, 12, 12, 0);
pub(super) const ICC_EOIR1: Reg = Reg(3, 0, 12, 12, 1);
pub(super) const ICC_SGI1R: Reg = Reg(3, 0, 12, 11, 5);
pub(super) const ISR: Reg = Reg(3, 0, 12, 1, 0);
pub(super) const CNTVCT: Reg = Reg(3, 3, 14, 0, 2);
pub(super) const CNTFRQ: Reg = Reg(3, 3, 14, 0, 0);
pub(super) const CNTV_CTL: Reg = Reg(3, 3, 14, 3, 1);
pub(super) const CNTV_CVAL: Reg = Reg(3, 3, 14, 3, 2);

pub(super) const SGI: u64 = 3;
pub(super) const PPI: u64 = 20;
pub(super) const LEVEL: u64 = 40;
pub(super) const EDGE: u64 = 42;
/// The virtual timer's interrupt, unless somebody says otherwise.
pub(super) const TIMER: u64 = 27;
pub(super) const LPI: u64 = 8192;
/// What is read where nothing is pending.
pub(super) const SPURIOUS: u64 = 1023;

/// Nobody is there.
pub(super) const NOWHERE: u64 = 0x0a00_0000;
/// What the VMM answers there.
pub(super) const ANSWER: u32 = 0x1234_5678;

pub(super) fn write_w(address: u64, value: u64) -> Probe {
    Probe::new(&[str_w(1, 0), DSB]).with(&[address, value])
}

pub(super) fn write_x(address: u64, value: u64) -> Probe {
    Probe::new(&[str_x(1, 0), DSB]).with(&[address, value])
}

pub(super) fn set(register: Reg, value: u64) -> Probe {
    Probe::new(&[register.msr(0), ISB]).with(&[value])
}

/// Acknowledges the highest pending interrupt.
pub(super) fn acknowledge() -> Probe {
    Probe::new(&[ICC_IAR1.mrs(0), DSB])
}

/// Asks, and all must come to their end.
pub(super) fn all(session: &mut Session<'_, '_, '_>, probes: &[Probe]) -> Result<Vec<u64>, Error> {
    let outcomes = session.ask(probes)?;
    let values: Option<Vec<u64>> = outcomes.iter().map(|outcome| Some(outcome.registers()?[0])).collect();
    values.ok_or_else(|| {
        let index = outcomes.iter().position(|o| o.registers().is_none()).unwrap_or_default();
        let exit = match &outcomes[index] {
            Outcome::Faulted { esr, .. } => *esr,
            _ => 0,
        };
        Error::Witness(WitnessError::Lost {
            index: index as u32,
            of: outcomes.len(),
            code: probes[index].encode()[abi::PROBE_CODE..].to_vec(),
            why: MonitorError::Ended(Exit::Other(exit)),
        })
    })
}

/// `KVM_IRQ_LINE` of an SPI.
pub(super) fn line(machine: &Machine<'_, '_>, interrupt: u64, high: bool) -> Result<(), Error> {
    let mut level = [0; 8];
    level[..4].copy_from_slice(&(1 << 24 | interrupt as u32).to_ne_bytes());
    level[4..].copy_from_slice(&u32::from(high).to_ne_bytes());
    machine.vm().set(&KVM_IRQ_LINE, &level)?;
    Ok(())
}

/// The virtual counter and its rate.
pub(super) fn clock(session: &mut Session<'_, '_, '_>) -> Result<(u64, u64), Error> {
    let values = all(session, &[Probe::read(CNTVCT), Probe::read(CNTFRQ)])?;
    Ok((values[0], values[1]))
}
