//! Sets of guest memory: ranges in order, and pages.

use std::collections::BTreeMap;

use crate::Range;

/// What is told apart.
pub(crate) const PAGE: u64 = 4096;

/// These ranges in order, whole pages, each byte once, and only what is within `memory`.
pub(crate) fn merged(ranges: &[Range], memory: &[Range]) -> Vec<Range> {
    let mut parts: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
    for range in ranges.iter().filter(|range| range.length > 0) {
        let begin = range.address & !(PAGE - 1);
        let end = range.address.saturating_add(range.length).saturating_add(PAGE - 1) & !(PAGE - 1);
        let cut = |within: &Range| {
            (begin.max(within.address), end.min(within.address.saturating_add(within.length)))
        };
        parts.extend(memory.iter().map(cut).filter(|(from, to)| from < to));
    }
    parts.sort_unstable();
    let mut all: Vec<Range> = Vec::new();
    for (from, to) in parts {
        match all.last_mut() {
            Some(last) if from <= last.address + last.length => {
                last.length = last.length.max(to - last.address);
            }
            _ => all.push(Range { address: from, length: to - from }),
        }
    }
    all
}

/// How many bytes they are.
pub(crate) fn bytes(ranges: &[Range]) -> u64 {
    ranges.iter().fold(0, |sum, range| sum.saturating_add(range.length))
}

/// Pages in words of 64.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pages {
    words: BTreeMap<u64, u64>,
    count: u64,
}

impl Pages {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn has(&self, address: u64) -> bool {
        let page = address / PAGE;
        self.words.get(&(page / 64)).is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// Adds all pages that are touched; whether none of them was there.
    pub fn add(&mut self, range: Range) -> bool {
        let mut fresh = true;
        each_word(range, |at, mask| {
            let word = self.words.entry(at).or_default();
            fresh &= *word & mask == 0;
            self.count += u64::from((mask & !*word).count_ones());
            *word |= mask;
        });
        fresh
    }

    /// Takes pages away; returns those that were there.
    pub fn take(&mut self, range: Range) -> Vec<Range> {
        let mut taken = Pages::default();
        each_word(range, |at, mask| {
            if let Some(word) = self.words.get_mut(&at) {
                let there = *word & mask;
                *word &= !mask;
                self.count -= u64::from(there.count_ones());
                if there != 0 {
                    taken.words.insert(at, there);
                }
                if *word == 0 {
                    self.words.remove(&at);
                }
            }
        });
        taken.ranges()
    }

    pub fn clear(&mut self) {
        *self = Pages::default();
    }

    /// All, in order, neighbours together.
    pub fn ranges(&self) -> Vec<Range> {
        let mut all: Vec<Range> = Vec::new();
        for (at, word) in &self.words {
            let mut bit = 0;
            while bit < 64 {
                let rest = word >> bit;
                if rest == 0 {
                    break;
                }
                let from = bit + rest.trailing_zeros();
                let length = (word >> from).trailing_ones();
                let (address, length) = ((at * 64 + u64::from(from)) * PAGE, u64::from(length) * PAGE);
                match all.last_mut() {
                    Some(last) if last.address + last.length == address => last.length += length,
                    _ => all.push(Range { address, length }),
                }
                bit = from + (length / PAGE) as u32;
            }
        }
        all
    }
}

fn each_word(range: Range, mut with: impl FnMut(u64, u64)) {
    if range.length == 0 {
        return;
    }
    let (first, last) = (range.address / PAGE, (range.address + (range.length - 1)) / PAGE);
    for at in first / 64..=last / 64 {
        let from = first.max(at * 64) - at * 64;
        let to = last.min(at * 64 + 63) - at * 64;
        with(at, u64::MAX >> (63 - (to - from)) << from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(page: u64, pages: u64) -> Range {
        Range { address: page * PAGE, length: pages * PAGE }
    }

    #[test]
    fn ranges_are_merged_rounded_and_cut() {
        let memory = [range(0, 100), range(1000, 10)];
        let given = [
            Range { address: 5 * PAGE + 1, length: 1 },
            range(6, 2),
            range(7, 1),
            range(90, 930),
            Range { address: 0, length: 0 },
        ];
        assert_eq!(merged(&given, &memory), [range(5, 3), range(90, 10), range(1000, 10)]);
        assert_eq!(bytes(&merged(&memory, &memory)), 110 * PAGE);
    }

    #[test]
    fn pages_are_what_was_added_and_not_taken() {
        let mut pages = Pages::default();
        assert!(pages.add(range(60, 200)) && !pages.add(range(259, 2)));
        assert_eq!(pages.count(), 201);
        assert_eq!(pages.take(range(0, 70)), [range(60, 10)]);
        assert_eq!(pages.take(range(64, 128)), [range(70, 122)]);
        assert!(pages.has(192 * PAGE) && !pages.has(191 * PAGE));
        assert_eq!((pages.ranges(), pages.count()), (vec![range(192, 69)], 69));
        // The same as a list of pages, whatever is done.
        let (mut pages, mut truth) = (Pages::default(), std::collections::BTreeSet::new());
        let mut seed = 1_u64;
        for _ in 0..300 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (from, count) = (seed >> 33 & 511, (seed >> 50 & 127) + 1);
            if seed >> 60 & 1 == 0 {
                pages.add(range(from, count));
                truth.extend(from..from + count);
            } else {
                let expected = (from..from + count).filter(|p| truth.remove(p)).count() as u64;
                assert_eq!(bytes(&pages.take(range(from, count))), expected * PAGE);
            }
            assert_eq!(pages.count(), truth.len() as u64);
            assert!(truth.iter().all(|p| pages.has(p * PAGE)));
        }
    }
}
