//! **Control**: a unix socket, on which a machine is asked and told things while it runs. docs/control.md is its manual.
//!
//! Two threads serve it. The [`Server`] reads requests, answers what can be answered at once and never waits for anything but
//! its sockets; the [`Worker`] does what takes time, one thing after the other. Neither is on the way of a vCPU. A client has no
//! more than a bounded part of either: of memory, of descriptors, of turns, of time.

pub mod client;
mod connection;
mod listen;
pub mod metrics;
mod mover;
pub mod protocol;
mod server;
mod worker;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::Error;
use crate::confine::Report;

pub use client::Client;
pub use listen::listen;
pub use metrics::Metrics;
pub use protocol::{Command, Line, Request};
pub use server::Server;
pub use worker::Worker;

use mover::Mover;
use protocol::{Answer, Disks, Leave, Phase, Saved, Vcpus, Work};

/// As many jobs wait for the worker.
const WAITING: usize = 8;

/// A machine that can be operated.
pub trait Operated: Sync {
    /// Where its life is, and why it ended if it has. Comes back at once.
    fn phase(&self) -> (Phase, Option<String>);

    /// Brings it to a standstill: how long that took.
    ///
    /// # Errors
    /// It cannot be, as from where it is.
    fn pause(&self) -> Result<Duration, Error>;

    /// Lets it go on.
    ///
    /// # Errors
    /// It has ended.
    fn resume(&self) -> Result<(), Error>;

    /// Asks it to end. Comes back at once.
    fn stop(&self);

    /// How many vCPUs it has, where the machine can have more. Comes back at once.
    fn vcpus(&self) -> Option<Vcpus>;

    /// From now on it has so many: how many that are, and can be. Comes back at once.
    ///
    /// # Errors
    /// It cannot have so many, or not fewer.
    fn plug(&self, vcpus: u32) -> Result<Vcpus, Error>;

    /// What its devices did. Comes back at once: what cannot be looked at now is told as it was the last time.
    fn devices(&self) -> Vec<metrics::Device>;

    /// Saves it into the first file, and its disks, if they are to be copied, into the others. Wherever its life is, it is left
    /// there. Tells bytes done and bytes in all.
    ///
    /// # Errors
    /// It cannot be saved, or a file takes no more.
    fn save(&self, to: &mut Targets, progress: &dyn Fn(u64, u64)) -> Result<Saved, Error>;

    /// A step of a move: [`protocol::Leave`] but for who may ask for it. What is written goes into `to`, and a descriptor that is
    /// returned goes to the mover; with it, how many bytes there are.
    ///
    /// # Errors
    /// It was not done.
    fn leave(&self, step: &protocol::Leave, to: Option<&mut File>) -> Result<(u64, Option<OwnedFd>), Error>;
}

/// Where a snapshot goes.
#[derive(Debug)]
pub struct Targets {
    /// The capsule, empty.
    pub file: File,
    /// What becomes of disks that a guest which runs writes to.
    pub disks: Disks,
    /// Where they are copied to.
    pub copies: Vec<File>,
}

/// What does not change about a machine.
#[derive(Clone, Debug)]
pub struct About {
    /// How many vCPUs KVM has.
    pub vcpus: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// How often its guest moved, and once more.
    pub epoch: u64,
    /// What the process is confined to.
    pub confinement: Report,
}

/// Something for the worker.
struct Job {
    /// Whose.
    client: u64,
    id: Option<u64>,
    task: Task,
}

enum Task {
    Pause,
    Resume,
    Save(Targets),
    SaveUnder(String, Disks, Vec<File>),
    Leave(Leave, Option<File>),
}

/// What came of a job.
struct Done {
    client: u64,
    id: Option<u64>,
    answer: Answer,
    /// Goes with it.
    fd: Option<OwnedFd>,
}

/// What both threads and whoever ends the machine know.
struct Shared {
    bell: OwnedFd,
    work: Mutex<Option<Work>>,
    mover: Mutex<Option<Mover>>,
    /// The machine is over: say so, and come back.
    over: Mutex<Option<Instant>>,
    began: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn ring(&self) {
        // It is full when it rings already.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }
}

/// Ends the server: see [`Ending::end`].
#[derive(Clone)]
pub struct Ending(Arc<Shared>);

impl Ending {
    /// The machine is over: those who listen are told, as far as they read it within this time, and [`Server::run`] and
    /// [`Worker::run`] come back.
    pub fn end(&self, within: Duration) {
        *lock(&self.0.over) = Some(Instant::now() + within);
        self.0.ring();
    }
}

/// The two that serve this socket, each to be run by a thread of its own, and what ends them.
///
/// # Errors
/// There is no descriptor left.
pub fn serve(
    listener: UnixListener,
    about: About,
    metrics: Arc<Metrics>,
) -> Result<(Server, Worker, Ending), Error> {
    let failed = |e: &dyn std::fmt::Display| Error::Control(format!("control socket: {e}"));
    listener.set_nonblocking(true).map_err(|e| failed(&e))?;
    let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| failed(&e))?;
    let shared = Arc::new(Shared {
        bell,
        work: Mutex::default(),
        mover: Mutex::default(),
        over: Mutex::default(),
        began: Instant::now(),
    });
    let (jobs, todo): (SyncSender<Job>, Receiver<Job>) = sync_channel(WAITING);
    let (finished, done): (Sender<Done>, Receiver<Done>) = channel();
    let server = Server::new(listener, about, metrics.clone(), shared.clone(), jobs, done);
    let worker = Worker::new(metrics, shared.clone(), todo, finished);
    Ok((server, worker, Ending(shared)))
}
