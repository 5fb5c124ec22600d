//! A guest that runs before its memory is there.
//!
//! Its memory is registered while it is empty. Whoever touches a page that is not there waits until the chunk with it was read,
//! verified, and put there all at once; meanwhile others are put there in their turn, so that after a while all is there.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write as _};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use evenkeel_capsule::{Index, Kind, Reader};
use evenkeel_sys::{Features, PageFault, Uffd, Watch};

use crate::eager::Stored;
use crate::{Error, Guest};

/// As long as nobody waited for anything, memory is filled in.
const CALM: Duration = Duration::from_millis(10);
/// But it is begun with after this at the latest.
const PATIENCE: Duration = Duration::from_millis(300);

/// What became of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Chunks that somebody waited for.
    pub wanted: u64,
    /// Time until all was there.
    pub took: Duration,
}

/// What is called, once, when a chunk is damaged.
type Alarm = Box<dyn Fn(&Error) + Send + Sync>;

/// What is said of memory that is being loaded.
#[derive(Default)]
struct Progress {
    /// The first thing that went wrong.
    failed: Option<Error>,
    /// Nothing more will be filled in: all is there, it failed, or it was given up.
    ended: bool,
}

/// Memory that was taken over, and which nobody fills yet: who touches it waits, but within [`Loading::serve_while`].
pub struct Loading(Arc<Shared>);

struct Shared {
    uffd: Uffd,
    guest: Guest,
    stored: Stored,
    index: Index,
    /// By memory: the guest-physical address of each place in it.
    numbers: HashMap<usize, Vec<(u64, u64, u64)>>,
    wanted: AtomicU64,
    over: AtomicBool,
    progress: Mutex<Progress>,
    changed: Condvar,
    alarm: OnceLock<Alarm>,
}

/// Memory that is being loaded. It is kept until the guest has ended or all is there: without it, what is missing is zero.
pub struct Lazy {
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
    filler: Option<JoinHandle<Option<Duration>>>,
    bell: Arc<File>,
}

impl Lazy {
    /// What a host must have.
    pub const FEATURES: Features = Features::MISSING_SHMEM;

    /// Whether this host has what it takes, asked before there is a guest: the error says what to do.
    ///
    /// # Errors
    /// It has not.
    pub fn preflight(device: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        Ok(Uffd::new(device, Lazy::FEATURES, Features::default()).map(drop)?)
    }

    /// Begins to load the memory of a capsule, of which `reader` has read the index, into a guest whose memory was never touched;
    /// from here on the guest may run. `file` is what `reader` reads; `device` an open `/dev/userfaultfd`, if one was passed.
    /// Nobody sees a chunk that is damaged: who waits for it waits on, `alarm` is called, and is to stop the machine.
    ///
    /// # Errors
    /// This host has nothing to do that with, or the guest has other regions.
    pub fn new<R: Read + Seek>(
        reader: &Reader<R>,
        file: &File,
        guest: Guest,
        device: Option<BorrowedFd<'_>>,
        alarm: impl Fn(&Error) + Send + Sync + 'static,
    ) -> Result<Lazy, Error> {
        Loading::new(reader, file, guest, device)?.start(alarm, || {})
    }

    /// Waits until all memory is there.
    ///
    /// # Errors
    /// A chunk is damaged or cannot be read. The guest still waits for it, and has to be ended before this value is dropped.
    pub fn wait(&mut self) -> Result<Filled, Error> {
        let took = self.filler.take().and_then(|filler| filler.join().ok()).flatten();
        let failed = self.shared.progress().failed.take();
        match (failed, took) {
            (None, Some(took)) => Ok(Filled { wanted: self.wanted(), took }),
            (Some(error), _) => Err(error),
            (None, None) => Err(Error::Life("loading memory was given up".to_owned())),
        }
    }

    /// What tells, from any thread, when all memory is there.
    pub fn watch(&self) -> Filling {
        Filling(self.shared.clone())
    }

    /// Whether whoever touches a damaged chunk gets an error at once (Linux 6.6): else it waits until it is ended.
    pub fn poisons(&self) -> bool {
        self.shared.uffd.features().has(Features::POISON)
    }

    /// Chunks that somebody waited for, until now.
    pub fn wanted(&self) -> u64 {
        self.shared.wanted.load(Ordering::Relaxed)
    }
}

