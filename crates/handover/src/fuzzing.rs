//! The body of the fuzz target `wire`: any bytes are frames, a greeting and a journal, or are refused; what is taken has one way to be
//! written.

use crate::greeting::Greeting;
use crate::journal::{Journal, RECORD};
use crate::wire::{Decoder, Encoder, Frame, HEADER};

/// What was reached: a test that reaches nothing is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Frames that were taken.
    pub frames: u64,
    /// Greetings that were read.
    pub greetings: u64,
    /// Records of a journal.
    pub records: u64,
}

/// Frames with headers that are right, of payloads that need not be: `kind, length (2 bytes), payload`, one after the other.
pub fn sealed(mut script: &[u8], stream: u16) -> Vec<u8> {
    let (mut out, mut number) = (Vec::new(), 0_u64);
    while let Some(([kind, low, high], rest)) = script.split_first_chunk::<3>() {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let begin = out.len();
        out.extend_from_slice(b"EVKF");
        out.extend_from_slice(&[1, *kind]);
        out.extend_from_slice(&stream.to_le_bytes());
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&(length as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&rest[..length]);
        let check = crc32fast::hash(&out[begin..]);
        out[begin + 20..begin + HEADER].copy_from_slice(&check.to_le_bytes());
        (script, number) = (&rest[length..], number + 1);
    }
    out
}

/// The script that [`sealed`] makes these bytes of.
pub fn script(mut frames: &[u8]) -> Vec<u8> {
    let mut script = Vec::new();
    while let Some((header, rest)) = frames.split_first_chunk::<HEADER>() {
        let length = u32::from_le_bytes([header[16], header[17], header[18], header[19]]) as usize;
        script.extend_from_slice(&[header[5], header[16], header[17]]);
        script.extend_from_slice(&rest[..length]);
        frames = &rest[length..];
    }
    script
}

/// Reads any bytes in all ways that there are.
pub fn wire(bytes: &[u8]) -> Reached {
    let mut reached = Reached::default();
    if let Ok(journal) = Journal::read(bytes) {
        assert!(journal.bytes == journal.records.len() * RECORD && journal.bytes <= bytes.len());
        let again: Vec<u8> = journal.records.iter().flat_map(|record| record.encode()).collect();
        assert_eq!(again, bytes[..journal.bytes]);
        reached.records += journal.records.len() as u64;
    }
    greeted(bytes, &mut reached);
    frames(bytes, &mut reached);
    frames(&sealed(bytes, 0), &mut reached);
    reached
}

fn greeted(bytes: &[u8], reached: &mut Reached) {
    if let Ok(greeting) = Greeting::decode(bytes) {
        assert_eq!(greeting.encode(), bytes);
        reached.greetings += 1;
    }
}

fn frames(bytes: &[u8], reached: &mut Reached) {
    let (mut decoder, mut left) = (Decoder::any(), bytes);
    let mut encoder: Option<Encoder> = None;
    let mut again = Vec::new();
    loop {
        match decoder.take(&mut left) {
            Ok(Some(frame)) => {
                reached.frames += 1;
                if let Frame::Hello(hello) = &frame {
                    greeted(hello, reached);
                }
                let stream = decoder.stream().expect("a frame has one");
                let encoder = encoder.get_or_insert_with(|| Encoder::new(stream));
                encoder.put(&frame, &mut again).expect("what was taken fits");
                let upto = bytes.len() - left.len();
                assert_eq!(again, bytes[..upto], "{frame:?}");
                assert_eq!(encoder.digest(), decoder.digest());
            }
            Ok(None) => break,
            Err(refused) => {
                assert!(refused.at <= bytes.len() as u64 && refused.to_string().len() < 500);
                assert!(decoder.take(&mut left).is_err());
                break;
            }
        }
    }
}
