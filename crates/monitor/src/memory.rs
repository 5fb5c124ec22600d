//! Guest memory as devices and loaders see it: the same memfd that the VM has, in rust-vmm's terms.

use std::fs::File;
use std::sync::Arc;

use evenkeel_sys::Ram;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::Error;

/// A second view of the memory that starts at this guest-physical address. It is the same pages: what is written through one
/// is read through the other.
///
/// # Errors
/// The file cannot be mapped once more.
pub fn view(ram: &Arc<Ram>, base: u64) -> Result<GuestMemoryMmap, Error> {
    let fd = ram.fd().try_clone_to_owned().map_err(|e| Error::View(e.to_string()))?;
    let file = FileOffset::new(File::from(fd), 0);
    GuestMemoryMmap::from_ranges_with_files([(GuestAddress(base), ram.len(), Some(file))])
        .map_err(|e| Error::View(e.to_string()))
}
