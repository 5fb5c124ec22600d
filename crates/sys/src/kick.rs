//! A limit of time for runs of guests: a guest that never exits is taken out of KVM_RUN by a signal.

use std::ffi::c_int;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::run::RunPage;

/// A real-time signal that neither libc nor the standard library uses for themselves (glibc keeps 32 and 33).
const SIGNAL: c_int = 37;
/// A signal that comes just before KVM_RUN is lost: so another follows, until the run is over.
const AGAIN: Duration = Duration::from_millis(5);

type Handler = extern "C" fn(c_int);

// SAFETY: as glibc declares them (signal.h); a handler and the numbers that stand for one have one size.
unsafe extern "C" {
    pub(crate) fn signal(number: c_int, handler: usize) -> usize;
    fn pthread_sigmask(how: c_int, set: *const SignalSet, before: *mut SignalSet) -> c_int;
    fn tgkill(process: c_int, thread: c_int, number: c_int) -> c_int;
}

/// KVM_RUN comes back because a signal is pending; the handler itself has nothing to do.
extern "C" fn nothing(_: c_int) {}

/// A signal of this thread that is pending, and blocked outside of KVM_RUN, until this is dropped.
#[derive(Debug)]
pub(crate) struct Pending {
    before: SignalSet,
}

/// Takes one vCPU's thread out of KVM_RUN, from any other thread, so that it cannot be missed: whether the kick comes just
/// before the call or in it, the call comes back.
#[derive(Clone, Debug)]
pub struct Kicker {
    page: Arc<RunPage>,
    process: c_int,
    thread: c_int,
}

impl Kicker {
    /// Of the thread that makes it, which is the one that runs this vCPU. It takes a signal handler of the process for
    /// signal 37.
    pub(crate) fn new(page: Arc<RunPage>) -> Kicker {
        prepare();
        let (process, thread) = (rustix::process::getpid(), rustix::thread::gettid());
        let (process, thread) = (process.as_raw_nonzero().get(), thread.as_raw_nonzero().get());
        Kicker { page, process, thread }
    }

    /// Every KVM_RUN comes back before the guest executes anything more, until [`Runner::leave_at_once`] is undone.
    ///
    /// [`Runner::leave_at_once`]: crate::Runner::leave_at_once
    pub fn kick(&self) {
        self.page.leave_at_once(true);
        // SAFETY: a signal to a thread of this process, by numbers: one that is gone is an error, and nothing else. The
        // handler does nothing.
        unsafe { tgkill(self.process, self.thread, SIGNAL) };
    }
}

/// glibc's `sigset_t`: 1024 bits, of which the kernel has the first 64.
type SignalSet = [u64; 16];
const SIG_BLOCK: c_int = 0;
const SIG_SETMASK: c_int = 2;

impl Pending {
    /// All signals but this one: what KVM_RUN is to block meanwhile.
    pub(crate) const MASK: u64 = !(1 << (SIGNAL - 1));

    pub(crate) fn new() -> Pending {
        prepare();
        let mut ours: SignalSet = [0; 16];
        ours[0] = !Self::MASK;
        let mut before: SignalSet = [0; 16];
        let (process, thread) = (rustix::process::getpid(), rustix::thread::gettid());
        // SAFETY: two sets of the size that glibc has, and a signal to this thread, which has a handler that does nothing.
        unsafe {
            pthread_sigmask(SIG_BLOCK, &ours, &mut before);
            tgkill(process.as_raw_nonzero().get(), thread.as_raw_nonzero().get(), SIGNAL);
        }
        Pending { before }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // SAFETY: as above; the signal arrives now, at the handler that does nothing.
        unsafe { pthread_sigmask(SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a handler that touches nothing, for a signal that nobody else in the process uses.
        unsafe { signal(SIGNAL, nothing as Handler as usize) };
    });
}

#[derive(Debug, Default)]
struct State {
    until: Option<Instant>,
    /// When the watcher looks again by itself.
    looks: Option<Instant>,
    over: bool,
    expired: bool,
}

/// Watches the thread that made it. While it is armed and the time is over, every KVM_RUN of that thread comes back.
#[derive(Debug)]
pub struct Deadline {
    shared: Arc<(Mutex<State>, Condvar)>,
    watcher: Option<JoinHandle<()>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Deadline {
    /// Watches this thread. It takes a signal handler of the process for signal 37.
    pub fn new() -> Deadline {
        Self::entering(|| {})
    }

    /// The same, with something that the watching thread does before anything else: it may confine itself.
    pub fn entering(first: impl FnOnce() + Send + 'static) -> Deadline {
        prepare();
        let shared = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let (process, thread) = (rustix::process::getpid(), rustix::thread::gettid());
        let (process, thread) = (process.as_raw_nonzero().get(), thread.as_raw_nonzero().get());
        let theirs = shared.clone();
        let watcher = std::thread::spawn(move || {
            first();
            watch(&theirs, process, thread);
        });
        Deadline { shared, watcher: Some(watcher) }
    }

    /// From now on there is this much time.
    pub fn arm(&self, limit: Duration) {
        let mut state = lock(&self.shared.0);
        let until = Instant::now() + limit;
        state.until = Some(until);
        state.expired = false;
        // Waking it costs two switches of threads, and most runs are over before their time: it is woken only when it
        // would sleep for longer than that.
        if state.looks.is_none_or(|looks| looks > until) {
            self.shared.1.notify_one();
        }
    }

    /// No limit any more. Returns whether it was reached.
    pub fn disarm(&self) -> bool {
        let mut state = lock(&self.shared.0);
        state.until = None;
        state.expired
    }

    /// Whether the time is over.
    pub fn expired(&self) -> bool {
        lock(&self.shared.0).expired
    }
}

impl Default for Deadline {
    fn default() -> Self {
        Deadline::new()
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        lock(&self.shared.0).over = true;
        self.shared.1.notify_one();
        if let Some(watcher) = self.watcher.take() {
            // It panics nowhere.
            let _ = watcher.join();
        }
    }
}

fn watch(shared: &(Mutex<State>, Condvar), process: c_int, thread: c_int) {
    let mut state = lock(&shared.0);
    while !state.over {
        let left = state.until.map(|until| until.saturating_duration_since(Instant::now()));
        let wait = match left {
            None => None,
            Some(left) if left.is_zero() => {
                state.expired = true;
                // SAFETY: a signal to a thread of this process, by numbers: one that is gone is an error, which is
                // what is wanted. The handler does nothing.
                unsafe { tgkill(process, thread, SIGNAL) };
                Some(AGAIN)
            }
            Some(left) => Some(left),
        };
        state.looks = wait.map(|wait| Instant::now() + wait);
        state = match wait {
            None => shared.1.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(wait) => shared.1.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0,
        };
    }
}
