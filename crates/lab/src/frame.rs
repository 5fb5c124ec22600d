//! The result channel's format: frames with a length and a checksum.
//!
//! What the emulated host sends is as trustworthy as the kernel under test, which may crash half way: any bytes read
//! as frames or as one [`FrameError`], and nothing is allocated on the word of a length field.
//!
//! A frame is, little-endian: the magic `EKLF`, the kind (4 bytes), the name's length (4), the body's length (8), the
//! name, the body, and the CRC-32 of all before it (4).

use std::io::{self, Write};

const MAGIC: [u8; 4] = *b"EKLF";
const HEADER: usize = 20;

/// What a frame is about. The numbers are in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The init runs, KVM is loaded, the program starts now. Body: `uname -r`.
    Ready = 1,
    /// The program exited. Body: its code, `i32`.
    Exited = 2,
    /// A signal ended the program. Body: its number, `i32`.
    Killed = 3,
    /// What the program wrote to its standard output.
    Stdout = 4,
    /// What the program wrote to its standard error.
    Stderr = 5,
    /// A file that the program wrote. Name: as it was asked for.
    File = 6,
    /// A file that was asked for and could not be read. Name: as it was asked for; body: why.
    Missing = 7,
    /// The init could not do its work. Body: why.
    Failure = 8,
    /// The end; nothing comes after it.
    End = 9,
}

impl Kind {
    const ALL: [Kind; 9] = [
        Kind::Ready,
        Kind::Exited,
        Kind::Killed,
        Kind::Stdout,
        Kind::Stderr,
        Kind::File,
        Kind::Missing,
        Kind::Failure,
        Kind::End,
    ];
}

/// One frame, borrowed from the bytes it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is about.
    pub kind: Kind,
    /// The file's name, or nothing.
    pub name: &'a str,
    /// The content.
    pub body: &'a [u8],
}

/// Why bytes are no frames.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than the frame says.
    #[error("cut off at byte {at}: {needed} bytes expected, {found} there")]
    Truncated {
        /// Where the frame starts.
        at: usize,
        /// How many bytes it should have.
        needed: u64,
        /// How many there are.
        found: usize,
    },
    /// No frame starts here.
    #[error("no frame at byte {at}")]
    Magic {
        /// Where one should start.
        at: usize,
    },
    /// A kind that this reader does not know.
    #[error("frame of unknown kind {kind} at byte {at}")]
    Kind {
        /// Where the frame starts.
        at: usize,
        /// Its number.
        kind: u32,
    },
    /// The checksum is of other bytes.
    #[error("wrong checksum in the frame at byte {at}")]
    Checksum {
        /// Where the frame starts.
        at: usize,
    },
    /// A name that is not UTF-8.
    #[error("the name of the frame at byte {at} is not text")]
    Name {
        /// Where the frame starts.
        at: usize,
    },
    /// The stream has no end frame, or more after it.
    #[error("the stream does not end with its end frame")]
    End,
}

/// Writes one frame.
pub fn write(to: &mut impl Write, kind: Kind, name: &str, body: &[u8]) -> io::Result<()> {
    let mut head = Vec::with_capacity(HEADER + name.len());
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&(kind as u32).to_le_bytes());
    head.extend_from_slice(&u32::try_from(name.len()).map_err(io::Error::other)?.to_le_bytes());
    head.extend_from_slice(&(body.len() as u64).to_le_bytes());
    head.extend_from_slice(name.as_bytes());
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&head);
    checksum.update(body);
    to.write_all(&head)?;
    to.write_all(body)?;
    to.write_all(&checksum.finalize().to_le_bytes())
}

/// Reads a whole stream, which must end with [`Kind::End`] and nothing after it.
pub fn read(bytes: &[u8]) -> Result<Vec<Frame<'_>>, FrameError> {
    let mut frames = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let (frame, length) = read_one(&bytes[at..], at)?;
        at += length;
        if frame.kind == Kind::End {
            return if at == bytes.len() { Ok(frames) } else { Err(FrameError::End) };
        }
        frames.push(frame);
    }
    Err(FrameError::End)
}

fn read_one(bytes: &[u8], at: usize) -> Result<(Frame<'_>, usize), FrameError> {
    let found = bytes.len();
    let truncated = |needed: u64| FrameError::Truncated { at, needed, found };
    let header = bytes.first_chunk::<HEADER>().ok_or(truncated(HEADER as u64))?;
    if header[..4] != MAGIC {
        return Err(FrameError::Magic { at });
    }
    let word = |from: usize| {
        u32::from_le_bytes([header[from], header[from + 1], header[from + 2], header[from + 3]])
    };
    let name_length = u64::from(word(8));
    let body_length = u64::from(word(12)) | u64::from(word(16)) << 32;
    // Saturating: a length near 2^64 must not wrap to a small one.
    let needed = (HEADER as u64 + 4 + name_length).saturating_add(body_length);
    if needed > found as u64 {
        return Err(truncated(needed));
    }
    let (name_end, end) = (HEADER + name_length as usize, needed as usize);
    let (covered, checksum) = (&bytes[..end - 4], &bytes[end - 4..end]);
    if crc32fast::hash(covered).to_le_bytes() != checksum {
        return Err(FrameError::Checksum { at });
    }
    let kind = Kind::ALL
        .into_iter()
        .find(|kind| *kind as u32 == word(4))
        .ok_or(FrameError::Kind { at, kind: word(4) })?;
    let name = std::str::from_utf8(&covered[HEADER..name_end]).map_err(|_| FrameError::Name { at })?;
    Ok((Frame { kind, name, body: &covered[name_end..] }, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut bytes, Kind::Exited, "", &7i32.to_le_bytes()).unwrap();
        write(&mut bytes, Kind::File, "out/surface.json", b"{}").unwrap();
        write(&mut bytes, Kind::End, "", b"").unwrap();
        bytes
    }

    #[test]
    fn frames_come_back() {
        let bytes = stream();
        let frames = read(&bytes).unwrap();
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[0], Frame { kind: Kind::Exited, name: "", body: &7i32.to_le_bytes() });
        assert_eq!(frames[1], Frame { kind: Kind::File, name: "out/surface.json", body: b"{}" });
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = stream();
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length]).is_err(), "{length} bytes were accepted");
        }
    }

    #[test]
    fn every_flipped_bit_is_an_error() {
        let bytes = stream();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&damaged).is_err(), "bit {bit} was accepted");
        }
    }

    #[test]
    fn huge_lengths_are_bounded_errors() {
        for (from, to) in [(8, 12), (12, 20)] {
            let mut bytes = stream();
            bytes[from..to].fill(0xff);
            assert!(matches!(read(&bytes), Err(FrameError::Truncated { at: 0, .. })));
        }
    }

    #[test]
    fn an_unknown_kind_and_a_tail_are_named() {
        let mut bytes = stream();
        bytes.push(0);
        assert_eq!(read(&bytes), Err(FrameError::End));

        let mut bytes = Vec::new();
        write(&mut bytes, Kind::End, "", b"").unwrap();
        bytes[4] = 77;
        let end = bytes.len() - 4;
        let checksum = crc32fast::hash(&bytes[..end]).to_le_bytes();
        bytes[end..].copy_from_slice(&checksum);
        assert_eq!(read(&bytes), Err(FrameError::Kind { at: 0, kind: 77 }));
    }
}
