//! Running a job under a kernel.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cache::{Cache, Installed};
use crate::emulator::{Emulator, Ending, Files};
use crate::error::Error;
use crate::frame::{self, Frame, FrameError, Kind};
use crate::initramfs;
use crate::job::{Durations, Exit, Job, Output};
use crate::kernel::{Arch, Kernel};
use crate::modules::{Module, Modules};
use crate::tool;

/// How to run: the parts that are the same for every job.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the kernels are.
    pub cache: Cache,
    /// The folder with a folder of static binaries for each architecture (`x86_64/evenkeel-lab-init`).
    pub binaries: PathBuf,
    /// The emulated host's memory in MiB.
    pub memory_mib: u32,
    /// When to give up, on this machine's clock.
    pub timeout: Duration,
}

impl Options {
    /// Static binaries from `$EVENKEEL_STATIC`, or from the folder `static` beside this program or above it;
    /// 256 MiB; two minutes.
    pub fn new(cache: Cache) -> Result<Options, Error> {
        let binaries = match env::var_os("EVENKEEL_STATIC").filter(|value| !value.is_empty()) {
            Some(folder) => PathBuf::from(folder),
            None => beside_this_program()
                .ok_or(Error::NoBinary { name: INIT.to_owned(), arch: Arch::X86_64.name() })?,
        };
        Ok(Options { cache, binaries, memory_mib: 256, timeout: Duration::from_secs(120) })
    }

    /// The static binary `name` for `arch`.
    pub fn binary(&self, name: &str, arch: Arch) -> Result<PathBuf, Error> {
        let path = self.binaries.join(arch.name()).join(name);
        if path.is_file() {
            Ok(path)
        } else {
            Err(Error::NoBinary { name: name.to_owned(), arch: arch.name() })
        }
    }
}

const INIT: &str = "evenkeel-lab-init";

fn beside_this_program() -> Option<PathBuf> {
    let program = env::current_exe().ok()?;
    program.ancestors().skip(1).map(|folder| folder.join("static")).find(|folder| folder.is_dir())
}

/// Boots `kernel`, runs `job` and brings back its results. The emulator is gone when this returns.
///
/// A program that fails is no error: see [`Output::exit`]. A kernel that crashes, hangs or answers garbage is, with
/// the end of its console.
pub fn run(kernel: &Kernel, job: &Job, options: &Options) -> Result<Output, Error> {
    let installed = options.cache.installed(kernel)?;
    let folder = tempfile::Builder::new()
        .prefix("evenkeel-lab-")
        .tempdir()
        .map_err(Error::io("create a folder in", env::temp_dir()))?;
    let files = Files::in_folder(folder.path(), &installed.image);
    let init = read(&options.binary(INIT, kernel.arch)?)?;
    let initramfs = initramfs::build(&init, &modules(kernel, &installed)?, &read(&job.binary)?, job);
    fs::write(&files.initramfs, initramfs).map_err(Error::io("write", &files.initramfs))?;

    let mut clock = Clock::start();
    let emulator = Emulator::start(kernel.arch, options.memory_mib, &files)?;
    let ending = emulator.wait(&files, options.timeout, |_| clock.result_grew())?;
    let durations = clock.stop();

    let console = String::from_utf8_lossy(&fs::read(&files.console).unwrap_or_default()).into_owned();
    let context = Context { kernel, console: &console, files: &files };
    match ending {
        Ending::TimedOut => Err(Error::Timeout {
            kernel: kernel.name.clone(),
            after: options.timeout,
            console: context.tail(),
        }),
        Ending::Flooded => Err(context.died("it wrote without end and was killed".to_owned())),
        Ending::Exited(status) => {
            let result = fs::read(&files.result).unwrap_or_default();
            if result.is_empty() {
                return Err(context.died(format!("no results; the emulator's {status}")));
            }
            let frames = frame::read(&result).map_err(|source| match source {
                FrameError::End | FrameError::Truncated { .. } => {
                    context.died(format!("its results: {source}"))
                }
                _ => context.damaged(source),
            })?;
            let mut output = collect(&frames, &context)?;
            output.durations = durations;
            output.console = console;
            Ok(output)
        }
    }
}

