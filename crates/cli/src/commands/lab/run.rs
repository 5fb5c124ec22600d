//! Programs on hosts of the lab, and what is told of them.

use std::path::PathBuf;

use evenkeel_lab::{Error, Exit, Host, Job, Options, Run};
use schemars::JsonSchema;
use serde::Serialize;

use super::failed;
use crate::failure::Failure;
use crate::{Format, Global, output};

/// `evenkeel lab run`, `lab link` and `lab capture` with `--format json`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RunReport {
    /// `evenkeel.lab-run/1`.
    pub schema: &'static str,
    /// One a host, in the order in which they were named.
    pub runs: Vec<Ran>,
}

/// What became of one host and its program.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub struct Ran {
    /// The host's name.
    pub host: String,
    /// Its lane.
    pub lane: &'static str,
    /// `uname -r`; empty when it did not come up.
    pub release: String,
    /// Whether it was resumed instead of booted.
    pub resumed: bool,
    /// Until it took the program, in milliseconds.
    pub boot_ms: u64,
    /// The whole, until the emulator was gone, in milliseconds.
    pub total_ms: u64,
    /// The program's exit code; none when a signal ended it, or when there are no results.
    pub exit: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it printed; bytes that are no text are replaced.
    pub stdout: String,
    /// What it said on standard error.
    pub stderr: String,
    /// Files that came back: where they are now.
    pub files: Vec<String>,
    /// Files that did not come back, with the reason.
    pub missing: Vec<(String, String)>,
    /// Why there are no results: the kernel that panicked, hung or answered garbage, with its console's end.
    pub error: Option<String>,
    /// What went wrong after the results had come: the host did not power off.
    pub afterwards: Option<String>,
}

impl Ran {
    fn of(host: &Host, run: &Run) -> Ran {
        let out = &run.output;
        let (exit, signal) = match out.exit {
            Exit::Code(code) => (Some(code), None),
            Exit::Signal(signal) => (None, Some(signal)),
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Ran {
            host: host.name.clone(),
            lane: host.lane.name(),
            release: run.release.clone(),
            resumed: run.resumed,
            boot_ms: ms(run.boot),
            total_ms: ms(run.total),
            exit,
            signal,
            stdout: text(&out.stdout),
            stderr: text(&out.stderr),
            missing: out.missing.iter().map(|(name, why)| (name.clone(), why.clone())).collect(),
            afterwards: run.afterwards.clone(),
            ..Ran::default()
        }
    }

    fn failed(host: &Host, error: &Error) -> Ran {
        let (host, lane) = (host.name.clone(), host.lane.name());
        Ran { host, lane, error: Some(error.to_string()), ..Ran::default() }
    }

    /// What the whole command exits with on its account.
    fn code(&self) -> u8 {
        let own = match self.exit {
            Some(code) => u8::try_from(code).unwrap_or(3),
            None => 3,
        };
        if self.missing.is_empty() { own } else { own.max(3) }
    }
}

/// One line on standard error, in one piece: lines of two threads must not run into each other.
fn say(line: &str) {
    let line = format!("{line}\n");
    anstream::eprint!("{line}");
}

/// The job that a command line means: `evenkeel` is the static binary for the host's architecture.
pub fn program(command: &[String], host: &Host, options: &Options) -> Result<Job, Error> {
    let (program, args) = command.split_first().map_or(("", &[][..]), |(first, rest)| (first, rest));
    let binary = match program {
        "evenkeel" => options.binary("evenkeel", host.kernel.arch)?,
        path => PathBuf::from(path),
    };
    Ok(args.iter().fold(Job::new(binary), |job, arg| job.arg(arg)))
}

/// Runs `evenkeel` with these arguments on a host, and brings back the file that it wrote. Exit codes other than those
/// in `accept` are an error.
pub fn document(
    host: &Host,
    args: impl IntoIterator<Item = impl Into<String>>,
    inputs: &[(String, Vec<u8>)],
    file: &str,
    accept: &[i32],
    options: &Options,
) -> Result<Vec<u8>, Error> {
    let mut job = Job::new(options.binary("evenkeel", host.kernel.arch)?).output(file);
    job.args = args.into_iter().map(Into::into).collect();
    job.inputs = inputs.to_vec();
    let mut run = evenkeel_lab::run(host, &job, options)?;
    let words = String::from_utf8_lossy(&run.output.stderr).trim().to_owned();
    match (run.output.exit, run.output.files.remove(file)) {
        (Exit::Code(code), Some(bytes)) if accept.contains(&code) => Ok(bytes),
        (exit, _) => Err(Error::Inside {
            kernel: host.name.clone(),
            message: format!("evenkeel {}: {exit:?}: {words}", job.args.join(" ")),
            console: run.console,
        }),
    }
}

/// Files by their names without folders.
pub fn read_all(paths: &[PathBuf]) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let read = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok((name, std::fs::read(path).map_err(|e| Failure::file(path, &e))?))
    };
    paths.iter().map(read).collect()
}

