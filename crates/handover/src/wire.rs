//! The frames of a move: what both sides say, sections of state, and memory, on one or several streams.
//!
//! | bytes | header of a frame, little-endian |
//! |---|---|
//! | 0..4 | `"EVKF"` |
//! | 4 | version: 1 |
//! | 5 | kind |
//! | 6..8 | number of the stream |
//! | 8..16 | number of the frame in its stream, from 0 on |
//! | 16..20 | bytes of the payload, at most [`MOST`] |
//! | 20..24 | CRC-32 (IEEE) over the header with zeros here, and the payload |
//!
//! A stream is refused at the first frame that is not the next one, whole and as it was sent: nothing is skipped, and nothing
//! is guessed. What a frame says is bounded before anything is allocated for it.

use crate::{Digest, Epoch, Message, Reason, Token};

/// The most bytes of a payload.
pub const MOST: usize = 1 << 20;
/// Bytes of a header.
pub const HEADER: usize = 24;
const MAGIC: [u8; 4] = *b"EVKF";
const VERSION: u8 = 1;
/// The longest name of a section.
const MOST_NAME: usize = 255;
/// Memory is sent in pieces of at most this many bytes.
pub const MOST_MEMORY: usize = MOST - 32;

/// What one frame carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The first one of each stream: what this side is, as CBOR.
    Hello(Vec<u8>),
    /// About the right to run.
    Control(Message),
    /// A piece of a section of state.
    Section {
        /// The section's name in a capsule.
        name: String,
        /// Where the piece begins.
        at: u64,
        /// Bytes of the whole section.
        total: u64,
        /// The piece.
        bytes: Vec<u8>,
    },
    /// Guest memory, as it was at some time.
    Memory {
        /// Which look at this memory it is: a later one replaces an earlier one, and is never replaced by one.
        version: u32,
        /// The guest-physical address.
        address: u64,
        /// What is there.
        content: Content,
    },
}

/// Guest memory in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// So many zeros.
    Zeros(u32),
    /// These bytes.
    Bytes(Vec<u8>),
}

/// Why a stream is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {at} of the stream, frame {frame}: {what}")]
pub struct Refused {
    /// Where the frame begins in the stream.
    pub at: u64,
    /// Its number.
    pub frame: u64,
    /// What is wrong.
    pub what: String,
}

/// Makes the frames of one stream.
#[derive(Clone, Debug)]
pub struct Encoder {
    stream: u16,
    next: u64,
}

impl Encoder {
    /// Of the stream with this number.
    pub fn new(stream: u16) -> Encoder {
        Encoder { stream, next: 0 }
    }

    /// Appends a frame's bytes.
    ///
    /// # Errors
    /// It is larger than a frame can be.
    pub fn put(&mut self, frame: &Frame, out: &mut Vec<u8>) -> Result<(), Refused> {
        let begin = out.len();
        out.resize(begin + HEADER, 0);
        let kind = payload(frame, out);
        let length = out.len() - begin - HEADER;
        let name = matches!(frame, Frame::Section { name, .. } if name.len() > MOST_NAME);
        if length > MOST || name {
            out.truncate(begin);
            let what = format!("{length} bytes do not fit into a frame, which holds {MOST}");
            return Err(Refused { at: 0, frame: self.next, what });
        }
        let header = &mut out[begin..begin + HEADER];
        header[..4].copy_from_slice(&MAGIC);
        (header[4], header[5]) = (VERSION, kind);
        header[6..8].copy_from_slice(&self.stream.to_le_bytes());
        header[8..16].copy_from_slice(&self.next.to_le_bytes());
        header[16..20].copy_from_slice(&(length as u32).to_le_bytes());
        let check = crc32fast::hash(&out[begin..]);
        out[begin + 20..begin + 24].copy_from_slice(&check.to_le_bytes());
        self.next += 1;
        Ok(())
    }
}

/// Reads the frames of one stream from whatever pieces arrive. It holds one frame at most.
#[derive(Clone, Debug)]
pub struct Decoder {
    stream: u16,
    next: u64,
    at: u64,
    held: Vec<u8>,
    refused: Option<Refused>,
}

impl Decoder {
    /// Of the stream with this number.
    pub fn new(stream: u16) -> Decoder {
        Decoder { stream, next: 0, at: 0, held: Vec::new(), refused: None }
    }

