//! A guest that is made up: it writes to its memory all the time, counts, and knows when something is wrong with it.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use evenkeel_migrate::{Arriving, GuestError, Leaving, Range, Section};

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
}

/// One copy.
pub struct Copy {
    inside: Arc<Mutex<Inside>>,
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
        };
        Copy {
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
        inside.lock().unwrap().stop = false;
        self.thread = Some(std::thread::spawn(move || {
            loop {
                let mut inside = inside.lock().unwrap();
                if inside.stop {
                    return;
                }
                if !truth.count(inside.count) {
                    return;
                }
                inside.count += 1;
                // Each page says when it was written last: the one before it in turn was written one count earlier.
                let page = inside.count % 61;
                let count = inside.count.to_le_bytes();
                inside.memory[(page * PAGE) as usize..][..8].copy_from_slice(&count);
                if inside.tracked {
                    inside.written.insert(page);
                }
                let count = inside.count;
                drop(inside);
                if count.is_multiple_of(16) {
                    std::thread::sleep(Duration::from_micros(300));
                }
            }
        }));
    }

    pub fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.inside.lock().unwrap().stop = true;
            thread.join().unwrap();
            self.truth.end();
        }
    }

    /// Every page holds what was written there last.
    fn check(&self) -> Result<(), GuestError> {
        let inside = self.inside.lock().unwrap();
        for back in 0..61.min(inside.count) {
            let count = inside.count - back;
            let at = (count % 61 * PAGE) as usize;
            let there = u64::from_le_bytes(inside.memory[at..at + 8].try_into().unwrap());
            if there != count {
                return Err(GuestError(format!(
                    "page {} holds {there}, and {count} was written",
                    count % 61
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
        let written = std::mem::take(&mut self.inside.lock().unwrap().written);
        Ok(written.into_iter().map(|page| Range { address: page * PAGE, length: PAGE }).collect())
    }

    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), GuestError> {
        let inside = self.inside.lock().unwrap();
        into.copy_from_slice(&inside.memory[address as usize..][..into.len()]);
        Ok(())
    }

    fn pause(&mut self) -> Result<(), GuestError> {
        self.stop();
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<Section>, GuestError> {
        let count = self.inside.lock().unwrap().count.to_le_bytes().to_vec();
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
        if !self.runs() {
            self.start();
        }
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
        let count = u64::from_le_bytes(count.bytes[..].try_into().unwrap());
        self.inside.lock().unwrap().count = count;
        self.check()
    }

    fn run(&mut self, epoch: u64) -> Result<(), GuestError> {
        self.epoch = Some(epoch);
        self.start();
        Ok(())
    }

    fn discard(&mut self) {
        let mut inside = self.inside.lock().unwrap();
        inside.memory.fill(0);
        inside.count = 0;
    }
}
