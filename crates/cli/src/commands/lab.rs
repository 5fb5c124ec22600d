//! `evenkeel lab`: real host kernels on this machine, under emulation.

use std::path::PathBuf;
use std::time::Duration;

use evenkeel_lab::{Arch, Cache, Exit, Job, Kernel, Options, fetch, kernel, kernels, run};
use serde::Serialize;

use crate::failure::Failure;
use crate::{Format, Global, output};

/// Real host kernels on this machine, under QEMU.
#[derive(clap::Args)]
pub struct Lab {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// The kernels that the lab knows, and which of them are fetched.
    List,
    /// Fetch kernels from Debian's archive into the cache; all of them when none is named. Installs nothing.
    Fetch {
        /// By name.
        kernels: Vec<String>,
    },
    /// Run a program on a kernel and bring back what it prints, its files and its exit code.
    Run {
        /// The kernels, one after another.
        #[arg(required = true)]
        hosts: Vec<String>,
        /// A file that the program writes and that is brought back, into FOLDER/HOST/.
        #[arg(long, value_name = "FILE")]
        bring: Vec<String>,
        /// Where files that are brought back go.
        #[arg(long, value_name = "FOLDER", default_value = ".")]
        into: PathBuf,
        /// Seconds that a kernel may take.
        #[arg(long, default_value_t = 120)]
        timeout: u64,
        /// `evenkeel` and its arguments, or the path of a static binary and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Capture kernels: FOLDER/HOST.json for each.
    Capture {
        /// By name; all that are fetched when none is named.
        kernels: Vec<String>,
        /// Where captures go.
        #[arg(short, long, value_name = "FOLDER", default_value = ".")]
        output: PathBuf,
    },
    /// Registers of each arm64 kernel on every other: saved, set, read back, and compared with what was predicted.
    Registers(super::lab_registers::Registers),
}

impl Lab {
    /// Does it. Exits with the worst exit code of the programs that ran; 3 when a kernel could not be run.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        let cache = Cache::locate().map_err(failed)?;
        match self.what {
            What::List => list(&cache, global),
            What::Fetch { kernels } => {
                fetch(&choose(&kernels)?, &cache, &mut |line| anstream::eprintln!("{line}"))
                    .map_err(failed)?;
                Ok(0)
            }
            What::Run { hosts, bring, into, timeout, command } => {
                let mut options = Options::new(cache).map_err(failed)?;
                options.timeout = Duration::from_secs(timeout);
                let (program, args) = command.split_first().ok_or_else(|| Failure::bad("no command", ""))?;
                each(&choose(&hosts)?, |kernel| {
                    let binary = match program.as_str() {
                        "evenkeel" => options.binary("evenkeel", kernel.arch).map_err(failed)?,
                        path => PathBuf::from(path),
                    };
                    let job = Job { args: args.to_vec(), outputs: bring.clone(), ..Job::new(binary) };
                    one(kernel, &job, &options, |file| {
                        let name = PathBuf::from(file);
                        let name = name.file_name().map_or_else(|| name.clone(), PathBuf::from);
                        into.join(&kernel.name).join(name)
                    })
                })
            }
            What::Registers(registers) => {
                let fetched = |k: &&Kernel| k.arch == Arch::Aarch64 && cache.installed(k).is_ok();
                let chosen: Vec<&Kernel> = match registers.kernels.as_slice() {
                    [] => kernels().iter().filter(fetched).collect(),
                    names => choose(names)?,
                };
                registers.run(&chosen, cache, global)
            }
            What::Capture { kernels: names, output: folder } => {
                let chosen: Vec<&Kernel> = match names.as_slice() {
                    [] => kernels().iter().filter(|k| cache.installed(k).is_ok()).collect(),
                    names => choose(names)?,
                };
                let options = Options::new(cache).map_err(failed)?;
                each(&chosen, |kernel| {
                    let binary = options.binary("evenkeel", kernel.arch).map_err(failed)?;
                    let job =
                        Job::new(binary).arg("capture").arg("-o").arg("surface.json").output("surface.json");
                    one(kernel, &job, &options, |_| folder.join(format!("{}.json", kernel.name)))
                })
            }
        }
    }
}

