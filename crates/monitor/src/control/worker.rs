//! What takes time, done one after the other.

use std::fs::File;
use std::io::Seek as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::protocol::{Answer, Code, Disks, Leave, Left, Phase, Refused, Saved, Took, Work};
use super::{Done, Job, Metrics, Operated, Shared, Targets, Task, lock};
use crate::Error;

/// How often the worker looks whether the machine is over.
const LOOK: Duration = Duration::from_millis(250);
/// What to do about disks that a guest goes on writing to.
const DISKS: &str = "--disk-copy FILE for each (`\"disks\":\"copy\"`, with open files) copies them within the pause; or pause \
                     the machine before; or --leave-disks (`\"disks\":\"leave\"`), if you see to them";
/// How often progress is told.
const TELL: Duration = Duration::from_millis(100);

/// Pauses, resumes and saves a machine.
pub struct Worker {
    metrics: Arc<Metrics>,
    shared: Arc<Shared>,
    todo: Receiver<Job>,
    finished: Sender<Done>,
    /// Since when it stands still.
    stands: Option<Instant>,
}

impl Worker {
    pub(super) fn new(
        metrics: Arc<Metrics>,
        shared: Arc<Shared>,
        todo: Receiver<Job>,
        finished: Sender<Done>,
    ) -> Worker {
        Worker { metrics, shared, todo, finished, stands: None }
    }

    /// Does what is to be done, until the machine is over.
    pub fn run(mut self, machine: &dyn Operated) {
        loop {
            match self.todo.recv_timeout(LOOK) {
                Ok(job) => self.one(job, machine),
                Err(RecvTimeoutError::Timeout) if lock(&self.shared.over).is_none() => {}
                Err(_) => return,
            }
        }
    }

    fn one(&mut self, job: Job, machine: &dyn Operated) {
        let name = match job.task {
            Task::Pause => "pause",
            Task::Resume => "resume",
            Task::Save(_) | Task::SaveUnder(..) => "snapshot",
            Task::Leave(..) => "move",
        };
        *lock(&self.shared.work) = Some(Work { name: name.to_owned(), done: 0, of: 0 });
        self.shared.ring();
        let begin = Instant::now();
        let mut fd = None;
        let answer = match job.task {
            Task::Pause => self.pause(machine),
            Task::Resume => machine.resume().map(|()| {
                if let Some(since) = self.stands.take() {
                    self.metrics.stood_still(since.elapsed());
                }
                Answer::Resumed(Took { seconds: begin.elapsed().as_secs_f64() })
            }),
            Task::Save(mut to) => self.save(machine, &mut to),
            Task::SaveUnder(path, disks, copies) => self.save_under(machine, &path, disks, copies),
            Task::Leave(step, mut to) => self.leave(machine, &step, to.as_mut()).map(|(bytes, passed)| {
                fd = passed;
                Answer::Left(Left { bytes, seconds: begin.elapsed().as_secs_f64() })
            }),
        };
        *lock(&self.shared.work) = None;
        let answer = answer.unwrap_or_else(|error| {
            self.metrics.failed();
            let ended = machine.phase().0 == Phase::Ended;
            Answer::Error(match error {
                Error::Disks(why) if !ended => Refused::new(Code::Disks, why).hinting(DISKS),
                error => Refused::new(if ended { Code::Phase } else { Code::Failed }, error.to_string()),
            })
        });
        // The server outlives what it asked for, or the machine is over.
        let _ = self.finished.send(Done { client: job.client, id: job.id, answer, fd });
        self.shared.ring();
    }

    fn pause(&mut self, machine: &dyn Operated) -> Result<Answer, Error> {
        let took = machine.pause()?;
        if self.stands.is_none() {
            self.stands = Some(Instant::now());
            self.metrics.paused(took);
        }
        Ok(Answer::Paused(Took { seconds: took.as_secs_f64() }))
    }

    fn leave(
        &mut self,
        machine: &dyn Operated,
        step: &Leave,
        to: Option<&mut File>,
    ) -> Result<(u64, Option<OwnedFd>), Error> {
        match step {
            Leave::Pause => drop(self.pause(machine)?),
            Leave::Back(_) => {
                // Whatever it was at: what is remembered of its memory is not needed any more.
                let done = machine.leave(step, None);
                // It stands where it cannot have its disks back.
                machine.resume()?;
                if let Some(since) = self.stands.take() {
                    self.metrics.stood_still(since.elapsed());
                }
                return done;
            }
            Leave::Gone(_) => machine.stop(),
            Leave::Commit(_) => {}
            step => return machine.leave(step, to),
        }
        Ok((0, None))
    }

    fn save(&self, machine: &dyn Operated, to: &mut Targets) -> Result<Answer, Error> {
        let io = |e: std::io::Error| Error::Control(format!("the snapshot's file: {e}"));
        for file in std::iter::once(&mut to.file).chain(&mut to.copies) {
            file.set_len(0).and_then(|()| file.rewind()).map_err(io)?;
        }
        let begin = Instant::now();
        let mut told = None;
        let told = std::cell::RefCell::new(&mut told);
        let progress = |done: u64, of: u64| {
            let mut told = told.borrow_mut();
            if done < of && told.is_some_and(|at: Instant| at.elapsed() < TELL) {
                return;
            }
            **told = Some(Instant::now());
            *lock(&self.shared.work) = Some(Work { name: "snapshot".to_owned(), done, of });
            self.shared.ring();
        };
        let saved = machine.save(to, &progress)?;
        for file in std::iter::once(&to.file).chain(&to.copies) {
            file.sync_data().map_err(io)?;
        }
        let took = begin.elapsed();
        self.metrics.saved(took, saved.bytes);
        if saved.paused_seconds > 0.0 {
            self.metrics.stood_still(Duration::from_secs_f64(saved.paused_seconds));
        }
        Ok(Answer::Saved(Saved { seconds: took.as_secs_f64(), ..saved }))
    }

    fn save_under(
        &self,
        machine: &dyn Operated,
        path: &str,
        disks: Disks,
        copies: Vec<File>,
    ) -> Result<Answer, Error> {
        let mut outcome = None;
        let written = evenkeel_files::replace(Path::new(path), |file| {
            let saved = file.try_clone().map_err(|e| Error::Control(format!("{path}: {e}")));
            let saved = saved.and_then(|file| self.save(machine, &mut Targets { file, disks, copies }));
            let done = match &saved {
                Ok(_) => Ok(()),
                Err(e) => Err(std::io::Error::other(e.to_string())),
            };
            outcome = Some(saved);
            done
        });
        match (written, outcome) {
            (Ok(()), Some(saved)) => saved,
            (_, Some(Err(error))) => Err(error),
            (Err(e), _) => Err(Error::Control(format!("{path}: {e}"))),
            (Ok(()), None) => Err(Error::Control(format!("{path}: nothing was written"))),
        }
    }
}
