//! A guest that is made up: it writes to its memory all the time, counts, and knows when something is wrong with it.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use evenkeel_migrate::{Arriving, Ask, GuestError, Lacking, Leaving, Range, Section};

pub const PAGES: u64 = 1024;
const PAGE: u64 = 4096;

/// What all copies of one guest share: the truth about them. With a folder, copies in other processes share it too.
#[derive(Default)]
pub struct Truth {
    /// How many run now.
    running: AtomicI32,
    /// How many ran at once at the most.
    pub most: AtomicI32,
    /// How far the guest counted, whichever copy.
    counted: AtomicU64,
    /// What was found wrong.
    wrong: Mutex<Vec<String>>,
    folder: Option<PathBuf>,
    /// Held while a copy runs in this process.
    lock: Mutex<Option<File>>,
}

impl Truth {
    /// Shared with other processes.
    pub fn within(folder: &Path) -> Truth {
        Truth { folder: Some(folder.to_owned()), ..Truth::default() }
    }

    /// What was found wrong, by whichever process.
    pub fn wrong(&self) -> Vec<String> {
        let mut all = self.wrong.lock().unwrap().clone();
        let told = self.folder.as_ref().and_then(|f| std::fs::read_to_string(f.join("wrong")).ok());
        all.extend(told.iter().flat_map(|text| text.lines()).map(str::to_owned));
        all
    }

    fn note(&self, what: String) {
        if let Some(folder) = &self.folder {
            let mut file = OpenOptions::new().create(true).append(true).open(folder.join("wrong")).unwrap();
            writeln!(file, "{what}").unwrap();
        }
        self.wrong.lock().unwrap().push(what);
    }

    fn begin(&self) {
        let now = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        if let Some(folder) = &self.folder {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(folder.join("runs"))
                .unwrap();
            if file.try_lock().is_err() {
                self.note("two copies run".to_owned());
            }
            *self.lock.lock().unwrap() = Some(file);
        }
    }

    fn end(&self) {
        self.running.fetch_sub(1, Ordering::SeqCst);
        self.lock.lock().unwrap().take();
    }

    /// A copy that counted so far counts one more.
    fn count(&self, from: u64) -> bool {
        let before = match &self.folder {
            None => self.counted.swap(from + 1, Ordering::SeqCst),
            Some(folder) => {
                let path = folder.join("count");
                let file = OpenOptions::new()
                    .create(true)
                    .truncate(false)
                    .read(true)
                    .write(true)
                    .open(path)
                    .unwrap();
                let mut bytes = [0; 8];
                let _ = file.read_at(&mut bytes, 0);
                file.write_at(&(from + 1).to_le_bytes(), 0).unwrap();
                u64::from_le_bytes(bytes)
            }
        };
        // A process that was killed between the two may have told one count that no copy knows of.
        let killed = self.folder.is_some() && before == from + 1;
        if before != from && !killed {
            self.note(format!("it counted to {before}, and a copy goes on from {from}"));
        }
        before == from || killed
    }
}

struct Inside {
    memory: Vec<u8>,
    written: BTreeSet<u64>,
    tracked: bool,
    count: u64,
    stop: bool,
    /// How many pages it writes to, in turn.
    hot: u64,
    /// All of its memory counts as written until it is slowed down to a quarter.
    storm: bool,
    /// How many counts it sleeps after: a guest that writes fast does so rarely.
    busy: u64,
    /// For how much of the time it stands.
    slowed: u8,
    /// Pages that the log of written pages loses on purpose.
    loses: Option<u64>,
    /// Pages that did not come yet, and whom to ask.
    missing: BTreeSet<u64>,
    ask: Option<Ask>,
    held: bool,
}

/// What a VMM cannot do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cannot {
    pub throttle: bool,
    pub lock: bool,
    pub restore: bool,
    pub pause: bool,
}

