//! The state of an x86 VM.
//!
//! [`save`] reads every group that the VM has, in the order of the catalog's edges; [`restore`] sets it in another VM,
//! reads it back, and accounts for each item.

mod agree;
mod clock;
mod groups;
mod host;
mod lapic;
mod msrs;
mod plan;
mod readback;
mod restore;
mod save;
mod xen;

pub use clock::Policy;
pub use host::Host;
pub use restore::{Options, restore, restore_with};
pub use save::{save, save_verified, save_with};

use std::sync::Arc;

use evenkeel_sys::{Ram, Slot, System};

use crate::remake::repeat;
use crate::{Made, Manifest, Refused};

/// Makes a VM as a manifest says, with this memory. What a debugger selected is left to [`restore`].
///
/// # Errors
/// A call that this kernel refuses, or a manifest that makes no sense.
pub fn remake<'b>(
    system: &System<'b>,
    manifest: &Manifest,
    memory: &[(Slot, Arc<Ram>)],
) -> Result<Made<'b>, Refused> {
    repeat(system, manifest, memory, restore::is_later)
}
