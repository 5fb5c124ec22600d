//! A guest that is handed from one process to another: `migrate`, `receive`, `update`, and `arrive`, which is the process that a
//! guest comes to.
//!
//! ```text
//!   evenkeel run ◀──control socket──▶ evenkeel migrate ◀══streams══▶ evenkeel receive ◀──socket──▶ evenkeel arrive
//!   (confined, runs the guest)        (journal, engine)             (journal, engine)             (runs it from then on)
//! ```
//!
//! Who runs a guest never speaks with the network, and who speaks with the network never runs a guest: the two share the file of
//! the guest's memory. `update` is both movers in one process, and memory stays where it is.

pub mod arrive;
mod arriving;
pub mod bundle;
mod channel;
mod formats;
mod journal;
mod leaving;
pub mod migrate;
pub mod receive;
pub mod update;
