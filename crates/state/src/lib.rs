//! The **state** of a VM: saved through KVM, carried to another host, set there, read back, and accounted for item by item.
//!
//! * An [`Image`] is what was saved: items in the kernel's own layout, each with the VM or the vCPU that it belongs to, and
//!   the [`Manifest`] of what no ioctl tells.
//! * [`view()`](view::view) names the fields of an item, and [`compare`] says in what two images of one guest differ.
//! * [`mod@file`] puts it into a capsule and takes it out.
//! * [`gaps`] looks for what a guest has and KVM cannot save; [`translate`] rewrites what another kernel does not take, where
//!   nothing is lost.
//! * [`x86`] and [`arm64`] save and restore: in the order that the catalog's edges give ([`order`]), with every value read back.
//! * [`registers`] is the matrix of arm64 registers between many hosts, which was here first.
#![forbid(unsafe_code)]

pub mod arm64;
mod clocks;
mod compare;
pub mod entries;
pub mod file;
#[doc(hidden)]
pub mod fuzzing;
mod gaps;
mod image;
mod manifest;
mod noting;
pub mod order;
mod outcome;
mod pack;
mod parts;
pub mod registers;
mod remake;
mod single;
pub mod translate;
pub mod view;
pub mod x86;

pub use compare::{Difference, Elapsed, compare, compare_items};
pub use file::Guest;
pub use gaps::{FoundGap, gaps, looked_for};
pub use image::{Image, Item, Owner};
pub use manifest::{Manifest, Noted, Role};
pub use noting::Noting;
pub use outcome::{Absent, Became, Found, Left, NotKept, Refused, Report, Saved, Unsaved};
pub use pack::{
    Attribute, Unpacked, pack_attributes, pack_registers, register_size, unpack_attributes, unpack_registers,
};
pub use parts::{Cpu, Parts, Retire};
pub use remake::Made;
pub use view::view;
