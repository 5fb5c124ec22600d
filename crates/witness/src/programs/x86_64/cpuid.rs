//! Every leaf and subleaf of CPUID.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_catalog::REGISTERS;

use crate::Error;
use crate::observation::Record;
use crate::probe::{Outcome, Probe, RAX, RBX, RCX, RDX};
use crate::session::Session;

/// CPUID.
const CODE: &[u8] = &[0x0f, 0xa2];

/// Where the ranges begin, and how many leaves one can have at most before it is nonsense.
const RANGES: [(u32, u32); 4] = [(0, 0x40), (0x4000_0000, 0x20), (0x8000_0000, 0x40), (0xc000_0000, 0x10)];

/// A leaf's last subleaf that is asked for.
fn last_subleaf(leaf: u32) -> u32 {
    match leaf {
        0xd => 63,
        4 | 7 | 0xb | 0xf | 0x10 | 0x12 | 0x14 | 0x17 | 0x18 | 0x1b | 0x1d | 0x1e | 0x1f | 0x20 | 0x23
        | 0x24 => 7,
        0x8000_001d | 0x8000_0020 | 0x8000_0026 => 7,
        // Xen's.
        0x4000_0003 | 0x4000_0103 => 2,
        _ => 0,
    }
}

/// One question.
pub fn probe(leaf: u32, subleaf: u32) -> Probe {
    Probe::new(CODE).with(RAX, u64::from(leaf)).with(RCX, u64::from(subleaf))
}

/// Asks for all of them.
///
/// # Errors
/// As [`Session::ask`].
pub fn observe(session: &mut Session<'_, '_>, record: &mut Record, suffix: &str) -> Result<(), Error> {
    let heads: Vec<Probe> = RANGES.iter().map(|(first, _)| probe(*first, 0)).collect();
    let mut asked = Vec::new();
    for ((first, most), outcome) in RANGES.iter().zip(session.ask(&heads)?) {
        let last = outcome.registers().map_or(0, |r| r[RAX] as u32);
        // A range that is not there answers as another one does.
        let end = if last.wrapping_sub(*first) < *most { last } else { *first };
        let has = last.wrapping_sub(*first) < *most || *first == 0;
        for leaf in (*first..=end).filter(|_| has) {
            asked.extend((0..=last_subleaf(leaf)).map(|subleaf| (leaf, subleaf)));
        }
    }
    // What an undefined leaf answers depends on the vendor.
    asked.extend([(UNDEFINED, 0), (0x8fff_ffff, 0)]);
    let probes: Vec<Probe> = asked.iter().map(|(leaf, subleaf)| probe(*leaf, *subleaf)).collect();
    for ((leaf, subleaf), outcome) in asked.iter().zip(session.ask(&probes)?) {
        put(record, *leaf, *subleaf, &outcome, suffix);
    }
    record.probes += (heads.len() + probes.len()) as u64;
    hidden(session, record, &asked, suffix)
}

/// No host has it.
const UNDEFINED: u32 = 0x3fff_ffff;

/// The leaves and subleaves of the catalog: every guest is asked for them, whatever ranges it has.
pub fn known() -> BTreeSet<(u32, u32)> {
    let known = REGISTERS.iter().filter(|r| r.at.table != "emulated").filter_map(|r| {
        let last = r.at.subleaf_last.unwrap_or(r.at.subleaf).min(r.at.subleaf + 63);
        Some((r.at.leaf?, r.at.subleaf..=last))
    });
    known.flat_map(|(leaf, subleaves)| subleaves.map(move |subleaf| (leaf, subleaf))).collect()
}

/// Leaves and subleaves that the catalog knows and no range of this guest goes as far as: a host can show them all the
/// same. Noted is what answers otherwise than a leaf that nobody has.
fn hidden(
    session: &mut Session<'_, '_>,
    record: &mut Record,
    asked: &[(u32, u32)],
    suffix: &str,
) -> Result<(), Error> {
    let left: Vec<(u32, u32)> = known().into_iter().filter(|place| !asked.contains(place)).collect();
    let subleaves: BTreeSet<u32> = left.iter().map(|(_, subleaf)| *subleaf).collect();
    let nobody: Vec<Probe> = subleaves.iter().map(|subleaf| probe(UNDEFINED, *subleaf)).collect();
    let nobody: BTreeMap<u32, Outcome> = subleaves.into_iter().zip(session.ask(&nobody)?).collect();
    let probes: Vec<Probe> = left.iter().map(|(leaf, subleaf)| probe(*leaf, *subleaf)).collect();
    record.probes += (nobody.len() + probes.len()) as u64;
    let values = |outcome: &Outcome| outcome.registers().map(|r| [r[RAX], r[RBX], r[RCX], r[RDX]]);
    for ((leaf, subleaf), outcome) in left.into_iter().zip(session.ask(&probes)?) {
        if nobody.get(&subleaf).and_then(values) != values(&outcome) {
            put(record, leaf, subleaf, &outcome, suffix);
        }
    }
    Ok(())
}

fn put(record: &mut Record, leaf: u32, subleaf: u32, outcome: &Outcome, suffix: &str) {
    let Some(registers) = outcome.registers() else {
        if let Some(saw) = super::super::plain(outcome) {
            record.saw(format!("cpuid.{leaf:x}.{subleaf:x}{suffix}"), saw);
        }
        return;
    };
    for (name, register) in [("eax", RAX), ("ebx", RBX), ("ecx", RCX), ("edx", RDX)] {
        let value = registers[register] & 0xffff_ffff;
        if value != 0 {
            record.value(format!("cpuid.{leaf:x}.{subleaf:x}.{name}{suffix}"), value);
        }
    }
}
