//! A snapshot: pause, save, resume, and write what was at the pause.

use std::fmt;
use std::io::{Seek, Write};
use std::time::{Duration, Instant};

use evenkeel_capsule::{Draft, Layout, Shared, Written};

use crate::guard::timed;
use crate::{DirtyLog, Error, Guard, Guest, Served};

/// The machine whose memory is saved.
pub trait Life {
    /// Nobody writes to memory any more when this returns: no vCPU, no device.
    ///
    /// # Errors
    /// In words; the machine runs on.
    fn pause(&mut self) -> Result<(), String>;
    /// Reads everything but memory, in the pause.
    ///
    /// # Errors
    /// In words; the machine is resumed.
    fn save(&mut self) -> Result<(), String>;
    /// Goes on.
    ///
    /// # Errors
    /// In words.
    fn resume(&mut self) -> Result<(), String>;
    /// What was saved, as a capsule has it: asked when the machine runs again.
    ///
    /// # Errors
    /// In words; nothing is written.
    fn draft(&mut self) -> Result<Draft, String>;
}

/// How memory of one instant is come by.
#[derive(Debug)]
pub enum Way<'a, 'b> {
    /// Copy before write.
    Guard(&'a Guard),
    /// Live pre-copy, and why it is used.
    DirtyLog(&'a DirtyLog<'a, 'b>, String),
}

/// What is wanted.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// To be mapped, with holes for zeros.
    pub lazy: bool,
    /// Zstandard's level.
    pub level: Option<i32>,
    /// No threads are started: whoever writes may not.
    pub alone: bool,
    /// Take BLAKE3 of all memory in the pause: for tests; the pause becomes as long as that takes.
    pub digest: bool,
}

/// What was done, and how long each step took.
#[derive(Clone, Debug)]
pub struct Report {
    /// Copy before write, or live pre-copy and why: for people.
    pub way: String,
    /// Before the pause, while the guest ran.
    pub before: Duration,
    /// Until nobody wrote any more.
    pub pause: Duration,
    /// Saving everything but memory.
    pub save: Duration,
    /// In the pause, for memory.
    pub freeze: Duration,
    /// Until the machine ran again.
    pub resume: Duration,
    /// From the wish to pause until the machine ran again: all of the above but `before`, and a digest, if one was taken.
    pub blackout: Duration,
    /// Writing memory, while the guest ran.
    pub write: Duration,
    /// Passes over what was written before the pause.
    pub rounds: u32,
    /// What happened to whoever wrote; of copy before write.
    pub served: Served,
    /// Pages that were copied in the pause; of live pre-copy.
    pub last: u64,
    /// BLAKE3 of all memory in the pause.
    pub digest: Option<[u8; 32]>,
    /// The capsule.
    pub written: Written,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(
            f,
            "{}: paused for {:.2} ms (pause {:.2}, state {:.2}, memory {:.2}, resume {:.2}), after {:.1} ms and {} passes; written in {:.1} ms",
            self.way,
            ms(self.blackout),
            ms(self.pause),
            ms(self.save),
            ms(self.freeze),
            ms(self.resume),
            ms(self.before),
            self.rounds,
            ms(self.write)
        )
    }
}

impl Way<'_, '_> {
    fn guest(&self) -> &Guest {
        match self {
            Way::Guard(guard) => guard.guest(),
            Way::DirtyLog(log, _) => log.guest(),
        }
    }
}

/// Pauses the machine, saves it, lets it go on, and writes what it was at the pause to `out`: to be called within
/// `evenkeel_files::replace`, so that the file is the old one until the new one is whole. Returns when it is written.
///
/// # Errors
/// The machine runs on, whatever it is: only where resuming it failed it does not, and that is the error then.
pub fn snapshot<W: Write + Seek>(
    way: &Way<'_, '_>,
    life: &mut dyn Life,
    out: W,
    options: &Options,
) -> Result<Report, Error> {
    match way {
        Way::Guard(guard) => {
            let (rounds, before) = timed(|| guard.arm());
            let rounds = rounds?;
            let paused = paused(way, life, options, &mut || guard.freeze());
            let (frozen, mut report) = match paused {
                Ok(done) => done,
                Err(error) => {
                    guard.disarm();
                    return Err(error);
                }
            };
            (report.before, report.rounds) = (before, rounds);
            let memory = frozen;
            let begin = Instant::now();
            report.written = put_out(way, out, options, &report.draft, &memory)?;
            report.write = begin.elapsed();
            report.served = memory.served();
            Ok(report.told("copy before write".to_owned()))
        }
        Way::DirtyLog(log, why) => {
            let (copied, before) = timed(|| log.begin());
            let mut copied = copied?;
            let paused = paused(way, life, options, &mut || log.finish(&mut copied));
            log.end();
            let ((), mut report) = paused?;
            (report.before, report.rounds, report.last) = (before, copied.rounds, copied.last);
            let begin = Instant::now();
            report.written = put_out(way, out, options, &report.draft, &copied)?;
            report.write = begin.elapsed();
            Ok(report.told(format!("live pre-copy ({why})")))
        }
    }
}

/// A report that is not complete.
struct Begun {
    draft: Draft,
    before: Duration,
    pause: Duration,
    save: Duration,
    freeze: Duration,
    resume: Duration,
    write: Duration,
    rounds: u32,
    last: u64,
    served: Served,
    digest: Option<[u8; 32]>,
    written: Written,
}

impl Begun {
    fn told(self, way: String) -> Report {
        let Begun {
            before, pause, save, freeze, resume, write, rounds, last, served, digest, written, ..
        } = self;
        let blackout = pause + save + freeze + resume;
        Report {
            way,
            before,
            pause,
            save,
            freeze,
            resume,
            blackout,
            write,
            rounds,
            served,
            last,
            digest,
            written,
        }
    }
}

/// The pause. State first: saving it may write to memory.
fn paused<T>(
    way: &Way<'_, '_>,
    life: &mut dyn Life,
    options: &Options,
    freeze: &mut dyn FnMut() -> Result<T, Error>,
) -> Result<(T, Begun), Error> {
    let (done, pause) = timed(|| life.pause());
    done.map_err(Error::Life)?;
    let (saved, save) = timed(|| life.save());
    let (frozen, took) = match &saved {
        Ok(_) => timed(|| freeze().map(Some)),
        Err(_) => (Ok(None), Duration::ZERO),
    };
    let digest = if options.digest { Some(way.guest().digest()) } else { None };
    let (done, resume) = timed(|| life.resume());
    done.map_err(Error::Life)?;
    saved.map_err(Error::Life)?;
    let frozen = frozen?.ok_or_else(|| Error::Life("nothing was saved".to_owned()))?;
    let digest = digest.transpose()?;
    let written = Written { root: evenkeel_capsule::Root([0; 32]), length: 0, zero: 0 };
    let begun = Begun {
        draft: life.draft().map_err(Error::Life)?,
        before: Duration::ZERO,
        pause,
        save,
        freeze: took,
        resume,
        write: Duration::ZERO,
        rounds: 0,
        last: 0,
        served: Served::default(),
        digest,
        written,
    };
    Ok((frozen, begun))
}

fn put_out<W: Write + Seek, S: Shared>(
    way: &Way<'_, '_>,
    out: W,
    options: &Options,
    draft: &Draft,
    memory: &S,
) -> Result<Written, Error> {
    let regions = way.guest().regions();
    let layout = match options.lazy {
        true => Layout { alone: options.alone, ..Layout::lazy(regions) },
        false => Layout { level: options.level, alone: options.alone, ..Layout::eager(regions) },
    };
    Ok(draft.write_from(out, &layout, memory)?)
}