    /// Takes bytes from the front of what arrived; `None` when more is needed for a frame.
    ///
    /// # Errors
    /// What is there is not the next frame. It stays so.
    pub fn take(&mut self, arrived: &mut &[u8]) -> Result<Option<Frame>, Refused> {
        if let Some(refused) = &self.refused {
            return Err(refused.clone());
        }
        let taken = self.one(arrived).map_err(|what| Refused { at: self.at, frame: self.next, what });
        if let Err(refused) = &taken {
            self.held = Vec::new();
            self.refused = Some(refused.clone());
        }
        taken
    }

    fn one(&mut self, arrived: &mut &[u8]) -> Result<Option<Frame>, String> {
        self.fill(arrived, HEADER);
        let Some(header) = self.held.first_chunk::<HEADER>() else { return Ok(None) };
        let length = self.length(header)?;
        self.fill(arrived, HEADER + length);
        if self.held.len() < HEADER + length {
            return Ok(None);
        }
        let mut check = crc32fast::Hasher::new();
        check.update(&self.held[..20]);
        check.update(&[0; 4]);
        check.update(&self.held[HEADER..]);
        if check.finalize().to_le_bytes() != self.held[20..24] {
            return Err("it was altered on its way".to_owned());
        }
        let frame = frame(self.held[5], &self.held[HEADER..])?;
        self.at += self.held.len() as u64;
        self.next += 1;
        self.held.clear();
        Ok(Some(frame))
    }

    /// Whether the stream may end here.
    pub fn is_between_frames(&self) -> bool {
        self.held.is_empty() && self.refused.is_none()
    }

    fn fill(&mut self, arrived: &mut &[u8], wanted: usize) {
        let take = wanted.saturating_sub(self.held.len()).min(arrived.len());
        self.held.extend_from_slice(&arrived[..take]);
        *arrived = &arrived[take..];
    }

