//! What KVM does otherwise than hardware, and a VMM can choose: as far as no other program sees it.

use std::time::Duration;

use super::{cpuid, msr};
use crate::Error;
use crate::abi;
use crate::observation::{Record, Saw};
use crate::probe::{Probe, RAX, RBX, RCX, RDX};
use crate::programs::saw;
use crate::session::Session;

const MISC_ENABLE: u32 = 0x1a0;
/// MONITOR and MWAIT are there.
const MWAIT: u64 = 1 << 18;
/// KVM_HC_MAP_GPA_RANGE.
const MAP_GPA_RANGE: u64 = 12;

/// Looks at them.
///
/// # Errors
/// As [`Session::ask`].
pub fn observe(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    mwait_in_cpuid(session, record)?;
    map_gpa_range(session, record)
}

/// Whether bit 3 of CPUID.1:ECX follows bit 18 of IA32_MISC_ENABLE.
fn mwait_in_cpuid(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    const NAME: &str = "msr.1a0.mwait-in-cpuid";
    let Some(value) = record.number("msr.1a0") else {
        record.unasked(NAME, "MSR 0x1a0 cannot be read");
        return Ok(());
    };
    let outcomes = session.ask(&[
        cpuid::probe(1, 0),
        msr::write(MISC_ENABLE, value ^ MWAIT),
        cpuid::probe(1, 0),
        msr::write(MISC_ENABLE, value),
    ])?;
    record.probes += outcomes.len() as u64;
    let words = (outcomes[0].registers(), outcomes[1].registers(), outcomes[2].registers());
    match words {
        (Some(before), Some(_), Some(after)) => record.value(NAME, (before[RCX] ^ after[RCX]) >> 3 & 1),
        _ => record.unasked(NAME, "the bit cannot be changed"),
    }
    Ok(())
}

/// A hypercall that goes to the VMM where it asked for it, with the instruction that is this CPU's own.
fn map_gpa_range(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    const NAME: &str = "hypercall.c";
    let amd = matches!(record.number("cpuid.0.0.ecx"), Some(0x444d_4163 | 0x656e_6975));
    let (plain, code) = if amd {
        ("insn.hypercall-vmmcall", [0x0f, 0x01, 0xd9])
    } else {
        ("insn.hypercall-vmcall", [0x0f, 0x01, 0xc1])
    };
    if !matches!(record.get(plain), Some(Saw::Value(_))) {
        record.unasked(NAME, "no hypercall comes back here");
        return Ok(());
    }
    let probe = Probe::new(&code)
        .with(RAX, MAP_GPA_RANGE)
        .with(RBX, u64::from(abi::SCRATCH))
        .with(RCX, 1)
        .with(RDX, 0);
    let limit = std::mem::replace(&mut session.limit, Duration::from_millis(400));
    let outcome = session.one(probe);
    session.limit = limit;
    record.probes += 1;
    if let Some(saw) = saw(&outcome?, |r| r[RAX]) {
        record.saw(NAME, saw);
    }
    Ok(())
}
