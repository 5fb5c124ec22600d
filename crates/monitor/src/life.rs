//! The life of a machine that runs: who may stop it, and how everybody stands still.
//!
//! ```text
//!   Ready ──run──▶ Running ◀──resume── Paused
//!     │               └─────pause───────▲ │
//!     └──pause─────────────────────────┘ └──stop──▶ Ended
//! ```
//!
//! A pause takes every vCPU out of KVM_RUN with a flag in the page that it shares with the kernel and a signal, so that
//! none is missed however close to the call it is. A vCPU that comes back so has nothing pending: KVM finishes the access
//! that the last exit was about before it looks at the flag. It then stands in its own thread and does what it is asked
//! to there ([`Life::settle`]), because a vCPU that is run by another thread costs a grace period of the kernel's.
//! When all vCPUs stand, the thread of the devices brings them to rest; only then [`Life::pause`] comes back.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use evenkeel_sys::requests::KVM_KVMCLOCK_CTRL;
use evenkeel_sys::{Exit, Kicker, Refusal, Runner};
use rustix::event::{EventfdFlags, eventfd};

use crate::Error;

/// Why a machine stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest asked for a reset, by the keyboard controller or by a triple fault.
    Reset,
    /// The guest switched itself off.
    Off,
    /// The time was over.
    TimeOver,
    /// Somebody outside asked for it.
    Stopped,
    /// A vCPU or a device came to a point from which nothing goes on.
    Failed(String),
}

/// Where a machine's life is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is made, and has not run.
    Ready,
    /// Its vCPUs run.
    Running,
    /// All of it stands still, and can go on.
    Paused,
    /// It is over.
    Ended(End),
}

/// What everybody is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wish {
    Run,
    Pause,
    End(End),
}

/// One thread: a vCPU's, or that of the devices.
#[derive(Debug, Default)]
struct Seat {
    /// Takes it out of KVM_RUN; none before it runs.
    kicker: Option<Kicker>,
    still: bool,
    /// It is asked to settle; the answer follows.
    asked: bool,
    answer: Option<Result<Exit, evenkeel_sys::Error>>,
}

#[derive(Debug)]
struct State {
    wish: Wish,
    phase: Phase,
    /// Threads that run it; empty before it runs.
    vcpus: Vec<Seat>,
    /// The thread of the devices stands, and they are quiet.
    quiet: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Wakes the thread of the devices.
    bell: OwnedFd,
}

/// A handle to a machine: whoever has one can pause, resume and stop it.
#[derive(Clone, Debug)]
pub struct Life(Arc<Shared>);