    fn length(&self, header: &[u8; HEADER]) -> Result<usize, String> {
        if header[..4] != MAGIC {
            return Err("no frame begins here".to_owned());
        }
        if header[4] != VERSION {
            return Err(format!("it is of version {}, and this reads version {VERSION}", header[4]));
        }
        let stream = u16::from_le_bytes([header[6], header[7]]);
        let number = number(&header[8..16]);
        if (stream, number) != (self.stream, self.next) {
            return Err(format!(
                "it is frame {number} of stream {stream}, and frame {} of stream {} is due",
                self.next, self.stream
            ));
        }
        let length = number_of(&header[16..20]);
        if length > MOST {
            return Err(format!("{length} bytes are more than a frame holds"));
        }
        Ok(length)
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn number_of(bytes: &[u8]) -> usize {
    number(bytes) as usize
}

const HELLO: u8 = 1;
const CONTROL: u8 = 2;
const SECTION: u8 = 3;
const ZEROS: u8 = 4;
const BYTES: u8 = 5;

fn payload(frame: &Frame, out: &mut Vec<u8>) -> u8 {
    match frame {
        Frame::Hello(bytes) => {
            out.extend_from_slice(bytes);
            HELLO
        }
        Frame::Control(message) => {
            out.extend_from_slice(&control(message));
            CONTROL
        }
        Frame::Section { name, at, total, bytes } => {
            out.extend_from_slice(&at.to_le_bytes());
            out.extend_from_slice(&total.to_le_bytes());
            out.push(name.len().min(MOST_NAME) as u8);
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(bytes);
            SECTION
        }
        Frame::Memory { version, address, content } => {
            out.extend_from_slice(&address.to_le_bytes());
            out.extend_from_slice(&version.to_le_bytes());
            match content {
                Content::Zeros(length) => {
                    out.extend_from_slice(&length.to_le_bytes());
                    ZEROS
                }
                Content::Bytes(bytes) => {
                    out.extend_from_slice(bytes);
                    BYTES
                }
            }
        }
    }
}

fn frame(kind: u8, payload: &[u8]) -> Result<Frame, String> {
    let short = || format!("{} bytes are too few for what it says it is", payload.len());
    match kind {
        HELLO => Ok(Frame::Hello(payload.to_vec())),
        CONTROL => message(payload).map(Frame::Control),
        SECTION => {
            let (head, rest) = payload.split_at_checked(17).ok_or_else(short)?;
            let (name, bytes) = rest.split_at_checked(usize::from(head[16])).ok_or_else(short)?;
            let name =
                std::str::from_utf8(name).map_err(|_| "the name of a section is no text".to_owned())?;
            let (at, total) = (number(&head[..8]), number(&head[8..16]));
            if at.checked_add(bytes.len() as u64).is_none_or(|end| end > total) {
                return Err(format!("a piece of {} bytes at {at} of a section of {total}", bytes.len()));
            }
            Ok(Frame::Section { name: name.to_owned(), at, total, bytes: bytes.to_vec() })
        }
        ZEROS | BYTES => {
            let (head, rest) = payload.split_at_checked(12).ok_or_else(short)?;
            let (address, version) = (number(&head[..8]), number(&head[8..]) as u32);
            let (content, length) = match (kind, rest) {
                (ZEROS, [_, _, _, _]) => (Content::Zeros(number(rest) as u32), number(rest)),
                (BYTES, _) => (Content::Bytes(rest.to_vec()), rest.len() as u64),
                _ => return Err(short()),
            };
            if length == 0 || address.checked_add(length).is_none() {
                return Err(format!("{length} bytes of memory at {address:#x}"));
            }
            Ok(Frame::Memory { version, address, content })
        }
        kind => Err(format!("frames of kind {kind} are unknown")),
    }
}

/// A message: kind, reason, six zeros, token, epoch, digest.
const CONTROL_BYTES: usize = 64;

fn control(message: &Message) -> [u8; CONTROL_BYTES] {
    let mut bytes = [0; CONTROL_BYTES];
    bytes[8..24].copy_from_slice(&message.token().0);
    bytes[0] = match *message {
        Message::Offer(_, epoch) | Message::Commit(_, epoch) => {
            bytes[24..32].copy_from_slice(&epoch.0.to_le_bytes());
            if matches!(message, Message::Offer(..)) { 1 } else { 6 }
        }
        Message::Accept(_) => 2,
        Message::Refuse(_, reason) => {
            bytes[1] = REASONS.iter().position(|r| *r == reason).map_or(0, |at| at as u8 + 1);
            3
        }
        Message::Complete(_, digest) | Message::Prepared(_, digest) => {
            bytes[32..].copy_from_slice(&digest.0);
            if matches!(message, Message::Complete(..)) { 4 } else { 5 }
        }
        Message::Running(_) => 7,
        Message::NeverRan(_) => 8,
        Message::Abort(_) => 9,
        Message::Whole(_) => 10,
    };
    bytes
}

/// In the order of their numbers, from 1 on.
const REASONS: [Reason; 8] = [
    Reason::Preflight,
    Reason::Busy,
    Reason::TokenUsed,
    Reason::Digest,
    Reason::Cancelled,
    Reason::Engine,
    Reason::Journal,
    Reason::Crashed,
];

fn message(payload: &[u8]) -> Result<Message, String> {
    let wrong = || "a message that this does not know".to_owned();
    let bytes: &[u8; CONTROL_BYTES] = payload.try_into().map_err(|_| wrong())?;
    let mut token = Token([0; 16]);
    token.0.copy_from_slice(&bytes[8..24]);
    let epoch = Epoch(number(&bytes[24..32]));
    let mut digest = Digest([0; 32]);
    digest.0.copy_from_slice(&bytes[32..]);
    let message = match bytes[0] {
        1 => Message::Offer(token, epoch),
        2 => Message::Accept(token),
        3 => {
            let reason = usize::from(bytes[1]).checked_sub(1).and_then(|at| REASONS.get(at));
            Message::Refuse(token, *reason.ok_or_else(wrong)?)
        }
        4 => Message::Complete(token, digest),
        5 => Message::Prepared(token, digest),
        6 => Message::Commit(token, epoch),
        7 => Message::Running(token),
        8 => Message::NeverRan(token),
        9 => Message::Abort(token),
        10 => Message::Whole(token),
        _ => return Err(wrong()),
    };
    // One way to write each.
    (control(&message) == *bytes).then_some(message).ok_or_else(wrong)
}
