//! A host that is up: it takes one job after another.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::cache::Installed;
use crate::emulator::qemu::{self, Machine as Parts};
use crate::emulator::qmp::Qmp;
use crate::emulator::{Console, Emulator, Slots, socket};
use crate::error::Error;
use crate::frame::{self, FrameError, Kind};
use crate::host::Host;
use crate::initramfs;
use crate::job::{Job, Output, Results};
use crate::kernel::{Arch, Origin};
use crate::memfile::MemFile;
use crate::modules::{Module, Modules};
use crate::options::Options;
use crate::tool;

/// The most that a console may write in bytes. A kernel that prints for ever must not fill the memory.
const LONGEST_CONSOLE: u64 = 64 << 20;

/// How often a wait looks whether the emulator still lives and the time is up.
const LOOK: Duration = Duration::from_millis(100);

/// A host that is up.
#[derive(Debug)]
pub struct Machine {
    host: String,
    release: String,
    emulator: Emulator,
    console: Console,
    port: UnixStream,
    control: Option<UnixStream>,
    timeout: Duration,
    /// From the emulator's start until the init was ready.
    pub boot: Duration,
    /// Whether it was resumed from a file instead of booted.
    pub resumed: bool,
    started: Instant,
}

/// What a host is started with.
pub(crate) struct Start<'a> {
    pub host: &'a Host,
    pub options: &'a Options,
    pub console: Console,
    pub link: Option<OwnedFd>,
}

/// The files that a host boots from.
pub(crate) struct Boot {
    pub installed: Installed,
    pub initramfs: Vec<u8>,
}

impl Boot {
    /// Reads what `host` needs from the cache.
    pub fn of(host: &Host, options: &Options) -> Result<Boot, Error> {
        let installed = options.cache.installed(&host.kernel)?;
        let path = options.binary(Options::INIT, host.kernel.arch)?;
        let init = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let initramfs = initramfs::build(&init, &modules(host, &installed)?);
        Ok(Boot { installed, initramfs })
    }
}

/// The modules of a host: KVM where it is one, what a capture looks at besides, and the channel's driver.
fn modules(host: &Host, installed: &Installed) -> Result<Vec<Module>, Error> {
    let modules = Modules::scan(&installed.modules)?;
    // Built in on arm64. A kernel that a user brought may have it built in on x86, too; if not, the job finds no
    // /dev/kvm and says so. One of the list without it is of no use.
    let mut names: Vec<&str> = match (host.kernel.arch, &host.kernel.origin) {
        (Arch::X86_64, Origin::Debian { .. }) => vec!["kvm_amd"],
        (Arch::X86_64, Origin::Added { .. }) if modules.has("kvm_amd") => vec!["kvm_amd"],
        _ => vec![],
    };
    // Modules on old kernels, built in later; or in a package that is not served any more, and then a capture
    // says that it could not ask.
    let optional = ["virtio_pci", "virtio_console", "tun", "vhost_net"];
    names.extend(optional.into_iter().filter(|name| modules.has(name)));
    modules.load_order(&names)
}

impl Machine {
    /// Starts a host: from the beginning, or from the state that `incoming` holds and the release that it had then.
    pub(crate) fn start(
        start: Start<'_>,
        boot: &Boot,
        incoming: Option<(OwnedFd, String)>,
    ) -> Result<Machine, Error> {
        let Start { host, options, console, link } = start;
        let initramfs = MemFile::new("initramfs", &boot.initramfs)?;
        let ((port, port_theirs), (control, control_theirs)) = (socket()?, socket()?);
        port.set_read_timeout(Some(LOOK)).map_err(Error::io("set up", "a socket"))?;
        let (incoming, release) = incoming.unzip();
        let plan = qemu::plan(Parts {
            lane: host.lane,
            memory_mib: options.memory_mib,
            image: &boot.installed.image,
            initramfs: &initramfs,
            console: &console,
            port: port_theirs,
            control: control_theirs,
            link,
            incoming,
        });
        let started = Instant::now();
        let mut machine = Machine {
            host: host.name.clone(),
            release: String::new(),
            emulator: Emulator::start(plan, &console)?,
            console,
            port,
            control: Some(control),
            timeout: options.timeout,
            boot: Duration::ZERO,
            resumed: false,
            started,
        };
        match release {
            Some(release) => {
                let mut qmp = machine.qmp()?;
                // It waits for the state to be read, and then to be told to go on.
                let on = qmp.until("query-migrate", &["completed", "failed"], machine.timeout).and_then(
                    |status| match status.as_str() {
                        "completed" => qmp.execute("cont", serde_json::json!({})).map(drop),
                        other => Err(format!("reading the saved state: {other}")),
                    },
                );
                on.map_err(|why| machine.died(why))?;
                machine.release = release;
                machine.resumed = true;
            }
            None => {
                let frame = machine.frame(started)?;
                match frame.kind {
                    Kind::Ready => machine.release = String::from_utf8_lossy(&frame.body).into_owned(),
                    Kind::Failure => return Err(machine.inside(&frame.body)),
                    other => return Err(machine.died(format!("its first word was {other:?}, not Ready"))),
                }
            }
        }
        machine.boot = started.elapsed();
        Ok(machine)
    }

