//! The init of an emulated host: loads KVM, runs the programs that it is sent, sends back what they did, powers off.
//!
//! It is process 1, so returning is a kernel panic: whatever goes wrong is said on the channel, or on the console when
//! there is none yet, and the machine is powered off.

#![forbid(unsafe_code)]

use std::error::Error;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use evenkeel_lab::frame::{self, FrameError, Kind};
use evenkeel_lab::paths;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};
use rustix::termios::{OptionalActions, tcdrain, tcgetattr, tcsetattr};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() {
    if std::process::id() != 1 {
        look();
    }
    if let Err(error) = prepare().and_then(|channel| serve(&channel)) {
        eprintln!("evenkeel-lab-init: {error}");
    }
    off();
}

/// Not process 1: the lab's own test program, which needs no other binary to show that everything is in its place.
/// Says which devices can be opened, into the file that its last argument names; or, when that is `panic`, crashes the
/// kernel; or, when it is `send` or `receive`, passes its working folder's file `text` over the link.
fn look() -> ! {
    let done = match std::env::args().skip(1).last().as_deref() {
        None => Err("this is the init of the lab's emulated hosts, not a command".into()),
        // sysrq(c), as the kernel's Documentation/admin-guide/sysrq.rst says.
        Some("panic") => fs::write("/proc/sysrq-trigger", "c")
            .map_err(Into::into)
            .and_then(|()| Err("the kernel did not crash".into())),
        Some("send") => fs::read("text").map_err(Into::into).and_then(|text| {
            let mut link = OpenOptions::new().write(true).open(paths::LINK)?;
            Ok(frame::write(&mut link, Kind::File, "text", &text)?)
        }),
        Some("receive") => File::open(paths::LINK).map_err(Into::into).and_then(|mut link| {
            let frame = frame::read(&mut link)?;
            Ok(fs::write("text", frame.body)?)
        }),
        Some(file) => devices(Path::new(file)),
    };
    if let Err(error) = done {
        let error: Box<dyn Error> = error;
        eprintln!("evenkeel-lab-init: {error}");
        std::process::exit(2);
    }
    std::process::exit(0);
}

fn devices(file: &Path) -> Result<()> {
    let mut report = String::new();
    for device in ["/dev/kvm", "/dev/net/tun", "/dev/vhost-net"] {
        match OpenOptions::new().read(true).write(true).open(device) {
            Ok(_) => report += &format!("{device}: opens\n"),
            Err(error) => report += &format!("{device}: {error}\n"),
        }
    }
    report += &format!("command line: {}", fs::read_to_string("/proc/cmdline").unwrap_or_default());
    fs::write(file, report)?;
    println!("looked");
    Ok(())
}

/// Powers off. Does not come back.
fn off() -> ! {
    rustix::fs::sync();
    let error = reboot(RebootCommand::PowerOff);
    eprintln!("evenkeel-lab-init: cannot power off: {error:?}");
    // Exiting panics the kernel, which makes the emulator exit: better than hanging until the time is up.
    std::process::exit(1);
}

/// Where jobs come from, and where results go.
struct Channel {
    jobs: File,
    results: File,
    /// The results go over a wire that is slow and loses what is on its way when the machine is powered off.
    wire: bool,
}

impl Channel {
    fn say(&self, kind: Kind, name: &str, body: &[u8]) -> Result<()> {
        Ok(frame::write(&mut &self.results, kind, name, body)?)
    }

    /// Waits until all that was said is out.
    fn flush(&self) -> Result<()> {
        if self.wire {
            tcdrain(&self.results)?;
        }
        Ok((&self.results).flush()?)
    }

    /// The job that came with the boot, and the second serial port.
    fn serial() -> Result<Channel> {
        let results = OpenOptions::new().read(true).write(true).open(paths::RESULTS)?;
        let mut settings = tcgetattr(&results)?;
        settings.make_raw();
        // The fastest there is: a serial port's base rate.
        settings.set_speed(115_200)?;
        tcsetattr(&results, OptionalActions::Now, &settings)?;
        Ok(Channel { jobs: File::open(paths::JOB)?, results, wire: true })
    }

    /// The virtio-serial port of this name.
    fn port(name: &str) -> Result<Channel> {
        let port = OpenOptions::new().read(true).write(true).open(port_device(name)?)?;
        Ok(Channel { jobs: port.try_clone()?, results: port, wire: false })
    }
}

/// Mounts what programs expect and opens the channel, which is a module on kernels before 6.12.
fn prepare() -> Result<Channel> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp")] {
        mount(kind, target, kind, MountFlags::empty(), None)
            .map_err(|e| format!("cannot mount {target}: {e}"))?;
    }
    if Path::new(paths::JOB).exists() {
        return Channel::serial().map_err(|e| format!("cannot use {}: {e}", paths::RESULTS).into());
    }
    // Those of the channel come first, so that a failure of the others can be told through it.
    load(|name| name.starts_with("virtio"))?;
    let channel = Channel::port(paths::PORT)?;
    symlink(port_device(paths::LINK_PORT)?, paths::LINK)?;
    Ok(channel)
}

