//! What travels between the lab and the init of an emulated host: frames with a length and a checksum, both ways.
//!
//! What the emulated host sends is as trustworthy as the kernel under test, which may crash half way: any bytes read
//! as frames or as one [`FrameError`], and nothing is allocated on the word of a length field.
//!
//! A frame is, little-endian: the magic `EKLF`, the kind (4 bytes), the name's length (4), the body's length (8), the
//! name, the body, and the CRC-32 of all before it (4).
//!
//! The init says [`Kind::Ready`] once. A job is [`Kind::Program`], any number of [`Kind::Arg`], [`Kind::Input`] and
//! [`Kind::Output`], and [`Kind::Go`]; its results end with [`Kind::End`], and the next job may come. [`Kind::Off`] in
//! place of a job powers the host off.

use std::io::{self, Read, Write};

const MAGIC: [u8; 4] = *b"EKLF";
const HEADER: usize = 20;

/// The longest name: a path.
const LONGEST_NAME: u32 = 4096;

/// The largest body in bytes. A kernel that went mad must not fill this machine's memory.
pub const LARGEST_BODY: u64 = 512 << 20;

/// What a frame is about. The numbers are in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The init runs, KVM is loaded, jobs can come. Body: `uname -r`.
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
    /// The end of a job's results.
    End = 9,
    /// The program to run. Name: what it is told that it is called.
    Program = 16,
    /// Its next argument.
    Arg = 17,
    /// A file that it finds in its working folder. Name: its path there.
    Input = 18,
    /// A file to bring back. Name: its path.
    Output = 19,
    /// The program talks to the console instead of being listened to.
    Console = 20,
    /// The job is whole: run it.
    Go = 21,
    /// Power off.
    Off = 22,
}

impl Kind {
    const ALL: [Kind; 16] = [
        Kind::Ready,
        Kind::Exited,
        Kind::Killed,
        Kind::Stdout,
        Kind::Stderr,
        Kind::File,
        Kind::Missing,
        Kind::Failure,
        Kind::End,
        Kind::Program,
        Kind::Arg,
        Kind::Input,
        Kind::Output,
        Kind::Console,
        Kind::Go,
        Kind::Off,
    ];
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is about.
    pub kind: Kind,
    /// The file's name, or nothing.
    pub name: String,
    /// The content.
    pub body: Vec<u8>,
}

/// Why bytes are no frames.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream ended where a frame could have started.
    #[error("the stream ended")]
    Closed,
    /// The stream ended within a frame.
    #[error("cut off in a frame")]
    Truncated,
    /// No frame starts here.
    #[error("no frame starts here")]
    Magic,
    /// A kind that this reader does not know.
    #[error("a frame of unknown kind {0}")]
    Kind(u32),
    /// A name or body of a length that is not accepted.
    #[error("a frame that says it has {0} bytes")]
    Length(u64),
    /// The checksum is of other bytes.
    #[error("a frame with a wrong checksum")]
    Checksum,
    /// A name that is not UTF-8.
    #[error("a frame whose name is not text")]
    Name,
    /// The stream cannot be read.
    #[error("{0}")]
    Io(#[source] io::Error),
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

/// Reads the next frame.
pub fn read(from: &mut impl Read) -> Result<Frame, FrameError> {
    let head = exactly(from, HEADER as u64)?;
    if head.is_empty() {
        return Err(FrameError::Closed);
    }
    let header: &[u8; HEADER] = head.as_slice().try_into().map_err(|_| FrameError::Truncated)?;
    if header[..4] != MAGIC {
        return Err(FrameError::Magic);
    }
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let name_length = word(8);
    let body_length = u64::from(word(12)) | u64::from(word(16)) << 32;
    if name_length > LONGEST_NAME || body_length > LARGEST_BODY {
        return Err(FrameError::Length(body_length.max(name_length.into())));
    }
    let mut part = |length: u64| match exactly(from, length)? {
        bytes if bytes.len() as u64 == length => Ok(bytes),
        _ => Err(FrameError::Truncated),
    };
    let (name, body, checksum) = (part(name_length.into())?, part(body_length)?, part(4)?);
    let mut expected = crc32fast::Hasher::new();
    for covered in [&head, &name, &body] {
        expected.update(covered);
    }
    if expected.finalize().to_le_bytes() != checksum[..] {
        return Err(FrameError::Checksum);
    }
    let kind = Kind::ALL.into_iter().find(|kind| *kind as u32 == word(4));
    let kind = kind.ok_or(FrameError::Kind(word(4)))?;
    Ok(Frame { kind, name: String::from_utf8(name).map_err(|_| FrameError::Name)?, body })
}

/// `length` bytes, or fewer at the end of the stream. Memory grows with what arrives.
fn exactly(from: &mut impl Read, length: u64) -> Result<Vec<u8>, FrameError> {
    let mut bytes = Vec::new();
    from.take(length).read_to_end(&mut bytes).map_err(FrameError::Io)?;
    Ok(bytes)
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

    /// All frames up to the end frame.
    fn all(mut bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
        let mut frames = Vec::new();
        loop {
            let frame = read(&mut bytes)?;
            if frame.kind == Kind::End {
                return Ok(frames);
            }
            frames.push(frame);
        }
    }

    #[test]
    fn frames_come_back() {
        let frames = all(&stream()).unwrap();
        let frame = |kind, name: &str, body: &[u8]| Frame { kind, name: name.into(), body: body.into() };
        assert_eq!(
            frames,
            [frame(Kind::Exited, "", &7i32.to_le_bytes()), frame(Kind::File, "out/surface.json", b"{}")]
        );
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = stream();
        for length in 0..bytes.len() {
            assert!(all(&bytes[..length]).is_err(), "{length} bytes were accepted");
        }
    }

    #[test]
    fn every_flipped_bit_is_an_error() {
        let bytes = stream();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(all(&damaged).is_err(), "bit {bit} was accepted");
        }
    }

    #[test]
    fn huge_lengths_are_bounded_errors() {
        for (from, to) in [(8, 12), (12, 20)] {
            let mut bytes = stream();
            bytes[from..to].fill(0xff);
            assert!(matches!(all(&bytes), Err(FrameError::Length(_))));
        }
        // A length that is allowed and a stream that does not hold it.
        let mut bytes = stream();
        bytes[12..20].copy_from_slice(&LARGEST_BODY.to_le_bytes());
        assert!(matches!(all(&bytes), Err(FrameError::Truncated)));
    }

    #[test]
    fn an_unknown_kind_is_named() {
        let mut bytes = Vec::new();
        write(&mut bytes, Kind::End, "", b"").unwrap();
        bytes[4] = 77;
        let end = bytes.len() - 4;
        let checksum = crc32fast::hash(&bytes[..end]).to_le_bytes();
        bytes[end..].copy_from_slice(&checksum);
        assert!(matches!(all(&bytes), Err(FrameError::Kind(77))));
    }
}