/// A job on every host, two at a time: one that fails does not stop the others. `place` says where a file goes that
/// came back. Exits with the worst exit code of the programs; 3 for a host without results.
pub fn each(
    chosen: &[Host],
    options: &Options,
    global: Global,
    job: impl Fn(&Host) -> Result<Job, Error> + Sync,
    place: impl Fn(&Host, &str) -> PathBuf,
) -> Result<u8, Failure> {
    if chosen.is_empty() {
        return Err(Failure::bad("no kernel: nothing ran", "evenkeel lab fetch KERNEL"));
    }
    let mut told = Telling { global, runs: Vec::new(), worst: 0 };
    evenkeel_lab::each(
        chosen,
        |i, host| say(&format!("[{}/{}] {}", i + 1, chosen.len(), host.name)),
        |host| evenkeel_lab::run(host, &job(host)?, options),
        |host, run| told.take(host, run, |file| place(host, file)),
    );
    told.end()
}

/// Two programs on two hosts that are joined.
pub fn link(
    hosts: &[Host],
    command: &[String],
    send: &[(String, Vec<u8>)],
    options: &Options,
    global: Global,
) -> Result<u8, Failure> {
    let [one, other] = hosts else { return Err(Failure::bad("a link has two ends", "name two hosts")) };
    let mut parts = command.splitn(2, |word| word == "---");
    let first = parts.next().unwrap_or_default();
    let second = parts.next().unwrap_or(first);
    let job = |command, host| {
        let mut job = program(command, host, options).map_err(failed)?;
        job.inputs.extend(send.iter().cloned());
        Ok::<_, Failure>(job)
    };
    let (first, second) = (job(first, one)?, job(second, other)?);
    let mut told = Telling { global, runs: Vec::new(), worst: 0 };
    let runs = evenkeel_lab::run_pair((one, &first), (other, &second), options);
    for (host, run) in hosts.iter().zip(runs) {
        told.take(host, run, |_| PathBuf::new());
    }
    told.end()
}

/// Tells of one host after another.
struct Telling {
    global: Global,
    runs: Vec<Ran>,
    worst: u8,
}

impl Telling {
    fn take(&mut self, host: &Host, run: Result<Run, Error>, place: impl Fn(&str) -> PathBuf) {
        let mut ran = match &run {
            Ok(run) => Ran::of(host, run),
            Err(error) => Ran::failed(host, error),
        };
        self.worst = self.worst.max(ran.code());
        for (name, bytes) in run.iter().flat_map(|run| &run.output.files) {
            let path = place(name);
            let written = match path.parent() {
                Some(folder) => std::fs::create_dir_all(folder).map_err(|e| Failure::file(folder, &e)),
                None => Ok(()),
            };
            match written.and_then(|()| output::write(&path, bytes)) {
                Ok(()) => ran.files.push(path.display().to_string()),
                Err(failure) => {
                    ran.missing.push((name.clone(), failure.message.clone()));
                    self.worst = self.worst.max(failure.exit);
                }
            }
        }
        if self.global.format == Format::Text {
            // A closed standard output is found out about below, when there is more to say than to one host.
            let _ = output::print(&ran.stdout);
        }
        let name = &ran.host;
        if self.global.format == Format::Text && !ran.stderr.is_empty() {
            anstream::eprint!("{}", ran.stderr);
        }
        for file in &ran.files {
            say(&format!("{name}: {file}"));
        }
        for (file, why) in &ran.missing {
            say(&format!("{name}: {file} did not come back: {why}"));
        }
        if let Some(signal) = ran.signal {
            say(&format!("{name}: ended by signal {signal}"));
        }
        match (&ran.error, &ran.afterwards) {
            (Some(error), _) => say(&format!("error: {error}")),
            (None, Some(why)) => say(&format!("{name}: its results are whole, and then: {why}")),
            (None, None) => say(&format!(
                "{name}: {} {} in {:.1} s, the whole took {:.1} s",
                ran.release,
                if ran.resumed { "was resumed" } else { "booted" },
                ran.boot_ms as f64 / 1000.0,
                ran.total_ms as f64 / 1000.0
            )),
        }
        self.runs.push(ran);
    }

    fn end(self) -> Result<u8, Failure> {
        let failed = self.runs.iter().filter(|run| run.error.is_some()).count();
        if self.runs.len() > 1 {
            say(&format!(
                "{} hosts: {} with results, {failed} without",
                self.runs.len(),
                self.runs.len() - failed
            ));
        }
        if self.global.format == Format::Json {
            output::json(&RunReport { schema: "evenkeel.lab-run/1", runs: self.runs })?;
        }
        Ok(self.worst)
    }
}

/// A program's end as an exit code of this one.
pub fn exit_code(exit: Exit) -> u8 {
    match exit {
        Exit::Code(code) => u8::try_from(code).unwrap_or(3),
        Exit::Signal(_) => 3,
    }
}
