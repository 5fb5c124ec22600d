//! The witness on arm64. Same design as on x86: a table of probes, a guest that executes them, outcomes with a nonce.
//! Everything but the guest itself ([`crate::guests`]) is built on every architecture, so that it is tested on every one.

pub mod abi;
pub mod names;
pub mod probe;
pub mod programs;
pub mod rounds;
pub mod session;
