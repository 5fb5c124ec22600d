//! An emulator as a process of ours: started, watched, gone with us.

pub(crate) mod bochs;
pub(crate) mod qemu;
pub(crate) mod qmp;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

use crate::error::Error;
use crate::memfile::MemFile;
use crate::tool;

/// The most emulators of this process at a time. Each keeps one core busy, and time-outs are for undisturbed ones.
const MOST: usize = 2;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// The right to run emulators. All that one task needs are taken at once, so that two tasks cannot wait for each other.
#[derive(Debug)]
pub(crate) struct Slots(usize);

impl Slots {
    /// Waits until `count` more may run.
    pub fn take(count: usize) -> Slots {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        while *running + count > MOST {
            running = ENDED.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
        *running += count;
        Slots(count)
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        ENDED.notify_all();
    }
}

/// The console that a host writes to.
#[derive(Debug)]
pub(crate) enum Console {
    /// Kept, to be quoted when something goes wrong.
    Kept(MemFile),
    /// This process's terminal: a person talks to the host.
    Terminal,
}

/// What an emulator is started with.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The program.
    pub program: &'static str,
    /// The Debian package that brings it.
    pub package: &'static str,
    /// It opens a network port that nobody asked for, so it gets a network of its own, where this machine allows that.
    pub offline: bool,
    /// What it says when the host has powered off, for one that then exits as if it had failed.
    pub farewell: Option<&'static str>,
    /// Its arguments. Files in memory and sockets are named by their number, which the program inherits.
    pub args: Vec<String>,
    /// Sockets to hand over: ours are closed once it runs, so that its death is noticed.
    pub hand_over: Vec<OwnedFd>,
}

/// A socket between this process and an emulator: ours, and the other's.
pub(crate) fn socket() -> Result<(UnixStream, OwnedFd), Error> {
    let (ours, theirs) = UnixStream::pair().map_err(Error::io("create", "a socket"))?;
    Ok((ours, theirs.into()))
}

/// The number by which an emulator that inherits `fd` knows it.
pub(crate) fn number(fd: &impl AsFd) -> i32 {
    fd.as_fd().as_raw_fd()
}

/// The running emulator. It dies with this value, and with the thread that started it.
#[derive(Debug)]
pub(crate) struct Emulator {
    child: Child,
    farewell: Option<&'static str>,
    words: MemFile,
}

/// What to put before a command so that it has no network; nothing where that is not allowed.
fn no_network() -> &'static [&'static str] {
    static WAY: OnceLock<&[&str]> = OnceLock::new();
    WAY.get_or_init(|| {
        let ways: [&[&str]; 2] =
            [&["unshare", "--net", "--"], &["unshare", "--map-root-user", "--net", "--"]];
        let works = |way: &&[&str]| {
            let mut command = Command::new(way[0]);
            command.args(&way[1..]).arg("true").stdin(Stdio::null()).stdout(Stdio::null());
            command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        };
        ways.into_iter().find(works).unwrap_or(&[])
    })
}

/// Only one emulator is started at a time: what it inherits must not be inherited by another.
static STARTING: Mutex<()> = Mutex::new(());

impl Emulator {
    /// Starts it.
    pub fn start(plan: Plan, console: &Console) -> Result<Emulator, Error> {
        let missing = |program: &str, package: &str| Error::Tool {
            program: program.to_owned(),
            why: "not found".to_owned(),
            hint: format!("apt-get install {package}"),
        };
        tool::find(plan.program).ok_or_else(|| missing(plan.program, plan.package))?;
        tool::find("setpriv").ok_or_else(|| missing("setpriv", "util-linux"))?;
        let words = MemFile::new("words", b"")?;
        let mut line: Vec<&str> = if plan.offline { no_network().to_vec() } else { vec![] };
        // setpriv becomes the emulator, with the kernel's order to kill it when we are gone, however we went. It comes
        // last: the order does not outlive a change of rights.
        line.extend(["setpriv", "--pdeathsig", "KILL", "--", plan.program]);
        let mut command = Command::new(line[0]);
        command.args(&line[1..]).args(&plan.args).stderr(words.output()?);
        match console {
            Console::Kept(_) => command.stdin(Stdio::null()).stdout(words.output()?),
            Console::Terminal => command.stdin(Stdio::inherit()).stdout(Stdio::inherit()),
        };
        let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        for fd in &plan.hand_over {
            let inherit = fcntl_getfd(fd).and_then(|flags| fcntl_setfd(fd, flags - FdFlags::CLOEXEC));
            inherit.map_err(|e| Error::io("hand over", "a socket")(e.into()))?;
        }
        let child = command.spawn().map_err(Error::io("start", plan.program))?;
        drop(plan.hand_over);
        Ok(Emulator { child, farewell: plan.farewell, words })
    }

    /// How it ended; nothing while it runs.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.child.try_wait().map_err(Error::io("wait for", "the emulator"))
    }

    /// Waits for its end, which something else must have brought about.
    pub fn wait(&mut self) -> Result<ExitStatus, Error> {
        self.child.wait().map_err(Error::io("wait for", "the emulator"))
    }

    /// Waits for its end, and tells what is wrong with it if it is not that the host has powered off.
    pub fn powered_off(&mut self) -> Result<Result<(), ExitStatus>, Error> {
        let status = self.wait()?;
        let said = self.farewell.is_some_and(|farewell| self.words().contains(farewell));
        Ok(if status.success() || said { Ok(()) } else { Err(status) })
    }

    /// What it said.
    pub fn words(&self) -> String {
        self.words.text()
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // Harmless when it has exited: its number is not used again before it is waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::path::Path;

    fn plan(script: &str, hand_over: Vec<OwnedFd>) -> Plan {
        // Not sh, which may know numbers up to 9 only.
        Plan {
            program: "bash",
            package: "bash",
            farewell: None,
            offline: false,
            args: vec!["-c".into(), script.into()],
            hand_over,
        }
    }

    #[test]
    fn the_emulator_dies_with_its_value() {
        let console = Console::Kept(MemFile::new("console", b"").unwrap());
        let emulator = Emulator::start(plan("exec sleep 600", vec![]), &console).unwrap();
        let id = emulator.child.id();
        assert!(Path::new(&format!("/proc/{id}")).exists());
        drop(emulator);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }

    #[test]
    fn a_socket_is_handed_over_and_its_end_is_seen() {
        let console = Console::Kept(MemFile::new("console", b"").unwrap());
        let (mut ours, theirs) = socket().unwrap();
        let script = format!("echo said >&{}; echo words", number(&theirs));
        let mut emulator = Emulator::start(plan(&script, vec![theirs]), &console).unwrap();
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        assert_eq!(said, "said\n");
        assert!(emulator.wait().unwrap().success());
        assert_eq!(emulator.words(), "words\n");
    }

    #[test]
    fn a_missing_emulator_names_its_package() {
        let console = Console::Kept(MemFile::new("console", b"").unwrap());
        let plan = Plan {
            program: "no-such-emulator",
            package: "emulators",
            args: vec![],
            farewell: None,
            offline: false,
            hand_over: vec![],
        };
        let error = Emulator::start(plan, &console).unwrap_err().to_string();
        assert!(error.contains("apt-get install emulators"), "{error}");
    }
}
