//! The **witness**: a guest that looks at all that it can see, and the record of what it saw, the **observation**.
//!
//! A host can declare one thing and do another. The witness asks the guest's side: every value in an
//! [`observation::Observation`] was written by this run's guest into its memory, or it is not there.
//!
//! The guest ([`guests`]) is a loop over a table of [`probe`]s whose layout is in [`abi`]; a [`session`] runs batches of
//! them; the [`programs`] know what to ask.

pub mod aarch64;
pub mod abi;
pub mod compare;
mod error;
pub mod guests;
pub mod merge;
pub mod moved;
pub mod observation;
pub mod probe;
pub mod programs;
pub mod session;

pub use error::Error;
