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

mod payload;

use crate::{Digest, Message};
use payload::{
    BARRIER, BYTES, MISSING, MOST_NAME, PACKED, SECTION, VERIFY, ZEROS, frame, number, number_of, payload,
};

/// The most bytes of a payload.
pub const MOST: usize = 1 << 20;
/// Bytes of a header.
pub const HEADER: usize = 24;
const MAGIC: [u8; 4] = *b"EVKF";
const VERSION: u8 = 1;
/// Memory is sent in pieces of at most this many bytes.
pub const MOST_MEMORY: usize = MOST - 32;

/// What one frame carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The first one of each stream, and the only one of its kind there: a [`crate::greeting::Greeting`].
    Hello(Vec<u8>),
    /// For the user of the other side: what was found.
    Words(String),
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
    /// A round of memory is over on this stream: what follows is later than what comes before it on any stream.
    Barrier(u32),
    /// What this memory is when the guest stands: to be compared.
    Verify {
        /// The guest-physical address.
        address: u64,
        /// Bytes.
        length: u32,
        /// BLAKE3 over them.
        digest: [u8; 32],
    },
    /// Memory that comes after the commit (source), or that did not come yet (destination): addresses and lengths.
    Missing(Vec<(u64, u64)>),
    /// Destination: the guest waits for the page with this address.
    Want(u64),
}

/// Guest memory in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// So many zeros.
    Zeros(u32),
    /// These bytes.
    Bytes(Vec<u8>),
    /// So many bytes, which are these when they are decompressed (LZ4, one block).
    Packed(u32, Vec<u8>),
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
    sum: Sum,
}

impl Encoder {
    /// Of the stream with this number.
    pub fn new(stream: u16) -> Encoder {
        Encoder { stream, next: 0, sum: Sum::default() }
    }

    /// Appends a frame's bytes.
    ///
    /// # Errors
    /// It is larger than a frame can be.
    pub fn put(&mut self, frame: &Frame, out: &mut Vec<u8>) -> Result<(), Refused> {
        let begin = out.len();
        out.resize(begin + HEADER, 0);
        let kind = payload(frame, out);
        let name = matches!(frame, Frame::Section { name, .. } if name.len() > MOST_NAME);
        self.finish(begin, kind, name, out)
    }

    /// Appends memory that is not zeros, without a copy of its own: as [`Content::Bytes`], or packed from so many bytes.
    ///
    /// # Errors
    /// It is larger than a frame can be.
    pub fn put_memory(
        &mut self,
        version: u32,
        address: u64,
        packed: Option<u32>,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Refused> {
        let begin = out.len();
        out.resize(begin + HEADER, 0);
        out.extend_from_slice(&address.to_le_bytes());
        out.extend_from_slice(&version.to_le_bytes());
        if let Some(length) = packed {
            out.extend_from_slice(&length.to_le_bytes());
        }
        out.extend_from_slice(bytes);
        self.finish(begin, if packed.is_some() { PACKED } else { BYTES }, false, out)
    }

    /// What was put so far but for greetings, words and control: the same as that of a decoder that took it.
    pub fn digest(&self) -> Digest {
        self.sum.digest()
    }

    fn finish(&mut self, begin: usize, kind: u8, too_long: bool, out: &mut Vec<u8>) -> Result<(), Refused> {
        let length = out.len() - begin - HEADER;
        if length > MOST || too_long {
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
        self.sum.add(kind, &out[begin + HEADER..]);
        let check = crc32fast::hash(&out[begin..]);
        out[begin + 20..begin + 24].copy_from_slice(&check.to_le_bytes());
        self.next += 1;
        Ok(())
    }
}

/// Reads the frames of one stream from whatever pieces arrive. It holds one frame at most.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// `None`: the first frame says.
    stream: Option<u16>,
    next: u64,
    at: u64,
    held: Vec<u8>,
    refused: Option<Refused>,
    sum: Sum,
}

impl Decoder {
    /// Of the stream with this number.
    pub fn new(stream: u16) -> Decoder {
        Decoder { stream: Some(stream), ..Decoder::any() }
    }

    /// Of the stream that its first frame says it is.
    pub fn any() -> Decoder {
        Decoder { stream: None, next: 0, at: 0, held: Vec::new(), refused: None, sum: Sum::default() }
    }

    /// The number of the stream, if it is known.
    pub fn stream(&self) -> Option<u16> {
        self.stream
    }

    /// What was taken so far but for greetings, words and control.
    pub fn digest(&self) -> Digest {
        self.sum.digest()
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
        self.sum.add(self.held[5], &self.held[HEADER..]);
        self.stream = Some(u16::from_le_bytes([self.held[6], self.held[7]]));
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
        let due = self.stream.unwrap_or(stream);
        if (stream, number) != (due, self.next) {
            return Err(format!(
                "it is frame {number} of stream {stream}, and frame {} of stream {due} is due",
                self.next
            ));
        }
        let length = number_of(&header[16..20]);
        if length > MOST {
            return Err(format!("{length} bytes are more than a frame holds"));
        }
        Ok(length)
    }
}

/// What was sent of a guest on one stream, in order.
#[derive(Clone, Debug, Default)]
struct Sum(blake3::Hasher);

impl Sum {
    fn add(&mut self, kind: u8, payload: &[u8]) {
        if matches!(kind, SECTION | ZEROS | BYTES | PACKED | BARRIER | VERIFY | MISSING) {
            self.0.update(&(u64::from(kind) << 32 | payload.len() as u64).to_le_bytes());
            self.0.update(payload);
        }
    }

    fn digest(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}
