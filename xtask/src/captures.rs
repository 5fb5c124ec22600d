//! `cargo xtask captures`: the bundled captures, made anew by the lab.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use evenkeel_lab::{Cache, Exit, Host, Job, Options, Progress, fetch, host, hosts, kernels, run};

use crate::cross::Cross;
use crate::{Result, root, static_binaries};

/// Arguments of `cargo xtask captures`.
#[derive(Args)]
pub struct Captures {
    /// The hosts to capture, by name; all of the list without any.
    hosts: Vec<String>,
    /// The folder to write to.
    #[arg(long, short, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Write nothing: compare the offer digest of each kernel, captured anew, with that of the capture in the folder.
    #[arg(long)]
    check: bool,
    /// Seconds that a boot or the program may take; the lane's own patience when not given.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Another static binary to run in place of `evenkeel capture`, one for each architecture in FOLDER/ARCH/NAME.
    #[arg(long, value_name = "NAME", default_value = "evenkeel")]
    bin: String,
    /// Run the binaries that are in target/static, without building them anew.
    #[arg(long)]
    no_build: bool,
}

/// The file that the program inside writes.
const SURFACE: &str = "surface.json";

impl Captures {
    /// Captures each kernel; one that fails does not stop the others, and fails the whole at the end.
    pub fn run(self) -> Result {
        let chosen = choose(&self.hosts)?;
        if !self.no_build {
            // Only for the architectures that are asked for: arm64 takes a compiler that not everybody has.
            let mut arch: Vec<String> =
                chosen.iter().map(|host| host.kernel.arch.name().to_owned()).collect();
            arch.dedup();
            Cross { arch, bin: Vec::new() }.run()?;
        }
        let out = self.out.clone().unwrap_or_else(|| root().join("crates/hosts/captures"));
        fs::create_dir_all(&out).map_err(|e| format!("cannot create {}: {e}", out.display()))?;
        let cache = Cache::locate().map_err(|e| e.to_string())?;
        let options = Options {
            cache,
            binaries: static_binaries(),
            memory_mib: 256,
            timeout: self.timeout.map(Duration::from_secs),
            progress: Some(|words| eprintln!("{words}")),
            fresh: true,
            shared: None,
        };

        let mut failed = Vec::new();
        for host in &chosen {
            match self.capture(host, &options) {
                Ok((surface, words)) => {
                    let path = out.join(format!("{}.json", host.name));
                    eprintln!("{}: {words}", host.name);
                    if self.check {
                        let kept =
                            fs::read(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
                        if digest(&kept).is_none() || digest(&kept) != digest(&surface) {
                            eprintln!("{}: another offer than in {}", host.name, path.display());
                            failed.push(host.name.as_str());
                        }
                        continue;
                    }
                    fs::write(&path, surface).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
                }
                Err(words) => {
                    eprintln!("{}: FAILED: {words}", host.name);
                    failed.push(host.name.as_str());
                }
            }
        }
        eprintln!("{} captured, {} failed", chosen.len() - failed.len(), failed.len());
        if failed.is_empty() { Ok(()) } else { Err(format!("no capture of {}", failed.join(", "))) }
    }

    fn capture(&self, host: &Host, options: &Options) -> Result<(Vec<u8>, String)> {
        let words = |e: evenkeel_lab::Error| e.to_string();
        let mut say = |progress: Progress<'_>| {
            if let Progress::Line(line) = progress {
                eprintln!("{line}");
            }
        };
        for (_, done) in fetch(&[&host.kernel], &options.cache, &mut say).map_err(words)? {
            done.map_err(words)?;
        }
        let binary = options.binary(&self.bin, host.kernel.arch).map_err(words)?;
        let job = Job::new(binary).arg("capture").arg("-o").arg(SURFACE).output(SURFACE);
        let done = run(host, &job, options).map_err(words)?;
        let mut output = done.output;
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.exit != Exit::Code(0) {
            return Err(format!("{:?} under {}: {stderr}", output.exit, done.release));
        }
        let surface = output.files.remove(SURFACE).ok_or_else(|| {
            let why = output.missing.get(SURFACE).map_or("no reason given", String::as_str);
            format!("the program exited with 0 and left no {SURFACE}: {why}")
        })?;
        let seconds = |duration: Duration| format!("{:.1}", duration.as_secs_f64());
        let summary = format!(
            "{}: boot {} s, program {} s, whole {} s; {} KiB{}{stderr}",
            done.release,
            seconds(done.boot),
            seconds(output.took),
            seconds(done.total),
            surface.len() / 1024,
            if stderr.is_empty() { "" } else { "; it said: " },
        );
        Ok((surface, summary))
    }
}

/// Hosts by name; all of the lab's list without any.
fn choose(names: &[String]) -> Result<Vec<Host>> {
    match names {
        [] => Ok(hosts()),
        names => names.iter().map(|name| host(name, kernels()).map_err(|e| e.to_string())).collect(),
    }
}

/// The offer digest that a capture states: the line after `"digests"`.
fn digest(surface: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(surface).ok()?;
    let (_, digests) = text.split_once("\"digests\":")?;
    let (_, rest) = digests.split_once("\"offer\":\"")?;
    rest.split('"').next()
}
