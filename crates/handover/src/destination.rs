//! The side that gets the guest.

use std::collections::BTreeSet;

use crate::{Digest, Epoch, Input, Journal, Message, Output, Reason, Record, Token};

/// Where the destination is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum At {
    /// Nothing is here.
    Empty,
    /// It was willing, and receives.
    Receiving(Token),
    /// All is here, restored and read back. It waits, whatever becomes of the connection.
    Prepared(Token, Digest),
    /// The record that it runs is being written.
    Starting(Token, Epoch),
    /// Nobody knows whether that record is durable: it must not run yet, and cannot say that it never will. It is written again
    /// whenever the source asks.
    Doubtful(Token, Epoch),
    /// The guest runs.
    Runs(Token),
    /// The guest ran here, and ended with a process of this side that crashed.
    Lost(Token),
    /// The record that it never ran is being written.
    Declining(Token),
}

/// The automaton of the destination. What it is told is what happened; what it says is to be done in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    at: At,
    /// Tokens of which is written that they never run here.
    never: BTreeSet<Token>,
    /// Tokens under which a guest ran here.
    ran: BTreeSet<Token>,
    /// Tokens of which it may be written that they never run here.
    burnt: BTreeSet<Token>,
}

impl Destination {
    /// Of a process in which nothing is, after whatever the journal says.
    pub fn new(journal: &Journal) -> Destination {
        let none = BTreeSet::new;
        let mut destination = Destination { at: At::Empty, never: none(), ran: none(), burnt: none() };
        for record in &journal.records {
            match *record {
                Record::NeverRan(token) => drop(destination.never.insert(token)),
                Record::Running(token, _) => {
                    destination.ran.insert(token);
                    destination.at = At::Lost(token);
                }
                // It went on elsewhere.
                Record::Gone(_) => destination.at = At::Empty,
                Record::Committed(..) | Record::Returned(..) => {}
            }
        }
        destination
    }

    /// Where it is.
    pub fn at(&self) -> At {
        self.at
    }

    /// The guest that ran here has moved on: there is room for one again.
    pub fn leave(&mut self) {
        if matches!(self.at, At::Runs(_) | At::Lost(_)) {
            self.at = At::Empty;
        }
    }

    /// What happened; returns what to do.
    pub fn step(&mut self, input: Input) -> Vec<Output> {
        match input {
            Input::Received(message) => self.received(message),
            Input::Connected => self.again(),
            // What is half here is of no use; what is prepared may have been committed.
            Input::Disconnected if matches!(self.at, At::Receiving(_)) => {
                self.at = At::Empty;
                vec![Output::Discard]
            }
            Input::Failed(reason) => match self.at {
                At::Receiving(token) => {
                    self.at = At::Empty;
                    vec![Output::Discard, Output::Send(Message::Refuse(token, reason))]
                }
                _ => Vec::new(),
            },
            Input::Restored(digest) => match self.at {
                At::Receiving(token) => {
                    self.at = At::Prepared(token, digest);
                    self.again()
                }
                _ => Vec::new(),
            },
            Input::Cancel => match self.at {
                At::Receiving(token) => {
                    self.at = At::Empty;
                    vec![Output::Discard, Output::Send(Message::Refuse(token, Reason::Cancelled))]
                }
                At::Prepared(token, _) => {
                    let mut outputs = vec![Output::Discard];
                    outputs.extend(self.decline(token));
                    outputs
                }
                _ => Vec::new(),
            },
            Input::Written => self.written(),
            Input::WriteFailed => self.not_written(),
            Input::Start(_) | Input::Still(_) | Input::Disconnected => Vec::new(),
        }
    }

    fn received(&mut self, message: Message) -> Vec<Output> {
        match message {
            Message::Offer(token, _) => self.offered(token),
            Message::Commit(token, epoch) => self.committed(token, epoch),
            Message::Abort(token) => self.aborted(token),
            // That all was sent is the engine's to notice: it says `Restored`, or that it failed. But a guest that stands must
            // not wait for a destination that dropped what it had.
            Message::Complete(token, _) if self.at == At::Empty => {
                vec![Output::Send(Message::Refuse(token, Reason::Engine))]
            }
            _ => Vec::new(),
        }
    }

