//! `evenkeel lab journey`: a Linux guest at work goes from one kernel to another and back.

mod live;
mod told;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use evenkeel_contract::baseline::baseline;
use evenkeel_contract::{View, document};
use evenkeel_lab::{Arch, Cache, Exit, Guest, Host, Job, Options};
use schemars::JsonSchema;
use serde::Serialize;

use self::told::Told;
use crate::commands::handing::migrate::Figures;
use crate::failure::Failure;
use crate::{Format, Global, output};

/// A Linux guest at work, its disk under load, is saved on one kernel, goes on on another, is saved there, and finishes on the
/// first.
#[derive(clap::Args)]
pub struct Journey {
    /// Hosts by name: each one's guest goes to the next one and back, the last one's to the first; debian-6.1, debian-6.12 and
    /// debian-7.3 when none is named.
    pub kernels: Vec<String>,
    /// Between every two of them, instead of round in a circle.
    #[arg(long)]
    every_pair: bool,
    /// The guest's kernel; several may be given. debian-6.1 when none is.
    #[arg(long, value_name = "KERNEL")]
    pub guest: Vec<String>,
    /// How many vCPUs; several may be given. 1 and 4 when none is.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=8))]
    vcpus: Vec<u32>,
    /// The irqchip's place, on x86; `kernel`, if not given.
    #[arg(long, value_parser = ["kernel", "split"])]
    irqchip: Option<String>,
    /// It moves while it runs: both hosts are up at once, and share the disk.
    #[arg(long)]
    live: bool,
    /// The guest's kernel is unpacked here and booted by PVH, where its image is a bzImage.
    #[arg(long)]
    pvh: bool,
    /// The contract of all of them; what all of the hosts keep by their bundled captures, if not given.
    #[arg(long, value_name = "FILE", conflicts_with = "irqchip")]
    contract: Option<PathBuf>,
    /// The guest's memory in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 96)]
    memory: u32,
    /// Seconds that each leg may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// Where the guests' consoles go, a file for each journey.
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

/// All journeys.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Journeys {
    /// `evenkeel.lab-journey/1`.
    pub schema: &'static str,
    /// The digest of the contract that all of them were under.
    pub contract: String,
    /// One for each guest, number of vCPUs and pair of hosts.
    pub journeys: Vec<One>,
}

/// One journey.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct One {
    /// The guest's kernel.
    pub guest: String,
    /// Its vCPUs.
    pub vcpus: u32,
    /// The hosts, in the order in which it was on them.
    pub route: Vec<String>,
    /// What happened on each.
    pub legs: Vec<Leg>,
    /// What the guest said of itself.
    pub told: Told,
    /// How it moved while it ran, with `--live`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub moves: Vec<Figures>,
    /// What is wrong; empty when nothing is.
    pub wrong: Vec<String>,
}

/// A guest's time on one host.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Leg {
    /// The host.
    pub host: String,
    /// `uname -r` there.
    pub release: String,
    /// Seconds on this machine's clock, with the guest's way in and out.
    pub seconds: f64,
    /// What evenkeel said there.
    pub said: Vec<String>,
}

/// What the guest does; PASSES stands for how often.
const SCRIPT: &str = include_str!("journey.sh");
/// Passes of each worker, and after which the first worker's guest is saved: on the first host, and on the second.
const PASSES: u32 = 8;
const SAVED_AT: [u32; 2] = [2, 5];
/// What the guest's kernel has as modules.
const MODULES: &[&str] = &["virtio_mmio", "virtio_blk"];
/// Bytes of a block that a pass writes.
const BLOCK: usize = 256 << 10;
/// Memory of the emulated host beside its guest's.
const HOST_MIB: u32 = 256;
/// Copies of a guest's memory that it has to hold: the guest and two capsules. Files may take half of all memory.
const COPIES: u32 = 4;
const COMMAND_LINE: &str = "console=ttyS0 quiet reboot=k panic=-1";

/// What need not be read back as it was set. X86-202: KVM on AMD sets 32 bits of SYSENTER_ESP and SYSENTER_EIP, as the CPU has
/// them; only the lab's emulated CPU keeps what the guest wrote above. The TSC: docs/state.md.
const ACCEPTED: &[&str] = &["msr.175", "msr.176", "msr.10"];

const CAPSULE: &str = "guest.capsule";
const DISK: &str = "disk.img";

/// What goes from host to host.
struct Traveller {
    disk: Vec<u8>,
    capsule: Vec<u8>,
    console: String,
    legs: Vec<Leg>,
}

