//! Which rules do the threads use? Each watched thread's calls are counted by rule, none is refused.
//!
//! The thread that watches allocates nothing and takes no lock while it does: see [`evenkeel_sys::watch_this_thread`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use evenkeel_sys::{Call, Watcher, watch_this_thread};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Error;
use super::rules::{RULES, Thread, name, number};

/// How many different calls that no rule has are kept, each kind of thread.
const STRANGERS: usize = 96;
/// How long a thread may take to be watched.
const READY: Duration = Duration::from_secs(5);

/// Counters of a kind of threads.
struct Counts {
    /// By place in [`RULES`].
    used: Vec<AtomicU64>,
    /// Calls that no rule has: number and second argument (an ioctl's request) in one word, plus 1; and how often.
    strangers: Vec<(AtomicU64, AtomicU64)>,
    lost: AtomicU64,
}

/// The counters of a process.
pub struct Audit {
    numbers: Vec<Option<i32>>,
    counts: BTreeMap<Thread, Counts>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Audited {
    /// Rules that were used: how often, by kind of thread and rule.
    pub used: BTreeMap<Thread, BTreeMap<String, u64>>,
    /// Rules that were not, with the reason that the table has for that, if any.
    pub unused: BTreeMap<Thread, BTreeMap<String, Option<String>>>,
    /// Calls that would have been refused, and how often.
    pub refused: BTreeMap<Thread, BTreeMap<String, u64>>,
}

impl Audit {
    /// Nothing counted yet.
    pub fn new() -> Audit {
        let some = || AtomicU64::new(0);
        let counts = |_| Counts {
            used: RULES.iter().map(|_| some()).collect(),
            strangers: (0..STRANGERS).map(|_| (some(), some())).collect(),
            lost: some(),
        };
        Audit {
            numbers: RULES.iter().map(|rule| number(rule.call)).collect(),
            counts: Thread::ALL.into_iter().map(|thread| (thread, counts(thread))).collect(),
        }
    }

    /// Has this thread watched from now on, by one that is started for it. So it must not be watched or confined yet.
    ///
    /// # Errors
    /// The kernel cannot (before 5.5).
    pub fn watch(self: &Arc<Self>, thread: Thread) -> Result<(), Error> {
        let place = Arc::new(AtomicI32::new(-1));
        let (theirs, audit) = (place.clone(), self.clone());
        std::thread::Builder::new()
            .name(format!("audit {thread}"))
            .spawn(move || {
                let Some(watcher) = Watcher::of(&theirs, READY) else { return };
                let Some(counts) = audit.counts.get(&thread) else { return };
                while watcher.next(|call| audit.count(counts, thread, call)) {}
            })
            .map_err(|e| Error::Audit(e.to_string()))?;
        watch_this_thread(&place).map_err(|e| Error::Audit(format!("this kernel cannot watch a thread: {e}")))
    }

    fn count(&self, counts: &Counts, thread: Thread, call: &Call) {
        let mut known = false;
        for ((rule, number), used) in RULES.iter().zip(&self.numbers).zip(&counts.used) {
            if *number == Some(call.number)
                && rule.threads.contains(&thread)
                && rule.only.takes(&call.arguments)
            {
                used.fetch_add(1, Ordering::Relaxed);
                known = true;
            }
        }
        if known {
            return;
        }
        let word = (u64::from(call.number as u32) << 32 | call.arguments[1] & 0xffff_ffff) + 1;
        for (what, times) in &counts.strangers {
            match what.compare_exchange(0, word, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {}
                Err(other) if other == word => {}
                Err(_) => continue,
            }
            times.fetch_add(1, Ordering::Relaxed);
            return;
        }
        counts.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// What came of it so far. A rule for a call that this architecture has not got is not counted as unused, nor one of
    /// a kind of thread of which there was none.
    pub fn so_far(&self) -> Audited {
        let mut audited =
            Audited { used: BTreeMap::new(), unused: BTreeMap::new(), refused: BTreeMap::new() };
        for (thread, counts) in &self.counts {
            let mut used = BTreeMap::new();
            let mut unused = BTreeMap::new();
            for ((rule, number), times) in RULES.iter().zip(&self.numbers).zip(&counts.used) {
                if number.is_none() || !rule.threads.contains(thread) {
                    continue;
                }
                match times.load(Ordering::Relaxed) {
                    0 => drop(unused.insert(rule.title(), rule.seldom.map(str::to_owned))),
                    times => drop(used.insert(rule.title(), times)),
                }
            }
            let mut refused = BTreeMap::new();
            for (what, times) in &counts.strangers {
                let Some(word) = what.load(Ordering::Relaxed).checked_sub(1) else { break };
                let call = name((word >> 32) as u32);
                refused.insert(format!("{call}({:#x})", word as u32), times.load(Ordering::Relaxed));
            }
            match counts.lost.load(Ordering::Relaxed) {
                0 => {}
                lost => drop(refused.insert("others".to_owned(), lost)),
            }
            if !used.is_empty() {
                audited.unused.insert(*thread, unused);
                audited.used.insert(*thread, used);
            }
            if !refused.is_empty() {
                audited.refused.insert(*thread, refused);
            }
        }
        audited
    }
}

impl Default for Audit {
    fn default() -> Self {
        Audit::new()
    }
}
