//! Answers from a log.

use std::sync::{Mutex, PoisonError};

use crate::{Arg, Backend, Entry, FdKind, Handle, Log, Refusal, Request, Source};

/// Answers each call as the log has it, in the log's order.
pub struct Replaying {
    log: Log,
    next: Mutex<usize>,
}

impl Replaying {
    /// Starts at the log's beginning.
    pub fn new(log: Log) -> Self {
        Replaying { log, next: Mutex::new(0) }
    }

    /// The calls of the log that were not made.
    pub fn left(&self) -> usize {
        self.log.entries.len() - *self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, asked: &Entry) -> Result<&Entry, Refusal> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let line = *next + 1;
        let Some(entry) = self.log.entries.get(*next) else {
            let what = format!("{asked} was asked, but the log ends after {} calls", self.log.entries.len());
            return Err(Refusal::OffScript(what));
        };
        if !entry.asks_as(asked) {
            return Err(Refusal::OffScript(format!(
                "{asked} was asked, but call {line} of the log is {entry}"
            )));
        }
        *next += 1;
        Ok(entry)
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
