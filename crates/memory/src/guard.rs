//! Copy before write, by userfaultfd.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use evenkeel_capsule::Shared;
use evenkeel_sys::{Features, PageFault, Uffd, Watch};

use crate::book::{Book, Phase, State};
use crate::guest::{CHUNK, read};
use crate::{Error, Guest};

/// Memory that is protected by one call before the pause: nobody waits longer than that takes.
const ARM: u64 = 16 << 20;
/// Memory that is copied, and then given free, at a time.
const STEP: u64 = 1 << 20;
/// Before the pause, what was written is protected again until so few chunks are left, but not for ever.
const FEW: usize = 32;
const ROUNDS: u32 = 4;

/// What happened to whoever wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Writes before the pause that were noted.
    pub noted: u64,
    /// Writes after the pause that waited for a copy.
    pub copied: u64,
    /// Of these, how many waited longer, as there was no room for copies.
    pub held: u64,
    /// Bytes of copies that waited for their turn, at most.
    pub aside_most: u64,
    /// Chunks that were protected in the pause.
    pub again: u64,
}

/// Guards a guest's memory. It may be kept for as long as the guest lives: while no snapshot is made it costs nothing.
#[derive(Debug)]
pub struct Guard {
    shared: Arc<Inner>,
    server: Option<JoinHandle<()>>,
    bell: Arc<File>,
}

#[derive(Debug)]
struct Inner {
    uffd: Uffd,
    guest: Guest,
    /// The number of each memory's first chunk; they are registered in this order.
    first: Vec<u32>,
    /// How many of them are registered.
    registered: Mutex<usize>,
    /// Bytes of copies aside, at most.
    room: u64,
    book: Mutex<Book>,
}

impl Guard {
    /// What a host must have.
    pub const FEATURES: Features = Features::WP.and(Features::WP_SHMEM);

    /// Whether this host has what it takes, asked before there is a guest: the error says what to do.
    ///
    /// # Errors
    /// It has not.
    pub fn preflight(device: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        Guard::descriptor(device).map(drop)
    }

    /// A userfaultfd for [`Guard::with`]: made while the process may still open `/dev/userfaultfd`.
    ///
    /// # Errors
    /// This host has nothing to guard memory with.
    pub fn descriptor(device: Option<BorrowedFd<'_>>) -> Result<Uffd, Error> {
        Ok(Uffd::new(device, Guard::FEATURES, Features::default())?)
    }

    /// Guards this memory, with `device`, an open `/dev/userfaultfd`, if one was passed. At most `room` bytes of copies are
    /// held for those who write faster than is saved; who writes more waits.
    ///
    /// # Errors
    /// This host has nothing to guard it with.
    pub fn new(guest: Guest, device: Option<BorrowedFd<'_>>, room: u64) -> Result<Guard, Error> {
        Guard::with(guest, Guard::descriptor(device)?, room, || {})
    }

    /// The same, with a userfaultfd that nothing is registered with yet. `enter` is the first thing that the thread does which deals
    /// with writers: it may confine itself. Memory is registered when it is armed first: until then others may deal with its faults.
    ///
    /// # Errors
    /// There is no thread or descriptor left.
    pub fn with(
        guest: Guest,
        uffd: Uffd,
        room: u64,
        enter: impl FnOnce() + Send + 'static,
    ) -> Result<Guard, Error> {
        let (mut first, mut chunks) = (Vec::new(), 0);
        for ram in guest.rams() {
            first.push(chunks);
            chunks += (ram.len() as u64).div_ceil(CHUNK) as u32;
        }
        let book = Book { state: vec![State::Free; chunks as usize], ..Book::default() };
        let (registered, book) = (Mutex::new(0), Mutex::new(book));
        let shared = Arc::new(Inner { uffd, guest, first, registered, room: room.max(CHUNK), book });
        let flags = rustix::event::EventfdFlags::CLOEXEC;
        let bell = rustix::event::eventfd(0, flags).map_err(io::Error::from)?;
        let bell = Arc::new(File::from(bell));
        let (theirs, rung) = (shared.clone(), bell.clone());
        let server = std::thread::Builder::new().name("guard".to_owned()).spawn(move || {
            enter();
            theirs.serve(&rung);
        })?;
        Ok(Guard { shared, server: Some(server), bell })
    }

    /// The memory.
    pub fn guest(&self) -> &Guest {
        &self.shared.guest
    }

    /// Before the pause: protects everything, while the guest runs. What it writes is noted, and protected again until there is
    /// little left to do in the pause. Gives how often it went through that.
    ///
    /// # Errors
    /// The kernel refuses; nothing is protected any more.
    pub fn arm(&self) -> Result<u32, Error> {
        let shared = &*self.shared;
        let mut book = shared.lock();
        if book.phase != Phase::Open {
            return Err(Error::Life("a snapshot of this memory is being made".to_owned()));
        }
        book.clear();
        book.phase = Phase::Armed;
        book.failed = None;
        book.served = Served::default();
        book.state.fill(State::Guarded);
        drop(book);
        let armed = shared.arm();
        if armed.is_err() {
            shared.release();
        }
        armed
    }