/// One copy.
pub struct Copy {
    inside: Arc<Mutex<Inside>>,
    /// A page came, or it is to stop.
    came: Arc<Condvar>,
    pub cannot: Cannot,
    /// How often it stood at a page that was missing.
    pub waits: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
    truth: Arc<Truth>,
    pub epoch: Option<u64>,
    pub freed: bool,
}

impl Copy {
    pub fn empty(truth: &Arc<Truth>) -> Copy {
        let inside = Inside {
            memory: vec![0; (PAGES * PAGE) as usize],
            written: BTreeSet::new(),
            tracked: false,
            count: 0,
            stop: false,
            hot: 61,
            storm: false,
            busy: 16,
            slowed: 0,
            loses: None,
            missing: BTreeSet::new(),
            ask: None,
            held: false,
        };
        Copy {
            came: Arc::default(),
            cannot: Cannot::default(),
            waits: Arc::default(),
            inside: Arc::new(Mutex::new(inside)),
            thread: None,
            truth: truth.clone(),
            epoch: None,
            freed: false,
        }
    }

    pub fn runs(&self) -> bool {
        self.thread.is_some()
    }

    pub fn start(&mut self) {
        self.truth.begin();
        let (inside, truth) = (self.inside.clone(), self.truth.clone());
        let (came, waits) = (self.came.clone(), self.waits.clone());
        inside.lock().unwrap().stop = false;
        self.thread = Some(std::thread::spawn(move || {
            loop {
                let mut inside = inside.lock().unwrap();
                if inside.stop {
                    return;
                }
                // Each page says when it was written last: the one before it in turn was written one count earlier.
                let page = (inside.count + 1) % inside.hot;
                if inside.held || inside.missing.contains(&page) {
                    let ask = inside.ask.clone().filter(|_| !inside.held);
                    drop(inside);
                    if let Some(ask) = ask {
                        waits.fetch_add(1, Ordering::SeqCst);
                        ask.page(page * PAGE);
                    }
                    std::thread::sleep(Duration::from_micros(200));
                    continue;
                }
                if !truth.count(inside.count) {
                    return;
                }
                inside.count += 1;
                let count = inside.count.to_le_bytes();
                let at = (page * PAGE) as usize;
                // What it reads there is what it wrote one turn before.
                let there = u64::from_le_bytes(inside.memory[at..at + 8].try_into().unwrap());
                if inside.count > inside.hot && there != inside.count - inside.hot {
                    truth.note(format!("page {page} holds {there} at {}", inside.count));
                    return;
                }
                inside.memory[at..at + 8].copy_from_slice(&count);
                if inside.tracked && inside.loses != Some(page) {
                    inside.written.insert(page);
                }
                let (count, busy, slowed) = (inside.count, inside.busy, inside.slowed);
                drop(inside);
                came.notify_all();
                if count.is_multiple_of(busy) {
                    std::thread::sleep(Duration::from_micros(300 + u64::from(slowed).pow(2) * 4));
                }
            }
        }));
    }

    /// It writes to so many pages in turn, and sleeps after so many counts.
    pub fn writes(&mut self, hot: u64, busy: u64) {
        let mut inside = self.inside.lock().unwrap();
        (inside.hot, inside.busy) = (hot, busy);
    }

    /// It writes faster than any link carries, until its vCPUs stand for three quarters of the time.
    pub fn storms(&mut self) {
        self.fill();
        self.inside.lock().unwrap().storm = true;
    }

    /// Its log of written pages loses this one.
    pub fn loses(&mut self, page: u64) {
        self.inside.lock().unwrap().loses = Some(page);
    }

    pub fn slowed(&self) -> u8 {
        self.inside.lock().unwrap().slowed
    }

    pub fn tracks(&self) -> bool {
        self.inside.lock().unwrap().tracked
    }

    /// Fills memory with what compresses.
    pub fn pattern(&mut self) {
        self.inside.lock().unwrap().memory.chunks_mut(64).for_each(|some| some[8..].fill(7));
        self.clear_counts();
    }

