//! Memory as frames: pieces, and zeros that are not sent.

use evenkeel_handover::wire::{Content, Frame};

use crate::Range;

/// What is read and sent at once.
pub(crate) const PIECE: usize = 512 << 10;
const PAGE: usize = 4096;

/// Cuts ranges into pieces.
pub(crate) fn pieces(ranges: &[Range]) -> impl Iterator<Item = Range> + '_ {
    ranges.iter().flat_map(|range| {
        (0..range.length.div_ceil(PIECE as u64)).map(|n| {
            let at = n * PIECE as u64;
            Range { address: range.address + at, length: (range.length - at).min(PIECE as u64) }
        })
    })
}

/// The frames of one piece: runs of pages that are zero, and runs that are not.
pub(crate) fn frames(version: u32, address: u64, bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let zero = |from: usize| bytes[from..bytes.len().min(from + PAGE)].iter().all(|byte| *byte == 0);
        let kind = zero(at);
        let mut end = at;
        while end < bytes.len() && zero(end) == kind {
            end = bytes.len().min(end + PAGE);
        }
        let content =
            if kind { Content::Zeros((end - at) as u32) } else { Content::Bytes(bytes[at..end].to_vec()) };
        frames.push(Frame::Memory { version, address: address + at as u64, content });
        at = end;
    }
    frames
}

/// What both sides have sent and received of a guest, in order: the same digest means the same guest.
#[derive(Clone, Default)]
pub(crate) struct Sum(blake3::Hasher);

impl Sum {
    pub(crate) fn add(&mut self, frame: &Frame) {
        let mut number = |number: u64| {
            self.0.update(&number.to_le_bytes());
        };
        match frame {
            Frame::Memory { version, address, content } => {
                number(u64::from(*version));
                number(*address);
                match content {
                    Content::Zeros(length) => number(u64::from(*length)),
                    Content::Bytes(bytes) => {
                        number(1 << 32 | bytes.len() as u64);
                        self.0.update(bytes);
                    }
                }
            }
            Frame::Section { name, at, total, bytes } => {
                number(2 << 32 | name.len() as u64);
                number(*at);
                number(*total);
                number(bytes.len() as u64);
                self.0.update(name.as_bytes());
                self.0.update(bytes);
            }
            Frame::Hello(_) | Frame::Control(_) => {}
        }
    }

    pub(crate) fn digest(&self) -> evenkeel_handover::Digest {
        evenkeel_handover::Digest(*self.0.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_told_and_not_sent() {
        let mut bytes = vec![0; 5 * PAGE + 100];
        bytes[PAGE + 7] = 1;
        bytes[5 * PAGE + 99] = 2;
        let lengths: Vec<(u64, usize, bool)> = frames(1, 0x1000, &bytes)
            .into_iter()
            .map(|frame| match frame {
                Frame::Memory { address, content: Content::Zeros(length), .. } => {
                    (address, length as usize, true)
                }
                Frame::Memory { address, content: Content::Bytes(bytes), .. } => {
                    (address, bytes.len(), false)
                }
                other => panic!("{other:?}"),
            })
            .collect();
        let expected =
            [(0x1000, PAGE, true), (0x2000, PAGE, false), (0x3000, 3 * PAGE, true), (0x6000, 100, false)];
        assert_eq!(lengths, expected);
    }

    #[test]
    fn pieces_cover_everything_once() {
        let ranges =
            [Range { address: 0, length: PIECE as u64 * 2 + 5 }, Range { address: 1 << 32, length: 4096 }];
        let all: Vec<Range> = pieces(&ranges).collect();
        assert_eq!(all.len(), 4);
        assert_eq!(all.iter().map(|r| r.length).sum::<u64>(), PIECE as u64 * 2 + 5 + 4096);
        assert_eq!(all[2], Range { address: 2 * PIECE as u64, length: 5 });
    }
}