/// The modules of a run: KVM where it is one, what a capture looks at besides, and the result channel's driver.
fn modules(kernel: &Kernel, installed: &Installed) -> Result<Vec<Module>, Error> {
    let modules = Modules::scan(&installed.modules)?;
    // Built in on arm64, and before anything else a module on x86: a kernel without it is of no use here.
    let mut names: Vec<&str> = match kernel.arch {
        Arch::X86_64 => vec!["kvm_amd"],
        Arch::Aarch64 => vec![],
    };
    // Modules on old kernels, built in later; or in a package that is not served any more, and then a capture
    // says that it could not ask.
    let optional = ["virtio_pci", "virtio_console", "tun", "vhost_net"];
    names.extend(optional.into_iter().filter(|name| modules.has(name)));
    modules.load_order(&names)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(Error::io("read", path))
}

/// What every error about a run tells.
struct Context<'a> {
    kernel: &'a Kernel,
    console: &'a str,
    files: &'a Files,
}

impl Context<'_> {
    /// The end of the console and the emulator's own words, for a person.
    fn tail(&self) -> String {
        let words = fs::read(&self.files.words).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        // The emulated CPU lacks many of an EPYC's features, and the emulator lists each.
        let words: String = words
            .lines()
            .filter(|line| !line.contains("TCG doesn't support"))
            .fold(String::new(), |text, line| text + line + "\n");
        let console = tool::tail(self.console, 25);
        let mut text = match first_alarm(self.console) {
            // What matters comes before the registers and the call trace that fill the end.
            Some(alarm) if !console.contains(alarm) => format!("the kernel's first alarm:\n  | {alarm}\n"),
            _ => String::new(),
        };
        text += "the end of its console:\n";
        for line in if console.is_empty() { "(nothing)" } else { &console }.lines() {
            text += &format!("  | {}\n", line.trim_end());
        }
        for line in tool::tail(&words, 8).lines() {
            text += &format!("  emulator: {line}\n");
        }
        text.trim_end().to_owned()
    }

    fn died(&self, why: String) -> Error {
        Error::Died { kernel: self.kernel.name.clone(), why, console: self.tail() }
    }

    fn damaged(&self, source: FrameError) -> Error {
        Error::Damaged { kernel: self.kernel.name.clone(), source, console: self.tail() }
    }
}

/// The first line that says that the kernel is broken.
fn first_alarm(console: &str) -> Option<&str> {
    let alarms = ["Kernel panic", "BUG:", "Oops", "Internal error:", "Unable to handle kernel"];
    console.lines().map(str::trim).find(|line| alarms.iter().any(|alarm| line.contains(alarm)))
}

