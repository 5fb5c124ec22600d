//! `evenkeel lab`: real host kernels on this machine, under emulation.

use std::path::PathBuf;
use std::time::Duration;

use evenkeel_lab::{Cache, Exit, Host, Job, Kernel, Options, Origin, Run, fetch, host, hosts, kernels};
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
        /// Seconds that a kernel may take.
        #[arg(long, default_value_t = 120)]
        timeout: u64,
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
        /// Seconds that it may take.
        #[arg(long, default_value_t = 120)]
        timeout: u64,
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
            What::Run { hosts, fresh, send, bring, into, timeout, command } => {
                let mut options = Options::new(cache).map_err(failed)?;
                (options.timeout, options.fresh) = (Duration::from_secs(timeout), fresh);
                let inputs = read_all(&send)?;
                let job = |host: &Host| {
                    let mut job = program(&command, host, &options)?;
                    (job.inputs, job.outputs) = (inputs.clone(), bring.clone());
                    Ok(job)
                };
                each(&choose(&hosts)?, &options, job, |host, file| {
                    let name = PathBuf::from(file);
                    let name = name.file_name().map_or_else(|| name.clone(), PathBuf::from);
                    into.join(&host.name).join(name)
                })
            }
            What::Link { one, other, timeout, command } => {
                let mut options = Options::new(cache).map_err(failed)?;
                options.timeout = Duration::from_secs(timeout);
                link(&one, &other, &command, &options)
            }
            What::Shell { host: name, send } => {
                let options = Options::new(cache).map_err(failed)?;
                let host = choose(&[name])?.remove(0);
                let mut files = read_all(&send)?;
                // Where it is not built a person can still look around.
                if let Ok(binary) = options.binary("evenkeel", host.kernel.arch) {
                    files.extend(read_all(&[binary])?);
                }
                anstream::eprintln!("{}: booting; `exit` powers it off", host.name);
                Ok(exit_code(evenkeel_lab::shell(&host, files, &options).map_err(failed)?))
            }
            What::Capture { kernels: names, output: folder } => {
                let chosen: Vec<Host> = match names.as_slice() {
                    [] => hosts().into_iter().filter(|h| cache.installed(&h.kernel).is_ok()).collect(),
                    names => choose(names)?,
                };
                // Booted anew: a capture is of a host as it comes up.
                let options = Options { fresh: true, ..Options::new(cache).map_err(failed)? };
                let job = |host: &Host| {
                    let binary = options.binary("evenkeel", host.kernel.arch).map_err(failed)?;
                    Ok(Job::new(binary).arg("capture").arg("-o").arg("surface.json").output("surface.json"))
                };
                each(&chosen, &options, job, |host, _| folder.join(format!("{}.json", host.name)))
            }
        }
    }
}

/// The job that a command line means: `evenkeel` is the static binary for the host's architecture.
fn program(command: &[String], host: &Host, options: &Options) -> Result<Job, Failure> {
    let (program, args) = command.split_first().ok_or_else(|| Failure::bad("no command", ""))?;
    let binary = match program.as_str() {
        "evenkeel" => options.binary("evenkeel", host.kernel.arch).map_err(failed)?,
        path => PathBuf::from(path),
    };
    Ok(args.iter().fold(Job::new(binary), |job, arg| job.arg(arg)))
}

/// Files by their names without folders.
fn read_all(paths: &[PathBuf]) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let read = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok((name, std::fs::read(path).map_err(|e| Failure::file(path, &e))?))
    };
    paths.iter().map(read).collect()
}

fn link(one: &str, other: &str, command: &[String], options: &Options) -> Result<u8, Failure> {
    let (one, other) = (choose(&[one.to_owned()])?.remove(0), choose(&[other.to_owned()])?.remove(0));
    let mut parts = command.splitn(2, |word| word == "---");
    let first = parts.next().unwrap_or_default();
    let second = parts.next().unwrap_or(first);
    let (first, second) = (program(first, &one, options)?, program(second, &other, options)?);
    let mut worst = 0;
    for (host, run) in
        [&one, &other].into_iter().zip(evenkeel_lab::run_pair((&one, &first), (&other, &second), options))
    {
        match run.map_err(failed).and_then(|run| tell(host, &run, |_| PathBuf::new())) {
            Ok(code) => worst = worst.max(code),
            Err(failure) => {
                failure.print();
                worst = worst.max(failure.exit);
            }
        }
    }
    Ok(worst)
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

/// A job on every host, two at a time: one that fails does not stop the others.
fn each(
    chosen: &[Host],
    options: &Options,
    job: impl Fn(&Host) -> Result<Job, Failure> + Sync,
    place: impl Fn(&Host, &str) -> PathBuf,
) -> Result<u8, Failure> {
    if chosen.is_empty() {
        return Err(Failure::bad("no kernel: nothing ran", "evenkeel lab fetch KERNEL"));
    }
    let mut worst = 0;
    evenkeel_lab::each(
        chosen,
        |i, host| anstream::eprintln!("[{}/{}] {}", i + 1, chosen.len(), host.name),
        |host| evenkeel_lab::run(host, &job(host)?, options).map_err(failed),
        |host, run| match run.and_then(|run| tell(host, &run, |file| place(host, file))) {
            Ok(code) => worst = worst.max(code),
            Err(failure) => {
                failure.print();
                worst = worst.max(failure.exit);
            }
        },
    );
    Ok(worst)
}

/// Prints what a program printed, and writes its files.
fn tell(host: &Host, run: &Run, place: impl Fn(&str) -> PathBuf) -> Result<u8, Failure> {
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
    if let Exit::Signal(signal) = out.exit {
        anstream::eprintln!("{}: ended by signal {signal}", host.name);
    }
    let code = exit_code(out.exit);
    Ok(if out.missing.is_empty() { code } else { code.max(3) })
}

/// A program's end as an exit code of this one.
fn exit_code(exit: Exit) -> u8 {
    match exit {
        Exit::Code(code) => u8::try_from(code).unwrap_or(3),
        Exit::Signal(_) => 3,
    }
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