/// Tells when all of some memory is there.
#[derive(Clone)]
pub struct Filling(Arc<Shared>);

impl Filling {
    /// Waits until all memory is there: whoever reads it through its file would find zeros before.
    ///
    /// # Errors
    /// It will never be: a chunk is damaged, or the machine is over.
    pub fn wait(&self) -> Result<(), Error> {
        let mut progress = self.0.progress();
        while !progress.ended {
            progress = self.0.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        match (&progress.failed, self.0.over.load(Ordering::Relaxed)) {
            (None, false) => Ok(()),
            (Some(why), _) => Err(Error::Life(format!("not all of its memory was loaded: {why}"))),
            (None, true) => Err(Error::Life("loading memory was given up".to_owned())),
        }
    }
}

impl Loading {
    /// Takes over a guest's memory that was never touched, to be filled from a capsule: as [`Lazy::new`], and nothing is filled yet.
    ///
    /// # Errors
    /// This host has nothing to do that with, or the guest has other regions.
    pub fn new<R: Read + Seek>(
        reader: &Reader<R>,
        file: &File,
        guest: Guest,
        device: Option<BorrowedFd<'_>>,
    ) -> Result<Loading, Error> {
        let stored = Stored::of(reader, file, &guest)?;
        let index = reader.index().cloned().unwrap_or_default();
        let uffd = Uffd::new(device, Lazy::FEATURES, Features::POISON)?;
        for ram in guest.rams() {
            uffd.register(ram, &[Watch::Missing])?;
        }
        let mut numbers: HashMap<usize, Vec<(u64, u64, u64)>> = HashMap::new();
        for place in guest.places() {
            let (ram, at) = guest.find(place.guest, place.length)?;
            numbers.entry(ram).or_default().push((at, place.length, place.guest));
        }
        Ok(Loading(Arc::new(Shared {
            uffd,
            guest,
            stored,
            index,
            numbers,
            wanted: AtomicU64::new(0),
            over: AtomicBool::new(false),
            progress: Mutex::default(),
            changed: Condvar::new(),
            alarm: OnceLock::new(),
        })))
    }

    /// Does work that touches this memory, as setting a guest's state does: what it wants is loaded by a thread that is gone
    /// afterwards, so that whoever confines a process has it alone.
    ///
    /// # Errors
    /// A chunk is damaged, or there is no thread. What the work came to is of no use then.
    pub fn serve_while<T>(&self, work: impl FnOnce() -> T) -> Result<T, Error> {
        let bell = bell()?;
        let done = std::thread::scope(|scope| {
            let server = std::thread::Builder::new().name("loader".to_owned());
            let server = server.spawn_scoped(scope, || self.0.serve(&bell))?;
            let done = work();
            ring(&bell);
            // It panics nowhere.
            let _ = server.join();
            Ok::<T, Error>(done)
        })?;
        match self.0.progress().failed.take() {
            Some(why) => Err(why),
            None => Ok(done),
        }
    }

    /// Begins to fill it. `enter` is the first thing that each of two threads does: it may confine itself. `alarm` is called when a
    /// chunk is damaged, and is to stop the machine.
    ///
    /// # Errors
    /// There is no thread or descriptor left.
    pub fn start(
        self,
        alarm: impl Fn(&Error) + Send + Sync + 'static,
        enter: impl Fn() + Send + Sync + 'static,
    ) -> Result<Lazy, Error> {
        let shared = self.0;
        // It is set once: this takes the value.
        let _ = shared.alarm.set(Box::new(alarm));
        let (bell, enter) = (Arc::new(bell()?), Arc::new(enter));
        let spawn = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let (theirs, rung, confine) = (shared.clone(), bell.clone(), enter.clone());
        let server = spawn("loader").spawn(move || {
            confine();
            theirs.serve(&rung);
        })?;
        let theirs = shared.clone();
        let filler = spawn("filler").spawn(move || {
            enter();
            let took = theirs.fill();
            theirs.progress().ended = true;
            theirs.changed.notify_all();
            took
        })?;
        Ok(Lazy { shared, server: Some(server), filler: Some(filler), bell })
    }
}

fn bell() -> io::Result<File> {
    let made = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
    Ok(File::from(made))
}

fn ring(mut bell: &File) {
    // It has room: nobody else rings.
    let _ = bell.write_all(&1_u64.to_ne_bytes());
}

impl Drop for Lazy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        if let Some(filler) = self.filler.take() {
            // What it came to is of no interest any more.
            let _ = filler.join();
        }
        ring(&self.bell);
        if let Some(server) = self.server.take() {
            // It panics nowhere.
            let _ = server.join();
        }
    }
}