/// Frames into an [`Output`]; its durations and console are the caller's to fill in.
fn collect(frames: &[Frame<'_>], context: &Context<'_>) -> Result<Output, Error> {
    let mut exit = None;
    let mut release = None;
    let (mut stdout, mut stderr) = (None, None);
    let mut files = BTreeMap::new();
    let mut missing = BTreeMap::new();
    let text = |body: &[u8]| String::from_utf8_lossy(body).into_owned();
    for Frame { kind, name, body } in frames {
        let number = || {
            (*body).try_into().map(i32::from_le_bytes).map_err(|_| context.died("an exit of no size".into()))
        };
        match kind {
            Kind::Ready => release = Some(text(body)),
            Kind::Exited => exit = Some(Exit::Code(number()?)),
            Kind::Killed => exit = Some(Exit::Signal(number()?)),
            Kind::Stdout => stdout = Some(body.to_vec()),
            Kind::Stderr => stderr = Some(body.to_vec()),
            Kind::File => drop(files.insert((*name).to_owned(), body.to_vec())),
            Kind::Missing => drop(missing.insert((*name).to_owned(), text(body))),
            Kind::Failure => {
                return Err(Error::Inside {
                    kernel: context.kernel.name.clone(),
                    message: text(body),
                    console: context.tail(),
                });
            }
            Kind::End => {}
        }
    }
    let lacks = |what: &str| context.died(format!("its results hold no {what}"));
    Ok(Output {
        exit: exit.ok_or_else(|| lacks("exit status"))?,
        stdout: stdout.ok_or_else(|| lacks("standard output"))?,
        stderr: stderr.ok_or_else(|| lacks("standard error"))?,
        release: release.ok_or_else(|| lacks("kernel release"))?,
        files,
        missing,
        console: String::new(),
        durations: Durations::default(),
    })
}

/// Times the phases of a run by the growth of its result: the first bytes say that the program starts, the next that
/// it is done.
struct Clock {
    start: Instant,
    ready: Option<Duration>,
    done: Option<Duration>,
}

impl Clock {
    fn start() -> Clock {
        Clock { start: Instant::now(), ready: None, done: None }
    }

    fn result_grew(&mut self) {
        let now = self.start.elapsed();
        match (self.ready, self.done) {
            (None, _) => self.ready = Some(now),
            (Some(_), None) => self.done = Some(now),
            _ => {}
        }
    }

    fn stop(&self) -> Durations {
        let total = self.start.elapsed();
        let ready = self.ready.unwrap_or(total);
        // A program faster than one look at the file took less than that look's interval.
        Durations { boot: ready, job: self.done.unwrap_or(ready) - ready, total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collected(frames: &[Frame<'_>]) -> Result<Output, Error> {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::in_folder(folder.path(), Path::new("/k"));
        fs::write(&files.words, "warning: TCG doesn't support requested feature\nout of cheese\n").unwrap();
        let console = "one\n\nKernel panic\n";
        collect(frames, &Context { kernel: &crate::kernels()[0], console, files: &files })
    }

    fn frame(kind: Kind, body: &[u8]) -> Frame<'_> {
        Frame { kind, name: "", body }
    }

    #[test]
    fn complete_results_are_an_output() {
        let frames = [
            frame(Kind::Ready, b"6.1"),
            frame(Kind::Killed, &[9, 0, 0, 0]),
            frame(Kind::Stdout, b"out"),
            frame(Kind::Stderr, b"err"),
            Frame { kind: Kind::File, name: "a", body: b"1" },
            Frame { kind: Kind::Missing, name: "b", body: b"gone" },
        ];
        let output = collected(&frames).unwrap();
        assert_eq!((output.exit, output.release.as_str()), (Exit::Signal(9), "6.1"));
        assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out"[..], &b"err"[..]));
        assert_eq!(output.files["a"], b"1");
        assert_eq!(output.missing["b"], "gone");
    }

    #[test]
    fn results_that_lack_something_are_an_error_with_the_console() {
        let error = collected(&[frame(Kind::Ready, b"6.1")]).unwrap_err().to_string();
        assert!(error.contains("no exit status") && error.contains("| Kernel panic"), "{error}");
        assert!(error.contains("emulator: out of cheese") && !error.contains("TCG"), "{error}");
        let error = collected(&[frame(Kind::Exited, b"123")]).unwrap_err().to_string();
        assert!(error.contains("an exit of no size"), "{error}");
    }

    #[test]
    fn the_cause_is_found_before_a_long_trace() {
        let console =
            format!("fine\n[ 1.0] BUG: unable to handle page fault\n{}", "[ 1.1] trace\n".repeat(60));
        assert_eq!(first_alarm(&console), Some("[ 1.0] BUG: unable to handle page fault"));
        assert_eq!(first_alarm("fine\n"), None);
    }

    #[test]
    fn what_the_init_says_is_the_error() {
        let error = collected(&[frame(Kind::Failure, b"cannot load the module kvm")]).unwrap_err();
        assert!(matches!(&error, Error::Inside { message, .. } if message.contains("kvm")), "{error}");
    }
}
