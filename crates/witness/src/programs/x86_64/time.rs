//! Clocks: the TSC, kvmclock, steal time. What they are, not what they say.

use super::{msr::write, variants};
use crate::Error;
use crate::abi;
use crate::observation::{Record, Saw};
use crate::probe::{Probe, RAX, RCX, RDI, RSI};
use crate::programs::plain;
use crate::session::Session;

const CLOCK: u32 = abi::SCRATCH + 0x2000;
const STEAL: u32 = abi::SCRATCH + 0x2100;
const WALL: u32 = abi::SCRATCH + 0x2200;
const MSR_WALL: u32 = 0x4b56_4d00;
const MSR_CLOCK: u32 = 0x4b56_4d01;
const MSR_STEAL: u32 = 0x4b56_4d03;

/// Looks at them.
///
/// # Errors
/// As [`Session::ask`].
pub fn observe(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    // rdtsc; mov esi, eax; mov edi, edx; rdtsc
    let twice = session.one(Probe::new(&[0x0f, 0x31, 0x89, 0xc6, 0x89, 0xd7, 0x0f, 0x31]))?;
    record.probes += 1;
    if let (Some(r), Some(after)) = (twice.registers(), twice.edx_eax()) {
        let before = r[RDI] << 32 | r[RSI] & 0xffff_ffff;
        record.value("tsc.advances", u64::from(after > before));
    }
    clock(session, record)?;
    steal(session, record)?;
    variants::pv(session, record, "@pv-shown")
}

fn long(session: &Session<'_, '_>, at: u32) -> Result<u64, Error> {
    Ok(u64::from(session.word(at + 4)?) << 32 | u64::from(session.word(at)?))
}

fn clock(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    let outcomes = session.ask(&[write(MSR_CLOCK, u64::from(CLOCK | 1)), Probe::new(&[0x90])])?;
    record.probes += 3;
    if outcomes[0].registers().is_none() {
        if let Some(saw) = plain(&outcomes[0]) {
            record.saw("kvmclock", saw);
        }
        return Ok(());
    }
    // struct pvclock_vcpu_time_info: version, pad, tsc_timestamp, system_time, mul, shift, flags
    let version = session.word(CLOCK)?;
    record.saw("kvmclock", Saw::Executes);
    record.value("kvmclock.filled", u64::from(version != 0 && version & 1 == 0));
    record.value("kvmclock.flags", u64::from(session.word(CLOCK + 28)? >> 8 & 0xff));
    let number = |n: u64| Saw::Value(n.into());
    record.runs("kvmclock.version", number(version.into()));
    record.runs("kvmclock.tsc-timestamp", number(long(session, CLOCK + 8)?));
    record.runs("kvmclock.system-time", number(long(session, CLOCK + 16)?));
    // Multiplier and shift follow from the TSC's rate, which the host measures at each boot.
    record.runs("kvmclock.multiplier", number(session.word(CLOCK + 24)?.into()));
    record.runs("kvmclock.shift", number(u64::from(session.word(CLOCK + 28)? & 0xff)));
    // struct pvclock_wall_clock: version, seconds, nanoseconds
    let wall = session.ask(&[write(MSR_CLOCK, 0), write(MSR_WALL, WALL.into())])?;
    record.probes += 1;
    if let Some(saw) = plain(&wall[1]) {
        record.saw("kvmclock.wall", saw);
    }
    let (version, seconds) = (session.word(WALL)?, session.word(WALL + 4)?);
    record.value("kvmclock.wall.filled", u64::from(version != 0 && version & 1 == 0 && seconds != 0));
    record.runs("kvmclock.wall.seconds", number(seconds.into()));
    Ok(())
}

fn steal(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    let probes =
        [write(MSR_STEAL, u64::from(STEAL | 1)), Probe::new(&[0x90]), read(MSR_STEAL), write(MSR_STEAL, 0)];
    let outcomes = session.ask(&probes)?;
    record.probes += 4;
    if let Some(saw) = plain(&outcomes[0]) {
        record.saw("steal-time", saw);
    }
    if outcomes[0].registers().is_some() {
        record.value("steal-time.kept", u64::from(outcomes[2].registers().is_some_and(|r| r[RAX] & 1 == 1)));
        // struct kvm_steal_time: steal, version, flags, preempted
        record.runs("steal-time.steal", Saw::Value(long(session, STEAL)?.into()));
        record.runs("steal-time.version", Saw::Value(u64::from(session.word(STEAL + 8)?).into()));
        record.value("steal-time.flags", session.word(STEAL + 12)?.into());
        // Written when the vCPU is put aside: 0 while the guest runs.
        record.value("steal-time.preempted", u64::from(session.word(STEAL + 16)? & 0xff));
    }
    Ok(())
}

fn read(msr: u32) -> Probe {
    Probe::new(&[0x0f, 0x32]).with(RCX, u64::from(msr))
}
