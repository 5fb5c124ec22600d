//! **Moving a running guest.** The right to run is decided by the automata of `evenkeel-handover`; this crate does what they say: it
//! opens connections, copies memory in rounds while the guest runs, keeps the journals, and asks the guest's owner to pause, save,
//! restore and run it.
//!
//! A VMM implements [`Leaving`] on the one side and [`Arriving`] on the other, and calls [`send`] and [`receive`]. Neither waits
//! without an end: a peer that is silent for longer than [`Policy::patience`] counts as lost.
#![forbid(unsafe_code)]

mod address;
mod connection;
mod credentials;
mod fetch;
#[doc(hidden)]
pub mod fuzzing;
mod guest;
mod intake;
mod journal;
mod listener;
mod lobby;
mod memory;
mod pipe;
mod policy;
mod ranges;
mod receive;
mod rounds;
mod send;
mod serve;
mod settle;
mod spread;
mod stream;
mod tls;

pub use address::{Address, NoAddress};
pub use credentials::Credentials;
pub use guest::{Arriving, Ask, GuestError, Lacking, Leaving, Range, Section};
pub use journal::{JournalError, JournalFile, Journaling};
pub use listener::Listener;
pub use pipe::Pipe;
pub use policy::{MOST_STREAMS, NotSent, Phase, Policy, Progress, Sent, Slow};
pub use receive::{Received, receive};
pub use send::send;
pub use settle::{Settled, settle};
pub use stream::Stream;

/// What this side says that it is.
const PROGRAM: &str = concat!("evenkeel ", env!("CARGO_PKG_VERSION"));
