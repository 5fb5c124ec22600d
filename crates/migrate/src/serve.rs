//! Post-copy on the side that the guest left: a server of pages, which only reads.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use evenkeel_handover::postcopy::Server;
use evenkeel_handover::wire::{Content, Frame};

use crate::fetch::LATE;
use crate::memory::{pieces, runs};
use crate::ranges::{PAGE, Pages as Set};
use crate::send::Sender;
use crate::{NotSent, Phase, Range};

/// Who waits for a page waits for what is on the wire before it: that is not much.
const PIECE: usize = 64 << 10;

/// Memory that the destination lacks, and what of it was asked for.
pub(crate) struct Pages {
    total: u64,
    unsent: Set,
    queue: VecDeque<Range>,
    wanted: VecDeque<u64>,
    /// Bytes that were sent.
    pub sent: u64,
    /// After a new connection nothing is sent before the destination said what it lacks.
    silent: bool,
}

impl Pages {
    pub fn new(missing: &[Range]) -> Pages {
        let mut pages = Pages {
            total: 0,
            unsent: Set::default(),
            queue: VecDeque::new(),
            wanted: VecDeque::new(),
            sent: 0,
            silent: false,
        };
        pages.add(missing);
        pages.total = pages.left();
        pages
    }

    fn add(&mut self, missing: &[Range]) {
        for range in missing {
            self.unsent.add(*range);
        }
        self.queue.extend(pieces(missing, PIECE));
    }

    /// Bytes that were not sent.
    pub fn left(&self) -> u64 {
        self.unsent.count() * PAGE
    }

    /// The guest waits for this page.
    pub fn want(&mut self, page: u64) {
        // More than there are pages are no questions.
        if self.unsent.has(page) && (self.wanted.len() as u64) * PAGE < self.total {
            self.wanted.push_back(page);
        }
    }

    /// There is a new connection, and this is missing: what was sent on the old one may not have come.
    pub fn again(&mut self, missing: &[(u64, u64)]) {
        let ranges: Vec<Range> =
            missing.iter().map(|(address, length)| Range { address: *address, length: *length }).collect();
        self.silent = false;
        self.add(&ranges);
    }

    pub fn lost(&mut self) {
        self.unsent.clear();
        self.queue.clear();
        self.wanted.clear();
        self.silent = true;
    }

    /// What to send next; what is waited for first.
    fn next(&mut self, only_wanted: bool) -> Option<Vec<Range>> {
        if self.silent {
            return None;
        }
        loop {
            let range = match self.wanted.pop_front() {
                Some(page) => Range { address: page & !(PAGE - 1), length: PAGE },
                None if only_wanted => return None,
                None => self.queue.pop_front()?,
            };
            let unsent = self.unsent.take(range);
            if !unsent.is_empty() {
                return Some(unsent);
            }
        }
    }
}

impl Sender<'_> {
    /// Gives what is waited for, before or after the commit.
    pub fn give(&mut self) {
        while let Some(ranges) = self.late.as_mut().and_then(|late| late.next(true)) {
            if let Err(why) = self.send_late(&ranges) {
                return self.lose(why);
            }
        }
    }

    /// Sends pages until the destination has them all, over as many connections as it takes.
    pub fn serve(&mut self) -> Result<(), NotSent> {
        let mut quiet = Instant::now();
        while matches!(self.server, Some(Server::Serving(_))) {
            let left = self.late.as_ref().map_or(0, Pages::left);
            self.progress.phase = if self.links.is_empty() { Phase::Waiting } else { Phase::Serving };
            self.progress.bytes = self.late.as_ref().map_or(0, |late| late.total);
            self.progress.remaining = left;
            self.progress.done = self.progress.bytes.saturating_sub(left);
            if !self.still_wanted() {
                let lacks = if self.late.as_ref().is_some_and(|late| late.silent) {
                    self.progress.bytes
                } else {
                    left
                };
                return Err(NotSent::Abandoned { lacks, why: self.why() });
            }
            if self.links.is_empty() {
                self.late.iter_mut().for_each(Pages::lost);
                if let Err(error) = self.connect() {
                    self.note(format!("no connection: {error}"));
                    std::thread::sleep(Duration::from_millis(20));
                }
                quiet = Instant::now();
                continue;
            }
            match self.late.as_mut().and_then(|late| late.next(false)) {
                Some(ranges) => {
                    quiet = Instant::now();
                    if let Err(why) = self.send_late(&ranges) {
                        self.lose(why);
                    }
                    self.hear(Duration::ZERO);
                }
                None if quiet.elapsed() > self.policy.patience => {
                    self.lose("the destination does not say that it has everything".to_owned());
                }
                None => self.hear(Duration::from_millis(20)),
            }
        }
        Ok(())
    }

    fn send_late(&mut self, ranges: &[Range]) -> Result<(), String> {
        let link = self.links.first().ok_or("there is no connection")?;
        let mut writer = link.writing().map_err(|error| error.to_string())?;
        for range in ranges {
            let mut bytes = vec![0; range.length as usize];
            self.guest.read(range.address, &mut bytes).map_err(|error| error.to_string())?;
            for (from, to, zeros) in runs(&bytes) {
                let address = range.address + from as u64;
                let put = if zeros {
                    let content = Content::Zeros((to - from) as u32);
                    writer.put(&Frame::Memory { version: LATE, address, content })
                } else {
                    writer.memory(LATE, address, None, &bytes[from..to])
                };
                put.map_err(|error| error.to_string())?;
            }
        }
        writer.flush().map_err(|error| error.to_string())?;
        let sent: u64 = ranges.iter().map(|range| range.length).sum();
        self.late.iter_mut().for_each(|late| late.sent += sent);
        Ok(())
    }
}