    /// In the pause, when nobody writes: from here on memory is what it is now.
    ///
    /// # Errors
    /// The kernel refuses, or [`Guard::arm`] did not come before; nothing is protected any more.
    pub fn freeze(&self) -> Result<Frozen<'_>, Error> {
        let shared = &*self.shared;
        let mut book = shared.lock();
        if book.phase != Phase::Armed {
            return Err(Error::Life("memory was not guarded before the pause".to_owned()));
        }
        let again = shared.protect_again(&mut book);
        book.phase = Phase::Frozen;
        drop(book);
        let frozen = Frozen { of: shared };
        // If it failed, dropping this gives everything free.
        again.map(|()| frozen)
    }

    /// Takes the protection away again: the pause did not come about.
    pub fn disarm(&self) {
        self.shared.release();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.release();
        // It has room: nobody else rings.
        let _ = (&*self.bell).write_all(&1_u64.to_ne_bytes());
        if let Some(server) = self.server.take() {
            // It panics nowhere.
            let _ = server.join();
        }
    }
}

/// Memory as it was in the pause, to be read once, from any thread. When this is dropped, everything is given free.
#[derive(Debug)]
pub struct Frozen<'g> {
    of: &'g Inner,
}

impl Frozen<'_> {
    /// What happened until now.
    pub fn served(&self) -> Served {
        self.of.lock().served
    }
}

impl Shared for Frozen<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> io::Result<()> {
        let (ram, mut at) = self.of.guest.find(address, into.len() as u64)?;
        let mut rest = into;
        while !rest.is_empty() {
            // Steps end where chunks do.
            let step = (STEP - at % STEP).min(rest.len() as u64);
            let (now, later) = rest.split_at_mut(step as usize);
            self.of.take(ram, at, now)?;
            at += step;
            rest = later;
        }
        Ok(())
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.of.release();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory and place of a chunk, and its length.
    fn place(&self, chunk: u32) -> (usize, u64, u64) {
        let ram = self.first.partition_point(|&first| first <= chunk) - 1;
        let at = u64::from(chunk - self.first[ram]) * CHUNK;
        (ram, at, (self.guest.rams()[ram].len() as u64 - at).min(CHUNK))
    }

    fn arm(&self) -> Result<u32, Error> {
        let mut registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        for ram in &self.guest.rams()[*registered..] {
            self.uffd.register(ram, &[Watch::WriteProtect])?;
            *registered += 1;
        }
        drop(registered);
        for (number, ram) in self.guest.rams().iter().enumerate() {
            for at in (0..ram.len() as u64).step_by(ARM as usize) {
                self.uffd.protect(number, at, (ram.len() as u64 - at).min(ARM), true)?;
            }
        }
        let mut rounds = 0;
        let mut before = usize::MAX;
        while rounds < ROUNDS {
            let mut book = self.lock();
            let noted = book.dirty.len();
            // What is written faster than it is protected is left to the pause.
            if noted <= FEW || noted >= before {
                break;
            }
            before = noted;
            self.protect_again(&mut book)?;
            rounds += 1;
        }
        let mut book = self.lock();
        book.served.again = 0;
        match book.failed.take() {
            Some(why) => Err(Error::Life(why)),
            None => Ok(rounds),
        }
    }

    /// Protects what was written to since it was protected. Under the lock, so that no fault is dealt with in between.
    fn protect_again(&self, book: &mut Book) -> Result<(), Error> {
        for (first, count) in book.take_dirty() {
            book.state[first as usize..(first + count) as usize].fill(State::Guarded);
            book.served.again += u64::from(count);
            let (mut chunk, end) = (first, first + count);
            while chunk < end {
                // A run may go on in the next memory.
                let (ram, at, _) = self.place(chunk);
                let last = self.first.get(ram + 1).map_or(end, |&next| next.min(end));
                let length = (u64::from(last - chunk) * CHUNK).min(self.guest.rams()[ram].len() as u64 - at);
                self.uffd.protect(ram, at, length, true)?;
                chunk = last;
            }
        }
        Ok(())
    }

    /// The thread that deals with those who wait.
    fn serve(&self, bell: &File) {
        let mut faults = Vec::new();
        loop {
            match self.uffd.hear(bell, &mut faults) {
                Ok(true) => return,
                Ok(false) => {}
                Err(why) => {
                    self.lock().failed = Some(format!("writers cannot be heard: {why}"));
                    self.release();
                    return;
                }
            }
            let mut book = self.lock();
            for PageFault { ram, at, .. } in faults.drain(..) {
                let chunk = self.first[ram] + (at / CHUNK) as u32;
                self.fault(&mut book, chunk);
            }
        }
    }

