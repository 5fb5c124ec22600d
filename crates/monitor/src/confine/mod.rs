//! **Confinement**: what is left to the process when a guest begins to run.
//!
//! A guest that breaks out of its VM is in the monitor, with what the monitor may do. So, before the first instruction of a
//! guest:
//!
//! 1. everything that is needed is open, as a descriptor: nothing is named by a path any more;
//! 2. the process cannot gain privileges (no_new_privs);
//! 3. no path can be opened, by landlock, as far as the kernel has it ([`files`]; what it lacks is in the [`Report`]);
//! 4. each thread makes only the system calls that its kind has rules for ([`rules`]); any other ends the process with a line
//!    that names thread and call.
//!
//! [`Confinement::begin`] does 2 and 3 for the thread that calls it and for all that it starts afterwards; each of them then calls
//! [`Confinement::enter`] when it has made what it needs. Threads inherit filters, so the thread that starts the others
//! enters last.

pub mod audit;
pub mod files;
pub mod filter;
pub mod preflight;
pub mod rules;

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use seccompiler::BpfProgram;
use serde::{Deserialize, Serialize};

/// Arenas of the allocator: as many as there are kinds of threads that allocate much.
const ARENAS: u16 = 4;
/// As long as a thread may be seen after it was joined.
const LINGERS: std::time::Duration = std::time::Duration::from_millis(200);

pub use audit::{Audit, Audited};
pub use rules::Thread;

/// Why a process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A filter of system calls.
    #[error("filter of system calls: {0}")]
    Filter(String),
    /// Landlock.
    #[error("landlock: {0}")]
    Landlock(String),
    /// no_new_privs.
    #[error("no_new_privs: {0}")]
    Privileges(String),
    /// Other threads run already, and would stay outside.
    #[error("{0} other threads run already, which would stay unconfined")]
    Threads(usize),
    /// A thread cannot be watched.
    #[error("audit: {0}")]
    Audit(String),
}

/// How.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Not at all.
    Off,
    /// What is not allowed ends the process.
    #[default]
    Enforce,
    /// Calls are not filtered, but counted by rule. Paths are gone all the same.
    Audit,
}

/// What holds for this process now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// How.
    pub mode: Mode,
    /// The version of the kernel's landlock; none where there is none.
    pub landlock: Option<i32>,
    /// What this kernel's landlock does not take away; the filters of system calls do.
    pub lacks: Vec<String>,
    /// How many calls the filter of each kind of thread has, on this architecture.
    pub rules: BTreeMap<Thread, usize>,
}

impl Report {
    /// One line for people.
    pub fn line(&self) -> String {
        let landlock = match self.landlock {
            Some(abi) => format!("landlock version {abi}"),
            None => "no landlock".to_owned(),
        };
        let lacks = match &*self.lacks {
            [] => String::new(),
            lacks => format!(" (this kernel's does not take away: {})", lacks.join("; ")),
        };
        match self.mode {
            Mode::Off => "not confined".to_owned(),
            Mode::Audit => format!("calls are counted, not refused; {landlock}{lacks}"),
            Mode::Enforce => format!("a filter a thread, no new privileges, {landlock}{lacks}"),
        }
    }
}

/// What the threads of a process confine themselves with. Cheap to clone.
#[derive(Clone)]
pub struct Confinement {
    filters: Arc<BTreeMap<Thread, BpfProgram>>,
    audit: Option<Arc<Audit>>,
    report: Arc<Report>,
}

impl Confinement {
    /// None: [`Confinement::enter`] does nothing.
    pub fn off() -> Confinement {
        let report = Report { mode: Mode::Off, ..Report::default() };
        Confinement { filters: Arc::default(), audit: None, report: Arc::new(report) }
    }

    /// Confines the calling thread but for its calls, and prepares the rest. Everything that is named by a path is open by now.
    ///
    /// # Errors
    /// Other threads run, or the kernel refuses.
    pub fn begin(mode: Mode) -> Result<Confinement, Error> {
        if mode == Mode::Off {
            return Ok(Confinement::off());
        }
        // A thread that exists would keep what it has. Where there is no /proc nobody can tell.
        let count =
            || std::fs::read_dir("/proc/self/task").map_or(0, |tasks| tasks.count().saturating_sub(1));
        let (begin, mut others) = (std::time::Instant::now(), count());
        // One that was joined is there for a moment more.
        while others > 0 && begin.elapsed() < LINGERS {
            std::thread::sleep(std::time::Duration::from_millis(1));
            others = count();
        }
        if others > 0 {
            return Err(Error::Threads(others));
        }
        evenkeel_sys::bound_arenas(ARENAS);
        let mut filters = BTreeMap::new();
        for thread in Thread::ALL {
            filters.insert(thread, filter::compile(rules::RULES, thread)?);
        }
        rustix::thread::set_no_new_privs(true).map_err(|e| Error::Privileges(e.to_string()))?;
        quiet_panics();
        let files = files::none()?;
        evenkeel_sys::tell_refused_calls();
        let report = Report {
            mode,
            landlock: files.abi,
            lacks: files.lacks.iter().map(|what| (*what).to_owned()).collect(),
            rules: Thread::ALL.into_iter().map(|thread| (thread, rules::of(thread).count())).collect(),
        };
        Ok(Confinement {
            filters: Arc::new(filters),
            audit: (mode == Mode::Audit).then(|| Arc::new(Audit::new())),
            report: Arc::new(report),
        })
    }

    /// Confines this thread to the calls of its kind, for good.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn enter(&self, thread: Thread) -> Result<(), Error> {
        evenkeel_sys::name_role(thread.name());
        match (&self.audit, self.filters.get(&thread)) {
            (Some(audit), _) => audit.watch(thread),
            (None, Some(program)) => filter::apply(program),
            (None, None) => Ok(()),
        }
    }

    /// What holds.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// What was counted so far, if calls are counted.
    pub fn audited(&self) -> Option<Audited> {
        self.audit.as_ref().map(|audit| audit.so_far())
    }
}

/// A panic tells its message and place, and looks for no symbols: that would open files.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| eprintln!("evenkeel: {info}")));
}
