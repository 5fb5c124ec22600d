//! What is known about each chunk while memory is guarded.

use std::collections::HashMap;

/// Where a chunk is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// Nobody who writes to it waits.
    #[default]
    Free,
    /// Whoever writes to it waits.
    Guarded,
    /// It is being copied, and will be given free after that.
    Taking,
}

/// Where a snapshot is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    /// There is none.
    #[default]
    Open,
    /// The guest runs, and what it writes is noted.
    Armed,
    /// What memory was at the pause is being copied.
    Frozen,
}

/// The book.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub phase: Phase,
    pub state: Vec<State>,
    /// Chunks that were written to since they were guarded, before the pause.
    pub dirty: Vec<u32>,
    /// Copies of chunks that somebody wanted to write to before their turn.
    pub aside: HashMap<u32, Box<[u8]>>,
    pub aside_bytes: u64,
    /// Chunks that somebody waits for while there is no room aside.
    pub waiting: Vec<u32>,
    /// A reason why the copies are not to be trusted.
    pub failed: Option<String>,
    pub served: crate::Served,
}

impl Book {
    /// Nothing noted, nothing aside.
    pub fn clear(&mut self) {
        self.dirty.clear();
        self.aside.clear();
        self.aside_bytes = 0;
        self.waiting.clear();
    }

    /// The chunks that were written to, as runs of chunks that follow each other: first and count.
    pub fn take_dirty(&mut self) -> Vec<(u32, u32)> {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for chunk in dirty {
            match runs.last_mut() {
                Some((first, count)) if *first + *count == chunk => *count += 1,
                _ => runs.push((chunk, 1)),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_to_is_told_in_runs_and_once() {
        let mut book = Book { dirty: vec![7, 3, 4, 9, 8, 4, 1], ..Book::default() };
        assert_eq!(book.take_dirty(), [(1, 1), (3, 2), (7, 3)]);
        assert_eq!(book.take_dirty(), []);
    }
}