/// Loads KVM, then one job after another until the lab has no more.
fn serve(channel: &Channel) -> Result<()> {
    // Where a module takes half a minute, the console should say which.
    let told = |name: &str| {
        if channel.wire {
            let _ = fs::write("/dev/kmsg", format!("<5>evenkeel-lab: loads {name}\n"));
        }
        !name.starts_with("virtio")
    };
    if let Err(error) = load(told) {
        channel.say(Kind::Failure, "", error.to_string().as_bytes())?;
        channel.flush()?;
        return Err(error);
    }
    let release = rustix::system::uname();
    channel.say(Kind::Ready, "", release.release().to_bytes())?;
    loop {
        let done = match Job::read(&channel.jobs) {
            Ok(None) => Ok(true),
            Ok(Some(job)) => {
                if let Err(error) = job.run(channel) {
                    channel.say(Kind::Failure, "", error.to_string().as_bytes())?;
                }
                Ok(false)
            }
            // The lab is gone: nobody waits for this host any more.
            Err(error) if matches!(error.downcast_ref(), Some(FrameError::Closed)) => Ok(true),
            Err(error) => {
                channel.say(Kind::Failure, "", error.to_string().as_bytes())?;
                Err(error)
            }
        };
        channel.flush()?;
        if done? {
            return Ok(());
        }
    }
}

fn load(wanted: impl Fn(&str) -> bool) -> Result<()> {
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(paths::MODULES)? {
        files.push(entry?.path());
    }
    files.sort();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = name.split_once('-').map_or(name.as_str(), |(_, name)| name);
        if wanted(name) {
            finit_module(File::open(&file)?, c"", 0)
                .map_err(|e| format!("cannot load the module {name}: {e}"))?;
        }
    }
    Ok(())
}

/// The device of a virtio-serial port, which appears a moment after its driver.
fn port_device(wanted: &str) -> Result<PathBuf> {
    for _ in 0..500 {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten() {
            let entry = entry?;
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            let device = Path::new("/dev").join(entry.file_name());
            if name.trim() == wanted && device.exists() {
                return Ok(device);
            }
        }
        sleep(Duration::from_millis(10));
    }
    Err(format!("no virtio-serial port called {wanted} appeared").into())
}

/// A job, whose program and files are in their places when it is read.
#[derive(Default)]
struct Job {
    name: String,
    args: Vec<Vec<u8>>,
    outputs: Vec<String>,
    console: bool,
}

impl Job {
    /// Reads the next job; nothing when the lab has no more.
    fn read(mut port: &File) -> Result<Option<Job>> {
        let mut job = Job::default();
        if Path::new(paths::WORK).exists() {
            fs::remove_dir_all(paths::WORK)?;
        }
        fs::create_dir(paths::WORK)?;
        loop {
            let frame = frame::read(&mut port)?;
            match frame.kind {
                Kind::Program => {
                    job.name = frame.name;
                    fs::write(paths::PROGRAM, &frame.body)?;
                    fs::set_permissions(paths::PROGRAM, fs::Permissions::from_mode(0o755))?;
                }
                Kind::Arg => job.args.push(frame.body),
                Kind::Input => {
                    let path = Path::new(paths::WORK).join(&frame.name);
                    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
                    fs::write(&path, &frame.body)?;
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
                }
                Kind::Output => job.outputs.push(frame.name),
                Kind::Console => job.console = true,
                Kind::Go => return Ok(Some(job)),
                Kind::Off => return Ok(None),
                other => return Err(format!("{other:?} is no part of a job").into()),
            }
        }
    }

    fn run(&self, channel: &Channel) -> Result<()> {
        let (stdout, stderr) = ("/tmp/stdout", "/tmp/stderr");
        let mut command = Command::new(paths::PROGRAM);
        command.arg0(&self.name);
        command.args(self.args.iter().map(|arg| OsStr::from_bytes(arg))).current_dir(paths::WORK).env_clear();
        command.env("PATH", "/bin:/lab/work").env("HOME", "/tmp").env("TERM", "vt220");
        fs::write(stdout, "")?;
        fs::write(stderr, "")?;
        if self.console {
            let console = OpenOptions::new().read(true).write(true).open(terminal()?)?;
            let (input, output) = (console.try_clone()?, console.try_clone()?);
            command.stdin(input).stdout(output).stderr(console);
        } else {
            command.stdin(Stdio::null()).stdout(File::create(stdout)?).stderr(File::create(stderr)?);
        }
        let status = command.status().map_err(|e| {
            format!("cannot start the program: {e}; it must be a static binary for this architecture")
        })?;
        match (status.code(), status.signal()) {
            (Some(code), _) => channel.say(Kind::Exited, "", &code.to_le_bytes())?,
            (None, signal) => channel.say(Kind::Killed, "", &signal.unwrap_or_default().to_le_bytes())?,
        }
        channel.say(Kind::Stdout, "", &fs::read(stdout)?)?;
        channel.say(Kind::Stderr, "", &fs::read(stderr)?)?;
        for name in &self.outputs {
            match fs::read(Path::new(paths::WORK).join(name)) {
                Ok(content) => channel.say(Kind::File, name, &content)?,
                Err(error) => channel.say(Kind::Missing, name, error.to_string().as_bytes())?,
            }
        }
        channel.say(Kind::End, "", b"")
    }
}

/// The device that the console is, which a shell can have as its terminal; /dev/console itself cannot be one.
fn terminal() -> Result<PathBuf> {
    let line = fs::read_to_string("/proc/cmdline")?;
    let name = line.split_whitespace().rev().find_map(|word| word.strip_prefix("console="));
    let name = name.and_then(|name| name.split(',').next()).ok_or("the command line names no console")?;
    Ok(Path::new("/dev").join(name))
}
