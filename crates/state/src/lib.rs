//! The **state** of a VM: saved through KVM, carried to another host, set there, read back, and accounted for item by item.
//!
//! * An [`Image`] is what was saved: items in the kernel's own layout, each with the VM or the vCPU that it belongs to, and
//!   the [`Manifest`] of what no ioctl tells.
//! * [`registers`] is the matrix of arm64 registers between many hosts, which was here first.
#![forbid(unsafe_code)]

mod image;
mod manifest;
pub mod order;
pub mod registers;

pub use image::{Image, Item, Owner};
pub use manifest::{Manifest, Noted, Role};
