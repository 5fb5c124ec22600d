//! Why there is no observation.

use evenkeel_monitor::Error as MonitorError;
use evenkeel_sys::Outside;

/// Why there is no observation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine could not be made, or did not run to the end.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The guest faulted where nothing may fault.
    #[error("the guest faulted (vector {vector}) at probe {index}, outside of it")]
    Fault {
        /// The exception.
        vector: u64,
        /// The probe that was next, as the guest's memory says.
        index: u32,
    },
    /// The guest did not go on, and not because of a probe alone.
    #[error("the guest was lost at probe {index} of {of} (code {code:02x?}): {why}")]
    Lost {
        /// The probe that is next, as the guest's memory says.
        index: u32,
        /// How many there were.
        of: usize,
        /// The last one's code.
        code: Vec<u8>,
        /// What became of the guest.
        why: MonitorError,
    },
    /// The guest's own code is not what it was: nothing that it says counts.
    #[error("the guest's code was changed while it ran, at offset {0:#x}")]
    Changed(usize),
}

impl From<evenkeel_sys::Error> for Error {
    fn from(e: evenkeel_sys::Error) -> Error {
        Error::Monitor(e.into())
    }
}

impl From<Outside> for Error {
    fn from(e: Outside) -> Error {
        Error::Monitor(e.into())
    }
}