    /// `uname -r`, as the host said it.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// What its kernel has written to the console.
    pub fn console(&self) -> String {
        match &self.console {
            Console::Kept(file) => file.text(),
            Console::Terminal => String::new(),
        }
    }

    /// Runs a program and brings back its results.
    ///
    /// A program that fails is no error: see [`Output::exit`]. A kernel that crashes, hangs or answers garbage is, with
    /// the end of its console.
    pub fn run(&mut self, job: &Job) -> Result<Output, Error> {
        let start = Instant::now();
        let frames = job.frames()?;
        self.send(&frames)?;
        let mut results = Results::default();
        loop {
            let frame = self.frame(start)?;
            match frame.kind {
                Kind::End => return results.output(start.elapsed()).map_err(|why| self.died(why)),
                Kind::Failure => return Err(self.inside(&frame.body)),
                _ => results.take(frame).map_err(|why| self.died(why))?,
            }
        }
    }

    /// Powers the host off; it is gone when this returns. Returns how long it was up.
    pub fn off(mut self) -> Result<Duration, Error> {
        let mut frame = Vec::new();
        frame::write(&mut frame, Kind::Off, "", b"").map_err(Error::io("write", "a frame"))?;
        self.send(&frame)?;
        match self.frame(Instant::now()) {
            // The emulator's end of the channel closes when it exits.
            Err(Error::Died { .. }) => {}
            Err(other) => return Err(other),
            Ok(frame) => return Err(self.died(format!("it said {:?} instead of powering off", frame.kind))),
        }
        let status = self.emulator.wait()?;
        if status.success() { Ok(self.started.elapsed()) } else { Err(self.died(status.to_string())) }
    }

    /// From now on jobs may take as long as they like.
    pub(crate) fn no_hurry(&mut self) {
        self.timeout = Duration::from_secs(10 * 365 * 24 * 3600);
    }

    /// The emulator's control connection. Once: the second time there is none.
    pub(crate) fn qmp(&mut self) -> Result<Qmp, Error> {
        let control = self.control.take().ok_or_else(|| self.died("its control socket is in use".into()))?;
        Qmp::connect(control).map_err(|why| self.died(why))
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        // An emulator that is gone or stuck closes or fills the socket; the console tells why.
        self.port.set_write_timeout(Some(self.timeout)).map_err(Error::io("set up", "a socket"))?;
        self.port.write_all(bytes).map_err(|e| self.died(format!("it takes no job: {e}")))
    }

    /// The next frame, which has [`Options::timeout`] from `start` on.
    fn frame(&mut self, start: Instant) -> Result<frame::Frame, Error> {
        let deadline = start + self.timeout;
        let mut patient = Patient {
            port: &mut self.port,
            console: &self.console,
            emulator: &mut self.emulator,
            deadline,
            why: None,
        };
        let read = frame::read(&mut patient);
        let why = patient.why.take();
        read.map_err(|source| match (why, source) {
            (Some(Why::Late), _) => {
                Error::Timeout { kernel: self.host.clone(), after: self.timeout, console: self.tail() }
            }
            (Some(Why::Flood), _) => self.died("it wrote without end".to_owned()),
            (None, FrameError::Closed) => {
                let status = self.emulator.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
                self.died(format!("no results; the emulator's {status}"))
            }
            (None, FrameError::Truncated) => self.died("its results were cut off".to_owned()),
            (None, source) => Error::Damaged { kernel: self.host.clone(), source, console: self.tail() },
        })
    }

    pub(crate) fn died(&self, why: String) -> Error {
        Error::Died { kernel: self.host.clone(), why, console: self.tail() }
    }

    fn inside(&self, message: &[u8]) -> Error {
        let message = String::from_utf8_lossy(message).into_owned();
        Error::Inside { kernel: self.host.clone(), message, console: self.tail() }
    }

