//! Live pre-copy to the end point, by KVM's dirty log: where nothing can make writers wait.
//!
//! Memory is copied while the guest runs; what was written to meanwhile is copied again, until little is left, and that in the
//! pause. The copy is what is saved: it takes as much memory as the guest has, for as long as it is written.

use std::io;
use std::sync::Arc;

use evenkeel_capsule::Shared;
use evenkeel_sys::{Ram, Slot, Vm};

use crate::guest::{read, write};
use crate::{Error, Guest, Place};

/// KVM_MEM_LOG_DIRTY_PAGES.
const LOG: u32 = 1;
/// Pages of a part whose bits are cleared together.
const PART: u64 = 1 << 15;
/// Pages that are few enough to be copied in the pause: 2 MiB.
const FEW: u64 = 512;
/// A guest that writes faster than is copied does not get better with time.
const ROUNDS: u32 = 8;
const BATCH: u64 = 1 << 20;

/// A VM whose writes are logged.
#[derive(Debug)]
pub struct DirtyLog<'a, 'b> {
    vm: &'a Vm<'b>,
    slots: Vec<(Slot, Arc<Ram>)>,
    manual: bool,
    guest: Guest,
    /// Where copies go, one for each memory, if they were made at first. They take memory only while a copy is there.
    copies: Vec<Arc<Ram>>,
}

/// A copy of memory, as of the pause.
#[derive(Debug)]
pub struct Copied {
    guest: Guest,
    copies: Vec<Arc<Ram>>,
    /// How often what was written meanwhile was copied again.
    pub rounds: u32,
    /// Pages that were copied in the pause.
    pub last: u64,
}

impl<'a, 'b> DirtyLog<'a, 'b> {
    /// Of a VM with these slots. What this process writes, as its devices do, is in [`Ram::marks`].
    ///
    /// # Errors
    /// The slots overlap, or KVM does not say what it can.
    pub fn new(vm: &'a Vm<'b>, slots: Vec<(Slot, Arc<Ram>)>) -> Result<Self, Error> {
        let place = |(slot, ram): &(Slot, Arc<Ram>)| {
            let Slot { guest, offset, length, .. } = *slot;
            Place { guest, ram: ram.clone(), offset, length }
        };
        let guest = Guest::new(slots.iter().map(place).collect())?;
        if let Some((slot, _)) = slots.iter().find(|(slot, _)| !slot.offset.is_multiple_of(64 * 4096)) {
            // Words of marks would belong to two slots.
            return Err(Error::Life(format!("slot {} begins in the middle of a word of marks", slot.number)));
        }
        // A bit of the log is a page of the host.
        if rustix::param::page_size() != 4096 {
            return Err(Error::Life("live pre-copy is for hosts with pages of 4096 bytes".to_owned()));
        }
        let manual = vm.manual_dirty_log()?;
        Ok(DirtyLog { vm, slots, manual, guest, copies: Vec::new() })
    }

