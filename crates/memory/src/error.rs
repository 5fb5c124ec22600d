//! Why memory was not saved or restored.

use evenkeel_sys::{NoUffd, Refusal};

/// Why not.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Places that are no guest's memory.
    #[error("guest memory: {0}")]
    Places(String),
    /// There is no userfaultfd.
    #[error(transparent)]
    NoUffd(#[from] NoUffd),
    /// A call on a userfaultfd failed.
    #[error("userfaultfd: {0}")]
    Uffd(Refusal),
    /// KVM said no.
    #[error(transparent)]
    Kvm(#[from] evenkeel_sys::Error),
    /// The machine could not be paused, saved or resumed.
    #[error("the machine: {0}")]
    Life(String),
    /// The capsule, or the file that it is in.
    #[error(transparent)]
    Capsule(#[from] evenkeel_capsule::Refused),
    /// The operating system said no.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        Error::Uffd(refusal)
    }
}