    fn tail(&self) -> String {
        tail(&self.console(), &self.emulator.words())
    }
}

/// Why a wait was given up.
#[derive(Clone, Copy)]
enum Why {
    Late,
    Flood,
}

/// A reader of the channel that looks up from time to time.
struct Patient<'a> {
    port: &'a mut UnixStream,
    console: &'a Console,
    emulator: &'a mut Emulator,
    deadline: Instant,
    why: Option<Why>,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // Looked at before the read: what arrived before the end is still there after it.
            let over = self.emulator.ended().map_err(io::Error::other)?.is_some();
            match self.port.read(buffer) {
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                // The other end went without reading all that we sent.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(0),
                done => return done,
            }
            if over {
                return Ok(0);
            }
            if let Console::Kept(file) = self.console
                && file.len() > LONGEST_CONSOLE
            {
                self.why = Some(Why::Flood);
                return Ok(0);
            }
            if Instant::now() > self.deadline {
                self.why = Some(Why::Late);
                return Ok(0);
            }
        }
    }
}

/// Boots or resumes `host`, runs `job`, powers off. The emulator is gone when this returns.
pub fn run(host: &Host, job: &Job, options: &Options) -> Result<Run, Error> {
    let _slot = Slots::take(1);
    let mut machine = Machine::up(host, options)?;
    let output = machine.run(job)?;
    Ok(Run::after(machine, output))
}

/// One job on one host, whole.
#[derive(Clone, Debug)]
pub struct Run {
    /// What came back.
    pub output: Output,
    /// `uname -r`, as the emulated host said it.
    pub release: String,
    /// What the kernel wrote to its console; bytes that are no text are replaced.
    pub console: String,
    /// From the emulator's start until the host took jobs.
    pub boot: Duration,
    /// The whole, until the emulator was gone.
    pub total: Duration,
    /// Whether it was resumed instead of booted.
    pub resumed: bool,
    /// What went wrong after the results had come: the host did not power off.
    pub afterwards: Option<String>,
}

impl Run {
    /// Powers the host off and adds up.
    pub(crate) fn after(machine: Machine, output: Output) -> Run {
        let (release, console) = (machine.release.clone(), machine.console());
        let (boot, resumed, started) = (machine.boot, machine.resumed, machine.started);
        let afterwards = machine.off().err().map(|e| e.to_string());
        Run { output, release, console, boot, total: started.elapsed(), resumed, afterwards }
    }
}

/// The end of the console and the emulator's own words, for a person.
fn tail(console: &str, words: &str) -> String {
    // The emulated CPU lacks many of an EPYC's features, and the emulator lists each.
    let words: String = words
        .lines()
        .filter(|line| !line.contains("TCG doesn't support"))
        .fold(String::new(), |text, line| text + line + "\n");
    let end = tool::tail(console, 25);
    let mut text = match first_alarm(console) {
        // What matters comes before the registers and the call trace that fill the end.
        Some(alarm) if !end.contains(alarm) => format!("the kernel's first alarm:\n  | {alarm}\n"),
        _ => String::new(),
    };
    text += "the end of its console:\n";
    for line in if end.is_empty() { "(nothing)" } else { &end }.lines() {
        text += &format!("  | {}\n", line.trim_end());
    }
    for line in tool::tail(&words, 8).lines() {
        text += &format!("  emulator: {line}\n");
    }
    text.trim_end().to_owned()
}

/// The first line that says that the kernel is broken.
fn first_alarm(console: &str) -> Option<&str> {
    let alarms = ["Kernel panic", "BUG:", "Oops", "Internal error:", "Unable to handle kernel"];
    console.lines().map(str::trim).find(|line| alarms.iter().any(|alarm| line.contains(alarm)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_found_before_a_long_trace() {
        let console =
            format!("fine\n[ 1.0] BUG: unable to handle page fault\n{}", "[ 1.1] trace\n".repeat(60));
        assert_eq!(first_alarm(&console), Some("[ 1.0] BUG: unable to handle page fault"));
        assert_eq!(first_alarm("fine\n"), None);
        assert!(tail(&console, "").starts_with("the kernel's first alarm:\n  | [ 1.0] BUG"), "{console}");
    }

    #[test]
    fn the_emulator_is_quoted_without_its_litany() {
        let words = "warning: TCG doesn't support requested feature\nout of cheese\n";
        let text = tail("one\n\nKernel panic\n", words);
        assert!(text.contains("| Kernel panic") && text.contains("emulator: out of cheese"), "{text}");
        assert!(!text.contains("TCG"), "{text}");
    }
}
