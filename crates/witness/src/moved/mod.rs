//! A witness that is stopped, saved, and goes on elsewhere: what it held and saw before, and what it sees then.
//!
//! What differs between architectures is in a module each; what comes of it is the same.

pub mod arm64;
#[cfg(target_arch = "x86_64")]
pub mod x86;

use std::time::Duration;

use evenkeel_state::{Difference, Image, Report, Saved};

use crate::Error;
use crate::observation::Observation;

/// The section of a capsule with what the witness saw before it was saved: an observation as JSON.
pub const SEEN: &str = "witness.seen";
/// The section with what it was stopped in, where that is more than between two batches: JSON.
pub const STOPPED: &str = "witness.stopped";

/// A witness that was stopped and saved.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The state.
    pub saved: Saved,
    /// Its memory: guest-physical address and bytes.
    pub memory: Vec<(u64, Vec<u8>)>,
    /// What it saw before.
    pub seen: Observation,
    /// What it was stopped in, for [`STOPPED`].
    pub stopped: Option<Vec<u8>>,
    /// Saving took this long.
    pub took: Duration,
}

/// What became of one that was restored.
#[derive(Debug)]
pub struct Taken {
    /// What was set and read back.
    pub report: Report,
    /// How a third image, saved from a machine that was made from `image`, differs from that.
    pub third: Vec<Difference>,
    /// What of that which was pending the guest met otherwise than it should.
    pub met: Vec<String>,
    /// What it sees now.
    pub seen: Observation,
    /// The image that was saved from it.
    pub image: Image,
    /// Restoring took this long.
    pub took: Duration,
}

/// Why a witness was not moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// The guest, or its machine.
    #[error(transparent)]
    Witness(#[from] Error),
    /// Saving or restoring.
    #[error(transparent)]
    Refused(#[from] evenkeel_state::Refused),
    /// The host lacks what the guest's state takes.
    #[error("the host lacks {0}")]
    Lacking(String),
    /// What it was stopped in cannot be read.
    #[error("{STOPPED}: {0}")]
    Stopped(String),
}

impl From<evenkeel_sys::Error> for MoveError {
    fn from(error: evenkeel_sys::Error) -> Self {
        MoveError::Witness(error.into())
    }
}

impl From<evenkeel_sys::Outside> for MoveError {
    fn from(error: evenkeel_sys::Outside) -> Self {
        MoveError::Witness(error.into())
    }
}

impl From<evenkeel_monitor::Error> for MoveError {
    fn from(error: evenkeel_monitor::Error) -> Self {
        MoveError::Witness(error.into())
    }
}
