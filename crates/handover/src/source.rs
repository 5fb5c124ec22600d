//! The side that has the guest.

use crate::{Digest, Epoch, Input, Journal, Message, Output, Reason, Record, Token};

/// Where the source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum At {
    /// The guest is this side's, and no attempt is under way.
    Owner,
    /// The destination was asked.
    Offered(Token),
    /// Memory is on its way, and the guest runs.
    Moving(Token),
    /// The guest stands, everything was sent.
    Paused(Token, Digest),
    /// The record that gives the right away is being written.
    Committing(Token),
    /// Nobody knows whether that record is durable: the destination has to say that it will never run.
    Doubtful(Token),
    /// The right to run is the destination's.
    Committed(Token),
    /// The destination never ran it: that is being written.
    Returning(Token),
    /// It runs there.
    Gone(Token),
    /// The guest ended with a process of this side that crashed.
    Lost,
}

/// The automaton of the source. What it is told is what happened; what it says is to be done in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    at: At,
    epoch: Epoch,
    /// The guest is in this process: a crash takes it.
    here: bool,
}

impl Source {
    /// Of a process that has the guest, whose storage has this epoch.
    pub fn new(epoch: Epoch) -> Source {
        Source { at: At::Owner, epoch, here: true }
    }

    /// Of a process that was started after a crash, with what the journal says, and what to do first. `memory` says whether the
    /// guest's memory and state outlived the old process (in memory that another process or the kernel holds). Where they did
    /// not, the guest is gone with it; but a destination that was given the right still has to hear of it.
    pub fn recover(journal: &Journal, memory: bool) -> (Source, Vec<Output>) {
        let last = journal.records.iter().rev().find(|record| !matches!(record, Record::NeverRan(_)));
        let (at, epoch) = match last {
            Some(Record::Committed(token, epoch)) => {
                (At::Committed(*token), Epoch(epoch.0.saturating_sub(1)))
            }
            Some(Record::Gone(token)) => (At::Gone(*token), Epoch::default()),
            Some(Record::Returned(_, epoch) | Record::Running(_, epoch)) if memory => (At::Owner, *epoch),
            _ if memory => (At::Owner, Epoch::default()),
            _ => (At::Lost, Epoch::default()),
        };
        let outputs = if at == At::Owner { vec![Output::Resume] } else { Vec::new() };
        (Source { at, epoch, here: memory }, outputs)
    }

    /// Where it is.
    pub fn at(&self) -> At {
        self.at
    }

    /// The epoch of the guest's storage on this side; that of the destination is the next one.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What happened; returns what to do.
    pub fn step(&mut self, input: Input) -> Vec<Output> {
        match input {
            Input::Start(token) => self.start(token),
            Input::Received(message) => self.received(message),
            Input::Connected => self.again(),
            Input::Still(digest) => match self.at {
                At::Moving(token) => {
                    self.at = At::Paused(token, digest);
                    vec![Output::Send(Message::Complete(token, digest))]
                }
                _ => Vec::new(),
            },
            // Before the commit any error ends the attempt, and the guest goes on here.
            Input::Failed(_) | Input::Cancel | Input::Disconnected => self.cancel(),
            Input::Written => self.written(),
            Input::WriteFailed => self.not_written(),
            Input::Restored(_) => Vec::new(),
        }
    }

    fn start(&mut self, token: Token) -> Vec<Output> {
        if self.at != At::Owner {
            return Vec::new();
        }
        self.at = At::Offered(token);
        vec![Output::Send(Message::Offer(token, self.epoch.next()))]
    }

