//! A machine that runs is saved, and goes on: the state, the memory and, where asked for, the disks of one instant.

use std::io::{self, Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

use evenkeel_capsule::Draft;
use evenkeel_memory::{DirtyLog, Filling, Guard, Guest, Options, Place, Way, snapshot};
use evenkeel_monitor::board::{Disk, Runs};
use evenkeel_monitor::confine::{Confinement, Thread};
use evenkeel_monitor::control::Targets;
use evenkeel_monitor::control::protocol::{DiskHow, Disks, Method, Saved, SavedDisk};
use evenkeel_monitor::{Error, Phase};
use evenkeel_state::Noting;
use evenkeel_sys::Uffd;

use super::disks;
use super::save::{Luggage, Packed, pack, write};

/// Bytes of copies aside, at most, of what a guest writes faster than it is saved.
const ROOM: u64 = 128 << 20;

/// What is saved with a machine.
#[derive(Clone, Copy)]
pub struct Keeping<'k> {
    /// What was selected when it was made.
    pub noting: &'k Noting<'k>,
    /// What travels with it.
    pub luggage: &'k Luggage,
}

/// How memory of one instant is come by here.
enum How<'p> {
    Guard(Guard),
    Logged(DirtyLog<'p, 'p>, String),
    /// The guest stands still until all is written.
    Still(String),
}

/// Saves a machine whenever it is wanted.
pub struct Saver<'p, R> {
    pc: &'p R,
    keeping: Keeping<'p>,
    how: How<'p>,
    disks: Vec<Disk>,
    /// Memory that is still being loaded.
    filling: Option<Filling>,
}

fn told(e: &dyn std::fmt::Display) -> Error {
    Error::Control(format!("the machine was not saved: {e}"))
}

