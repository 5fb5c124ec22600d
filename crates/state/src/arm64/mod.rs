//! The engine for arm64: all that KVM keeps of a VM with a GICv3, saved, restored and read back.
//!
//! * [`save`] reads every group of state of the catalog (`data/arm64/sections.toml`) in the order of its edges, and lets KVM write
//!   what it keeps to itself (pending LPIs, the tables of the ITS) into guest memory, which is to be copied after it,
//! * [`remake`] makes a VM as the manifest says, as far as no state comes before,
//! * [`restore`] sets everything, across all vCPUs, each item when all that must come before it is set; then it reads
//!   everything again and names whatever is not as it was saved.
//!
//! Registers that only clear what others hold are not set: they would undo those. Counters come last, see [`Time`].

mod ask;
mod counters;
mod place;
mod plan;
mod read;
mod restore;
mod save;
mod sections;

pub use counters::Time;
pub use restore::{restore, restore_in};
pub use save::{save, save_in};

use std::sync::Arc;

use evenkeel_catalog::Arch;
use evenkeel_sys::{Ram, Slot, System};

use crate::manifest::Manifest;
use crate::order::{Order, Phase};
use crate::outcome::Refused;
use crate::remake::{Made, repeat};

/// Makes a VM as a manifest says, with this memory. Calls before which some state has to be set are left to [`restore`].
///
/// # Errors
/// A call that this kernel refuses, or a manifest of something that cannot be restored.
pub fn remake<'b>(
    system: &System<'b>,
    manifest: &Manifest,
    memory: &[(Slot, Arc<Ram>)],
) -> Result<Made<'b>, Refused> {
    let devices = sections::saveable(manifest)?;
    let order = Order::catalogued(Arch::Aarch64, Phase::Restore);
    repeat(system, manifest, memory, |call| sections::is_later(call, &devices, order))
}

/// What a register is called in a [`Report`](crate::Report).
pub fn register_name(id: u64) -> String {
    match evenkeel_catalog::reg(id) {
        Some(reg) if reg.last.is_none() => reg.name.to_owned(),
        Some(reg) => format!("{} ({id:#x})", reg.name),
        None => {
            let facet = evenkeel_catalog::REGISTERS.iter().find(|r| r.at.reg == Some(id));
            facet.map_or_else(|| format!("{id:#x}"), |r| r.name.to_owned())
        }
    }
}
