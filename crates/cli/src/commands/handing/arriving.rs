//! The guest on the side that it comes to: a process of its own, which runs it from then on.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use evenkeel_migrate::{Arriving, GuestError, Section};
use evenkeel_monitor::board::MEMORY_BEGINS;
use evenkeel_sys::Ram;

use super::bundle;
use super::channel::{Ask, Channel, Told};
use super::formats::{Formats, OURS};
use super::leaving::STATE;

const PAGE: usize = 4096;

/// The process that a guest comes to.
pub struct Arrival {
    program: PathBuf,
    arguments: Vec<String>,
    /// Memory that is there already: its file and bytes.
    handed: Option<(File, u64)>,
    at: Option<Process>,
    runs: Lives,
}

/// A guest that runs, seen from elsewhere.
#[derive(Clone, Default)]
pub struct Lives(Arc<Mutex<Option<Child>>>);

impl Lives {
    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a guest runs, and its process has not ended.
    pub fn on(&self) -> bool {
        self.child().as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }
}

struct Process {
    /// Until its guest runs: then [`Lives`] has it.
    child: Option<Child>,
    channel: Channel,
    ram: Option<Ram>,
    /// Pages into which something was written: the others are zero.
    touched: Vec<bool>,
}

fn failed(e: &dyn std::fmt::Display) -> GuestError {
    GuestError(e.to_string())
}

impl Process {
    fn start(program: &Path, arguments: &[String]) -> Result<Process, GuestError> {
        let cannot = |e: std::io::Error| GuestError(format!("{} cannot be started: {e}", program.display()));
        let theirs = Formats::of(program).map_err(cannot)?;
        OURS.with(theirs).map_err(|why| GuestError(format!("{}: {why}", program.display())))?;
        let (channel, theirs): (Channel, OwnedFd) = Channel::pair().map_err(cannot)?;
        let child = Command::new(program).arg("arrive").args(arguments).stdin(Stdio::from(theirs)).spawn();
        Ok(Process { child: Some(child.map_err(cannot)?), channel, ram: None, touched: Vec::new() })
    }

    fn ask(&self, ask: &Ask, file: Option<&File>) -> Result<(Told, Option<OwnedFd>), GuestError> {
        let file = file.map(|file| file.as_fd());
        self.channel.say(ask, file).map_err(|_| GuestError("its process has ended".to_owned()))?;
        match self.channel.hear::<Told>().map_err(|e| failed(&e))? {
            Some((Told::Failed(why), _)) => Err(GuestError(why)),
            Some(told) => Ok(told),
            None => Err(GuestError("its process has ended".to_owned())),
        }
    }

    fn end(self) {
        drop(self.channel);
        let Some(mut child) = self.child else { return };
        // It ends when nobody speaks to it; one that does not is ended.
        for _ in 0..200 {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Arrival {
    /// Guests come to processes of this program with these arguments.
    pub fn new(program: PathBuf, arguments: Vec<String>) -> Arrival {
        Arrival { program, arguments, handed: None, at: None, runs: Lives::default() }
    }

    /// The guest's memory is this file already.
    pub fn handed(mut self, file: File, bytes: u64) -> Arrival {
        self.handed = Some((file, bytes));
        self
    }

    /// Starts its process, which needs a while until it can take a guest.
    pub fn prepare(&mut self) -> Result<(), GuestError> {
        if self.at.is_none() {
            self.at = Some(Process::start(&self.program, &self.arguments)?);
        }
        Ok(())
    }

    /// Whether its guest runs, for who has to know while it is used elsewhere.
    pub fn lives(&self) -> Lives {
        self.runs.clone()
    }

    /// Waits for the end of a guest that runs; none: none runs.
    pub fn wait(&mut self) -> Option<std::io::Result<ExitStatus>> {
        self.runs.child().as_mut().map(Child::wait)
    }

    fn process(&mut self) -> Result<&mut Process, GuestError> {
        self.at.as_mut().ok_or_else(|| GuestError("no guest was accepted".to_owned()))
    }

    fn place(&self, address: u64, length: usize) -> Result<(&Process, &Ram, usize), GuestError> {
        let at = address.checked_sub(MEMORY_BEGINS).and_then(|at| usize::try_from(at).ok());
        let process = self.at.as_ref();
        let place = process.and_then(|process| Some((process, process.ram.as_ref()?, at?)));
        let place = place.filter(|(_, ram, at)| at.checked_add(length).is_some_and(|end| end <= ram.len()));
        place.ok_or_else(|| GuestError(format!("the guest has no memory of {length} bytes at {address:#x}")))
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        // One that runs is not this process' to end: its child is not there any more.
        self.discard();
    }
}

impl Arriving for Arrival {
    fn accepts(&mut self, offer: &[u8]) -> Result<(), GuestError> {
        self.prepare()?;
        let handed = self.handed.as_ref().map(|(file, bytes)| file.try_clone().map(|file| (file, *bytes)));
        let handed = handed.transpose().map_err(|e| failed(&e))?;
        let process = self.process()?;
        if let Some((file, bytes)) = &handed {
            process.ask(&Ask::Memory(*bytes), Some(file))?;
        }
        let offered = bundle::holding(offer).map_err(|e| failed(&e))?;
        let (told, fd) = process.ask(&Ask::Accept, Some(&offered))?;
        let (Told::Memory(bytes), Some(fd)) = (told, fd) else {
            return Err(GuestError("its process gives no memory".to_owned()));
        };
        if handed.is_none() {
            let length = usize::try_from(bytes).map_err(|e| failed(&e))?;
            process.ram = Some(Ram::of(fd, length).map_err(|e| failed(&format!("memory: {e:?}")))?);
            process.touched = vec![false; length.div_ceil(PAGE)];
        }
        Ok(())
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), GuestError> {
        let (_, ram, at) = self.place(address, bytes.len())?;
        ram.write(at, bytes).map_err(|e| failed(&e))?;
        let last = (at + bytes.len()).div_ceil(PAGE);
        self.process()?.touched[at / PAGE..last].fill(true);
        Ok(())
    }

    fn zero(&mut self, address: u64, length: u64) -> Result<(), GuestError> {
        let length = usize::try_from(length).map_err(|e| failed(&e))?;
        let (process, ram, at) = self.place(address, length)?;
        let (mut from, end) = (at, at + length);
        while from < end {
            let to = (from / PAGE + 1) * PAGE;
            let part = to.min(end) - from;
            if process.touched[from / PAGE] {
                ram.write(from, &[0; PAGE][..part]).map_err(|e| failed(&e))?;
            }
            from += part;
        }
        Ok(())
    }

    fn restore(&mut self, state: Vec<Section>) -> Result<(), GuestError> {
        let [section] = state.as_slice() else {
            return Err(GuestError(format!("{} sections of state, and one is awaited", state.len())));
        };
        if section.name != STATE {
            return Err(GuestError(format!("state under the name `{}`", section.name)));
        }
        let file = bundle::holding(&section.bytes).map_err(|e| failed(&e))?;
        self.process()?.ask(&Ask::Restore, Some(&file)).map(drop)
    }

    fn run(&mut self, epoch: u64) -> Result<(), GuestError> {
        let process = self.process()?;
        process.ask(&Ask::Run(epoch), None)?;
        let child = process.child.take();
        *self.runs.child() = child;
        Ok(())
    }

    fn discard(&mut self) {
        if let Some(process) = self.at.take() {
            process.end();
        }
    }

    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), GuestError> {
        let (_, ram, at) = self.place(address, into.len())?;
        ram.read(at, into).map_err(|e| failed(&e))
    }
}
