//! MSRs: which can be read, which take their own value back, and which bits of some can be changed.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use evenkeel_catalog::MSRS;

use super::bits::{self, Word};
use crate::Error;
use crate::observation::{Record, Saw};
use crate::probe::{Outcome, Probe, RAX, RBX, RCX, RDI, RDX, RSI};
use crate::programs::{plain, saw};
use crate::session::Session;

const RDMSR: &[u8] = &[0x0f, 0x32];

/// Asked for besides those of the catalog: the neighbourhood in which KVM's and its backends' handlers have cases.
const RANGES: [RangeInclusive<u32>; 15] = [
    0..=0x21f,
    0x250..=0x2ff,
    0x300..=0x31f,
    0x340..=0x3ff,
    0x400..=0x4ff,
    0x560..=0x58f,
    0x600..=0x6ff,
    0xd90..=0xdaf,
    0x4000_0000..=0x4000_0120,
    0x4b56_4d00..=0x4b56_4d1f,
    0xc000_0080..=0xc000_010f,
    0xc000_0300..=0xc000_030f,
    0xc001_0000..=0xc001_0145,
    0xc001_0200..=0xc001_0220,
    0xc001_1000..=0xc001_1040,
];

/// Not written, not even with their own value: a write does something (microcode, IPIs, a reset or a crash of the
/// guest, a wall clock in its memory), or moves a clock.
fn touchy(msr: u32) -> bool {
    matches!(msr, 0x10 | 0x1b | 0x79 | 0x6e0 | 0x800..=0x8ff | 0x4000_0003 | 0x4000_0105 | 0x11 | 0x12)
        || matches!(msr, 0x4b56_4d00..=0x4b56_4dff)
        || runs(msr)
}

/// Whether it runs by itself.
fn runs(msr: u32) -> bool {
    matches!(msr, 0x10 | 0xe7 | 0xe8 | 0x839 | 0x4000_0010 | 0x4000_0020)
        || evenkeel_catalog::msr(msr).is_some_and(|m| m.running)
}

/// Words whose bits are tried one by one.
const BITS: &[u32] = &[
    0x48,
    0x122,
    0x140,
    0x175,
    0x1a0,
    0x1d9,
    0x38f,
    0x6a2,
    0xda0,
    0xc000_0080,
    0xc000_0301,
    0xc001_0015,
    0xc001_0114,
    0xc001_1029,
];

/// A read of this MSR.
pub fn read(msr: u32) -> Probe {
    Probe::new(RDMSR).with(RCX, u64::from(msr))
}

/// A write of this value.
pub fn write(msr: u32, value: u64) -> Probe {
    Probe::new(&[0x0f, 0x30]).with(RCX, u64::from(msr)).with(RAX, value & 0xffff_ffff).with(RDX, value >> 32)
}

/// All MSRs that are asked for.
pub fn asked() -> BTreeSet<u32> {
    let catalogued = MSRS.iter().flat_map(|m| m.msr..=m.last.unwrap_or(m.msr));
    // The APIC's are looked at in x2APIC mode.
    catalogued.chain(RANGES.into_iter().flatten()).filter(|msr| !(0x800..0x900).contains(msr)).collect()
}

/// Reads again, elsewhere or later, what could be read.
///
/// # Errors
/// As [`Session::ask`].
pub fn read_again(session: &mut Session<'_, '_>, record: &mut Record, suffix: &str) -> Result<(), Error> {
    let mut asked = asked();
    asked.retain(|msr| record.number(&format!("msr.{msr:x}")).is_some());
    read_these(session, record, asked, suffix).map(drop)
}

/// Reads all of them.
///
/// # Errors
/// As [`Session::ask`].
pub fn read_all(session: &mut Session<'_, '_>, record: &mut Record) -> Result<Vec<(u32, Outcome)>, Error> {
    read_these(session, record, asked(), "")
}

