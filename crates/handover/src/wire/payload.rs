//! What is in a frame, as bytes.

use super::{Content, Frame, MOST_MEMORY};
use crate::{Digest, Epoch, Message, Reason, Token};

/// The longest name of a section.
pub(super) const MOST_NAME: usize = 255;

pub(super) fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

pub(super) fn number_of(bytes: &[u8]) -> usize {
    number(bytes) as usize
}

const HELLO: u8 = 1;
const CONTROL: u8 = 2;
pub(super) const SECTION: u8 = 3;
pub(super) const ZEROS: u8 = 4;
pub(super) const BYTES: u8 = 5;
pub(super) const PACKED: u8 = 6;
const WORDS: u8 = 7;
pub(super) const BARRIER: u8 = 8;
pub(super) const VERIFY: u8 = 9;
pub(super) const MISSING: u8 = 10;
const WANT: u8 = 11;

pub(super) fn payload(frame: &Frame, out: &mut Vec<u8>) -> u8 {
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
                Content::Packed(length, bytes) => {
                    out.extend_from_slice(&length.to_le_bytes());
                    out.extend_from_slice(bytes);
                    PACKED
                }
            }
        }
        Frame::Words(words) => {
            out.extend_from_slice(words.as_bytes());
            WORDS
        }
        Frame::Barrier(round) => {
            out.extend_from_slice(&round.to_le_bytes());
            BARRIER
        }
        Frame::Verify { address, length, digest } => {
            out.extend_from_slice(&address.to_le_bytes());
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(digest);
            VERIFY
        }
        Frame::Missing(ranges) => {
            for (address, length) in ranges {
                out.extend_from_slice(&address.to_le_bytes());
                out.extend_from_slice(&length.to_le_bytes());
            }
            MISSING
        }
        Frame::Want(address) => {
            out.extend_from_slice(&address.to_le_bytes());
            WANT
        }
    }
}

pub(super) fn frame(kind: u8, payload: &[u8]) -> Result<Frame, String> {
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
        ZEROS | BYTES | PACKED => {
            let (head, rest) = payload.split_at_checked(12).ok_or_else(short)?;
            let (address, version) = (number(&head[..8]), number(&head[8..]) as u32);
            let (content, length) = match (kind, rest) {
                (ZEROS, [_, _, _, _]) => (Content::Zeros(number(rest) as u32), number(rest)),
                (BYTES, _) => (Content::Bytes(rest.to_vec()), rest.len() as u64),
                (PACKED, [a, b, c, d, packed @ ..]) => {
                    let length = u32::from_le_bytes([*a, *b, *c, *d]);
                    if length as usize > MOST_MEMORY {
                        return Err(format!("{length} bytes of memory are more than a frame is packed from"));
                    }
                    (Content::Packed(length, packed.to_vec()), u64::from(length))
                }
                _ => return Err(short()),
            };
            if length == 0 || address.checked_add(length).is_none() {
                return Err(format!("{length} bytes of memory at {address:#x}"));
            }
            Ok(Frame::Memory { version, address, content })
        }
        WORDS => {
            let words = std::str::from_utf8(payload).map_err(|_| "words that are no text".to_owned())?;
            Ok(Frame::Words(words.to_owned()))
        }
        BARRIER => Ok(Frame::Barrier(u32::from_le_bytes(payload.try_into().map_err(|_| short())?))),
        VERIFY => {
            let bytes: &[u8; 44] = payload.try_into().map_err(|_| short())?;
            let (address, length) = (number(&bytes[..8]), number(&bytes[8..12]) as u32);
            let mut digest = [0; 32];
            digest.copy_from_slice(&bytes[12..]);
            if length as usize > MOST_MEMORY || address.checked_add(u64::from(length)).is_none() {
                return Err(format!("{length} bytes of memory at {address:#x} to compare"));
            }
            Ok(Frame::Verify { address, length, digest })
        }
        MISSING => {
            let (pairs, []) = payload.as_chunks::<16>() else { return Err(short()) };
            let ranges: Vec<(u64, u64)> =
                pairs.iter().map(|pair| (number(&pair[..8]), number(&pair[8..]))).collect();
            match ranges.iter().find(|(at, length)| *length == 0 || at.checked_add(*length).is_none()) {
                Some((at, length)) => Err(format!("{length} missing bytes of memory at {at:#x}")),
                None => Ok(Frame::Missing(ranges)),
            }
        }
        WANT => Ok(Frame::Want(number(
            payload.first_chunk::<8>().filter(|_| payload.len() == 8).ok_or_else(short)?,
        ))),
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
