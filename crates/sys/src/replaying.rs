//! Answers from a log.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::{Arg, Backend, Entry, Errno, FdKind, Handle, Log, Refusal, Request, Source, requests};

/// Answers from a log: each call as the log has it, in the log's order. A call that is not the next one is
/// [`Refusal::OffScript`].
pub struct Replaying {
    log: Log,
    place: Mutex<Place>,
}

enum Place {
    /// The entry that must be asked next.
    Next(usize),
    /// Entries by their question, and how many of them were asked.
    Loose(HashMap<u64, (Vec<usize>, usize)>),
}

impl Replaying {
    /// Starts at the log's beginning and keeps to its order.
    pub fn new(log: Log) -> Self {
        Replaying { log, place: Mutex::new(Place::Next(0)) }
    }

    /// For experiments, where one call goes otherwise than recorded and those behind it may be others: a question gets
    /// the next answer to the same question that the log has, or the last one again, unless it opened or created something. One that was never asked is
    /// refused with ENOSYS, as a host does that does not know it.
    pub fn loosely(log: Log) -> Self {
        let mut answers: HashMap<u64, (Vec<usize>, usize)> = HashMap::new();
        for (at, entry) in log.entries.iter().enumerate() {
            answers.entry(entry.question()).or_default().0.push(at);
        }
        Replaying { log, place: Mutex::new(Place::Loose(answers)) }
    }

    /// The calls of the log that were not made.
    pub fn left(&self) -> usize {
        match &*self.place.lock().unwrap_or_else(PoisonError::into_inner) {
            Place::Next(next) => self.log.entries.len() - next,
            Place::Loose(answers) => {
                answers.values().map(|(all, asked)| all.len().saturating_sub(*asked)).sum()
            }
        }
    }

    fn take(&self, asked: &Entry) -> Result<&Entry, Refusal> {
        match &mut *self.place.lock().unwrap_or_else(PoisonError::into_inner) {
            Place::Next(next) => {
                let line = *next + 1;
                let Some(entry) = self.log.entries.get(*next) else {
                    let count = self.log.entries.len();
                    return Err(Refusal::OffScript(format!(
                        "{asked} was asked, but the log ends after {count} calls"
                    )));
                };
                if !entry.asks_as(asked) {
                    let what = format!("{asked} was asked, but call {line} of the log is {entry}");
                    return Err(Refusal::OffScript(what));
                }
                *next += 1;
                Ok(entry)
            }
            Place::Loose(answers) => {
                let (all, count) = answers.get_mut(&asked.question()).ok_or(Errno::ENOSYS)?;
                let creates = requests::by_name(&asked.call).is_none_or(|request| request.creates.is_some());
                if *count >= all.len() && creates {
                    // One file descriptor cannot be two.
                    return Err(Errno::ENOSYS.into());
                }
                let entry = &self.log.entries[all[(*count).min(all.len() - 1)]];
                *count += 1;
                Ok(entry)
            }
        }
    }
}

impl Backend for Replaying {
    fn open(&self, path: &str, kind: FdKind) -> Result<Handle, Refusal> {
        self.take(&Entry::open(path, kind))?.answer().map(|number| Handle(number as u32))
    }

    fn call(&self, fd: Handle, request: &Request, arg: Arg<'_>) -> Result<i32, Refusal> {
        let entry = self.take(&Entry::ioctl(fd, request, &arg))?;
        if let (Some(out), Arg::Out(buffer) | Arg::Pointing { payload: buffer, .. }) = (&entry.out, arg)
            && !out.copy_to(buffer)
        {
            return Err(Refusal::OffScript(format!("{entry} came back with another length than it went in")));
        }
        entry.answer()
    }

    fn read(&self, source: Source<'_>) -> Result<Vec<u8>, Refusal> {
        let entry = self.take(&Entry::read(source))?;
        entry.answer()?;
        Ok(entry.out.as_ref().map(|out| out.to_vec()).unwrap_or_default())
    }

    fn close(&self, _: Handle) {}
}
