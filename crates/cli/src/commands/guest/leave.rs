//! The steps of a guest that moves away, in the process that runs it.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use evenkeel_memory::DirtyLog;
use evenkeel_monitor::Error;
use evenkeel_monitor::board::Runs;
use evenkeel_monitor::control::protocol::Leave;
use evenkeel_state::{Guest, Noting};

use super::super::handing::bundle;
use super::save::{Luggage, outline, pack};

/// A machine whose guest may move away.
pub struct Leaver<'k, 'n, R> {
    runs: &'k R,
    noting: &'k Noting<'n>,
    luggage: &'k Luggage,
    /// What is remembered of its memory.
    log: Mutex<Option<DirtyLog<'k, 'k>>>,
}

fn told(what: &str, e: &dyn std::fmt::Display) -> Error {
    Error::Control(format!("{what}: {e}"))
}

fn put(guest: &Guest, to: Option<&mut File>) -> Result<u64, Error> {
    let to = to.ok_or_else(|| told("a move", &"no file came with it"))?;
    bundle::put(guest, to).map_err(|e| told("its state", &e))
}

impl<'k, 'n, R: Runs> Leaver<'k, 'n, R> {
    /// Of this machine.
    pub fn new(runs: &'k R, noting: &'k Noting<'n>, luggage: &'k Luggage) -> Self {
        Leaver { runs, noting, luggage, log: Mutex::new(None) }
    }

    /// Does a step: see [`evenkeel_monitor::control::Operated::leave`].
    pub fn step(&self, step: &Leave, to: Option<&mut File>) -> Result<(u64, Option<OwnedFd>), Error> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        match step {
            Leave::Offer => {
                let outline = outline(self.runs, self.noting, self.luggage);
                Ok((put(&outline.map_err(|e| told("its outline", &e.message))?, to)?, None))
            }
            Leave::Memory => {
                let ram = self.runs.ram();
                let fd = ram.fd().try_clone_to_owned().map_err(|e| told("its memory", &e))?;
                Ok((ram.len() as u64, Some(fd)))
            }
            Leave::Track => {
                let begun = DirtyLog::new(self.runs.vm(), self.runs.slots())
                    .map_err(|e| told("its log of writes", &e))?;
                begun.start().map_err(|e| told("its log of writes", &e))?;
                *log = Some(begun);
                Ok((0, None))
            }
            Leave::Written => {
                let log = log.as_ref().ok_or_else(|| told("its log of writes", &"it was not begun"))?;
                let words = log.written().map_err(|e| told("its log of writes", &e))?;
                let bytes: Vec<u8> = words.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
                let to = to.ok_or_else(|| told("its log of writes", &"no file came with it"))?;
                let filled = to.set_len(0).and_then(|()| to.rewind()).and_then(|()| to.write_all(&bytes));
                filled.map_err(|e| told("its log of writes", &e))?;
                Ok((bytes.len() as u64, None))
            }
            Leave::State => {
                let packed = pack(self.runs, self.noting, self.luggage);
                let bytes = put(&packed.map_err(|e| told("its state", &e.message))?.guest, to)?;
                // Nothing is in flight any more. Who gets the state takes the disks before it says that the guest is there, so that
                // it is told while the guest can still go on here.
                self.runs.release()?;
                Ok((bytes, None))
            }
            Leave::Back(_) => {
                if let Some(log) = log.take() {
                    log.end();
                }
                Ok((0, None))
            }
            Leave::Pause | Leave::Commit(_) | Leave::Gone(_) => Ok((0, None)),
        }
    }
}
