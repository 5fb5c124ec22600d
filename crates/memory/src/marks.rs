//! What this process wrote into guest memory, for the way of saving it that does not see that by itself.

use std::sync::atomic::{AtomicU64, Ordering};

/// A bit for each page of memory, by guest-physical address from 0 on. KVM's dirty log holds what the guest wrote; what the
/// devices of the monitor wrote (used rings, buffers that they filled) is put in here by them.
#[derive(Debug)]
pub struct Marks {
    words: Vec<AtomicU64>,
}

impl Marks {
    /// For guest-physical addresses below `end`; nothing is marked.
    pub fn new(end: u64) -> Marks {
        let pages = end.div_ceil(4096);
        Marks { words: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// So many bytes from this guest-physical address on were written to, **before** this is called.
    pub fn wrote(&self, address: u64, length: u64) {
        if length == 0 {
            return;
        }
        for page in address / 4096..=(address.saturating_add(length - 1)) / 4096 {
            let Some(word) = self.words.get((page / 64) as usize) else { return };
            word.fetch_or(1 << (page % 64), Ordering::Release);
        }
    }

    /// The 64 pages from `page`, a multiple of 64, on: and unmarks them.
    pub(crate) fn take(&self, page: u64) -> u64 {
        self.words.get((page / 64) as usize).map_or(0, |word| word.swap(0, Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_that_was_touched_is_marked_once() {
        let marks = Marks::new(1 << 20);
        marks.wrote(4095, 2);
        marks.wrote(64 * 4096, 1);
        marks.wrote(u64::MAX, 1);
        marks.wrote(8192 + 4096, 0);
        assert_eq!([marks.take(0), marks.take(64), marks.take(0)], [0b11, 1, 0]);
    }
}
