//! **Set, read back, compare, report**: the machine that carries out steps on a VM.
//!
//! A [`Step`] is a few ioctls that set something, and what must be read afterwards. [`run`] makes the ioctls, looks at
//! every place that shows what became of them, and reports each difference by the facet's name, a bit at a time. A set
//! that succeeds proves nothing; a set that fails proves nothing either, where what is read is what was wanted. A place
//! that cannot be read is never taken for kept.
//!
//! The order of steps follows from the catalog's edges of phase `apply` ([`order`]): topological, the same on every
//! run, and a cycle is an error.
#![forbid(unsafe_code)]

pub mod order;
mod outcome;
mod run;
mod seen;
mod step;

pub use evenkeel_catalog::Stage;
pub use outcome::{Difference, Outcome, StepReport, Unseen, stage_name};
pub use run::{compare, run};
pub use seen::{Place, Seen};
pub use step::{Expect, Facet, Set, Step, Target};
