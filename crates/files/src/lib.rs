//! **Files** that are whole or not there ([`replace`]), and things that happen once, whoever tries ([`Claim`]).
#![forbid(unsafe_code)]

mod claim;
mod replace;

pub use claim::{Claim, ClaimError};
pub use replace::replace;

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// Sixteen random bytes, from the kernel. Opens no file: a thread that may open none has them, too.
///
/// # Errors
/// The kernel gives none.
pub fn random_id() -> io::Result<[u8; 16]> {
    let mut id = [0; 16];
    match getrandom(&mut id, GetRandomFlags::empty())? {
        16 => Ok(id),
        // Never of so few bytes, says getrandom(2).
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
