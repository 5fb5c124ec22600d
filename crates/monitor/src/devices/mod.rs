//! The devices of a machine that Linux runs on.

pub mod keyboard;
pub mod serial;
pub mod virtio;
