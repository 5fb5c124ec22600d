//! `evenkeel lab`: real host kernels on this machine, under emulation.

mod add;
pub mod bisect;
mod cache;
pub mod capsules;
mod fetch;
#[cfg(target_arch = "x86_64")]
pub mod journey;
mod matrix;
pub mod observe;
mod registers;
pub mod run;

use std::path::PathBuf;
use std::time::Duration;

use evenkeel_lab::{Cache, Host, Job, Kernels, Lane, Options, Origin};
use serde::Serialize;

use crate::failure::Failure;
use crate::{Format, Global, output};

/// Real host kernels on this machine, under QEMU and Bochs.
#[derive(clap::Args)]
pub struct Lab {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// The kernels that the lab knows, and which of them are fetched.
    List,
    Fetch(fetch::Fetch),
    Add(add::Add),
    Import(add::Import),
    Remove(add::Remove),
    Cache(cache::CacheCommand),
    Bisect(bisect::Bisect),
    /// Run a program on a kernel and bring back what it prints, its files and its exit code.
    Run {
        /// The hosts, two at a time.
        #[arg(required = true)]
        hosts: Vec<String>,
        /// Boot anew, also where the host is kept idle and could be resumed.
        #[arg(long)]
        fresh: bool,
        /// A file for the program's working folder.
        #[arg(long, value_name = "FILE")]
        send: Vec<PathBuf>,
        /// A file that the program writes and that is brought back, into FOLDER/HOST/.
        #[arg(long, value_name = "FILE")]
        bring: Vec<String>,
        /// Where files that are brought back go.
        #[arg(long, value_name = "FOLDER", default_value = ".")]
        into: PathBuf,
        /// Seconds that a boot or the program may take; 120 when not given, 600 for `-vmx`.
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
        /// `evenkeel` and its arguments, or the path of a static binary and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run a program on each of two hosts that are joined: each finds the link as /dev/evenkeel-link.
    Link {
        /// One host.
        one: String,
        /// The other host.
        other: String,
        /// A file for the working folders of both programs.
        #[arg(long, value_name = "FILE")]
        send: Vec<PathBuf>,
        /// Seconds that it may take.
        #[arg(long)]
        timeout: Option<u64>,
        /// The first host's program and its arguments, `---`, the second host's. Without `---`, the same on both.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Boot a host with a shell on this terminal; `exit` powers it off.
    Shell {
        /// By name.
        host: String,
        /// A file for the working folder, where `evenkeel` is, too.
        #[arg(long, value_name = "FILE")]
        send: Vec<PathBuf>,
    },
    /// Capture kernels: FOLDER/HOST.json for each.
    Capture {
        /// By name; all that are fetched when none is named.
        kernels: Vec<String>,
        /// Where captures go.
        #[arg(short, long, value_name = "FOLDER", default_value = ".")]
        output: PathBuf,
    },
    /// Compute all ordered pairs of hosts of one lane, for the terminal and as one HTML page: what does every upgrade
    /// and every rollback do to guests? A survey: exits with 0 when every pair was asked, whatever the answers.
    ///
    /// Hosts of the lab are booted and captured first. Those that are not fetched, and those of lanes that take minutes
    /// (vmx) unless they are named, are taken from the bundled captures: "captured earlier".
    Matrix {
        /// Hosts of the lab, or captures by name or file; all hosts of the lab when none is named.
        hosts: Vec<String>,
        /// Boot nothing: take captures from FOLDER (FOLDER/HOST.json), all of them when no host is named.
        #[arg(long, value_name = "FOLDER", conflicts_with = "bundled")]
        from: Option<PathBuf>,
        /// Boot nothing: take the captures that are part of this program.
        #[arg(long)]
        bundled: bool,
        #[command(flatten)]
        options: crate::commands::matrix::Options,
    },
    Observe(observe::Observe),
    /// Registers of each arm64 kernel on every other: saved, set, read back, and compared with what was predicted.
    Registers(registers::Registers),
    /// A guest saved on each kernel goes on on every other: as it was saved, and rewritten where that loses nothing.
    Capsules(capsules::Capsules),
    #[cfg(target_arch = "x86_64")]
    Journey(journey::Journey),
}

impl Lab {
    /// Does it. Exits with the worst exit code of the programs that ran; 3 when a kernel could not be run.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        let cache = Cache::locate().map_err(failed)?;
        match self.what {
            What::Matrix { hosts, from, bundled, options } if bundled || from.is_some() => {
                crate::commands::matrix::matrix(
                    &crate::commands::matrix::load(&hosts, from.as_deref())?,
                    &options,
                    global,
                )
            }
            What::Matrix { hosts, options, .. } => matrix::matrix(&cache, &hosts, &options, global),
            What::List => list(&cache, global),
            What::Fetch(what) => what.run(&cache),
            What::Add(what) => what.run(&cache, global),
            What::Import(what) => what.run(&cache, global),
            What::Remove(what) => what.run(&cache),
            What::Cache(what) => what.run(&cache, global),
            What::Bisect(what) => what.run(cache, global),
            What::Run { hosts, fresh, send, bring, into, timeout, command } => {
                let mut options = with_words(cache)?;
                (options.timeout, options.fresh) = (timeout.map(Duration::from_secs), fresh);
                let inputs = run::read_all(&send)?;
                let job = |host: &Host| {
                    let mut job = run::program(&command, host, &options)?;
                    (job.inputs, job.outputs) = (inputs.clone(), bring.clone());
                    Ok(job)
                };
                let place = |host: &Host, file: &str| {
                    let name = PathBuf::from(file);
                    let name = name.file_name().map_or_else(|| name.clone(), PathBuf::from);
                    into.join(&host.name).join(name)
                };
                run::each(&choose(&hosts, &options.cache)?, &options, global, job, place)
            }
            What::Link { one, other, send, timeout, command } => {
                let mut options = with_words(cache)?;
                options.timeout = timeout.map(Duration::from_secs);
                let hosts = choose(&[one, other], &options.cache)?;
                run::link(&hosts, &command, &run::read_all(&send)?, &options, global)
            }
            What::Shell { host: name, send } => {
                let options = Options::new(cache).map_err(failed)?;
                let host = choose(&[name], &options.cache)?.remove(0);
                let mut files = run::read_all(&send)?;
                // Where it is not built a person can still look around.
                if let Ok(binary) = options.binary("evenkeel", host.kernel.arch) {
                    files.extend(run::read_all(&[binary])?);
                }
                anstream::eprintln!("{}: booting; `exit` powers it off", host.name);
                Ok(run::exit_code(evenkeel_lab::shell(&host, files, &options).map_err(failed)?))
            }
            What::Observe(what) => what.run(cache, global),
            What::Registers(registers) => {
                let fetched = |h: &Host| h.lane == Lane::Arm64 && cache.has(&h.kernel);
                let chosen: Vec<Host> = match registers.kernels.as_slice() {
                    [] => Kernels::load(&cache).hosts().into_iter().filter(fetched).collect(),
                    names => choose(names, &cache)?,
                };
                registers.run(&chosen, cache, global)
            }
            What::Capsules(capsules) => {
                let fetched = |h: &Host| h.lane.name() == capsules.lane && cache.has(&h.kernel);
                let chosen: Vec<Host> = match capsules.kernels.as_slice() {
                    [] => Kernels::load(&cache).hosts().into_iter().filter(fetched).collect(),
                    names => choose(names, &cache)?,
                };
                capsules.run(&chosen, cache, global)
            }
            #[cfg(target_arch = "x86_64")]
            What::Journey(journey) => {
                let or = |names: &[String], usual: &[&str]| match names {
                    [] => usual.iter().map(ToString::to_string).collect(),
                    names => names.to_vec(),
                };
                let hosts = or(&journey.kernels, &["debian-6.1", "debian-6.12", "debian-7.3"]);
                let hosts = choose(&hosts, &cache)?;
                let guests = choose(&or(&journey.guest, &["debian-6.1"]), &cache)?;
                journey.run(&hosts, &guests, cache, global)
            }
            What::Capture { kernels: names, output: folder } => {
                let chosen: Vec<Host> = match names.as_slice() {
                    [] => {
                        Kernels::load(&cache).hosts().into_iter().filter(|h| cache.has(&h.kernel)).collect()
                    }
                    names => choose(names, &cache)?,
                };
                // Booted anew: a capture is of a host as it comes up.
                let options = Options { fresh: true, ..with_words(cache)? };
                let job = |host: &Host| {
                    let binary = options.binary("evenkeel", host.kernel.arch)?;
                    Ok(Job::new(binary).arg("capture").arg("-o").arg("surface.json").output("surface.json"))
                };
                let place = |host: &Host, _: &str| folder.join(format!("{}.json", host.name));
                run::each(&chosen, &options, global, job, place)
            }
        }
    }
}

/// Options whose words about long waits go to the standard error.
fn with_words(cache: Cache) -> Result<Options, Failure> {
    let mut options = Options::new(cache).map_err(failed)?;
    options.progress = Some(|words| anstream::eprintln!("{words}"));
    Ok(options)
}

/// An error of the lab, as it is told.
pub fn failed(e: evenkeel_lab::Error) -> Failure {
    let text = e.to_string();
    let (message, hint) = text.split_once("\nhint: ").unwrap_or((&text, ""));
    Failure { exit: 3, ..Failure::bad(message, hint) }
}

fn choose(names: &[String], cache: &Cache) -> Result<Vec<Host>, Failure> {
    let known = Kernels::load(cache);
    names.iter().map(|n| known.host(n).map_err(|e| Failure { exit: 2, ..failed(e) })).collect()
}

/// A host that the lab knows.
#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    lane: &'a str,
    release: &'a str,
    /// The suite that the kernel comes from, or what a user brought.
    from: &'a str,
    version: &'a str,
    fetched: bool,
}

fn list(cache: &Cache, global: Global) -> Result<u8, Failure> {
    let all = Kernels::load(cache).hosts();
    let all: Vec<Listed<'_>> = all
        .iter()
        .map(|h| {
            let (from, version) = match &h.kernel.origin {
                Origin::Debian { version, suite, .. } => (suite.as_str(), version.as_str()),
                Origin::Added { from } => (from.as_str(), ""),
            };
            let fetched = cache.has(&h.kernel);
            Listed { name: &h.name, lane: h.lane.name(), release: &h.kernel.release, from, version, fetched }
        })
        .collect();
    match global.format {
        Format::Json => output::json(&all)?,
        Format::Text => {
            let line = |k: &Listed<'_>| {
                let state = if k.fetched { "fetched" } else { "-" };
                format!("{:<22} {:<8} {:<34} {:<22} {state}\n", k.name, k.lane, k.release, k.from)
            };
            output::print(&all.iter().map(line).collect::<String>())?;
        }
    }
    Ok(0)
}