    /// The same, with room for the copy from now on: for a thread that cannot make any later.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn with_room(self) -> Result<Self, Error> {
        let copies = room(&self.guest)?;
        Ok(DirtyLog { copies, ..self })
    }

    /// The memory.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Copies memory while the guest runs, until little of it is left. The log is on from here until [`DirtyLog::end`].
    ///
    /// # Errors
    /// KVM keeps no log, or there is no memory for the copy; no log is kept any more.
    pub fn begin(&self) -> Result<Copied, Error> {
        let done = self.copy_all();
        if done.is_err() {
            self.end();
        }
        done
    }

    /// The log is on from here until [`DirtyLog::end`], for whoever copies by himself what [`DirtyLog::written`] tells.
    ///
    /// # Errors
    /// KVM keeps no log.
    pub fn start(&self) -> Result<(), Error> {
        for (slot, ram) in &self.slots {
            for page in (0..slot.length.div_ceil(4096)).step_by(64) {
                marked(slot, ram, page);
            }
        }
        for (slot, ram) in &self.slots {
            if let Err(error) = self.vm.set_slot(Slot { flags: slot.flags | LOG, ..*slot }, Some(ram)) {
                self.end();
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn copy_all(&self) -> Result<Copied, Error> {
        self.start()?;
        let copies = if self.copies.is_empty() { room(&self.guest)? } else { self.copies.clone() };
        let mut copied = Copied { guest: self.guest.clone(), copies, rounds: 0, last: 0 };
        let mut buffer = vec![0; BATCH as usize];
        for (slot, _) in &self.slots {
            copied.copy(slot.guest, slot.length, &mut buffer)?;
        }
        let mut before = u64::MAX;
        while copied.rounds < ROUNDS {
            let pages = self.copy_written(&mut copied)?;
            copied.rounds += 1;
            if pages <= FEW || pages >= before {
                break;
            }
            before = pages;
        }
        Ok(copied)
    }

    /// In the pause, when nobody writes: copies what is left, and ends the log.
    ///
    /// # Errors
    /// KVM does not tell what was written. No log is kept any more.
    pub fn finish(&self, copied: &mut Copied) -> Result<(), Error> {
        let last = self.copy_written(copied);
        copied.last = *last.as_ref().unwrap_or(&0);
        last.map(drop)
    }

    /// Ends the log, when the guest runs again: it takes the longer the more memory there is.
    pub fn end(&self) {
        for (slot, ram) in &self.slots {
            // It was taken with the flag, and without it before.
            let _ = self.vm.set_slot(*slot, Some(ram));
        }
    }

    /// What was written since the last time, for each slot: a bit a page, 64 in a word, from its beginning on. Each write is told
    /// once, at the latest after the pause that follows it.
    ///
    /// # Errors
    /// KVM does not tell.
    pub fn written(&self) -> Result<Vec<Vec<u64>>, Error> {
        self.slots.iter().map(|(slot, ram)| self.words(slot, ram)).collect()
    }

    fn words(&self, slot: &Slot, ram: &Ram) -> Result<Vec<u64>, Error> {
        let all = slot.length / 4096;
        let mut words = self.vm.dirty_log(slot.number, ram)?;
        words.truncate(all.div_ceil(64) as usize);
        if self.manual {
            // Cleared before it is copied: what is written meanwhile is told the next time.
            for first in (0..all).step_by(PART as usize) {
                let part = (all - first).min(PART);
                let these =
                    &words[(first / 64) as usize..((first + part).div_ceil(64) as usize).min(words.len())];
                if these.iter().any(|&word| word != 0) {
                    self.vm.clear_dirty(slot.number, first, part as u32, these)?;
                }
            }
        }
        for page in (0..all).step_by(64) {
            words[(page / 64) as usize] |= marked(slot, ram, page);
        }
        Ok(words)
    }

    /// Copies the pages that were written to since the last time; gives how many.
    fn copy_written(&self, copied: &mut Copied) -> Result<u64, Error> {
        let (mut pages, mut buffer) = (0, Vec::new());
        for ((slot, _), words) in self.slots.iter().zip(self.written()?) {
            let all = slot.length / 4096;
            let is = |page: u64| words[(page / 64) as usize] >> (page % 64) & 1 == 1;
            let mut page = 0;
            while page < all {
                if words[(page / 64) as usize] == 0 {
                    page = (page / 64 + 1) * 64;
                    continue;
                }
                let run = (page..all).take_while(|&page| is(page)).count() as u64;
                if run > 0 {
                    buffer.resize(BATCH as usize, 0);
                    copied.copy(slot.guest + page * 4096, run * 4096, &mut buffer)?;
                    pages += run;
                }
                page += run + 1;
            }
        }
        Ok(pages)
    }
}

/// What this process wrote into the 64 pages from `page` of a slot on.
fn marked(slot: &Slot, ram: &Ram, page: u64) -> u64 {
    ram.marks().take(slot.offset / 4096 + page)
}

impl Copied {
    fn copy(&mut self, address: u64, length: u64, buffer: &mut [u8]) -> io::Result<()> {
        let (ram, at) = self.guest.find(address, length)?;
        let mut done = 0;
        while done < length {
            let part = (length - done).min(buffer.len() as u64);
            let bytes = &mut buffer[..part as usize];
            read(&self.guest.rams()[ram], at + done, bytes)?;
            write(&self.copies[ram], at + done, bytes)?;
            done += part;
        }
        Ok(())
    }
}

/// Where copies of this memory go.
fn room(guest: &Guest) -> Result<Vec<Arc<Ram>>, Error> {
    let copies: Result<_, _> = guest.rams().iter().map(|ram| Ram::new(ram.len()).map(Arc::new)).collect();
    copies.map_err(|why| Error::Life(format!("no room for a copy of memory: {why}")))
}

impl Drop for Copied {
    fn drop(&mut self) {
        for copy in &self.copies {
            // What is cut off is given back; it grows again without a page.
            let _ = rustix::fs::ftruncate(copy.fd(), 0);
            let _ = rustix::fs::ftruncate(copy.fd(), copy.len() as u64);
        }
    }
}

impl Shared for Copied {
    fn read(&self, address: u64, into: &mut [u8]) -> io::Result<()> {
        let (ram, at) = self.guest.find(address, into.len() as u64)?;
        read(&self.copies[ram], at, into)
    }
}