pub(super) fn failed(e: evenkeel_lab::Error) -> Failure {
    let text = e.to_string();
    let (message, hint) = text.split_once("\nhint: ").unwrap_or((&text, ""));
    Failure { exit: 3, ..Failure::bad(message, hint) }
}

fn choose(names: &[String]) -> Result<Vec<&'static Kernel>, Failure> {
    match names {
        [] => Ok(kernels().iter().collect()),
        names => names.iter().map(|n| kernel(n).map_err(|e| Failure { exit: 2, ..failed(e) })).collect(),
    }
}

/// Every kernel in turn: one that fails does not stop the others.
fn each(chosen: &[&Kernel], mut work: impl FnMut(&Kernel) -> Result<u8, Failure>) -> Result<u8, Failure> {
    if chosen.is_empty() {
        return Err(Failure::bad("no kernel: nothing ran", "evenkeel lab fetch KERNEL"));
    }
    let mut worst = 0;
    for (i, kernel) in chosen.iter().enumerate() {
        anstream::eprintln!("[{}/{}] {}", i + 1, chosen.len(), kernel.name);
        match work(kernel) {
            Ok(code) => worst = worst.max(code),
            Err(failure) => {
                failure.print();
                worst = worst.max(failure.exit);
            }
        }
    }
    Ok(worst)
}

/// Runs a job, prints what it printed, and writes its files.
fn one(
    kernel: &Kernel,
    job: &Job,
    options: &Options,
    place: impl Fn(&str) -> PathBuf,
) -> Result<u8, Failure> {
    let out = run(kernel, job, options).map_err(failed)?;
    output::print(&String::from_utf8_lossy(&out.stdout))?;
    anstream::eprint!("{}", String::from_utf8_lossy(&out.stderr));
    for (name, bytes) in &out.files {
        let path = place(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Failure::file(folder, &e))?;
        }
        output::write(&path, bytes)?;
        anstream::eprintln!("{}: {name} is in {}", kernel.name, path.display());
    }
    for (name, why) in &out.missing {
        anstream::eprintln!("{}: {name} did not come back: {why}", kernel.name);
    }
    let d = out.durations;
    anstream::eprintln!(
        "{}: {} booted in {:.1} s, the whole took {:.1} s",
        kernel.name,
        out.release,
        d.boot.as_secs_f64(),
        d.total.as_secs_f64()
    );
    Ok(match out.exit {
        Exit::Code(code) if !out.missing.is_empty() => u8::try_from(code).unwrap_or(3).max(3),
        Exit::Code(code) => u8::try_from(code).unwrap_or(3),
        Exit::Signal(signal) => {
            anstream::eprintln!("{}: ended by signal {signal}", kernel.name);
            3
        }
    })
}

/// A kernel of the list.
#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    arch: &'a str,
    release: &'a str,
    version: &'a str,
    suite: &'a str,
    fetched: bool,
}

fn list(cache: &Cache, global: Global) -> Result<u8, Failure> {
    let all: Vec<Listed<'_>> = kernels()
        .iter()
        .map(|k| Listed {
            name: &k.name,
            arch: k.arch.name(),
            release: &k.release,
            version: &k.version,
            suite: &k.suite,
            fetched: cache.installed(k).is_ok(),
        })
        .collect();
    match global.format {
        Format::Json => output::json(&all)?,
        Format::Text => {
            let line = |k: &Listed<'_>| {
                let state = if k.fetched { "fetched" } else { "-" };
                format!("{:<22} {:<8} {:<34} {:<22} {state}\n", k.name, k.arch, k.release, k.suite)
            };
            output::print(&all.iter().map(line).collect::<String>())?;
        }
    }
    Ok(0)
}