impl Journey {
    /// Makes all journeys. Exits with 0 when nothing was wrong, with 1 when something was.
    pub fn run(self, hosts: &[Host], guests: &[Host], cache: Cache, global: Global) -> Result<u8, Failure> {
        let arch = hosts.first().map_or(Arch::X86_64, |host| host.kernel.arch);
        if let Some(other) = hosts.iter().chain(guests).find(|h| h.kernel.arch != arch) {
            let hint = "name hosts and a guest of one architecture: debian-6.1-arm64 is a guest for arm64";
            return Err(Failure::bad(format!("{} is not for {}", other.name, arch.name()), hint));
        }
        if hosts.len() < 2 {
            return Err(Failure::bad("a journey is between two hosts", "name two or more"));
        }
        let mut options = Options::new(cache).map_err(super::failed)?;
        options.timeout = Some(Duration::from_secs(self.timeout));
        options.memory_mib = HOST_MIB + COPIES * self.memory;
        let contract = self.contract(hosts)?;
        let mut told =
            Journeys { schema: "evenkeel.lab-journey/1", contract: contract.0, journeys: Vec::new() };
        let vcpus = if self.vcpus.is_empty() { vec![1, 4] } else { self.vcpus.clone() };
        for guest in guests {
            let passes = if self.live { live::PASSES } else { PASSES };
            let init = SCRIPT.replace("PASSES", &passes.to_string());
            let mut files =
                Guest::new(&options.cache, &guest.kernel, MODULES, &init).map_err(super::failed)?;
            if self.pvh {
                files.image = evenkeel_lab::vmlinux(&files.image).map_err(super::failed)?;
            }
            for &vcpus in &vcpus {
                // Where it starts it need not start twice.
                let mut started: BTreeMap<String, Result<Traveller, String>> = BTreeMap::new();
                for (from, to) in self.pairs(hosts) {
                    anstream::eprintln!(
                        "{} with {vcpus} vCPUs: {} → {} → {}",
                        guest.name,
                        from.name,
                        to.name,
                        from.name
                    );
                    if self.live {
                        let one = self.live((&files, &contract.1), (from, to), guest, vcpus, &options);
                        self.keep(&one)?;
                        told.journeys.push(one.0);
                        continue;
                    }
                    let first = started.entry(from.name.clone()).or_insert_with(|| {
                        let none = Traveller::new(vcpus);
                        self.leg(
                            none,
                            from,
                            vcpus,
                            Some((&files, contract.1.as_str())),
                            Some(SAVED_AT[0]),
                            &options,
                        )
                    });
                    let one = self.one(first, (from, to), guest, vcpus, &options);
                    self.keep(&one)?;
                    told.journeys.push(one.0);
                }
            }
        }
        let wrong = told.journeys.iter().any(|one| !one.wrong.is_empty());
        match global.format {
            Format::Json => output::json(&told)?,
            Format::Text => output::print(&told.text())?,
        }
        Ok(u8::from(wrong))
    }

    /// The contract that all of the hosts keep, by what is known of them: its digest and itself.
    fn contract(&self, hosts: &[Host]) -> Result<(String, String), Failure> {
        if let Some(path) = &self.contract {
            let contract = crate::commands::contract(path)?;
            return Ok((document::digest(&contract), document::print(&contract)));
        }
        let known: Vec<evenkeel_hosts::Host> =
            hosts.iter().map(|host| Ok(evenkeel_hosts::load(&host.name)?)).collect::<Result<_, Failure>>()?;
        let views: Vec<&View> = known
            .iter()
            .map(|host| crate::commands::in_shape(host, self.shape(hosts[0].kernel.arch)))
            .collect::<Result<_, Failure>>()?;
        let names: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
        let contract = baseline(&views, &names.join(" + ")).contract;
        Ok((document::digest(&contract), document::print(&contract)))
    }

    /// What the machine is made as, by its name in captures.
    fn shape(&self, arch: Arch) -> &str {
        match arch {
            Arch::X86_64 => self.irqchip.as_deref().unwrap_or("kernel"),
            Arch::Aarch64 => "full",
        }
    }