impl<'p, R: Runs> Saver<'p, R> {
    /// Prepares all that a confined thread cannot make: copy before write with this userfaultfd, or without one, for this reason, what
    /// comes next.
    ///
    /// # Errors
    /// There is no thread or descriptor left.
    pub fn new(
        pc: &'p R,
        keeping: Keeping<'p>,
        uffd: Result<Uffd, String>,
        filling: Option<Filling>,
        confinement: &Confinement,
    ) -> Result<Saver<'p, R>, Error> {
        let place = |(slot, ram): (evenkeel_sys::Slot, _)| {
            let evenkeel_sys::Slot { guest, offset, length, .. } = slot;
            Place { guest, ram, offset, length }
        };
        let how = match uffd {
            Ok(uffd) => {
                let guest = Guest::new(pc.slots().into_iter().map(place).collect()).map_err(|e| told(&e))?;
                let (confinement, life) = (confinement.clone(), pc.life().clone());
                let enter = move || {
                    if let Err(error) = confinement.enter(Thread::Memory) {
                        life.fail(format!("a thread cannot be confined: {error}"));
                    }
                };
                How::Guard(Guard::with(guest, uffd, ROOM, enter).map_err(|e| told(&e))?)
            }
            Err(why) => match DirtyLog::new(pc.vm(), pc.slots()).and_then(DirtyLog::with_room) {
                Ok(log) => How::Logged(log, why),
                Err(also) => How::Still(format!("{why}; and live pre-copy: {also}")),
            },
        };
        Ok(Saver { pc, keeping, how, disks: pc.disks()?, filling })
    }

    /// Waits until all of its memory is there: until then, its file lacks what was not loaded yet.
    ///
    /// # Errors
    /// Some of it cannot be loaded.
    pub fn whole(&self) -> Result<(), Error> {
        self.filling.as_ref().map_or(Ok(()), |filling| filling.wait().map_err(|e| told(&e)))
    }

    /// Saves it, and leaves its life where it is.
    ///
    /// # Errors
    /// It goes on, whatever went wrong.
    pub fn save(&self, to: &mut Targets, progress: &dyn Fn(u64, u64)) -> Result<Saved, Error> {
        self.whole()?;
        let stands = self.pc.life().phase() == Phase::Paused;
        self.check(to, stands)?;
        let begin = Instant::now();
        if to.disks == Disks::Copy {
            // What is on its way to a disk need not get there in the pause.
            for disk in &self.disks {
                disk.file.sync_data().map_err(|e| told(&format!("disk {}: {e}", disk.name)))?;
            }
        }
        let Targets { file, disks, copies } = to;
        let copies = if *disks == Disks::Copy { &mut copies[..] } else { &mut [] };
        let way = match &self.how {
            How::Guard(guard) if !stands => Way::Guard(guard),
            How::Logged(log, why) if !stands => Way::DirtyLog(log, why.clone()),
            How::Still(why) if !stands => return self.standing(file, copies, Some(why), progress),
            _ => return self.standing(file, copies, None, progress),
        };
        let of = self.pc.ram().len() as u64;
        let (method, because) = match &way {
            Way::Guard(_) => (Method::CopyBeforeWrite, String::new()),
            Way::DirtyLog(_, why) => (Method::LivePreCopy, why.clone()),
        };
        let options = Options { alone: true, ..Options::default() };
        let mut steps = Steps { saver: self, copies, packed: None, saved: Vec::new() };
        let report = snapshot(&way, &mut steps, Counted { file, at: 0, of, progress }, &options);
        let report = report.map_err(|e| told(&e))?;
        progress(of, of);
        Ok(Saved {
            bytes: report.written.length,
            seconds: begin.elapsed().as_secs_f64(),
            paused_seconds: report.blackout.as_secs_f64(),
            method,
            because,
            disks: steps.saved,
        })
    }

    /// What becomes of the disks must be said, and be possible, before anything is done.
    fn check(&self, to: &Targets, stands: bool) -> Result<(), Error> {
        match to.disks {
            Disks::Refuse if !stands && !self.disks.is_empty() => {
                let names: Vec<&str> = self.disks.iter().map(|disk| disk.name.as_str()).collect();
                Err(Error::Disks(format!(
                    "the guest would go on writing to {}, and its saved memory would not go with what is on them",
                    names.join(", ")
                )))
            }
            Disks::Copy if to.copies.len() != self.disks.len() => Err(Error::Disks(format!(
                "{} files for copies of {} disks",
                to.copies.len(),
                self.disks.len()
            ))),
            _ => Ok(()),
        }
    }

    fn copy_disks(&self, copies: &mut [std::fs::File]) -> Result<Vec<SavedDisk>, String> {
        let mut all = Vec::new();
        for (index, disk) in self.disks.iter().enumerate() {
            let how = match copies.get_mut(index) {
                Some(copy) => disks::copy(disk, copy).map_err(|e| format!("disk {}: {e}", disk.name))?,
                None => DiskHow::Left,
            };
            all.push(SavedDisk { name: disk.name.clone(), how });
        }
        Ok(all)
    }

    /// Saves it while it stands: it did before, or there is no other way.
    fn standing(
        &self,
        file: &mut std::fs::File,
        copies: &mut [std::fs::File],
        why: Option<&str>,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Saved, Error> {
        let Keeping { noting, luggage } = self.keeping;
        let (pc, begin) = (self.pc, Instant::now());
        pc.life().pause()?;
        let written = pack(pc, noting, luggage).map_err(|e| told(&e.message)).and_then(|packed| {
            let copied = self.copy_disks(copies).map_err(|e| told(&e))?;
            let draft = packed.guest.draft().map_err(|e| told(&e))?;
            let written = write(&draft, pc.ram(), file, (false, true), progress).map_err(|e| told(&e))?;
            Ok((written, copied))
        });
        let stood = begin.elapsed();
        if why.is_some() {
            // Whatever became of the file, the guest goes on.
            pc.life().resume()?;
        }
        let (written, disks) = written?;
        Ok(Saved {
            bytes: written.length,
            seconds: stood.as_secs_f64(),
            paused_seconds: if why.is_some() { stood } else { Duration::ZERO }.as_secs_f64(),
            method: Method::StoodStill,
            because: why.unwrap_or("it was paused already").to_owned(),
            disks,
        })
    }
}

/// The machine, as a snapshot of it sees it.
struct Steps<'s, 'p, R> {
    saver: &'s Saver<'p, R>,
    copies: &'s mut [std::fs::File],
    packed: Option<Packed>,
    saved: Vec<SavedDisk>,
}

impl<R: Runs> evenkeel_memory::Life for Steps<'_, '_, R> {
    fn pause(&mut self) -> Result<(), String> {
        self.saver.pc.life().pause().map(drop).map_err(|e| e.to_string())
    }

    fn save(&mut self) -> Result<(), String> {
        let Keeping { noting, luggage } = self.saver.keeping;
        self.packed = Some(pack(self.saver.pc, noting, luggage).map_err(|e| e.message)?);
        self.saved = self.saver.copy_disks(self.copies)?;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), String> {
        self.saver.pc.life().resume().map_err(|e| e.to_string())
    }

    fn draft(&mut self) -> Result<Draft, String> {
        let packed = self.packed.take().ok_or("nothing was saved")?;
        packed.guest.draft().map_err(|e| e.to_string())
    }
}

/// Tells how far a file has come.
struct Counted<'c> {
    file: &'c mut std::fs::File,
    at: u64,
    of: u64,
    progress: &'c dyn Fn(u64, u64),
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.at += written as u64;
        (self.progress)(self.at.min(self.of.saturating_sub(1)), self.of);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Counted<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = self.file.seek(to)?;
        // The header comes last: that is no step back.
        self.at = self.at.max(at);
        Ok(at)
    }
}
