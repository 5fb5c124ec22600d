//! Memory as pieces of a size that is sent at once, and which runs of them are zeros.

use crate::Range;
use crate::ranges::PAGE;

/// What is read and sent at once.
pub(crate) const PIECE: usize = 512 << 10;

/// Cuts ranges into pieces.
pub(crate) fn pieces(ranges: &[Range], size: usize) -> impl Iterator<Item = Range> + '_ {
    ranges.iter().flat_map(move |range| {
        (0..range.length.div_ceil(size as u64)).map(move |n| {
            let at = n * size as u64;
            Range { address: range.address + at, length: (range.length - at).min(size as u64) }
        })
    })
}

/// The runs of pages that are all zeros, and those that are not: from, to, zeros.
pub(crate) fn runs(bytes: &[u8]) -> Vec<(usize, usize, bool)> {
    const SIZE: usize = PAGE as usize;
    let mut runs: Vec<(usize, usize, bool)> = Vec::new();
    for (n, page) in bytes.chunks(SIZE).enumerate() {
        let (from, to, zeros) = (n * SIZE, n * SIZE + page.len(), is_zero(page));
        match runs.last_mut() {
            Some(last) if last.2 == zeros => last.1 = to,
            _ => runs.push((from, to, zeros)),
        }
    }
    runs
}

fn is_zero(page: &[u8]) -> bool {
    let (words, rest) = page.as_chunks::<64>();
    // A page that is not zero mostly shows it early.
    words.iter().all(|word| word == &[0; 64]) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_found() {
        const SIZE: usize = PAGE as usize;
        let mut bytes = vec![0; 5 * SIZE + 100];
        bytes[SIZE + 7] = 1;
        bytes[5 * SIZE + 99] = 2;
        let expected = [
            (0, SIZE, true),
            (SIZE, 2 * SIZE, false),
            (2 * SIZE, 5 * SIZE, true),
            (5 * SIZE, 5 * SIZE + 100, false),
        ];
        assert_eq!(runs(&bytes), expected);
    }

    #[test]
    fn pieces_cover_everything_once() {
        let ranges =
            [Range { address: 0, length: PIECE as u64 * 2 + 5 }, Range { address: 1 << 32, length: 4096 }];
        let all: Vec<Range> = pieces(&ranges, PIECE).collect();
        assert_eq!(all.len(), 4);
        assert_eq!(all.iter().map(|r| r.length).sum::<u64>(), PIECE as u64 * 2 + 5 + 4096);
        assert_eq!(all[2], Range { address: 2 * PIECE as u64, length: 5 });
    }
}
