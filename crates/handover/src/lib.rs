//! **Who may run a guest that moves.** Two automata, one on each side, and the journals that make their promises outlive a crash.
//! They know no file, no socket, no clock and no guest: they take what happened ([`Input`]) and say what to do ([`Output`]).
//!
//! ```text
//!        source                                                     destination
//!
//!   ┌── Owner ─────────────── Offer ─────────────────────────────▶ Empty
//!   │     │ Start                                                     │
//!   │  Offered ◀───────────── Accept ──────────────────────────── Receiving ◀┐
//!   │     │                                                           │      │ Abort, a new Offer:
//!   │  Moving     memory, while the guest runs                        │      │ what came is discarded
//!   │     │ Still: the guest stands, all was sent                     │      │
//!   │  Paused ─────────────── Complete ───────────────────────────────┤      │
//!   │     │                                                           │ Restored: everything is verified,
//!   │     │ ◀──────────────── Prepared ───────────────────────── Prepared ───┘ set and read back
//!   │  Committing   the record Committed is written                   │
//!   │     ║                                                           │
//!   │  Committed ──────────── Commit (again on each connection) ──────┤
//!   │     │                                                        Starting   the record Running is written
//!   │     │                                                           ║
//!   │   Gone ◀─────────────── Running ──────────────────────────── Runs
//!   │
//!   │  Committed ──────────── Commit ────────────────────────────▶ Empty, after a crash or a discard
//!   │     │                                                        Declining   the record NeverRan is written
//!   │     │ ◀──────────────── NeverRan ──────────────────────────────  ║
//!   │  Returning    the record Returned is written                 Empty
//!   │     ║
//!   └─────┘ the guest goes on
//! ```
//!
//! A double line is an fsync: what is below it happens only when the record is durable.
//!
//! * **Until `Committed` is durable the right to run is the source's**, whatever happens elsewhere: on any error it resumes.
//! * **From then on it is the destination's.** The source never resumes by itself; it says `Commit` on each connection, and only
//!   `NeverRan` of this very token, which the destination has written down before, gives the right back; or an operator, by name.
//! * **A destination runs only what it has prepared whole and what was committed**, and writes `Running` down before the first
//!   instruction. Asked about a token that it does not have and never ran, it first writes `NeverRan`, and never runs it.
//! * A destination that is prepared and loses its peer waits. Nothing but its operator makes it give up.
//!
//! Every attempt has a [`Token`] of its own, so nothing that is late belongs to another attempt. Each time the right moves, the
//! [`Epoch`] grows: who has an older one must not write to the guest's storage.
//!
//! With [`postcopy`] the right moves before memory does.
//!
//! The tests explore all interleavings of loss, duplication, reordering, crash (with the last record whole, torn or lost) and
//! restart of these automata and this encoding, and that of naive rules, which they refute.
#![forbid(unsafe_code)]

mod destination;
#[doc(hidden)]
pub mod fuzzing;
pub mod greeting;
pub mod journal;
mod message;
pub mod postcopy;
mod source;
pub mod wire;

pub use destination::{At as DestinationAt, Destination};
pub use journal::{Journal, Record};
pub use message::{Digest, Epoch, Message, NoToken, Reason, Token};
pub use source::{At as SourceAt, Source};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// Begin an attempt (source). The token is random and was never used.
    Start(Token),
    /// A message of the peer, verified as a frame.
    Received(Message),
    /// There is a connection: whatever the peer may have missed is said again. May come at any time, and often.
    Connected,
    /// The connection is lost.
    Disconnected,
    /// The guest stands still and everything about it was sent; this is its digest (source).
    Still(Digest),
    /// Everything was received, verified, set and read back, and its locks were taken; this is its digest (destination).
    Restored(Digest),
    /// The engine cannot go on with the attempt.
    Failed(Reason),
    /// The user does not want the move any more (source), or an operator discards what was prepared (destination).
    Cancel,
    /// The record of the last [`Output::Write`] is durable.
    Written,
    /// It may be durable or not, and nobody knows.
    WriteFailed,
}

/// What to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// Send this, if there is a connection; if there is none it is lost, and said again on the next.
    Send(Message),
    /// Append this to the journal, make it durable, and say [`Input::Written`].
    Write(Record),
    /// Begin to send memory: the destination is willing (source).
    Stream,
    /// Let the guest go on where it was paused (source).
    Resume,
    /// Let the guest run, with this epoch (destination).
    Run(Epoch),
    /// Drop what was received (destination).
    Discard,
    /// The guest runs elsewhere: its memory here is of no use any more, but to a server of pages after a post-copy (source).
    Free,
    /// Somebody has to look: the guest stands, and why.
    Stuck(Reason),
}
