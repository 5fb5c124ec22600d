//! The **surface**: all that one KVM host can show a guest, and all the state that it can save and accept.
//!
//! This crate is pure: it has no ioctls, no clock and no files. It owns
//!
//! * [`document`], the shape of a capture file,
//! * [`canonical`], the one byte form of it and the two digests over that form,
//! * [`read`], the reader that turns any bytes into a surface or into bounded, located diagnostics.
//!
//! A surface holds *answers*, not interpretations: raw coordinates (leaf, subleaf, register; MSR number; ONE_REG id;
//! capability number) and what the kernel said. Names, rules and meaning come from the catalog when a surface is
//! looked at, so that a capture of last year gains from what is learned today and its digest never changes.
#![forbid(unsafe_code)]

pub mod canonical;
pub mod document;
#[doc(hidden)]
pub mod fuzzing;
pub mod hex;
pub mod locate;
pub mod read;

pub use canonical::{Canonical, digest};
pub use document::*;
pub use hex::{Hex32, Hex64};
pub use read::{Diagnostic, Limits, ReadError, Severity};
