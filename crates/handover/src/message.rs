//! What the two sides say to each other about the right to run. What they say about memory is another matter.

use std::fmt;
use std::str::FromStr;

/// One attempt to move one guest: random, and used once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub [u8; 16]);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Token {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Token, NoToken> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).ok().filter(|_| digits);
        number.map(|number| Token(number.to_be_bytes())).ok_or(NoToken)
    }
}

/// A text that is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token is 32 hexadecimal digits")]
pub struct NoToken;

/// How often the right to run has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// That of who gets the right next.
    pub fn next(self) -> Epoch {
        Epoch(self.0.saturating_add(1))
    }
}

/// BLAKE3 over all that was sent about a guest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why something is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The destination cannot keep the contract, or cannot take the state: the findings say which.
    Preflight,
    /// It has a guest, or another attempt, in this place.
    Busy,
    /// It was told about this token that it never ran.
    TokenUsed,
    /// What it restored is not what was sent.
    Digest,
    /// The user, or an operator.
    Cancelled,
    /// The engine: memory, state, devices, locks.
    Engine,
    /// The journal cannot be written.
    Journal,
    /// The process that had the guest ended, and the guest with it.
    Crashed,
}

/// What one side says to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Message {
    /// Source: will you take this guest? The preflight is done with it.
    Offer(Token, Epoch),
    /// Destination: yes.
    Accept(Token),
    /// Destination: no, or not any more.
    Refuse(Token, Reason),
    /// Source: that was all; the guest stands still.
    Complete(Token, Digest),
    /// Destination: it is restored, read back, and could run.
    Prepared(Token, Digest),
    /// Source: the right to run is yours.
    Commit(Token, Epoch),
    /// Destination: it runs here, or did.
    Running(Token),
    /// Destination: it never ran here under this token, and never will.
    NeverRan(Token),
    /// Source: this attempt is over.
    Abort(Token),
    /// Destination, after a post-copy: all memory is here.
    Whole(Token),
}

impl Message {
    /// The attempt that it is about.
    pub fn token(&self) -> Token {
        match *self {
            Message::Offer(token, _)
            | Message::Accept(token)
            | Message::Refuse(token, _)
            | Message::Complete(token, _)
            | Message::Prepared(token, _)
            | Message::Commit(token, _)
            | Message::Running(token)
            | Message::NeverRan(token)
            | Message::Abort(token)
            | Message::Whole(token) => token,
        }
    }
}
