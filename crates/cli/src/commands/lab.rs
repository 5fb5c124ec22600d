//! `evenkeel lab`: real host kernels on this machine, under emulation.

use std::path::PathBuf;
use std::time::Duration;

use evenkeel_lab::{Cache, Exit, Host, Job, Kernel, Options, Origin, fetch, host, hosts, kernels, run};
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
        /// Seconds that a boot or the program may take; 120 when not given, 600 for `-vmx`.
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
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
}

impl Lab {
    /// Does it. Exits with the worst exit code of the programs that ran; 3 when a kernel could not be run.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        let cache = Cache::locate().map_err(failed)?;
        match self.what {
            What::List => list(&cache, global),
            What::Fetch { kernels } => {
                let chosen: Vec<Kernel> = choose(&kernels)?.into_iter().map(|host| host.kernel).collect();
                let chosen: Vec<&Kernel> = chosen.iter().collect();
                fetch(&chosen, &cache, &mut |line| anstream::eprintln!("{line}")).map_err(failed)?;
                Ok(0)
            }
            What::Run { hosts, bring, into, timeout, command } => {
                let mut options = with_words(cache)?;
                options.timeout = timeout.map(Duration::from_secs);
                let (program, args) = command.split_first().ok_or_else(|| Failure::bad("no command", ""))?;
                each(&choose(&hosts)?, |host| {
                    let binary = match program.as_str() {
                        "evenkeel" => options.binary("evenkeel", host.kernel.arch).map_err(failed)?,
                        path => PathBuf::from(path),
                    };
                    let mut job = Job::new(binary);
                    (job.args, job.outputs) = (args.to_vec(), bring.clone());
                    one(host, &job, &options, |file| {
                        let name = PathBuf::from(file);
                        let name = name.file_name().map_or_else(|| name.clone(), PathBuf::from);
                        into.join(&host.name).join(name)
                    })
                })
            }
            What::Capture { kernels: names, output: folder } => {
                let chosen: Vec<Host> = match names.as_slice() {
                    [] => hosts().into_iter().filter(|h| cache.installed(&h.kernel).is_ok()).collect(),
                    names => choose(names)?,
                };
                let options = with_words(cache)?;
                each(&chosen, |host| {
                    let binary = options.binary("evenkeel", host.kernel.arch).map_err(failed)?;
                    let job =
                        Job::new(binary).arg("capture").arg("-o").arg("surface.json").output("surface.json");
                    one(host, &job, &options, |_| folder.join(format!("{}.json", host.name)))
                })
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

fn failed(e: evenkeel_lab::Error) -> Failure {
    let text = e.to_string();
    let (message, hint) = text.split_once("\nhint: ").unwrap_or((&text, ""));
    Failure { exit: 3, ..Failure::bad(message, hint) }
}

fn choose(names: &[String]) -> Result<Vec<Host>, Failure> {
    match names {
        [] => Ok(hosts()),
        names => {
            names.iter().map(|n| host(n, kernels()).map_err(|e| Failure { exit: 2, ..failed(e) })).collect()
        }
    }
}

/// Every host in turn: one that fails does not stop the others.
fn each(chosen: &[Host], mut work: impl FnMut(&Host) -> Result<u8, Failure>) -> Result<u8, Failure> {
    if chosen.is_empty() {
        return Err(Failure::bad("no kernel: nothing ran", "evenkeel lab fetch KERNEL"));
    }
    let mut worst = 0;
    for (i, host) in chosen.iter().enumerate() {
        anstream::eprintln!("[{}/{}] {}", i + 1, chosen.len(), host.name);
        match work(host) {
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
fn one(host: &Host, job: &Job, options: &Options, place: impl Fn(&str) -> PathBuf) -> Result<u8, Failure> {
    let run = run(host, job, options).map_err(failed)?;
    let out = &run.output;
    output::print(&String::from_utf8_lossy(&out.stdout))?;
    anstream::eprint!("{}", String::from_utf8_lossy(&out.stderr));
    for (name, bytes) in &out.files {
        let path = place(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Failure::file(folder, &e))?;
        }
        output::write(&path, bytes)?;
        anstream::eprintln!("{}: {name} is in {}", host.name, path.display());
    }
    for (name, why) in &out.missing {
        anstream::eprintln!("{}: {name} did not come back: {why}", host.name);
    }
    if let Some(why) = &run.afterwards {
        anstream::eprintln!("{}: its results are whole, and then: {why}", host.name);
    }
    anstream::eprintln!(
        "{}: {} {} in {:.1} s, the whole took {:.1} s",
        host.name,
        run.release,
        if run.resumed { "was resumed" } else { "booted" },
        run.boot.as_secs_f64(),
        run.total.as_secs_f64()
    );
    Ok(match out.exit {
        Exit::Code(code) if !out.missing.is_empty() => u8::try_from(code).unwrap_or(3).max(3),
        Exit::Code(code) => u8::try_from(code).unwrap_or(3),
        Exit::Signal(signal) => {
            anstream::eprintln!("{}: ended by signal {signal}", host.name);
            3
        }
    })
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
    let all = hosts();
    let all: Vec<Listed<'_>> = all
        .iter()
        .map(|h| {
            let (from, version) = match &h.kernel.origin {
                Origin::Debian { version, suite, .. } => (suite.as_str(), version.as_str()),
                Origin::Added { from } => (from.as_str(), ""),
            };
            let fetched = cache.installed(&h.kernel).is_ok();
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
