//! The threads of a machine: one a vCPU, and one for what comes from outside to its devices.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Barrier;
use std::time::Duration;

use evenkeel_sys::{Errno, Exit, Vcpu};
use rustix::event::{PollFd, PollFlags, poll};

use super::{Pc, lock};
use crate::Error;
use crate::confine::Thread;
use crate::life::{End, Life};

/// A thread that goes down takes the machine with it.
struct Watch<'l>(&'l Life);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        // Where it came to its end, that was said before, and the first word counts.
        self.0.end(End::Failed("a thread of the machine ended by itself".to_owned()));
    }
}

impl<'b, W: Write + Send> Pc<'_, 'b, W> {
    /// Runs all vCPUs, a thread each, until the guest asks for a reset, somebody stops it, or the time is over.
    pub fn run(&self, limit: Option<Duration>) -> End {
        self.life.begin(self.vcpus.len());
        // No guest runs before every thread is confined.
        let gate = &Barrier::new(self.vcpus.len() + 2);
        std::thread::scope(|scope| {
            for (index, vcpu) in self.vcpus.iter().enumerate() {
                scope.spawn(move || {
                    let _watch = Watch(&self.life);
                    match self.run_one(index, vcpu, gate) {
                        Ok(Some(end)) => self.life.end(end),
                        Ok(None) => {}
                        Err(error) => self.life.end(End::Failed(format!("vCPU {index}: {error}"))),
                    }
                });
            }
            scope.spawn(|| {
                let _watch = Watch(&self.life);
                if let Err(error) = self.attend(gate) {
                    self.life.end(End::Failed(format!("devices: {error}")));
                }
            });
            // It started the others: they would have had its filter.
            if let Err(error) = self.enter(Thread::Main, gate) {
                self.life.end(End::Failed(error.to_string()));
            }
            if self.life.ended_within(limit).is_none() {
                self.life.end(End::TimeOver);
            }
        });
        self.life.over()
    }

    /// Runs a vCPU until its machine is over. Returns why, if it is the one that ends it.
    fn run_one(&self, index: usize, vcpu: &Vcpu<'b>, gate: &Barrier) -> Result<Option<End>, Error> {
        let runner = vcpu.runner(self.machine.system());
        // The handler of its signal is set now: a confined thread sets none.
        runner.iter().for_each(|runner| drop(runner.kicker()));
        self.enter(Thread::Vcpu, gate)?;
        let mut runner = runner?;
        let mut rest = true;
        loop {
            if rest && !self.life.rest(index, &mut runner) {
                return Ok(None);
            }
            rest = false;
            let ran = runner.run();
            if let Ok(exit) = &ran {
                self.metrics.exit(exit);
            }
            match ran {
                // Whatever was pending is done: this is where it can stand.
                Ok(Exit::Interrupted) => rest = true,
                Ok(exit) => {
                    if let Some(end) = self.exit(&mut runner, exit)? {
                        return Ok(Some(end));
                    }
                }
                // A vCPU that waits for INIT or SIPI got it.
                Err(error) if error.errno() == Some(Errno::EAGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Confines this thread, and waits until all the others have done the same.
    fn enter(&self, thread: Thread, gate: &Barrier) -> Result<(), Error> {
        let entered = self.confinement.get().map_or(Ok(()), |confinement| confinement.enter(thread));
        gate.wait();
        entered.map_err(|e| Error::Confinement(e.to_string()))
    }

    /// The files that tell of something for the devices.
    fn sources(&self) -> Result<Vec<(usize, OwnedFd)>, Error> {
        let mut sources: Vec<(usize, OwnedFd)> = Vec::new();
        for (index, slot) in lock(&self.devices).virtio.iter().enumerate() {
            if let Some(source) = slot.transport.source() {
                // The same open file: a device keeps its source for as long as it lives.
                let own = source.try_clone_to_owned();
                sources.push((index, own.map_err(|e| Error::Device(format!("a device's source: {e}")))?));
            }
        }
        Ok(sources)
    }

    /// Sees to the devices' sources, and to their rest when the machine is paused.
    fn attend(&self, gate: &Barrier) -> Result<(), Error> {
        let sources = self.sources();
        self.enter(Thread::Io, gate)?;
        let mut sources = sources?;
        loop {
            let mut polled = vec![PollFd::from_borrowed_fd(self.life.bell(), PollFlags::IN)];
            polled.extend(sources.iter().map(|(_, fd)| PollFd::new(fd, PollFlags::IN)));
            match poll(&mut polled, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(Error::Device(format!("poll: {error}"))),
            }
            let ready: Vec<PollFlags> = polled.iter().map(PollFd::revents).collect();
            if !ready[0].is_empty() {
                if !self.life.attend(|| self.quiesce()) {
                    return Ok(());
                }
                continue;
            }
            let mut devices = lock(&self.devices);
            for ((index, _), ready) in sources.iter().zip(&ready[1..]) {
                if ready.contains(PollFlags::IN) {
                    let slot = &mut devices.virtio[*index];
                    slot.transport.incoming(&self.memory);
                    slot.wire(&self.interrupts);
                }
            }
            drop(devices);
            // The other end is gone, and all that it said was heard: there is nothing to wait for any more.
            let mut ready = ready[1..].iter();
            sources.retain(|_| ready.next().is_some_and(|r| r.is_empty() || r.contains(PollFlags::IN)));
        }
    }

    fn quiesce(&self) -> Result<(), Error> {
        lock(&self.devices).virtio.iter_mut().try_for_each(|slot| {
            let quiet = slot.transport.quiesce();
            slot.wire(&self.interrupts);
            quiet
        })
    }
}
