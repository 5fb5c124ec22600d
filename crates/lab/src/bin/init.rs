//! The init of an emulated host: loads KVM, runs one program, sends back what it did, powers off.
//!
//! It is process 1, so returning is a kernel panic: whatever goes wrong is said on the result channel, or on the
//! console when there is none yet, and the machine is powered off.

#![forbid(unsafe_code)]

use std::error::Error;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use evenkeel_lab::frame::{self, Kind};
use evenkeel_lab::paths;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() {
    if std::process::id() != 1 {
        look();
    }
    let mut port = match prepare() {
        Ok(port) => port,
        Err(error) => {
            eprintln!("evenkeel-lab-init: {error}");
            off();
        }
    };
    let outcome = load_modules().and_then(|()| run(&mut port));
    if let Err(error) = outcome {
        eprintln!("evenkeel-lab-init: {error}");
        // If this fails too, the missing end frame tells.
        let _ = frame::write(&mut port, Kind::Failure, "", error.to_string().as_bytes());
    }
    if let Err(error) = frame::write(&mut port, Kind::End, "", b"") {
        eprintln!("evenkeel-lab-init: cannot write to the result channel: {error}");
    }
    drop(port);
    off();
}

/// Not process 1: the lab's own test program, which needs no other binary to show that everything is in its place.
/// Says which devices can be opened, into the file that its last argument names; or, when that is `panic`, crashes the
/// kernel.
fn look() -> ! {
    let Some(file) = std::env::args_os().skip(1).last() else {
        eprintln!("evenkeel-lab-init: this is the init of the lab's emulated hosts, not a command");
        std::process::exit(2);
    };
    if file == "panic" {
        // sysrq(c), as the kernel's Documentation/admin-guide/sysrq.rst says.
        let error = fs::write("/proc/sysrq-trigger", "c").err();
        eprintln!("evenkeel-lab-init: the kernel did not crash: {error:?}");
        std::process::exit(1);
    }
    let mut report = String::new();
    for device in ["/dev/kvm", "/dev/net/tun", "/dev/vhost-net"] {
        match OpenOptions::new().read(true).write(true).open(device) {
            Ok(_) => report += &format!("{device}: opens\n"),
            Err(error) => report += &format!("{device}: {error}\n"),
        }
    }
    report += &format!("command line: {}", fs::read_to_string("/proc/cmdline").unwrap_or_default());
    if let Err(error) = fs::write(&file, report) {
        eprintln!("evenkeel-lab-init: cannot write {}: {error}", Path::new(&file).display());
        std::process::exit(1);
    }
    let told = std::io::stdout().write_all(b"looked\n");
    std::process::exit(if told.is_ok() { 0 } else { 1 });
}

/// Powers off. Does not come back.
fn off() -> ! {
    rustix::fs::sync();
    let error = reboot(RebootCommand::PowerOff);
    eprintln!("evenkeel-lab-init: cannot power off: {error:?}");
    // Exiting panics the kernel, which makes the emulator exit: better than hanging until the time is up.
    std::process::exit(1);
}

/// Mounts what programs expect and opens the result channel, which is a module on kernels before 6.12.
fn prepare() -> Result<File> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp")] {
        mount(kind, target, kind, MountFlags::empty(), None)
            .map_err(|e| format!("cannot mount {target}: {e}"))?;
    }
    // Those of the channel come first, so that a failure of the others can be told through it.
    load(|name| name.starts_with("virtio"))?;
    open_port()
}

fn load_modules() -> Result<()> {
    load(|name| !name.starts_with("virtio"))
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

/// The port appears a moment after its driver.
fn open_port() -> Result<File> {
    for _ in 0..500 {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten() {
            let entry = entry?;
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim() == paths::PORT {
                let device = Path::new("/dev").join(entry.file_name());
                if let Ok(port) = OpenOptions::new().write(true).open(&device) {
                    return Ok(port);
                }
            }
        }
        sleep(Duration::from_millis(10));
    }
    Err(format!("no virtio-serial port called {} appeared", paths::PORT).into())
}

fn run(port: &mut File) -> Result<()> {
    let release = rustix::system::uname();
    frame::write(port, Kind::Ready, "", release.release().to_bytes())?;

    let (stdout, stderr) = ("/tmp/stdout", "/tmp/stderr");
    let args = fs::read(paths::ARGS)?;
    let status = Command::new(paths::PROGRAM)
        .args(split(&args).map(OsStr::from_bytes))
        .current_dir(paths::WORK)
        .env_clear()
        .env("PATH", "/")
        .env("HOME", "/tmp")
        .stdin(Stdio::null())
        .stdout(File::create(stdout)?)
        .stderr(File::create(stderr)?)
        .status()
        .map_err(|e| {
            format!("cannot start the program: {e}; it must be a static binary for this architecture")
        })?;

    match (status.code(), status.signal()) {
        (Some(code), _) => frame::write(port, Kind::Exited, "", &code.to_le_bytes())?,
        (None, signal) => frame::write(port, Kind::Killed, "", &signal.unwrap_or_default().to_le_bytes())?,
    }
    frame::write(port, Kind::Stdout, "", &fs::read(stdout)?)?;
    frame::write(port, Kind::Stderr, "", &fs::read(stderr)?)?;
    let outputs = fs::read(paths::OUTPUTS)?;
    for output in split(&outputs) {
        let name = std::str::from_utf8(output)?;
        match fs::read(Path::new(paths::WORK).join(name)) {
            Ok(content) => frame::write(port, Kind::File, name, &content)?,
            Err(error) => frame::write(port, Kind::Missing, name, error.to_string().as_bytes())?,
        }
    }
    Ok(port.flush()?)
}

/// The strings of a zero-ended list.
fn split(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split_inclusive(|byte| *byte == 0).map(|text| text.strip_suffix(&[0]).unwrap_or(text))
}
