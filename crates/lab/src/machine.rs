//! A host that is up: it takes one job after another.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::cache::Installed;
use crate::channel::{Channel, LOOK, Patient, Progress, Why};
use crate::emulator::bochs::Files;
use crate::emulator::qemu::{self, Machine as Parts};
use crate::emulator::qmp::Qmp;
use crate::emulator::{Console, Emulator, Plan, Slots, socket};
use crate::error::Error;
use crate::frame::{self, FrameError, Kind};
use crate::host::Host;
use crate::initramfs;
use crate::job::{Job, Output, Results};
use crate::kernel::Origin;
use crate::memfile::MemFile;
use crate::modules::{Module, Modules};
use crate::options::Options;
use crate::tool;

/// A host that is up.
#[derive(Debug)]
pub struct Machine {
    host: String,
    release: String,
    emulator: Emulator,
    console: Console,
    channel: Channel,
    control: Option<UnixStream>,
    timeout: Duration,
    say: Option<fn(&str)>,
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
        let initramfs = initramfs::build(&init, &modules(host, &installed, options)?);
        Ok(Boot { installed, initramfs })
    }
}

/// The modules of a host: KVM where it is one, what a capture looks at besides, and the channel's driver.
fn modules(host: &Host, installed: &Installed, options: &Options) -> Result<Vec<Module>, Error> {
    let modules = Modules::scan(&installed.modules)?;
    let kvm = host.lane.kvm_module();
    // Built in on arm64. A kernel that a user brought may have it built in on x86, too; if not, the job finds no
    // /dev/kvm and says so. One of the list without it is of no use.
    let mut names: Vec<&str> = match (kvm, &host.kernel.origin) {
        (Some(kvm), Origin::Added { .. }) if !modules.has(kvm) => vec![],
        (kvm, _) => kvm.into_iter().collect(),
    };
    // Modules on old kernels, built in later; or in a package that is not served any more, and then a capture
    // says that it could not ask.
    let channel: &[&str] = if host.lane.one_job() { &[] } else { &["virtio_pci", "virtio_console"] };
    let disk = options.shared.iter().map(|_| &"virtio_blk");
    let optional = channel.iter().chain(&["tun", "vhost_net"]).chain(disk);
    names.extend(optional.copied().filter(|name| modules.has(name)));
    let mut order = modules.load_order(&names)?;
    if host.lane.one_job() {
        order.iter_mut().for_each(Module::hide_types);
    }
    Ok(order)
}

impl Machine {
    /// Boots a host of a lane where a host takes one job, and waits until its init runs it.
    fn boot_with(host: &Host, job: &Job, options: &Options) -> Result<Machine, Error> {
        let Boot { installed, mut initramfs } = Boot::of(host, options)?;
        let mut frames = job.frames()?;
        frame::write(&mut frames, Kind::Off, "", b"").map_err(Error::io("write", "a frame"))?;
        initramfs::append_job(&mut initramfs, &frames);
        let console = MemFile::new("console", b"")?;
        let files = Files::new(&installed, &initramfs, &console, options.memory_mib)?;
        let plan = files.plan();
        let mut machine = Machine::of(host, options, plan, Channel::File(files, 0), Console::Kept(console))?;
        machine.greet()?;
        Ok(machine)
    }

    /// Starts an emulator, and waits for nothing.
    fn of(
        host: &Host,
        options: &Options,
        plan: Plan,
        channel: Channel,
        console: Console,
    ) -> Result<Machine, Error> {
        let started = Instant::now();
        Ok(Machine {
            host: host.name.clone(),
            release: String::new(),
            emulator: Emulator::start(plan, &console)?,
            console,
            channel,
            control: None,
            timeout: options.timeout.unwrap_or_else(|| host.lane.patience()),
            say: options.progress,
            boot: Duration::ZERO,
            resumed: false,
            started,
        })
    }

    /// Starts a host of a lane that takes one job after another: from the beginning, or from the state that `incoming`
    /// holds and the release that it had then.
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
            shared: options.shared.as_deref(),
            incoming,
        });
        let mut machine = Machine::of(host, options, plan, Channel::Port(port), console)?;
        machine.control = Some(control);
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
                machine.boot = machine.started.elapsed();
            }
            None => machine.greet()?,
        }
        Ok(machine)
    }

    /// Waits until the init is ready.
    fn greet(&mut self) -> Result<(), Error> {
        let frame = self.frame(self.started)?;
        match frame.kind {
            Kind::Ready => self.release = String::from_utf8_lossy(&frame.body).into_owned(),
            Kind::Failure => return Err(self.inside(&frame.body)),
            other => return Err(self.died(format!("its first word was {other:?}, not Ready"))),
        }
        self.boot = self.started.elapsed();
        Ok(())
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
        self.results(start)
    }

    /// Reads the results of the job that runs since `start`.
    fn results(&mut self, start: Instant) -> Result<Output, Error> {
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
        if let Channel::Port(_) = self.channel {
            let mut frame = Vec::new();
            frame::write(&mut frame, Kind::Off, "", b"").map_err(Error::io("write", "a frame"))?;
            self.send(&frame)?;
        }
        match self.frame(Instant::now()) {
            // The emulator's end of the channel closes when it exits.
            Err(Error::Died { .. }) => {}
            Err(other) => return Err(other),
            Ok(frame) => return Err(self.died(format!("it said {:?} instead of powering off", frame.kind))),
        }
        match self.emulator.powered_off()? {
            Ok(()) => Ok(self.started.elapsed()),
            Err(status) => Err(self.died(status.to_string())),
        }
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
        let timeout = self.timeout;
        self.channel.send(bytes, timeout).map_err(|e| self.died(format!("it takes no job: {e}")))
    }

    /// The next frame, which has [`Options::timeout`] from `start` on.
    fn frame(&mut self, start: Instant) -> Result<frame::Frame, Error> {
        let deadline = start + self.timeout;
        let mut patient = Patient {
            channel: &mut self.channel,
            console: &self.console,
            emulator: &mut self.emulator,
            deadline,
            progress: Progress::new(&self.host, self.say, self.started, !self.release.is_empty()),
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

/// Boots or resumes `host`, runs `job`, powers off. The emulator is gone when this returns.
pub fn run(host: &Host, job: &Job, options: &Options) -> Result<Run, Error> {
    let _slot = Slots::take(1);
    let (machine, output) = if host.lane.one_job() {
        let mut machine = Machine::boot_with(host, job, options)?;
        let output = machine.results(Instant::now())?;
        (machine, output)
    } else {
        let mut machine = Machine::up(host, options)?;
        let output = machine.run(job)?;
        (machine, output)
    };
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
