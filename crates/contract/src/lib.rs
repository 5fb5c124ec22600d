//! The algebra: which hosts keep what a guest was promised, what each kernel change does to it, and whether there is
//! a way back.
//!
//! Pure: no files, no ioctls, no clock. From the bottom up:
//!
//! | module | holds |
//! |---|---|
//! | [`coord`] | where a word of facets is, and its name |
//! | [`layout`] | the rules of a word as masks and intervals |
//! | [`view`] | one host in one shape, ready to be judged |
//! | [`contract`], [`document`] | what one guest was promised, and its TOML |
//! | [`finding`], [`cause`], [`describe`] | one difference or failure, the ledger entry behind it, its names |
//! | [`keeps`], [`carries`] | can this host show it; is this host's saved state taken there |
//! | [`reach`] | what a guest reaches without being shown it |
//! | [`verdict`], [`pair`] | the four verdicts; for both guests of two hosts |
//! | [`registers`] | keeps and carries for each register of an arm64 vCPU, to be held against measurements |
//! | [`diff`], [`baseline`], [`seal`], [`predict`] | the other questions |
#![forbid(unsafe_code)]

pub mod baseline;
pub mod carries;
pub mod cause;
pub mod contract;
pub mod coord;
pub mod describe;
pub mod diff;
pub mod document;
pub mod finding;
#[doc(hidden)]
pub mod fuzzing;
pub mod keeps;
pub mod layout;
pub mod pair;
pub mod predict;
pub mod reach;
pub mod registers;
pub mod seal;
pub mod verdict;
pub mod view;

pub use contract::{Contract, Promise, Shown};
pub use coord::{Coord, Table};
pub use finding::{Axis, Finding, Outcome, Remedy};
pub use pair::Pair;
pub use verdict::{Exposure, Journey, Verdict, Verdicts};
pub use view::{ChoiceOffer, Evidence, Host, Item, ItemKey, View, Word};
