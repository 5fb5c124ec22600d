//! The threads of a machine, whatever board it is on: one a vCPU, and one for what comes from outside to its devices.

use std::os::fd::OwnedFd;
use std::sync::Barrier;
use std::time::Duration;

use evenkeel_state::{Cpu, Retire};
use evenkeel_sys::{Errno, Error as CallError, Exit, Runner, System, Vcpu};
use rustix::event::{PollFd, PollFlags, poll};

use crate::Error;
use crate::chassis::Chassis;
use crate::confine::Thread;
use crate::life::{End, Life};

/// What a board does for its threads.
pub(crate) trait Rig<'b>: Sync {
    /// Its life, what its threads may do, and its counters.
    fn chassis(&self) -> &Chassis;

    /// `/dev/kvm`.
    fn system(&self) -> &System<'b>;

    /// Its vCPUs.
    fn vcpus(&self) -> &[Vcpu<'b>];

    /// Does what the guest stopped for. Returns why it is over, if it is.
    ///
    /// # Errors
    /// No guest can go on from there.
    fn exit(&self, runner: &mut Runner<'_, 'b>, exit: Exit) -> Result<Option<End>, Error>;

    /// Files that become readable when there is something for a device, each with the device's number.
    ///
    /// # Errors
    /// There is no descriptor left.
    fn sources(&self) -> Result<Vec<(usize, OwnedFd)>, Error>;

    /// A device's file became readable.
    fn incoming(&self, device: usize);

    /// After this nothing is in flight in any device.
    ///
    /// # Errors
    /// What was in flight cannot be brought to an end.
    fn quiesce(&self) -> Result<(), Error>;
}

/// A vCPU that stands in its own thread.
pub(crate) struct Standing<'l>(&'l Life, usize);

impl Retire for Standing<'_> {
    fn retire(&mut self) -> Result<Exit, CallError> {
        // It came to stand with nothing pending.
        Ok(Exit::Interrupted)
    }

    fn settle(&mut self) -> Result<Exit, CallError> {
        self.0.settle(self.1)
    }
}

/// All of a machine's vCPUs, which stand.
pub(crate) fn standing(life: &Life, vcpus: usize) -> Vec<Standing<'_>> {
    (0..vcpus).map(|index| Standing(life, index)).collect()
}

/// The same, to be lent to whoever saves state.
pub(crate) fn cpus<'g, 'b>(vcpus: &'g [Vcpu<'b>], standing: &'g mut [Standing<'_>]) -> Vec<Cpu<'g, 'b>> {
    let each = vcpus.iter().zip(standing);
    each.map(|(vcpu, standing)| Cpu { vcpu, retire: Some(standing) }).collect()
}

/// A thread that goes down takes the machine with it.
struct Watch<'l>(&'l Life);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        // Where it came to its end, that was said before, and the first word counts.
        self.0.end(End::Failed("a thread of the machine ended by itself".to_owned()));
    }
}

/// Runs all vCPUs, a thread each, until the guest asks for an end, somebody stops it, or the time is over.
pub(crate) fn run<'b>(rig: &impl Rig<'b>, limit: Option<Duration>) -> End {
    let life = &rig.chassis().life;
    life.begin(rig.vcpus().len());
    // No guest runs before every thread is confined.
    let gate = &Barrier::new(rig.vcpus().len() + 2);
    std::thread::scope(|scope| {
        for (index, vcpu) in rig.vcpus().iter().enumerate() {
            scope.spawn(move || {
                let _watch = Watch(life);
                match run_one(rig, index, vcpu, gate) {
                    Ok(Some(end)) => life.end(end),
                    Ok(None) => {}
                    Err(error) => life.end(End::Failed(format!("vCPU {index}: {error}"))),
                }
            });
        }
        scope.spawn(|| {
            let _watch = Watch(life);
            if let Err(error) = attend(rig, gate) {
                life.end(End::Failed(format!("devices: {error}")));
            }
        });
        // It started the others: they would have had its filter.
        if let Err(error) = rig.chassis().enter(Thread::Main, gate) {
            life.end(End::Failed(error.to_string()));
        }
        if life.ended_within(limit).is_none() {
            life.end(End::TimeOver);
        }
    });
    life.over()
}

/// Runs a vCPU until its machine is over. Returns why, if it is the one that ends it.
fn run_one<'b>(
    rig: &impl Rig<'b>,
    index: usize,
    vcpu: &Vcpu<'b>,
    gate: &Barrier,
) -> Result<Option<End>, Error> {
    let Chassis { life, metrics, .. } = rig.chassis();
    let runner = vcpu.runner(rig.system());
    // The handler of its signal is set now: a confined thread sets none.
    runner.iter().for_each(|runner| drop(runner.kicker()));
    rig.chassis().enter(Thread::Vcpu, gate)?;
    let mut runner = runner?;
    let mut rest = true;
    loop {
        if rest && !life.rest(index, &mut runner) {
            return Ok(None);
        }
        rest = false;
        let ran = runner.run();
        if let Ok(exit) = &ran {
            metrics.exit(exit);
        }
        match ran {
            // Whatever was pending is done: this is where it can stand.
            Ok(Exit::Interrupted) => rest = true,
            Ok(exit) => {
                if let Some(end) = rig.exit(&mut runner, exit)? {
                    return Ok(Some(end));
                }
            }
            // A vCPU that waits for INIT or SIPI got it.
            Err(error) if error.errno() == Some(Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sees to the devices' sources, and to their rest when the machine is paused.
fn attend<'b>(rig: &impl Rig<'b>, gate: &Barrier) -> Result<(), Error> {
    let life = &rig.chassis().life;
    let sources = rig.sources();
    rig.chassis().enter(Thread::Io, gate)?;
    let mut sources = sources?;
    loop {
        let mut polled = vec![PollFd::from_borrowed_fd(life.bell(), PollFlags::IN)];
        polled.extend(sources.iter().map(|(_, fd)| PollFd::new(fd, PollFlags::IN)));
        match poll(&mut polled, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(Error::Device(format!("poll: {error}"))),
        }
        let ready: Vec<PollFlags> = polled.iter().map(PollFd::revents).collect();
        if !ready[0].is_empty() {
            if !life.attend(|| rig.quiesce()) {
                return Ok(());
            }
            continue;
        }
        for ((device, _), ready) in sources.iter().zip(&ready[1..]) {
            if ready.contains(PollFlags::IN) {
                rig.incoming(*device);
            }
        }
        // The other end is gone, and all that it said was heard: there is nothing to wait for any more.
        let mut ready = ready[1..].iter();
        sources.retain(|_| ready.next().is_some_and(|r| r.is_empty() || r.contains(PollFlags::IN)));
    }
}
