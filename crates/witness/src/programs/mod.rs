//! What to ask, and what the answers mean.

#[cfg(target_arch = "x86_64")]
pub mod x86_64;

use evenkeel_surface::{Hex32, Hex64};

use crate::observation::Saw;
use crate::probe::Outcome;

/// What an outcome is to somebody who looked for a value, which `value` takes from the registers.
pub fn saw(outcome: &Outcome, value: impl FnOnce(&[u64; 6]) -> u64) -> Option<Saw> {
    match outcome {
        Outcome::Returned { registers, .. } => Some(Saw::Value(Hex64(value(registers)))),
        other => plain(other),
    }
}

/// What an outcome is to somebody who looked whether something can be done.
pub fn plain(outcome: &Outcome) -> Option<Saw> {
    match outcome {
        Outcome::Returned { .. } => Some(Saw::Executes),
        Outcome::Faulted { vector, error, .. } => Some(Saw::Fault { vector: *vector, code: Hex32(*error) }),
        Outcome::Stopped => Some(Saw::Stopped),
        Outcome::Exited(what) => Some(Saw::Exit(what.clone())),
        Outcome::Ended(how) => Some(Saw::Ends(how.clone())),
        Outcome::Silent => None,
    }
}
