//! Findings and verdicts in words. Nothing here decides anything: it says what the algebra found, the most important
//! first, so that somebody who has never seen the project understands it, without colour as well as with.
//!
//! [`model`] holds the documents that `--format json` prints; the modules beside it print the same things as text.
//! [`matrix`] is all pairs of many hosts, also as one self-contained HTML page.
#![forbid(unsafe_code)]

mod diagnostics;
mod diff;
mod explain;
mod interface;
pub mod matrix;
pub mod model;
pub mod reference;
mod style;
mod survive;

pub use diagnostics::diagnostics;
pub use diff::{baseline, check, diff, seal};
pub use explain::explain;
pub use survive::survive;
