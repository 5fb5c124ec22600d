//! What can go wrong with a machine.

use std::time::Duration;

use evenkeel_sys::{Error as CallError, Exit, Outside, Refusal};

use crate::life::End;

/// Why a machine could not be made, or did not run to the end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A guest that runs writes to disks, and nobody said what becomes of them when it is saved.
    #[error("{0}")]
    Disks(String),
    /// The kernel refused something.
    #[error(transparent)]
    Call(#[from] CallError),
    /// State could not be saved or set.
    #[error(transparent)]
    State(Box<evenkeel_state::Refused>),
    /// There is no memory for the guest.
    #[error("memory for a guest: {0:?}")]
    Memory(Refusal),
    /// A place in the guest's memory that is not there.
    #[error("guest memory: {0}")]
    Outside(#[from] Outside),
    /// The memory cannot be looked at in another way.
    #[error("guest memory: {0}")]
    View(String),
    /// What was to be booted cannot be.
    #[error("{0}")]
    Image(String),
    /// A device.
    #[error("device: {0}")]
    Device(String),
    /// A thread of its could not be confined.
    #[error("confinement: {0}")]
    Confinement(String),
    /// Its control.
    #[error("{0}")]
    Control(String),
    /// The guest was stopped because its time was over.
    #[error("the guest did not come to an end within {0:?}")]
    Hung(Duration),
    /// The machine has ended, and nothing can be done with it any more.
    #[error("the machine has ended: {0:?}")]
    Over(End),
    /// The guest stopped in a way that nobody expected.
    #[error("the guest stopped: {0:?}")]
    Ended(Exit),
}

impl From<evenkeel_state::Refused> for Error {
    fn from(refused: evenkeel_state::Refused) -> Error {
        Error::State(Box::new(refused))
    }
}
