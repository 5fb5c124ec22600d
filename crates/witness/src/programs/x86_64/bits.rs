//! Which bits of a word a guest can change: each is flipped, read back and restored.

use crate::Error;
use crate::observation::Record;
use crate::probe::{Outcome, Probe, RAX, RBX, RSI};
use crate::programs::plain;
use crate::session::Session;

/// Flips a bit: ends with the word after that in RAX and the word before in RSI, restored.
pub type Flip = Box<dyn Fn(u64) -> Probe>;

/// A word whose bits are tried.
pub struct Word {
    /// Its name.
    pub name: String,
    /// How.
    pub flip: Flip,
    /// How many bits it has.
    pub bits: u32,
    /// Where in the code it is restored: a fault from there on says that the change itself was taken.
    pub restore: u64,
    /// Bits that are left alone.
    pub but: u64,
}

impl Word {
    /// The bits that are tried.
    fn tried(&self) -> impl Iterator<Item = u32> {
        let but = self.but;
        (0..self.bits).filter(move |bit| but >> bit & 1 == 0)
    }
}

/// Code that takes the bits from RBX.
pub fn by_rbx(probe: Probe) -> Flip {
    Box::new(move |bits| probe.clone().with(RBX, bits))
}

/// Tries all bits of these words: `NAME.writable`, `NAME.faults` for bits that raise an exception, `NAME.sticks` for
/// those that are taken and cannot be taken back, and `NAME.ends` for those that KVM cannot do or that end the guest.
///
/// # Errors
/// As [`Session::ask`].
pub fn observe(session: &mut Session<'_, '_>, record: &mut Record, words: &[Word]) -> Result<(), Error> {
    let probes: Vec<Probe> =
        words.iter().flat_map(|word| word.tried().map(|bit| (word.flip)(1 << bit))).collect();
    record.probes += probes.len() as u64;
    let outcomes = session.ask(&probes)?;
    let mut outcomes = outcomes.iter();
    for word in words {
        let (mut writable, mut faults, mut sticks, mut ends, mut other) = (0, 0, 0, 0_u64, None);
        for bit in word.tried() {
            let Some(outcome) = outcomes.next() else { break };
            match outcome {
                Outcome::Returned { registers, .. } => {
                    writable |= (registers[RAX] ^ registers[RSI]) & 1 << bit;
                }
                Outcome::Faulted { offset, .. } if *offset >= word.restore => sticks |= 1 << bit,
                Outcome::Faulted { .. } => faults |= 1 << bit,
                outcome => {
                    ends |= 1 << bit;
                    other = other.or(plain(outcome));
                }
            }
        }
        match other {
            // Not one of them says anything but that.
            Some(saw) if ends.count_ones() as usize == word.tried().count() => {
                record.saw(format!("{}.writable", word.name), saw)
            }
            _ => {
                record.value(format!("{}.writable", word.name), writable);
                record.value(format!("{}.faults", word.name), faults);
                for (what, mask) in [("sticks", sticks), ("ends", ends)] {
                    if mask != 0 {
                        record.value(format!("{}.{what}", word.name), mask);
                    }
                }
            }
        }
    }
    Ok(())
}
