//! `evenkeel lab observe`: one contract on all kernels of a lane, and what guests see otherwise.

pub mod report;

use std::path::PathBuf;

use evenkeel_contract::baseline::baseline;
use evenkeel_contract::{Contract, document};
use evenkeel_lab::{Arch, Cache, Error, Exit, Host, Job, Kernels, Lane, Options, each};
use evenkeel_witness::observation::{self, Observation, Saw};
use serde_json::Value;

use self::report::{HostSaw, LabObserved, Round};
use super::{choose, failed, run};
use crate::failure::Failure;
use crate::{Format, Global, output};

/// What the program inside reads and writes.
const CONTRACT: &str = "contract.toml";
const OBSERVATION: &str = "observation.json";

/// A guest under the contract of one kernel, on all kernels of a lane: what does it see otherwise, and why?
///
/// Every observation is compared with that of the kernel which the contract is of. Exits with 1 when something differs
/// that no entry of the ledger is about, with 3 when a kernel showed nothing.
#[derive(clap::Args)]
pub struct Observe {
    /// The hosts; all fetched ones of the lane when none is named.
    hosts: Vec<String>,
    /// The kernel whose contract all get, and with which all are compared; may be given more than once. The first and
    /// the last of the hosts, if not given.
    #[arg(long, value_name = "HOST")]
    of: Vec<String>,
    /// All get this contract instead of one made from a capture; they are compared with the first HOST of --of.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["plain", "shape"])]
    contract: Option<PathBuf>,
    /// No contract: each kernel as it is when nobody asks for anything.
    #[arg(long)]
    plain: bool,
    /// The machines' shape. `split` on x86, where userspace sees EOIs, and `full` on arm64, if not given.
    #[arg(long)]
    shape: Option<String>,
    /// The lane, when no host is named.
    #[arg(long, default_value = "svm")]
    lane: String,
    /// Boot anew, also where a host is kept idle and could be resumed.
    #[arg(long)]
    fresh: bool,
    /// Where observations and contracts go: FOLDER/OF/HOST.json and FOLDER/OF/contract.toml.
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

/// What one host brought back.
struct Brought {
    seen: Observation,
    applied: Option<String>,
    leaks: Vec<String>,
}

impl Brought {
    /// Whether a look had no end: the instruction hangs, or the machine is busy.
    fn hung(&self) -> bool {
        let late = |saw: &Saw| matches!(saw, Saw::Ends(how) if how.starts_with("no end within"));
        self.seen.seen.iter().any(|seen| late(&seen.saw))
    }
}

impl Observe {
    /// Observes on every host, two at a time, once for each contract.
    pub fn run(self, cache: Cache, global: Global) -> Result<u8, Failure> {
        let hosts = self.chosen(&cache)?;
        let options = Options { fresh: self.fresh, ..super::with_words(cache)? };
        let mut of = choose(&self.of, &options.cache)?;
        if of.is_empty() {
            of.extend(hosts.first().cloned());
            of.extend(hosts.last().filter(|last| Some(*last) != hosts.first()).cloned());
        }
        if self.contract.is_some() {
            of.truncate(1);
        }
        let mut all = LabObserved { schema: "evenkeel.lab-observe/1", rounds: Vec::new() };
        for of in of {
            // What is compared with must be looked at first.
            let mut hosts = hosts.clone();
            if !hosts.contains(&of) {
                hosts.insert(0, of.clone());
            }
            if let Some(other) = hosts.iter().find(|host| host.kernel.arch != of.kernel.arch) {
                let named = |host: &Host| host.kernel.arch.name();
                return Err(Failure::architectures((&of.name, named(&of)), (&other.name, named(other))));
            }
            all.rounds.push(self.round(&of, &hosts, &options)?);
        }
        match global.format {
            Format::Json => output::json(&all)?,
            Format::Text => output::print(&all.text(global.all))?,
        }
        Ok(all.code())
    }

    fn chosen(&self, cache: &Cache) -> Result<Vec<Host>, Failure> {
        if !self.hosts.is_empty() {
            return choose(&self.hosts, cache);
        }
        let lane = Lane::ALL.into_iter().find(|lane| lane.name() == self.lane);
        let lane = lane.ok_or_else(|| {
            let lanes = Lane::ALL.map(Lane::name).join(", ");
            Failure::bad(format!("there is no lane `{}`", self.lane), format!("one of {lanes}"))
        })?;
        let fetched = |host: &Host| cache.has(&host.kernel);
        let mut found: Vec<Host> =
            Kernels::load(cache).hosts().into_iter().filter(|h| h.lane == lane && fetched(h)).collect();
        // A kernel that is listed in its usual lane runs in this one all the same.
        if lane == Lane::Arm64Nvhe && found.is_empty() {
            let usual = Kernels::load(cache).hosts().into_iter().filter(|h| h.lane == Lane::Arm64);
            found = usual.filter(fetched).filter_map(|h| Host::new(&h.kernel, lane).ok()).collect();
        }
        if found.is_empty() {
            return Err(Failure::bad(
                format!("no kernel of lane {lane} is fetched: nothing ran"),
                "evenkeel lab fetch",
            ));
        }
        Ok(found)
    }

