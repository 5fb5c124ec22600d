//! Memory types: which ones the page attribute table and the memory type range registers take, and which of their other
//! bits.

use super::bits::{self, Word};
use super::msr::{RESTORE, flip};
use crate::Error;
use crate::observation::Record;
use crate::probe::{Outcome, RAX};
use crate::programs::plain;
use crate::session::Session;

/// IA32_PAT.
const PAT: u32 = 0x277;
/// The first MTRR of variable ranges: base, and mask.
const BASE: u32 = 0x200;
const MASK: u32 = 0x201;
/// The MTRR of the first 512 KiB, 64 KiB a byte.
const FIXED: u32 = 0x250;
/// IA32_MTRR_DEF_TYPE.
const DEFAULT: u32 = 0x2ff;

/// Words with a memory type in them, and where it is. The PAT's last entry and the range register have no user here; the
/// others say something of memory that the guest runs in only for as long as a probe takes.
const TYPES: [(&str, u32, u32); 4] =
    [("pat", PAT, 56), ("mtrr.variable", BASE, 0), ("mtrr.fixed", FIXED, 0), ("mtrr.default", DEFAULT, 0)];

/// Looks at them, after the MSRs were read.
///
/// # Errors
/// As [`Session::ask`].
pub fn observe(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    types(session, record)?;
    // The bit behind the last of a physical address, as CPUID has it.
    let width = record.number("cpuid.80000008.0.eax").unwrap_or(36) & 0x3f;
    let edges = 1 << (width - 1) | (1_u64 << width) | 1 << 63;
    let word = |(name, msr, bits): &(&str, u32, u64)| {
        Some(Word {
            name: format!("memory.{name}"),
            flip: flip(*msr, record.number(&format!("msr.{msr:x}"))?),
            bits: 64,
            restore: RESTORE,
            but: !bits,
        })
    };
    let words: Vec<Word> = [
        ("mtrr.variable.base", BASE, edges | 0x1f00),
        ("mtrr.variable.mask", MASK, edges | 0x1c00),
        ("mtrr.default.enable", DEFAULT, 0x1f00),
    ]
    .iter()
    .filter_map(word)
    .collect();
    bits::observe(session, record, &words)
}

/// Which of the eight types can be written and read back (`memory.NAME.types`), and which fault.
fn types(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    let mut probes = Vec::new();
    let mut asked = Vec::new();
    for (name, msr, at) in TYPES {
        let Some(value) = record.number(&format!("msr.{msr:x}")) else {
            record.unasked(format!("memory.{name}.types"), "the MSR cannot be read here");
            continue;
        };
        let try_type = flip(msr, value);
        let kept = |kind: u64| value & !(0xff << at) | kind << at;
        asked.push((name, (0..8).map(kept).collect::<Vec<u64>>()));
        probes.extend((0..8).map(|kind| try_type(value ^ kept(kind))));
    }
    record.probes += probes.len() as u64;
    let outcomes = session.ask(&probes)?;
    for ((name, wanted), outcomes) in asked.iter().zip(outcomes.chunks_exact(8)) {
        let (mut taken, mut faults, mut other) = (0_u64, 0_u64, None);
        for (kind, (outcome, wanted)) in outcomes.iter().zip(wanted).enumerate() {
            match outcome {
                Outcome::Returned { registers, .. } => taken |= u64::from(registers[RAX] == *wanted) << kind,
                Outcome::Faulted { .. } => faults |= 1 << kind,
                outcome => other = other.or(plain(outcome)),
            }
        }
        match other {
            Some(saw) => record.saw(format!("memory.{name}.types"), saw),
            None => {
                record.value(format!("memory.{name}.types"), taken);
                record.value(format!("memory.{name}.types.faults"), faults);
            }
        }
    }
    Ok(())
}
