//! `evenkeel confinement`: what a machine's threads may do, and whether this kernel holds them to it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use evenkeel_monitor::confine::rules::{self, Thread};
use evenkeel_monitor::confine::{Confinement as Confined, Mode, files};
use schemars::JsonSchema;
use serde::Serialize;

use crate::failure::Failure;
use crate::{Format, Global, output};

/// SIGSYS.
const KILLED: i32 = 31;
/// What a probe says when nothing ended it.
const SURVIVED: u8 = 9;

/// What the threads of a machine may do, and whether this kernel holds them to it.
#[derive(clap::Args)]
pub struct Confinement {
    /// One of the attempts, in a process that is to be ended for it.
    #[arg(long, hide = true, value_name = "THREAD:ATTEMPT")]
    attempt: Option<String>,
}

/// What was found.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ConfinementReport {
    /// The version of the kernel's landlock; none where it has none.
    pub landlock: Option<i32>,
    /// What this kernel's landlock does not take away, so that only filters of system calls do.
    pub lacks: Vec<String>,
    /// Each kind of thread was let try things that it may not.
    pub attempts: Vec<Attempted>,
    /// The rules, by kind of thread.
    pub rules: BTreeMap<Thread, Vec<Ruled>>,
}

/// A rule.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Ruled {
    /// The system call, with what is told of its arguments.
    pub call: String,
    /// What for.
    pub why: String,
    /// Why it may go unused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seldom: Option<String>,
}

/// Something that was tried.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Attempted {
    /// By a thread of which kind.
    pub thread: Thread,
    /// What.
    pub what: &'static str,
    /// Whether the process was ended for it.
    pub ended: bool,
    /// What it said, or how it ended otherwise.
    pub said: String,
}

/// Things that no thread may do, and that need no memory to be broken.
const ATTEMPTS: [(&str, fn()); 7] = [
    ("open a file", || drop(File::open("/dev/null"))),
    ("make a socket", || drop(UnixStream::pair())),
    ("start a thread", || drop(std::thread::Builder::new().spawn(|| {}))),
    ("start a program", || drop(Command::new("/bin/true").spawn())),
    ("make another ioctl", || {
        let _ = rustix::termios::tcgetwinsize(std::io::stdin());
    }),
    ("send a signal to another process", || {
        _ = rustix::process::test_kill_process(rustix::process::Pid::INIT)
    }),
    ("change its name", || _ = rustix::thread::set_name(c"other")),
];

impl Confinement {
    /// Tries all of it.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        if let Some(attempt) = &self.attempt {
            return one(attempt);
        }
        let mut attempts = Vec::new();
        for thread in Thread::ALL {
            for (at, (what, _)) in ATTEMPTS.iter().enumerate() {
                attempts.push(in_a_process(thread, at, what)?);
            }
        }
        // Of this process from now on: there is nothing left to open.
        let landlock = files::none().map_err(|e| failed(&e))?;
        let ruled = |rule: &rules::Rule| Ruled {
            call: rule.title(),
            why: rule.why.to_owned(),
            seldom: rule.seldom.map(str::to_owned),
        };
        let report = ConfinementReport {
            landlock: landlock.abi,
            lacks: landlock.lacks.iter().map(|what| (*what).to_owned()).collect(),
            attempts,
            rules: Thread::ALL.into_iter().map(|t| (t, rules::of(t).map(ruled).collect())).collect(),
        };
        let held = report.attempts.iter().all(|attempt| attempt.ended);
        match global.format {
            Format::Json => output::json(&report)?,
            Format::Text => output::print(&words(&report, global.all))?,
        }
        Ok(u8::from(!held))
    }
}

fn failed(e: &dyn std::fmt::Display) -> Failure {
    Failure { exit: 3, ..Failure::bad(e.to_string(), "") }
}

/// In this process, which is to end for it.
fn one(attempt: &str) -> Result<u8, Failure> {
    let (thread, at) = attempt.split_once(':').unwrap_or_default();
    let thread = Thread::ALL.into_iter().find(|t| t.name() == thread);
    let at = at.parse::<usize>().ok().and_then(|at| ATTEMPTS.get(at));
    let (Some(thread), Some((_, attempt))) = (thread, at) else {
        return Err(Failure::bad("there is no such thread or attempt", ""));
    };
    let confined = Confined::begin(Mode::Enforce).map_err(|e| failed(&e))?;
    std::thread::scope(|scope| {
        let of_kind = scope.spawn(|| {
            confined.enter(thread).map_err(|e| failed(&e))?;
            attempt();
            Ok(SURVIVED)
        });
        of_kind.join().unwrap_or(Ok(SURVIVED))
    })
}

fn in_a_process(thread: Thread, at: usize, what: &'static str) -> Result<Attempted, Failure> {
    let this = std::env::current_exe().map_err(|e| failed(&e))?;
    let out = Command::new(this)
        .args(["confinement", "--attempt", &format!("{thread}:{at}")])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| failed(&e))?;
    let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    // The C library blocks all signals while it starts a thread or a program: the kernel ends the process then without
    // asking its handler, and nothing is said.
    let ended = out.status.signal() == Some(KILLED)
        && (said.is_empty() || said.contains(&format!("the thread `{thread}` made")));
    let said = if said.is_empty() { out.status.to_string() } else { said };
    Ok(Attempted { thread, what, ended, said })
}

fn words(report: &ConfinementReport, all: bool) -> String {
    let mut text = match report.landlock {
        Some(abi) => format!("landlock: version {abi}\n"),
        None => "landlock: this kernel has none, or it is not switched on (lsm=)\n".to_owned(),
    };
    for what in &report.lacks {
        text += &format!("  only filters of system calls prevent {what}\n");
    }
    for (thread, rules) in &report.rules {
        let tried: Vec<&Attempted> = report.attempts.iter().filter(|a| a.thread == *thread).collect();
        let ended = tried.iter().filter(|a| a.ended).count();
        text += &format!(
            "{thread}: {} rules; {ended} of {} attempts ended the process\n",
            rules.len(),
            tried.len()
        );
        for one in tried.iter().filter(|a| !a.ended || all) {
            let how = if one.ended { "ended" } else { "NOT ended" };
            text += &format!("  {how}: {}: {}\n", one.what, one.said);
        }
        if all {
            for rule in rules {
                let seldom = rule.seldom.as_ref().map_or_else(String::new, |why| format!(" ({why})"));
                text += &format!("  {}: {}{seldom}\n", rule.call, rule.why);
            }
        }
    }
    text
}