    /// The first words are what the guest counts in.
    fn clear_counts(&mut self) {
        self.inside.lock().unwrap().memory.chunks_mut(PAGE as usize).for_each(|page| page[..8].fill(0));
    }

    /// Fills some memory with what does not compress.
    pub fn fill_half(&mut self) {
        self.fill_to(300_000);
    }

    /// Fills all memory with it.
    pub fn fill(&mut self) {
        self.fill_to(usize::MAX);
    }

    fn fill_to(&mut self, most: usize) {
        let mut seed = 1_u64;
        for (n, word) in self.inside.lock().unwrap().memory.chunks_mut(8).enumerate().take(most / 8) {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(n as u64);
            // The first words are what the guest counts in.
            if !(n * 8).is_multiple_of(PAGE as usize) {
                word.copy_from_slice(&seed.to_le_bytes());
            }
        }
    }

    pub fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.inside.lock().unwrap().stop = true;
            thread.join().unwrap();
            self.truth.end();
        }
    }

    /// Every page that is here holds what was written there last.
    pub fn check(&self) -> Result<(), GuestError> {
        let inside = self.inside.lock().unwrap();
        for back in 0..inside.hot.min(inside.count) {
            let count = inside.count - back;
            if inside.missing.contains(&(count % inside.hot)) {
                continue;
            }
            let at = (count % inside.hot * PAGE) as usize;
            let there = u64::from_le_bytes(inside.memory[at..at + 8].try_into().unwrap());
            if there != count {
                return Err(GuestError(format!(
                    "page {} holds {there}, and {count} was written",
                    count % inside.hot
                )));
            }
        }
        Ok(())
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Leaving for Copy {
    fn offer(&mut self) -> Result<Vec<u8>, GuestError> {
        Ok(b"a guest".to_vec())
    }

    fn memory(&self) -> Vec<Range> {
        vec![Range { address: 0, length: PAGES * PAGE }]
    }

    fn track(&mut self) -> Result<(), GuestError> {
        let mut inside = self.inside.lock().unwrap();
        (inside.tracked, inside.written) = (true, BTreeSet::new());
        Ok(())
    }

    fn written(&mut self) -> Result<Vec<Range>, GuestError> {
        let mut inside = self.inside.lock().unwrap();
        let mut written = std::mem::take(&mut inside.written);
        if inside.storm && inside.slowed < 75 {
            written.extend(0..PAGES);
        }
        Ok(written.into_iter().map(|page| Range { address: page * PAGE, length: PAGE }).collect())
    }

    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), GuestError> {
        let inside = self.inside.lock().unwrap();
        into.copy_from_slice(&inside.memory[address as usize..][..into.len()]);
        Ok(())
    }

    fn pause(&mut self) -> Result<(), GuestError> {
        if self.cannot.pause {
            return Err(GuestError("vCPU 0 does not stop: look at its thread".to_owned()));
        }
        self.stop();
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<Section>, GuestError> {
        let inside = self.inside.lock().unwrap();
        let count =
            [inside.count.to_le_bytes(), inside.hot.to_le_bytes(), inside.busy.to_le_bytes()].concat();
        drop(inside);
        Ok(vec![
            Section { name: "empty".to_owned(), bytes: Vec::new() },
            Section { name: "count".to_owned(), bytes: count },
            Section { name: "large".to_owned(), bytes: vec![7; 1_300_000] },
        ])
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        if self.freed {
            return Err(GuestError("it was freed".to_owned()));
        }
        {
            let mut inside = self.inside.lock().unwrap();
            (inside.tracked, inside.slowed) = (false, 0);
        }
        if !self.runs() {
            self.start();
        }
        Ok(())
    }

    fn throttle(&mut self, percent: u8) -> Result<(), GuestError> {
        if self.cannot.throttle {
            return Err(GuestError("this guest cannot be slowed down".to_owned()));
        }
        self.inside.lock().unwrap().slowed = percent;
        Ok(())
    }

    fn free(&mut self) {
        self.freed = true;
    }
}

impl Arriving for Copy {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), GuestError> {
        Leaving::read(self, address, into)
    }

    fn accepts(&mut self, offer: &[u8]) -> Result<(), GuestError> {
        (offer == b"a guest").then_some(()).ok_or_else(|| GuestError("facet x: another guest".to_owned()))
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), GuestError> {
        let mut inside = self.inside.lock().unwrap();
        let place = usize::try_from(address)
            .ok()
            .and_then(|at| inside.memory.get_mut(at..at.checked_add(bytes.len())?));
        place.ok_or_else(|| GuestError("outside of memory".to_owned()))?.copy_from_slice(bytes);
        Ok(())
    }

    fn zero(&mut self, address: u64, length: u64) -> Result<(), GuestError> {
        if length > PAGES * PAGE {
            return Err(GuestError("outside of memory".to_owned()));
        }
        self.write(address, &vec![0; length as usize])
    }

    fn restore(&mut self, state: Vec<Section>) -> Result<(), GuestError> {
        let [empty, count, large] = &state[..] else { return Err(GuestError("other sections".to_owned())) };
        assert!(
            empty.bytes.is_empty() && large.bytes.iter().all(|b| *b == 7) && large.bytes.len() == 1_300_000
        );
        let word = |n: usize| u64::from_le_bytes(count.bytes[n * 8..n * 8 + 8].try_into().unwrap());
        let mut inside = self.inside.lock().unwrap();
        (inside.count, inside.hot, inside.busy) = (word(0), word(1), word(2));
        drop(inside);
        if self.cannot.lock {
            return Err(GuestError("disk0: its lock is held by another process: end that one".to_owned()));
        }
        if self.cannot.restore {
            return Err(GuestError("vcpu.0/regs: set, and not read back as set".to_owned()));
        }
        self.check()
    }

    fn missing(&mut self, missing: &[Range], ask: Ask) -> Result<Box<dyn Lacking>, GuestError> {
        let mut inside = self.inside.lock().unwrap();
        inside.missing =
            missing.iter().flat_map(|r| r.address / PAGE..(r.address + r.length) / PAGE).collect();
        for page in inside.missing.clone() {
            // What is there is nothing: who reads it all the same notices.
            inside.memory[(page * PAGE) as usize..][..PAGE as usize].fill(0xee);
        }
        inside.ask = Some(ask);
        Ok(Box::new(Coming { inside: self.inside.clone(), truth: self.truth.clone() }))
    }

    fn hold(&mut self) -> Result<(), GuestError> {
        self.inside.lock().unwrap().held = true;
        Ok(())
    }

    fn go_on(&mut self) -> Result<(), GuestError> {
        self.inside.lock().unwrap().held = false;
        Ok(())
    }

    fn run(&mut self, epoch: u64) -> Result<(), GuestError> {
        self.epoch = Some(epoch);
        self.start();
        Ok(())
    }

    fn discard(&mut self) {
        let mut inside = self.inside.lock().unwrap();
        inside.memory.fill(0);
        inside.missing.clear();
        inside.count = 0;
    }
}

/// Where pages go that were missing.
struct Coming {
    inside: Arc<Mutex<Inside>>,
    truth: Arc<Truth>,
}

impl Lacking for Coming {
    fn arrive(&mut self, address: u64, bytes: &[u8]) -> Result<(), GuestError> {
        let mut inside = self.inside.lock().unwrap();
        for page in address / PAGE..(address + bytes.len() as u64) / PAGE {
            if !inside.missing.remove(&page) {
                self.truth.note(format!("page {page} came, and was not missing"));
            }
        }
        inside.memory[address as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn zero(&mut self, address: u64, length: u64) -> Result<(), GuestError> {
        self.arrive(address, &vec![0; length as usize])
    }
}
