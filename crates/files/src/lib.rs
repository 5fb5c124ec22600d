//! **Files** that are whole or not there ([`replace`]), and things that happen once, whoever tries ([`Claim`]).
#![forbid(unsafe_code)]

mod claim;
mod replace;

pub use claim::{Claim, ClaimError};
pub use replace::replace;

use std::fs::File;
use std::io::{self, Read as _};

/// Sixteen random bytes, from the kernel.
///
/// # Errors
/// There is no `/dev/urandom`.
pub fn random_id() -> io::Result<[u8; 16]> {
    let mut id = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut id)?;
    Ok(id)
}
