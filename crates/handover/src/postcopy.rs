//! Moving the right to run **before** memory: the destination runs at once and fetches what it touches.
//!
//! ```text
//!        source                                              destination
//!   Committed ──────────── Commit ──────────────────────────▶ Prepared   the state is here, memory is not
//!       │                                                    Starting    the record Running is written
//!       │                                                        ║
//!   Serving ◀───────────── Running ───────────────────────── Fetching    the guest runs
//!       │ pages, asked for and not                               │  Disconnected
//!       │                                                     Waiting    the guest stands: what it needs is there
//!       │                                                        │  Connected
//!       │                                                    Fetching    it runs on
//!       │                                                        │  every page is here
//!    Gone ◀────────────── Whole ───────────────────────────── Whole
//! ```
//!
//! Up to and with the commit it is the [`crate::Source`] and the [`crate::Destination`] that decide who runs; these two begin behind
//! them. After the commit the source is a server of pages that only reads, and never a copy that could run: a guest that ran
//! on has changed memory that the source does not have. So a source that crashes while it serves takes the guest with it, which is the
//! price of post-copy; a connection that is lost costs time only.

use crate::{Epoch, Message, Output, Reason, Token};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// A message of the peer.
    Received(Message),
    /// There is a connection, and pages can be asked for again.
    Connected,
    /// There is none.
    Disconnected,
    /// The last page is here, and verified (destination).
    LastPage,
}

/// The source, once the destination runs the guest: it serves pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Server {
    /// It has pages that the destination may lack.
    Serving(Token),
    /// The destination has them all.
    Gone(Token),
}

impl Server {
    /// The source of [`crate::Source`] at `Committed` heard `Running`.
    pub fn new(token: Token) -> Server {
        Server::Serving(token)
    }

    /// What happened; returns what to do. It has no way to let the guest run.
    pub fn step(&mut self, input: Input) -> Vec<Output> {
        match (*self, input) {
            (Server::Serving(ours), Input::Received(Message::Whole(token))) if ours == token => {
                *self = Server::Gone(token);
                vec![Output::Free]
            }
            _ => Vec::new(),
        }
    }
}

/// The destination, once its guest may run and memory is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fetcher {
    /// The guest runs, and memory comes.
    Fetching(Token, Epoch),
    /// The guest stands: there is nobody to ask for memory.
    Waiting(Token, Epoch),
    /// All memory is here; the guest runs.
    Whole(Token),
}

impl Fetcher {
    /// [`crate::Destination`] said that the guest is to run with this epoch.
    pub fn new(token: Token, epoch: Epoch) -> Fetcher {
        Fetcher::Fetching(token, epoch)
    }

    /// What happened; returns what to do.
    pub fn step(&mut self, input: Input) -> Vec<Output> {
        match (*self, input) {
            (Fetcher::Fetching(token, epoch), Input::Disconnected) => {
                *self = Fetcher::Waiting(token, epoch);
                vec![Output::Stuck(Reason::Engine)]
            }
            (Fetcher::Waiting(token, epoch), Input::Connected) => {
                *self = Fetcher::Fetching(token, epoch);
                vec![Output::Run(epoch)]
            }
            (Fetcher::Fetching(token, _), Input::LastPage) => {
                *self = Fetcher::Whole(token);
                vec![Output::Send(Message::Whole(token))]
            }
            // The last page came just before the connection went.
            (Fetcher::Waiting(token, epoch), Input::LastPage) => {
                *self = Fetcher::Whole(token);
                vec![Output::Run(epoch), Output::Send(Message::Whole(token))]
            }
            (Fetcher::Whole(token), Input::Connected) => vec![Output::Send(Message::Whole(token))],
            // A source that did not hear it.
            (Fetcher::Whole(ours), Input::Received(Message::Commit(token, _))) if ours == token => {
                vec![Output::Send(Message::Whole(token))]
            }
            _ => Vec::new(),
        }
    }
}
