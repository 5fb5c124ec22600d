//! Which bits of a word a guest can change: each is flipped, read back and restored.

use crate::Error;
use crate::observation::{Record, Saw};
use crate::probe::{Outcome, Probe, RAX, RBX, RSI};
use crate::programs::plain;
use crate::session::Session;

/// A word whose bits are tried.
#[derive(Clone, Debug)]
pub struct Word {
    /// Its name.
    pub name: String,
    /// Flips the bits of RBX, and ends with the word after that in RAX and the word before in RSI, restored.
    pub flip: Probe,
    /// How many bits it has.
    pub bits: u32,
}

/// Tries all bits of these words: `NAME.writable`, and `NAME.faults` for bits that raise an exception.
///
/// # Errors
/// As [`Session::ask`].
pub fn observe(session: &mut Session<'_, '_>, record: &mut Record, words: &[Word]) -> Result<(), Error> {
    let probes: Vec<Probe> = words
        .iter()
        .flat_map(|word| (0..word.bits).map(|bit| word.flip.clone().with(RBX, 1 << bit)))
        .collect();
    record.probes += probes.len() as u64;
    let outcomes = session.ask(&probes)?;
    let mut outcomes = outcomes.iter();
    for word in words {
        let (mut writable, mut faults, mut other) = (0, 0, None);
        for bit in 0..word.bits {
            let Some(outcome) = outcomes.next() else { break };
            match outcome {
                Outcome::Returned { registers, .. } => {
                    writable |= (registers[RAX] ^ registers[RSI]) & 1 << bit;
                }
                Outcome::Faulted { .. } => faults |= 1 << bit,
                outcome => other = other.or(plain(outcome)),
            }
        }
        match other {
            Some(saw @ (Saw::Stopped | Saw::Exit(_) | Saw::Ends(_))) => record.saw(format!("{}.writable", word.name), saw),
            _ => {
                record.value(format!("{}.writable", word.name), writable);
                record.value(format!("{}.faults", word.name), faults);
            }
        }
    }
    Ok(())
}