    fn received(&mut self, message: Message) -> Vec<Output> {
        match (self.at, message) {
            (At::Offered(ours), Message::Accept(token)) if ours == token => {
                self.at = At::Moving(token);
                vec![Output::Stream]
            }
            (At::Offered(ours) | At::Moving(ours) | At::Paused(ours, _), Message::Refuse(token, _))
                if ours == token =>
            {
                self.back(token)
            }
            (At::Offered(ours) | At::Moving(ours) | At::Paused(ours, _), Message::NeverRan(token))
                if ours == token =>
            {
                self.back(token)
            }
            (At::Paused(ours, sent), Message::Prepared(token, digest)) if ours == token => {
                if sent != digest {
                    return self.back(token);
                }
                self.at = At::Committing(token);
                vec![Output::Write(Record::Committed(token, self.epoch.next()))]
            }
            // One that did not hear of the commit yet.
            (At::Committed(ours), Message::Prepared(token, _)) if ours == token => {
                vec![Output::Send(Message::Commit(token, self.epoch.next()))]
            }
            (At::Committed(ours), Message::Running(token)) if ours == token => {
                self.at = At::Gone(token);
                self.here = false;
                vec![Output::Write(Record::Gone(token)), Output::Free]
            }
            (At::Committed(ours) | At::Doubtful(ours), Message::NeverRan(token)) if ours == token => {
                self.at = At::Returning(token);
                vec![Output::Write(Record::Returned(token, self.epoch))]
            }
            (at, Message::Prepared(token, _) | Message::Accept(token))
                if at != At::Lost && at.token() != Some(token) =>
            {
                vec![Output::Send(Message::Abort(token))]
            }
            _ => Vec::new(),
        }
    }

    /// What the peer may have missed.
    fn again(&self) -> Vec<Output> {
        let message = match self.at {
            At::Offered(token) => Message::Offer(token, self.epoch.next()),
            At::Paused(token, digest) => Message::Complete(token, digest),
            At::Committed(token) => Message::Commit(token, self.epoch.next()),
            At::Doubtful(token) => Message::Abort(token),
            _ => return Vec::new(),
        };
        vec![Output::Send(message)]
    }

    fn cancel(&mut self) -> Vec<Output> {
        match self.at {
            At::Offered(token) | At::Moving(token) | At::Paused(token, _) => self.back(token),
            _ => Vec::new(),
        }
    }

    /// The attempt is over, and the right never left.
    fn back(&mut self, token: Token) -> Vec<Output> {
        let stood = matches!(self.at, At::Paused(..));
        self.at = At::Owner;
        let abort = Output::Send(Message::Abort(token));
        if stood { vec![Output::Resume, abort] } else { vec![abort] }
    }

    fn written(&mut self) -> Vec<Output> {
        match self.at {
            At::Committing(token) => {
                self.at = At::Committed(token);
                self.again()
            }
            At::Returning(_) if self.here => {
                self.at = At::Owner;
                vec![Output::Resume]
            }
            At::Returning(_) => {
                self.at = At::Lost;
                vec![Output::Stuck(Reason::Crashed)]
            }
            _ => Vec::new(),
        }
    }

    fn not_written(&mut self) -> Vec<Output> {
        match self.at {
            // If this process went on with the guest and crashed, the next one would find the record and commit what is old by
            // then. So the guest stands until the destination has written down that it never runs under this token.
            At::Committing(token) => {
                self.at = At::Doubtful(token);
                vec![Output::Stuck(Reason::Journal), Output::Send(Message::Abort(token))]
            }
            // The destination's own record makes sure that nothing old runs.
            At::Returning(_) => self.written(),
            _ => Vec::new(),
        }
    }

    /// An operator says that this guest does not run elsewhere and never will: `Some` if the right was away.
    ///
    /// It is the one way past the destination, and the operator's to answer for: that host was turned off, its disks are fenced.
    pub fn overrule(&mut self) -> Option<Vec<Output>> {
        let (At::Committed(token) | At::Doubtful(token)) = self.at else { return None };
        self.at = At::Returning(token);
        Some(vec![Output::Write(Record::Returned(token, self.epoch))])
    }
}

impl At {
    /// The attempt that is under way or was the last one.
    pub fn token(&self) -> Option<Token> {
        match *self {
            At::Owner | At::Lost => None,
            At::Offered(token)
            | At::Moving(token)
            | At::Paused(token, _)
            | At::Committing(token)
            | At::Doubtful(token)
            | At::Committed(token)
            | At::Returning(token)
            | At::Gone(token) => Some(token),
        }
    }
}