/// Reads these.
///
/// # Errors
/// As [`Session::ask`].
pub fn read_these(
    session: &mut Session<'_, '_>,
    record: &mut Record,
    asked: BTreeSet<u32>,
    suffix: &str,
) -> Result<Vec<(u32, Outcome)>, Error> {
    let probes: Vec<Probe> = asked.iter().map(|msr| read(*msr)).collect();
    record.probes += probes.len() as u64;
    let outcomes: Vec<(u32, Outcome)> = asked.into_iter().zip(session.ask(&probes)?).collect();
    for (msr, outcome) in &outcomes {
        let Some(saw) = saw(outcome, |_| outcome.edx_eax().unwrap_or_default()) else { continue };
        let name = format!("msr.{msr:x}{suffix}");
        if runs(*msr) && matches!(saw, Saw::Value(_)) {
            record.runs(name, saw)
        } else {
            record.saw(name, saw)
        }
    }
    Ok(outcomes)
}

/// Reads, writes back, and tries bits.
///
/// # Errors
/// As [`Session::ask`].
pub fn observe(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    let outcomes = read_all(session, record)?;
    // Those that cannot be read may be write-only: the catalogued ones are tried with 0.
    let mut asked = Vec::new();
    for (msr, outcome) in outcomes.iter().filter(|(msr, _)| !touchy(*msr)) {
        if let Some(value) = outcome.edx_eax() {
            asked.push((*msr, write(*msr, value)));
        } else if evenkeel_catalog::msr(*msr).is_some() {
            asked.push((*msr, write(*msr, 0)));
        }
    }
    let probes: Vec<Probe> = asked.iter().map(|(_, probe)| probe.clone()).collect();
    record.probes += probes.len() as u64;
    for ((msr, _), outcome) in asked.iter().zip(session.ask(&probes)?) {
        if let Some(saw) = plain(&outcome) {
            record.saw(format!("msr.{msr:x}.write"), saw);
        }
    }
    let value = |msr: u32| outcomes.iter().find(|(other, _)| *other == msr)?.1.edx_eax();
    let word = |msr: &u32| {
        Some(Word {
            name: format!("msr.{msr:x}"),
            flip: flip(*msr, value(*msr)?),
            bits: 64,
            restore: RESTORE,
            but: 0,
        })
    };
    let words: Vec<Word> = BITS.iter().filter_map(word).collect();
    bits::observe(session, record, &words)?;
    left(session, record)
}

/// Bits that were changed back and did not change, without an exception: they stick as well.
fn left(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    let value = |record: &Record, msr: &u32| record.number(&format!("msr.{msr:x}"));
    let words: Vec<u32> = BITS.iter().copied().filter(|msr| value(record, msr).is_some()).collect();
    let probes: Vec<Probe> = words.iter().map(|msr| read(*msr)).collect();
    record.probes += probes.len() as u64;
    for (msr, outcome) in words.iter().zip(session.ask(&probes)?) {
        let (Some(before), Some(after)) = (value(record, msr), outcome.edx_eax()) else { continue };
        let name = format!("msr.{msr:x}.sticks");
        let sticks = record.number(&name).unwrap_or(0) | before ^ after;
        if sticks != 0 {
            record.value(name, sticks);
        }
    }
    Ok(())
}

/// Where in that code the second WRMSR is.
pub(super) const RESTORE: u64 = 18;

/// Flips bits of an MSR that holds `value`: each access costs an exit, so it is not read again.
pub(super) fn flip(msr: u32, value: u64) -> bits::Flip {
    let code = Probe::new(&[
        0x0f, 0x30, // wrmsr
        0x0f, 0x32, // rdmsr
        0x48, 0xc1, 0xe2, 0x20, // shl rdx, 32
        0x48, 0x09, 0xd0, // or rax, rdx
        0x49, 0x89, 0xc0, // mov r8, rax
        0x89, 0xd8, // mov eax, ebx
        0x89, 0xfa, // mov edx, edi
        0x0f, 0x30, // wrmsr
        0x4c, 0x89, 0xc0, // mov rax, r8
    ])
    .with(RCX, u64::from(msr))
    .with(RSI, value)
    .with(RBX, value & 0xffff_ffff)
    .with(RDI, value >> 32);
    Box::new(move |bits| {
        let new = value ^ bits;
        code.clone().with(RAX, new & 0xffff_ffff).with(RDX, new >> 32)
    })
}
