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
//! | [`contract`] | what one guest was promised, and its document |
//! | [`finding`] | one difference or failure, with cause and remedy |
//! | [`keeps`], [`carries`] | can this host show it; is this host's saved state taken there |
//! | [`verdict`] | the four verdicts |
//! | [`diff`], [`baseline`], [`seal`], [`predict`] | the other questions |
#![forbid(unsafe_code)]

pub mod coord;
pub mod layout;
pub mod view;

pub use coord::{Coord, Table};
pub use view::{ChoiceOffer, Evidence, Host, Item, ItemKey, View, Word};