impl std::fmt::Debug for Lazy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lazy({} chunks)", self.shared.stored.chunks.len())
    }
}

impl Shared {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: Error) {
        let mut progress = self.progress();
        if progress.failed.is_none() {
            if let Some(alarm) = self.alarm.get() {
                alarm(&error);
            }
            progress.failed = Some(error);
        }
        self.over.store(true, Ordering::Relaxed);
    }

    /// Reads, verifies and puts one chunk; if it is there already, nothing changes.
    fn put(&self, chunk: usize, stored: &mut Vec<u8>, unpacked: &mut Vec<u8>) -> Result<(), Error> {
        let chunk = &self.stored.chunks[chunk];
        let length = u64::from(chunk.length);
        let (ram, at) = self.guest.find(chunk.address, length)?;
        let data = self.stored.chunk(chunk, stored, unpacked).inspect_err(|_| {
            // Whoever touches it gets an error instead of waiting, where there is such a thing.
            let _ = self.uffd.poison(ram, at, length);
        })?;
        match data {
            Some(data) => self.uffd.copy(ram, at, data)?,
            None => self.uffd.zero(ram, at, length)?,
        };
        Ok(())
    }

    /// Who waits comes first: until the guest has begun, and what it wants at once is there, the CPUs are left to it.
    fn let_begin(&self) {
        let (begin, mut last) = (Instant::now(), 0);
        while begin.elapsed() < PATIENCE && !self.over.load(Ordering::Relaxed) {
            std::thread::sleep(CALM);
            let wanted = self.wanted.load(Ordering::Relaxed);
            if wanted > 0 && wanted == last {
                return;
            }
            last = wanted;
        }
    }

    fn fill(&self) -> Option<Duration> {
        let begin = Instant::now();
        self.let_begin();
        let (mut stored, mut unpacked) = (Vec::new(), Vec::new());
        // What is zero comes to be by itself, when all else is there.
        let stores = |chunk: &usize| self.stored.chunks[*chunk].kind != Kind::Zero;
        for chunk in (0..self.stored.chunks.len()).filter(stores) {
            if self.over.load(Ordering::Relaxed) {
                return None;
            }
            if let Err(error) = self.put(chunk, &mut stored, &mut unpacked) {
                self.fail(error);
                return None;
            }
        }
        // All is there: from now on faults are the kernel's again.
        for (number, ram) in self.guest.rams().iter().enumerate() {
            if let Err(why) = self.uffd.unregister(number, 0, ram.len() as u64) {
                self.fail(why.into());
                return None;
            }
        }
        Some(begin.elapsed())
    }

    fn serve(&self, bell: &File) {
        let (mut faults, mut stored, mut unpacked) = (Vec::new(), Vec::new(), Vec::new());
        let page = rustix::param::page_size() as u64;
        loop {
            match self.uffd.hear(bell, &mut faults) {
                Ok(true) => return,
                Ok(false) => {}
                Err(why) => return self.fail(why.into()),
            }
            for fault in faults.drain(..) {
                self.wanted.fetch_add(1, Ordering::Relaxed);
                let done = match self.chunk_of(&fault) {
                    Some(chunk) => self.put(chunk, &mut stored, &mut unpacked).and_then(|()| {
                        // It may have been there already: whoever waits looks again.
                        Ok(self.uffd.wake(fault.ram, fault.at & !(page - 1), page)?)
                    }),
                    // Memory that belongs to no place of the guest is zero.
                    None => {
                        self.uffd.zero(fault.ram, fault.at & !(page - 1), page).map(drop).map_err(Error::from)
                    }
                };
                if let Err(error) = done {
                    self.fail(error);
                }
            }
        }
    }

    fn chunk_of(&self, fault: &PageFault) -> Option<usize> {
        let places = self.numbers.get(&fault.ram)?;
        let (at, _, guest) = places.iter().find(|(at, length, _)| (*at..at + length).contains(&fault.at))?;
        self.index.chunk_at(guest + (fault.at - at))
    }
}
