//! The **state** of a VM: saved through KVM, carried to another host, set there, read back, and accounted for item by item.
//!
//! * An [`Image`] is what was saved: items in the kernel's own layout, each with the VM or the vCPU that it belongs to, and
//!   the [`Manifest`] of what no ioctl tells.
//! * [`registers`] is the matrix of arm64 registers between many hosts, which was here first.
#![forbid(unsafe_code)]

mod image;
mod manifest;
pub mod order;
mod parts;
pub mod registers;
mod report;
pub mod x86;

pub use image::{Image, Item, Owner};
pub use manifest::{Manifest, Noted, Role};
pub use parts::{Cpu, Parts, Retire};
pub use report::{Found, Refused, Report, Saved, Wrong};
