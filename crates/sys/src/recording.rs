//! Passes calls on and keeps an ordered log.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    Arg, Backend, Entry, FdKind, Handle, Log, Ram, Refusal, Request, RunPage, Slot, Source, log::Bytes,
};

/// Wraps a backend; what is asked and answered is kept, in order.
pub struct Recording<B> {
    inner: B,
    entries: Mutex<Vec<Entry>>,
    paused: AtomicBool,
}

impl<B: Backend> Recording<B> {
    /// Records what this backend is asked.
    pub fn new(inner: B) -> Self {
        Recording { inner, entries: Mutex::default(), paused: AtomicBool::new(false) }
    }

    /// What was recorded.
    pub fn into_log(self) -> Log {
        Log { entries: self.entries.into_inner().unwrap_or_else(PoisonError::into_inner) }
    }

    /// What was recorded so far.
    pub fn log(&self) -> Log {
        Log { entries: self.entries.lock().unwrap_or_else(PoisonError::into_inner).clone() }
    }

    /// Drops what was recorded so far.
    pub fn forget(&self) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether calls are passed on without being recorded.
    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    /// The backend that is recorded.
    pub fn inner(&self) -> &B {
        &self.inner
    }

    fn keep(&self, entry: Entry) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }
}

impl<B: Backend> Backend for Recording<B> {
    fn open(&self, path: &str, kind: FdKind) -> Result<Handle, Refusal> {
        let mut entry = Entry::open(path, kind);
        let opened = self.inner.open(path, kind);
        match &opened {
            Ok(handle) => entry.ret = Some(handle.0 as i32),
            Err(why) => entry.refuse(why),
        }
        self.keep(entry);
        opened
    }

    fn call(&self, fd: Handle, request: &Request, arg: Arg<'_>) -> Result<i32, Refusal> {
        if self.paused.load(Ordering::Relaxed) {
            return self.inner.call(fd, request, arg);
        }
        let mut entry = Entry::ioctl(fd, request, &arg);
        let returned = match arg {
            Arg::Out(bytes) => {
                let returned = self.inner.call(fd, request, Arg::Out(bytes));
                // Of a failure too: E2BIG comes with the length that would have done.
                entry.out = Some(Bytes::new(bytes));
                returned
            }
            Arg::Pointing { head, payload } => {
                let returned = self.inner.call(fd, request, Arg::Pointing { head, payload });
                if request.payload.is_some_and(|(_, flow)| flow.comes_out()) {
                    entry.out = Some(Bytes::new(payload));
                }
                returned
            }
            arg => self.inner.call(fd, request, arg),
        };
        match &returned {
            Ok(value) => entry.ret = Some(*value),
            Err(why) => entry.refuse(why),
        }
        self.keep(entry);
        returned
    }

    fn read(&self, source: Source<'_>) -> Result<Vec<u8>, Refusal> {
        let mut entry = Entry::read(source);
        let read = self.inner.read(source);
        match &read {
            Ok(bytes) => entry.out = Some(Bytes::new(bytes)),
            Err(why) => entry.refuse(why),
        }
        self.keep(entry);
        read
    }

    fn close(&self, fd: Handle) {
        self.inner.close(fd);
    }

    // What a guest does is in its memory, which no log holds.
    fn set_memory(&self, vm: Handle, slot: Slot, ram: Option<&Arc<Ram>>) -> Result<(), Refusal> {
        self.inner.set_memory(vm, slot, ram)
    }

    fn map_run(&self, vcpu: Handle, length: usize) -> Result<Arc<RunPage>, Refusal> {
        self.inner.map_run(vcpu, length)
    }
}
