//! A guest that runs before its memory is there.
//!
//! Its memory is registered while it is empty. Whoever touches a page that is not there waits until the chunk with it was read,
//! verified, and put there all at once; meanwhile others are put there in their turn, so that after a while all is there.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write as _};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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

struct Shared {
    uffd: Uffd,
    guest: Guest,
    stored: Stored,
    index: Index,
    /// By memory: the guest-physical address of each place in it.
    numbers: HashMap<usize, Vec<(u64, u64, u64)>>,
    wanted: AtomicU64,
    over: AtomicBool,
    failed: Mutex<Option<Error>>,
    alarm: Alarm,
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
        let shared = Arc::new(Shared {
            uffd,
            guest,
            stored,
            index,
            numbers,
            wanted: AtomicU64::new(0),
            over: AtomicBool::new(false),
            failed: Mutex::new(None),
            alarm: Box::new(alarm),
        });
        let flags = rustix::event::EventfdFlags::CLOEXEC;
        let bell = Arc::new(File::from(rustix::event::eventfd(0, flags).map_err(io::Error::from)?));
        let spawn = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let (theirs, rung) = (shared.clone(), bell.clone());
        let server = spawn("loader").spawn(move || theirs.serve(&rung))?;
        let theirs = shared.clone();
        let filler = spawn("filler").spawn(move || theirs.fill())?;
        Ok(Lazy { shared, server: Some(server), filler: Some(filler), bell })
    }

    /// Waits until all memory is there.
    ///
    /// # Errors
    /// A chunk is damaged or cannot be read. The guest still waits for it, and has to be ended before this value is dropped.
    pub fn wait(&mut self) -> Result<Filled, Error> {
        let took = self.filler.take().and_then(|filler| filler.join().ok()).flatten();
        let failed = self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (failed, took) {
            (None, Some(took)) => Ok(Filled { wanted: self.wanted(), took }),
            (Some(error), _) => Err(error),
            (None, None) => Err(Error::Life("loading memory was given up".to_owned())),
        }
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

impl Drop for Lazy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        if let Some(filler) = self.filler.take() {
            // What it came to is of no interest any more.
            let _ = filler.join();
        }
        // It has room: nobody else rings.
        let _ = (&*self.bell).write_all(&1_u64.to_ne_bytes());
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
    fn fail(&self, error: Error) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.is_none() {
            (self.alarm)(&error);
            *failed = Some(error);
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
