//! Who saved a guest, where, and what the guest may have seen before.

use serde::{Deserialize, Serialize};

use crate::cbor;
use crate::error::Refused;
use crate::names::PROVENANCE;
use crate::write::Section;

/// Who saved it, where and when. Decides nothing: a reader that does not know the section goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Provenance {
    /// The program, and its version: `evenkeel 0.1.0`.
    pub tool: String,
    /// `uname -r` of the host.
    pub kernel: String,
    /// When, in seconds since 1970 by the host's clock. Says nothing about the guest: differs between two runs that are the same.
    pub saved_at: u64,
    /// The hosts that the guest ran on since it was reset, oldest first, without repetition.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposure: Vec<Exposed>,
}

/// A host that the guest ran on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Exposed {
    /// The offer digest of its surface.
    pub offer: String,
    /// The digest of the contract that it ran under; empty without one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub contract: String,
    /// `uname -r` there.
    pub kernel: String,
}

impl Provenance {
    /// The section.
    pub fn section(&self) -> Section {
        Section::new(PROVENANCE, false, cbor::print(self))
    }

    /// From what the section holds, which begins at `offset` in the file.
    ///
    /// # Errors
    /// It is not CBOR, or holds something else.
    pub fn read(bytes: &[u8], offset: u64) -> Result<Provenance, Refused> {
        cbor::read(bytes).map_err(|(at, what)| Refused::lies(PROVENANCE, offset + at, what))
    }
}