    fn round(&self, of: &Host, hosts: &[Host], options: &Options) -> Result<Round, Failure> {
        let shape = self.shape.clone().unwrap_or_else(|| {
            let usual = if of.kernel.arch == Arch::X86_64 { "split" } else { "full" };
            usual.to_owned()
        });
        let contract = match (&self.contract, self.plain) {
            (Some(path), _) => Some(crate::commands::contract(path)?),
            (None, true) => None,
            (None, false) => Some(contract_of(of, &shape, options)?),
        };
        let shape = contract.as_ref().map_or(shape, |contract| contract.shape.clone());
        let text = contract.as_ref().map(document::print);
        if let (Some(folder), Some(text)) = (&self.output, &text) {
            let folder = folder.join(&of.name);
            std::fs::create_dir_all(&folder).map_err(|e| Failure::file(&folder, &e))?;
            output::write(&folder.join(CONTRACT), text)?;
        }
        let mut brought: Vec<(String, Result<Brought, String>)> = Vec::new();
        let mut kept = Ok(());
        each(
            hosts,
            |i, host| {
                let line = format!("[{}/{}] {}, of {}\n", i + 1, hosts.len(), host.name, of.name);
                anstream::eprint!("{line}");
            },
            |host| {
                let once = || observe(host, &shape, text.as_deref(), options);
                // An emulated host on a busy machine does not always come up, or in time; that is no answer of its kernel.
                let why = match once() {
                    Ok(brought) if !brought.hung() => return Ok(brought),
                    Ok(_) => "a look of its guest had no end in time".to_owned(),
                    Err(e) => e.to_string(),
                };
                let line = format!("{}: {why}; once more\n", host.name);
                anstream::eprint!("{line}");
                once()
            },
            |host, result| {
                if let (Ok(b), Some(folder)) = (&result, &self.output) {
                    let folder = folder.join(&of.name);
                    let written = std::fs::create_dir_all(&folder).map_err(|e| Failure::file(&folder, &e));
                    let path = folder.join(format!("{}.json", host.name));
                    let written = written.and_then(|()| output::write(&path, b.seen.print()));
                    if kept.is_ok() {
                        kept = written;
                    }
                }
                brought.push((host.name.clone(), result.map_err(|e| e.to_string())));
            },
        );
        kept?;
        let reference = brought.iter().find(|(name, _)| *name == of.name);
        let reference = match reference.map(|(_, result)| result.as_ref()) {
            Some(Ok(brought)) => brought.seen.clone(),
            Some(Err(why)) => {
                let message = format!("{}: nothing observed, so nothing to compare with: {why}", of.name);
                return Err(Failure { exit: 3, ..Failure::bad(message, "") });
            }
            None => return Err(Failure::bad(format!("{} is none of the hosts", of.name), "")),
        };
        let hosts = brought.into_iter().map(|(name, result)| match result {
            Ok(Brought { seen, applied, leaks }) => {
                HostSaw { applied, leaks, ..HostSaw::new(&name, &seen, &reference) }
            }
            Err(why) => HostSaw::failed(&name, why),
        });
        Ok(Round {
            of: of.name.clone(),
            contract: contract.map(|contract| contract.name),
            shape,
            hosts: hosts.collect(),
        })
    }
}

/// The contract that says all that this host shows: from its bundled capture, or from one that is made now.
fn contract_of(of: &Host, shape: &str, options: &Options) -> Result<Contract, Failure> {
    let host = match evenkeel_hosts::load(&of.name) {
        Ok(host) => host,
        Err(_) => {
            const SURFACE: &str = "surface.json";
            let fresh = Options { fresh: true, ..options.clone() };
            anstream::eprint!("{}: no capture of it is bundled; boot and capture\n", of.name);
            let bytes = run::document(of, ["capture", "-o", SURFACE], &[], SURFACE, &[0], &fresh);
            evenkeel_hosts::emulated(&of.name, &bytes.map_err(failed)?)?
        }
    };
    let view = crate::commands::in_shape(&host, shape)?;
    Ok(baseline(&[view], &of.name).contract)
}

/// A guest on one host.
fn observe(host: &Host, shape: &str, contract: Option<&str>, options: &Options) -> Result<Brought, Error> {
    let mut job = Job::new(options.binary("evenkeel", host.kernel.arch)?).arg("observe").output(OBSERVATION);
    job = match contract {
        Some(text) => job.arg("--contract").arg(CONTRACT).input(CONTRACT, text),
        None => job.arg("--shape").arg(shape),
    };
    let job = job.arg("-o").arg(OBSERVATION).arg("--format").arg("json");
    let mut run = evenkeel_lab::run(host, &job, options)?;
    let inside =
        |message: String, console: String| Error::Inside { kernel: host.name.clone(), message, console };
    let words = String::from_utf8_lossy(&run.output.stderr).trim().to_owned();
    // 1 and 3 say what differs from the contract; the observation is there all the same.
    let bytes = match (run.output.exit, run.output.files.remove(OBSERVATION)) {
        (Exit::Code(0 | 1 | 3), Some(bytes)) => bytes,
        (exit, _) => return Err(inside(format!("evenkeel observe: {exit:?}: {words}"), run.console)),
    };
    let seen = observation::read(&bytes)
        .map_err(|e| inside(format!("the observation cannot be read: {e}"), String::new()))?;
    let told: Value = match contract {
        Some(_) => serde_json::from_slice(&run.output.stdout)
            .map_err(|e| inside(format!("the answer cannot be read: {e}"), String::new()))?,
        None => Value::Null,
    };
    let facet = |leak: &Value| leak["facet"].as_str().map(str::to_owned);
    Ok(Brought {
        seen,
        applied: told["applied"].as_str().map(str::to_owned),
        leaks: told["leaks"].as_array().into_iter().flatten().filter_map(facet).collect(),
    })
}
