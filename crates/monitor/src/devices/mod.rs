//! The devices of a machine that Linux runs on.

pub mod serial;
