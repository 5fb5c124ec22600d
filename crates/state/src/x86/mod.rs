//! The state of an x86 VM.
//!
//! [`save`] reads every group that the VM has, in the order of the catalog's edges; [`restore`] sets it in another VM,
//! reads it back, and accounts for each item.

mod clock;
mod groups;
mod host;
mod lapic;
mod msrs;
mod plan;
mod restore;
mod same;
mod save;
mod xen;

pub use clock::Policy;
pub use host::Host;
pub use restore::{Options, restore, restore_with};
pub use save::{save, save_with};