    fn pairs<'h>(&self, hosts: &'h [Host]) -> Vec<(&'h Host, &'h Host)> {
        let next = |index: usize| (index + 1) % hosts.len();
        let all = hosts.iter().enumerate().flat_map(|(i, from)| {
            hosts.iter().enumerate().filter(move |(j, _)| i != *j).map(move |(j, to)| (i, j, from, to))
        });
        all.filter(|(i, j, ..)| self.every_pair || *j == next(*i)).map(|(.., from, to)| (from, to)).collect()
    }

    /// The rest of a journey, and the guest's console.
    fn one(
        &self,
        first: &Result<Traveller, String>,
        (from, to): (&Host, &Host),
        guest: &Host,
        vcpus: u32,
        options: &Options,
    ) -> (One, String) {
        let mut one = One {
            guest: guest.name.clone(),
            vcpus,
            route: [from, to, from].map(|host| host.name.clone()).to_vec(),
            ..One::default()
        };
        let done = first
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|first| self.leg(first.again(), to, vcpus, None, Some(SAVED_AT[1]), options))
            .and_then(|second| self.leg(second, from, vcpus, None, None, options));
        match done {
            Ok(Traveller { legs, console, .. }) => {
                one.legs = legs;
                one.told = Told::of(&console);
                one.wrong = one.told.wrong(vcpus, PASSES);
                (one, console)
            }
            Err(why) => {
                one.wrong.push(why.clone());
                (one, why)
            }
        }
    }

    /// One host: from the beginning with `boot`, or with what the traveller has; saved when the first worker has done its
    /// `until`th pass, or to the end.
    fn leg(
        &self,
        mut traveller: Traveller,
        host: &Host,
        vcpus: u32,
        boot: Option<(&Guest, &str)>,
        until: Option<u32>,
        options: &Options,
    ) -> Result<Traveller, String> {
        let failed = |what: &str| format!("{}: {what}", host.name);
        let binary = options.binary("evenkeel", host.kernel.arch).map_err(|e| failed(&e.to_string()))?;
        let mut job = Job::new(binary).output(DISK);
        job.inputs.push((DISK.to_owned(), std::mem::take(&mut traveller.disk)));
        let mut args: Vec<String> = Vec::new();
        let mut say = |words: &[&str]| args.extend(words.iter().map(ToString::to_string));
        match boot {
            Some((guest, contract)) => {
                let files = [
                    ("vmlinuz", &guest.image[..]),
                    ("initramfs", &guest.initramfs),
                    ("contract.toml", contract.as_bytes()),
                ];
                job.inputs.extend(files.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())));
                say(&[
                    "run",
                    "--kernel",
                    "vmlinuz",
                    "--initramfs",
                    "initramfs",
                    "--contract",
                    "contract.toml",
                ]);
                say(&[
                    "--command-line",
                    COMMAND_LINE,
                    "--vcpus",
                    &vcpus.to_string(),
                    "--memory",
                    &self.memory.to_string(),
                ]);
            }
            None => {
                job.inputs.push((CAPSULE.to_owned(), std::mem::take(&mut traveller.capsule)));
                say(&["restore", CAPSULE, "--run"]);
                ACCEPTED.iter().for_each(|part| say(&["--accept", part]));
            }
        }
        say(&["--disk", DISK, "--limit", &self.timeout.to_string()]);
        if let Some(pass) = until {
            say(&["--snapshot", "out.capsule", "--snapshot-at", &format!("JOURNEY pass 0.{pass}")]);
            job.outputs.push("out.capsule".to_owned());
        }
        job.args = args;
        let begin = Instant::now();
        let mut run = evenkeel_lab::run(host, &job, options).map_err(|e| failed(&e.to_string()))?;
        let console = String::from_utf8_lossy(&run.output.stdout).into_owned();
        let said = String::from_utf8_lossy(&run.output.stderr).into_owned();
        if run.output.exit != Exit::Code(0) {
            let exit = run.output.exit;
            return Err(failed(&format!("{exit:?}: {}\n{}{console}", said.trim(), traveller.console)));
        }
        traveller.disk = run.output.files.remove(DISK).ok_or_else(|| failed("the disk did not come back"))?;
        if until.is_some() {
            let capsule = run.output.files.remove("out.capsule");
            traveller.capsule = capsule.ok_or_else(|| failed("the capsule did not come back"))?;
        }
        traveller.console += &console;
        traveller.legs.push(Leg {
            host: host.name.clone(),
            release: run.release.clone(),
            seconds: begin.elapsed().as_secs_f64(),
            said: said.lines().map(str::to_owned).collect(),
        });
        Ok(traveller)
    }

    fn keep(&self, (one, console): &(One, String)) -> Result<(), Failure> {
        let Some(folder) = &self.output else { return Ok(()) };
        std::fs::create_dir_all(folder).map_err(|e| Failure::file(folder, &e))?;
        let name = format!("{}-{}-{}.txt", one.guest, one.vcpus, one.route.join("-"));
        output::write(&folder.join(name), console)
    }
}

impl Traveller {
    /// One that has not started, with an empty disk.
    fn new(vcpus: u32) -> Traveller {
        let disk = vec![0; BLOCK * (vcpus * PASSES) as usize];
        Traveller { disk, capsule: Vec::new(), console: String::new(), legs: Vec::new() }
    }

    /// The same one, to go another way.
    fn again(&self) -> Traveller {
        Traveller {
            disk: self.disk.clone(),
            capsule: self.capsule.clone(),
            console: self.console.clone(),
            legs: self.legs.clone(),
        }
    }
}
