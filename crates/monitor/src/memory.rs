//! Guest memory as devices and loaders see it: the very mapping that the VM has, in rust-vmm's terms.

use std::sync::Arc;

use evenkeel_sys::{Marks, Ram};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::Error;

/// Guest memory, which marks what is written through it.
pub type View = GuestMemoryMmap<Marks>;

/// A view of the memory that starts at this guest-physical address. There is one mapping for the guest and for its devices:
/// what protects it while it is being saved holds for both, and what devices write is in [`Ram::marks`].
///
/// # Errors
/// It would end beyond the address space.
pub fn view(ram: &Arc<Ram>, base: u64) -> Result<View, Error> {
    let region = GuestRegionMmap::with_arc(ram.region().clone(), GuestAddress(base));
    let region = region.ok_or_else(|| Error::View("it would end beyond the address space".to_owned()))?;
    View::from_regions(vec![region]).map_err(|e| Error::View(e.to_string()))
}