    /// Somebody wants to write to this chunk.
    fn fault(&self, book: &mut Book, chunk: u32) {
        let (ram, at, length) = self.place(chunk);
        let done = match (book.state[chunk as usize], book.phase) {
            // It was given free since; whoever waits looks again.
            (State::Free, _) => self.uffd.wake(ram, at, length).map_err(|e| e.to_string()),
            (State::Taking, _) => Ok(()),
            (State::Guarded, Phase::Frozen) if book.aside_bytes + length > self.room => {
                if !book.waiting.contains(&chunk) {
                    book.served.held += 1;
                    book.waiting.push(chunk);
                }
                Ok(())
            }
            (State::Guarded, phase) => {
                let mut kept = Ok(());
                match phase {
                    Phase::Open => {}
                    Phase::Armed => {
                        book.dirty.push(chunk);
                        book.served.noted += 1;
                    }
                    Phase::Frozen => {
                        let mut copy = vec![0; length as usize].into_boxed_slice();
                        kept = read(&self.guest.rams()[ram], at, &mut copy).map_err(|e| e.to_string());
                        book.aside.insert(chunk, copy);
                        book.aside_bytes += length;
                        book.served.copied += 1;
                        book.served.aside_most = book.served.aside_most.max(book.aside_bytes);
                    }
                }
                book.state[chunk as usize] = State::Free;
                let free = self.uffd.protect(ram, at, length, false).map_err(|e| e.to_string());
                kept.and(free)
            }
        };
        if let Err(why) = done {
            book.failed.get_or_insert(format!("a chunk that was written to was not saved: {why}"));
        }
    }

    /// Copies a part of one memory as it was in the pause, and gives it free.
    fn take(&self, ram: usize, at: u64, into: &mut [u8]) -> io::Result<()> {
        let length = into.len() as u64;
        // Of a chunk that is asked for in parts, all is copied aside at the first.
        let whole = at.is_multiple_of(CHUNK)
            && (length.is_multiple_of(CHUNK) || at + length == self.guest.rams()[ram].len() as u64);
        let first = self.first[ram] + (at / CHUNK) as u32;
        let count = (at + length).div_ceil(CHUNK) as u32 - (at / CHUNK) as u32;
        let mut taken = Vec::new();
        {
            let mut book = self.lock();
            for chunk in first..first + count {
                if !whole && book.state[chunk as usize] == State::Guarded {
                    book.waiting.retain(|&waiting| waiting != chunk);
                    let room = book.aside_bytes;
                    book.aside_bytes = 0;
                    self.fault(&mut book, chunk);
                    book.aside_bytes += room;
                }
                let (_, begin, bytes) = self.place(chunk);
                let from = begin.max(at);
                let to = (begin + bytes).min(at + length);
                let here = &mut into[(from - at) as usize..(to - at) as usize];
                if book.state[chunk as usize] == State::Guarded {
                    book.state[chunk as usize] = State::Taking;
                    taken.push(chunk);
                } else if let Some(copy) = book.aside.get(&chunk) {
                    here.copy_from_slice(&copy[(from - begin) as usize..(to - begin) as usize]);
                    if to == begin + bytes {
                        book.aside.remove(&chunk);
                        book.aside_bytes -= bytes;
                    }
                } else {
                    return Err(io::Error::other("memory was asked for twice, or was given up"));
                }
            }
        }
        let mut i = 0;
        while i < taken.len() {
            let run = (i..taken.len()).take_while(|&j| taken[j] - taken[i] == (j - i) as u32).count();
            let (_, begin, _) = self.place(taken[i]);
            let end = (begin + run as u64 * CHUNK).min(at + length);
            read(&self.guest.rams()[ram], begin, &mut into[(begin - at) as usize..(end - at) as usize])?;
            i += run;
        }
        if !taken.is_empty() {
            self.uffd.protect(ram, at, length, false).map_err(|e| io::Error::other(e.to_string()))?;
        }
        let mut book = self.lock();
        for chunk in taken {
            book.state[chunk as usize] = State::Free;
        }
        // There may be room again, or it was just their turn.
        for chunk in std::mem::take(&mut book.waiting) {
            self.fault(&mut book, chunk);
        }
        match &book.failed {
            Some(why) => Err(io::Error::other(why.clone())),
            None => Ok(()),
        }
    }

    /// Gives everything free, a part at a time.
    fn release(&self) {
        let mut book = self.lock();
        if book.phase == Phase::Open {
            return;
        }
        book.phase = Phase::Open;
        book.clear();
        drop(book);
        for (number, ram) in self.guest.rams().iter().enumerate() {
            let first = self.first[number] as usize;
            for at in (0..ram.len() as u64).step_by(ARM as usize) {
                let length = (ram.len() as u64 - at).min(ARM);
                let chunks = first + (at / CHUNK) as usize..first + (at + length).div_ceil(CHUNK) as usize;
                let mut book = self.lock();
                if book.state[chunks.clone()].iter().any(|&state| state != State::Free) {
                    // It is registered and within; what waits is woken in any case when the descriptor is closed.
                    let _ = self.uffd.protect(number, at, length, false);
                    book.state[chunks].fill(State::Free);
                }
            }
        }
    }
}

/// How long something takes, beside what it gives.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let done = work();
    (done, begin.elapsed())
}