    fn offered(&mut self, token: Token) -> Vec<Output> {
        if self.never.contains(&token) {
            return vec![Output::Send(Message::NeverRan(token))];
        }
        if self.ran.contains(&token) {
            return vec![Output::Send(Message::Running(token))];
        }
        if self.burnt.contains(&token) {
            return vec![Output::Send(Message::Refuse(token, Reason::TokenUsed))];
        }
        match self.at {
            At::Empty => {
                self.at = At::Receiving(token);
                vec![Output::Send(Message::Accept(token))]
            }
            At::Receiving(ours) if ours == token => vec![Output::Send(Message::Accept(token))],
            At::Prepared(ours, _) | At::Starting(ours, _) | At::Doubtful(ours, _) if ours == token => {
                self.again()
            }
            _ => vec![Output::Send(Message::Refuse(token, Reason::Busy))],
        }
    }

    fn committed(&mut self, token: Token, epoch: Epoch) -> Vec<Output> {
        match self.at {
            At::Prepared(ours, _) if ours == token => {
                self.at = At::Starting(token, epoch);
                vec![Output::Write(Record::Running(token, epoch))]
            }
            At::Doubtful(ours, epoch) if ours == token => {
                self.at = At::Starting(token, epoch);
                vec![Output::Write(Record::Running(token, epoch))]
            }
            At::Starting(ours, _) | At::Declining(ours) if ours == token => Vec::new(),
            _ if self.ran.contains(&token) => vec![Output::Send(Message::Running(token))],
            _ if self.never.contains(&token) => vec![Output::Send(Message::NeverRan(token))],
            // The copy was lost with an earlier process, or was discarded: it is written down before it is said.
            At::Empty => self.decline(token),
            At::Receiving(ours) if ours == token => {
                let mut outputs = vec![Output::Discard];
                outputs.extend(self.decline(token));
                outputs
            }
            // Another attempt is under way: the source that asks will ask again.
            _ => Vec::new(),
        }
    }

    fn aborted(&mut self, token: Token) -> Vec<Output> {
        match self.at {
            // The source never gives the right away after it said this; but it may not know whether it did before
            // (its journal failed), and then it waits for the answer.
            At::Receiving(ours) | At::Prepared(ours, _) if ours == token => {
                let mut outputs = vec![Output::Discard];
                outputs.extend(self.decline(token));
                outputs
            }
            _ if self.never.contains(&token) => vec![Output::Send(Message::NeverRan(token))],
            At::Empty => self.decline(token),
            _ => Vec::new(),
        }
    }

    fn decline(&mut self, token: Token) -> Vec<Output> {
        self.at = At::Declining(token);
        vec![Output::Write(Record::NeverRan(token))]
    }

    /// What the peer may have missed.
    fn again(&self) -> Vec<Output> {
        let message = match self.at {
            At::Receiving(token) => Message::Accept(token),
            At::Prepared(token, digest) => Message::Prepared(token, digest),
            At::Runs(token) | At::Lost(token) => Message::Running(token),
            _ => return Vec::new(),
        };
        vec![Output::Send(message)]
    }

    fn written(&mut self) -> Vec<Output> {
        match self.at {
            At::Starting(token, epoch) => {
                self.at = At::Runs(token);
                self.ran.insert(token);
                vec![Output::Run(epoch), Output::Send(Message::Running(token))]
            }
            At::Declining(token) => {
                self.at = At::Empty;
                self.never.insert(token);
                vec![Output::Send(Message::NeverRan(token))]
            }
            _ => Vec::new(),
        }
    }

    fn not_written(&mut self) -> Vec<Output> {
        match self.at {
            // It may be found after a crash, and then says that the guest ran.
            At::Starting(token, epoch) => {
                self.at = At::Doubtful(token, epoch);
                vec![Output::Stuck(Reason::Journal)]
            }
            // Nothing was promised; but the record may be found after a crash: nothing may ever run under this token here.
            At::Declining(token) => {
                self.at = At::Empty;
                self.burnt.insert(token);
                vec![Output::Stuck(Reason::Journal)]
            }
            _ => Vec::new(),
        }
    }
}
