//! The devices of a machine that Linux runs on.

pub mod interrupts;
pub mod ioapic;
pub mod keyboard;
pub mod plug;
pub mod serial;
pub mod virtio;
