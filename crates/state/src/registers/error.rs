//! What can go wrong as a whole. What goes wrong with one register is no error but part of the answer.

use evenkeel_sys::Error as CallError;

/// No vCPU to save or to load into.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A call that everything else needs failed.
    #[error("{what}: {source}")]
    Call {
        /// What it was needed for.
        what: &'static str,
        /// The call and the reason.
        #[source]
        source: CallError,
    },
    /// There is nothing here yet for this architecture.
    #[error("registers are saved and loaded on arm64 only, and this is {0}")]
    Architecture(String),
}

impl Error {
    pub(crate) fn call(what: &'static str) -> impl FnOnce(CallError) -> Error {
        move |source| Error::Call { what, source }
    }

    /// What to do about it; may be empty.
    pub fn hint(&self) -> &'static str {
        match self {
            Error::Call { source, .. } if source.ioctl == "open" => {
                "is KVM there, and may this user open /dev/kvm?"
            }
            Error::Call { .. } => "",
            Error::Architecture(_) => "evenkeel lab registers does it on emulated arm64 hosts",
        }
    }
}

/// A document that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);
