//! Memory spread over streams: one thread each, which looks for zeros, compresses, checks and sends. The guest's owner only reads.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use evenkeel_handover::wire::{Content, Frame};

use crate::connection::{Writer, locked};
use crate::memory::{PIECE, runs};

/// What is to be done with a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Send it, as of this round.
    Send(u32),
    /// Say what it is, to be compared.
    Verify,
}

struct Job {
    task: Task,
    address: u64,
    bytes: Vec<u8>,
}

/// The threads. So many pieces are under way that none waits for the next: that is all the memory that they take.
pub(crate) struct Spread {
    jobs: Option<SyncSender<Job>>,
    done: Receiver<Result<Vec<u8>, String>>,
    free: Vec<Vec<u8>>,
    busy: usize,
    threads: Vec<JoinHandle<()>>,
}

impl Spread {
    pub fn new(writers: Vec<Arc<Mutex<Writer>>>, compress: bool) -> Spread {
        let most = writers.len() * 2 + 1;
        let (jobs, todo) = mpsc::sync_channel::<Job>(most);
        let (finished, done) = mpsc::sync_channel(most);
        let todo = Arc::new(Mutex::new(todo));
        let threads = writers
            .into_iter()
            .map(|writer| {
                let (todo, finished) = (todo.clone(), finished.clone());
                std::thread::spawn(move || {
                    let mut packed = Vec::new();
                    loop {
                        let job = locked(&todo).recv();
                        let Ok(job) = job else { return };
                        let result = work(&job, &writer, compress, &mut packed);
                        if finished.send(result.map(|()| job.bytes)).is_err() {
                            return;
                        }
                    }
                })
            })
            .collect();
        let free = (0..most).map(|_| Vec::with_capacity(PIECE)).collect();
        Spread { jobs: Some(jobs), done, free, busy: 0, threads }
    }

    /// Room for a piece, if there is some within this time.
    pub fn room(&mut self, wait: Duration) -> Result<Option<Vec<u8>>, String> {
        if let Some(free) = self.free.pop() {
            return Ok(Some(free));
        }
        self.collect(wait)?;
        Ok(self.free.pop())
    }

    /// Sends a piece.
    pub fn give(&mut self, task: Task, address: u64, bytes: Vec<u8>) {
        self.busy += 1;
        if let Some(jobs) = &self.jobs {
            // There is a place for each, and the threads go only when this does.
            let _ = jobs.send(Job { task, address, bytes });
        }
    }

    /// Whether everything is on its way, after at most this time.
    pub fn idle(&mut self, wait: Duration) -> Result<bool, String> {
        if self.busy > 0 {
            self.collect(wait)?;
        }
        Ok(self.busy == 0)
    }

    fn collect(&mut self, wait: Duration) -> Result<(), String> {
        match self.done.recv_timeout(wait) {
            Ok(result) => {
                self.busy -= 1;
                self.free.push(result?);
                Ok(())
            }
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => Err("the threads that send are gone".to_owned()),
        }
    }
}

impl Drop for Spread {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // It panics nowhere, and what it sends on is closed or has its patience.
            let _ = thread.join();
        }
    }
}

fn work(job: &Job, writer: &Mutex<Writer>, compress: bool, packed: &mut Vec<u8>) -> Result<(), String> {
    let words = |error: std::io::Error| error.to_string();
    let Task::Send(version) = job.task else {
        let digest = *blake3::hash(&job.bytes).as_bytes();
        let frame = Frame::Verify { address: job.address, length: job.bytes.len() as u32, digest };
        return locked(writer).put(&frame).map_err(words);
    };
    for (from, to, zeros) in runs(&job.bytes) {
        let (address, bytes) = (job.address + from as u64, &job.bytes[from..to]);
        if zeros {
            let content = Content::Zeros(bytes.len() as u32);
            locked(writer).put(&Frame::Memory { version, address, content }).map_err(words)?;
            continue;
        }
        let shorter = compress.then(|| pack(bytes, packed)).flatten();
        let mut writer = locked(writer);
        match shorter {
            Some(length) => writer.memory(version, address, Some(bytes.len() as u32), &packed[..length]),
            None => writer.memory(version, address, None, bytes),
        }
        .map_err(words)?;
    }
    Ok(())
}

/// How long it is when it is packed, if that is worth it.
fn pack(bytes: &[u8], packed: &mut Vec<u8>) -> Option<usize> {
    packed.resize(lz4_flex::block::get_maximum_output_size(bytes.len()), 0);
    let length = lz4_flex::block::compress_into(bytes, packed).ok()?;
    (length < bytes.len() / 8 * 7).then_some(length)
}