impl Life {
    /// Of a machine that has not run.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn new() -> Result<Life, Error> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::Device(format!("eventfd: {e}")))?;
        let state = State { wish: Wish::Run, phase: Phase::Ready, vcpus: Vec::new(), quiet: false };
        Ok(Life(Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), bell })))
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.lock().phase.clone()
    }

    /// Returns when every vCPU is out of KVM_RUN with nothing pending and the devices are quiet: how long it took. A machine
    /// that has not run stays where it is when it is started; one that is paused already is left so.
    ///
    /// # Errors
    /// It has ended.
    pub fn pause(&self) -> Result<Duration, Error> {
        let begin = Instant::now();
        let mut state = self.lock();
        if let Wish::End(end) = &state.wish {
            return Err(Error::Over(end.clone()));
        }
        state.wish = Wish::Pause;
        self.call(&state);
        while !state.vcpus.is_empty() && !all_still(&state) {
            if let Wish::End(end) = &state.wish {
                return Err(Error::Over(end.clone()));
            }
            state = self.wait(state);
        }
        state.phase = Phase::Paused;
        Ok(begin.elapsed())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It has ended.
    pub fn resume(&self) -> Result<(), Error> {
        let mut state = self.lock();
        match &state.wish {
            Wish::End(end) => return Err(Error::Over(end.clone())),
            Wish::Run => {}
            Wish::Pause => {
                state.wish = Wish::Run;
                state.phase = if state.vcpus.is_empty() { Phase::Ready } else { Phase::Running };
                self.0.changed.notify_all();
            }
        }
        Ok(())
    }

    /// Ends it.
    pub fn stop(&self) {
        self.end(End::Stopped);
    }

    /// Ends it, as something that it needs is not there any more.
    pub fn fail(&self, why: String) {
        self.end(End::Failed(why));
    }

    /// Waits until it has ended, for at most this long.
    pub fn ended_within(&self, limit: Option<Duration>) -> Option<End> {
        let until = limit.map(|limit| Instant::now() + limit);
        let mut state = self.lock();
        loop {
            if let Wish::End(end) = &state.wish {
                return Some(end.clone());
            }
            state = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                None => self.wait(state),
                Some(Duration::ZERO) => return None,
                Some(left) => {
                    self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Enters the kernel's run loop with a signal pending, in the thread of this vCPU, which stands: timers that expired
    /// meanwhile become interrupts, and nothing of the guest is executed.
    ///
    /// # Errors
    /// As the kernel says, or there is no such vCPU that stands.
    pub fn settle(&self, vcpu: usize) -> Result<Exit, evenkeel_sys::Error> {
        let gone = || evenkeel_sys::Error {
            ioctl: "KVM_RUN",
            argument: format!("vCPU {vcpu}"),
            why: Refusal::Nonsense("it does not stand still".to_owned()),
        };
        let mut state = self.lock();
        // A machine that was paused before it ran comes to stand soon.
        while state.wish == Wish::Pause && state.vcpus.get(vcpu).is_some_and(|seat| !seat.still) {
            state = self.wait(state);
        }
        let seat = state.vcpus.get_mut(vcpu).ok_or_else(gone)?;
        seat.asked = true;
        seat.answer = None;
        self.0.changed.notify_all();
        loop {
            if state.wish != Wish::Pause {
                return Err(gone());
            }
            if let Some(answer) = state.vcpus[vcpu].answer.take() {
                return answer;
            }
            state = self.wait(state);
        }
    }

    /// Ends it for this reason, if nothing else has.
    pub(crate) fn end(&self, end: End) {
        let mut state = self.lock();
        if !matches!(state.wish, Wish::End(_)) {
            state.wish = Wish::End(end);
        }
        self.call(&state);
    }

    /// It begins to run, with this many vCPUs.
    pub(crate) fn begin(&self, vcpus: usize) {
        let mut state = self.lock();
        state.vcpus = (0..vcpus).map(|_| Seat::default()).collect();
        if state.wish == Wish::Run {
            state.phase = Phase::Running;
        }
    }

    /// Nothing of it runs any more. Returns why.
    pub(crate) fn over(&self) -> End {
        let mut state = self.lock();
        let end = match &state.wish {
            Wish::End(end) => end.clone(),
            Wish::Run | Wish::Pause => End::Stopped,
        };
        state.wish = Wish::End(end.clone());
        state.phase = Phase::Ended(end.clone());
        self.0.changed.notify_all();
        end
    }

    /// A vCPU came out of KVM_RUN without an exit that somebody has to see to, or has not run yet. Comes back when it is to
    /// run; false: it is not to run any more.
    pub(crate) fn rest(&self, vcpu: usize, runner: &mut Runner<'_, '_>) -> bool {
        let mut state = self.lock();
        // What begins here may have been stopped elsewhere.
        let mut stood = state.vcpus[vcpu].kicker.is_none();
        if stood {
            state.vcpus[vcpu].kicker = Some(runner.kicker());
        }
        loop {
            match state.wish {
                Wish::End(_) => return false,
                Wish::Run => break,
                Wish::Pause => {}
            }
            stood = true;
            let seat = &mut state.vcpus[vcpu];
            if !seat.still {
                seat.still = true;
                // It did its work: nobody kicks who stands, and with it set a vCPU could not settle.
                runner.leave_at_once(false);
                self.0.changed.notify_all();
            }
            if std::mem::take(&mut state.vcpus[vcpu].asked) {
                drop(state);
                let answer = runner.run_signalled();
                state = self.lock();
                state.vcpus[vcpu].answer = Some(answer);
                self.0.changed.notify_all();
                continue;
            }
            state = self.wait(state);
        }
        // Under the lock: whoever kicks does so after this, or sees that it stands.
        state.vcpus[vcpu].still = false;
        runner.leave_at_once(false);
        drop(state);
        if stood {
            // A guest that has no kvmclock cannot be told, and has no watchdog of it either.
            let _ = runner.vcpu().int(&KVM_KVMCLOCK_CTRL, 0);
        }
        true
    }

    /// What wakes the thread of the devices: readable when there is a wish.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.0.bell.as_fd()
    }

    /// The bell rang. When everybody else stands, `quiesce` is called, and this comes back when devices may work again; false:
    /// they need not any more.
    pub(crate) fn attend(&self, quiesce: impl FnOnce() -> Result<(), Error>) -> bool {
        let mut count = [0; 8];
        // It is empty when it rang for what is over already.
        let _ = rustix::io::read(&self.0.bell, &mut count);
        let mut state = self.lock();
        while state.wish == Wish::Pause && !state.vcpus.iter().all(|seat| seat.still) {
            state = self.wait(state);
        }
        if state.wish == Wish::Pause {
            drop(state);
            let quiet = quiesce();
            state = self.lock();
            if let Err(error) = quiet {
                drop(state);
                self.end(End::Failed(error.to_string()));
                return false;
            }
            state.quiet = true;
            self.0.changed.notify_all();
            while state.wish == Wish::Pause {
                state = self.wait(state);
            }
            state.quiet = false;
        }
        state.wish == Wish::Run
    }

    /// Everybody hears of the wish.
    fn call(&self, state: &State) {
        for kicker in state.vcpus.iter().filter(|seat| !seat.still).filter_map(|seat| seat.kicker.as_ref()) {
            kicker.kick();
        }
        // It is full when it rings already.
        let _ = rustix::io::write(&self.0.bell, &1_u64.to_ne_bytes());
        self.0.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

fn all_still(state: &State) -> bool {
    state.quiet && state.vcpus.iter().all(|seat| seat.still)
}
