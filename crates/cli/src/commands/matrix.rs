//! `evenkeel lab matrix`: all ordered pairs of many hosts.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use evenkeel_contract::pair::pair;
use evenkeel_contract::{Journey, View};
use evenkeel_hosts::{BUNDLED, Host, point_release};
use evenkeel_report::matrix::{self, Input, Look, Origin, Pairing, Trip};
use evenkeel_surface::canonical::Canonical as _;
use evenkeel_surface::{Arch, Surface};

use crate::failure::Failure;
use crate::{Format, Global, output};

/// A host of a matrix.
#[derive(Clone, Debug)]
pub struct MatrixHost {
    /// What it is called.
    pub name: String,
    /// What that stands for, in words.
    pub stands_for: String,
    /// The kernel's point release, to read and to sort by.
    pub point_release: String,
    /// The CPU or emulator that it was captured on: hosts of one architecture and one lane are compared.
    pub lane: String,
    /// Where the capture comes from.
    pub origin: Origin,
    /// One a shape.
    pub views: Vec<View>,
}

impl MatrixHost {
    /// A host that was loaded, in the lane that its capture tells.
    pub fn of(host: Host, origin: Origin) -> MatrixHost {
        let lane = lane_of(&host.surface).to_owned();
        let point_release = point_release(&host.surface).to_owned();
        MatrixHost {
            name: host.name,
            stands_for: host.stands_for,
            point_release,
            lane,
            origin,
            views: host.views,
        }
    }
}

/// How a matrix is shown.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Write the matrix as one self-contained HTML page.
    #[arg(short, long, value_name = "FILE.html")]
    pub output: Option<PathBuf>,
    /// Which guest the cells are about.
    #[arg(long, value_enum, default_value_t = Guest::Pinned)]
    pub guest: Guest,
    /// Which questions the cells answer, by the worst of the answers.
    #[arg(long, value_enum, default_value_t = Asked::ThereAndBack)]
    pub journey: Asked,
}

/// A guest, on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Guest {
    /// Its VMM applies the sealed baseline of the two kernels.
    Pinned,
    /// Its VMM passes on everything and selects nothing.
    Unpinned,
}

/// Questions, on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Asked {
    /// A running guest moves, and returns.
    ThereAndBack,
    /// A running guest moves.
    Up,
    /// It returns.
    Back,
    /// A guest started on the new kernel is as one started on the old.
    New,
    /// That guest goes to the old kernel.
    NewBack,
    /// All four.
    Worst,
}

impl Options {
    fn look(&self) -> Look {
        let guest = match self.guest {
            Guest::Pinned => matrix::Guest::Pinned,
            Guest::Unpinned => matrix::Guest::Unpinned,
        };
        let trip = match self.journey {
            Asked::ThereAndBack => Trip::ThereAndBack,
            Asked::Up => Trip::One(Journey::RunningUp),
            Asked::Back => Trip::One(Journey::RunningBack),
            Asked::New => Trip::One(Journey::NewGuest),
            Asked::NewBack => Trip::One(Journey::NewBack),
            Asked::Worst => Trip::Worst,
        };
        Look { guest, trip }
    }
}

/// Computes all ordered pairs of each lane and prints them. A survey: exits with 0 whatever the answers are, when
/// every pair was asked; with 3 when a pair could not be, or there was none.
pub fn matrix(hosts: &[MatrixHost], options: &Options, global: Global) -> Result<u8, Failure> {
    for (i, h) in hosts.iter().enumerate() {
        if hosts[..i].iter().any(|other| other.name == h.name) {
            return Err(Failure::bad(format!("{} is named twice", h.name), "name each host once"));
        }
        if h.views.is_empty() {
            return Err(Failure::bad(format!("{} was captured in no shape", h.name), "capture it again"));
        }
    }
    let inputs: Vec<Input<'_>> = hosts
        .iter()
        .map(|h| Input {
            name: &h.name,
            stands_for: &h.stands_for,
            point_release: &h.point_release,
            lane: &h.lane,
            origin: h.origin,
            views: &h.views,
        })
        .collect();
    let orders = matrix::orders(&inputs);
    let report = matrix::build(&inputs, compute(hosts, &orders));
    if report.pairs.is_empty() {
        return Err(nothing(hosts, orders.len()));
    }
    if let Some(path) = &options.output {
        output::write(path, matrix::html(&report, options.look()))?;
    }
    match global.format {
        Format::Json => output::print(&(report.canonical() + "\n"))?,
        Format::Text => output::print(&matrix::text(&report, options.look(), global.all))?,
    }
    if let Some(path) = &options.output {
        anstream::eprintln!("the page is in {}", path.display());
    }
    for n in &report.not_asked {
        let (from, to) = (&hosts[n.from].name, &hosts[n.to].name);
        anstream::eprintln!("not asked: {from} to {to}: {}", n.why);
    }
    Ok(if report.not_asked.is_empty() { 0 } else { 3 })
}

/// Nothing passes by not running.
fn nothing(hosts: &[MatrixHost], asked: usize) -> Failure {
    let alone: Vec<String> = hosts.iter().map(|h| format!("{} ({})", h.name, h.lane)).collect();
    let why = match (hosts.len(), asked) {
        (0, _) => "there is no host".to_owned(),
        (_, 0) => format!("no two hosts are of one architecture and lane: {}", alone.join(", ")),
        _ => "no two hosts were captured in a common shape".to_owned(),
    };
    let hint = "name two hosts of one lane; `evenkeel hosts` lists the bundled captures";
    Failure { exit: 3, ..Failure::bad(format!("a matrix of zero pairs: {why}"), hint) }
}

/// Asks for every pair, on all CPUs. What takes longer than two seconds says how far it is.
fn compute(hosts: &[MatrixHost], orders: &[(usize, usize)]) -> Vec<Pairing> {
    let started = Instant::now();
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(orders.len());
    let (done, results) = mpsc::channel();
    let mut pairings: Vec<Option<Pairing>> = vec![None; orders.len()];
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (next, done) = (&next, done.clone());
            scope.spawn(move || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&(from, to)) = orders.get(at) else { return };
                    let found = pair(&hosts[from].views, &hosts[to].views);
                    if done.send((at, (from, to, found))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        let (mut count, mut told) = (0, Duration::from_secs(1));
        loop {
            match results.recv_timeout(Duration::from_millis(500)) {
                Ok((at, pairing)) => {
                    count += 1;
                    pairings[at] = Some(pairing);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if started.elapsed() >= told + Duration::from_secs(1) {
                told = started.elapsed();
                anstream::eprintln!("{count} of {} pairs are computed", orders.len());
            }
        }
    });
    pairings.into_iter().flatten().collect()
}

/// The lane that a capture tells: the kind of virtualization that KVM used.
fn lane_of(surface: &Surface) -> &'static str {
    let kernel = &surface.provenance.kernel;
    match (surface.arch, kernel.backend.as_str()) {
        (Arch::X86_64, "kvm_amd") => "svm",
        (Arch::X86_64, "kvm_intel") => "vmx",
        (Arch::X86_64, _) => "x86",
        (Arch::Aarch64, _) if kernel.cmdline.split_whitespace().any(|w| w == "kvm-arm.mode=nvhe") => {
            "arm64-nvhe"
        }
        (Arch::Aarch64, _) => "arm64",
    }
}

/// Loads hosts: those named, looked for in `from` first; all captures in `from`, or all bundled ones, when none is.
pub fn load(names: &[String], from: Option<&Path>) -> Result<Vec<MatrixHost>, Failure> {
    let file = |path: &Path, name: &str| -> Result<MatrixHost, Failure> {
        let host = evenkeel_hosts::load(&path.display().to_string())?;
        Ok(MatrixHost { name: name.to_owned(), ..MatrixHost::of(host, Origin::Given) })
    };
    if !names.is_empty() {
        // They stay in the order in which they were named.
        return names
            .iter()
            .map(|name| match from.map(|f| f.join(format!("{name}.json"))).filter(|p| p.exists()) {
                Some(path) => file(&path, name),
                None => {
                    let bundled = BUNDLED.iter().any(|b| b.name == name);
                    let origin = match name.as_str() {
                        "here" => Origin::CapturedNow,
                        _ if bundled => Origin::Bundled,
                        _ => Origin::Given,
                    };
                    Ok(MatrixHost::of(evenkeel_hosts::load(name)?, origin))
                }
            })
            .collect();
    }
    let mut hosts: Vec<MatrixHost> = match from {
        Some(folder) => {
            let entries = std::fs::read_dir(folder).map_err(|e| Failure::file(folder, &e))?;
            let mut paths = Vec::new();
            for entry in entries {
                let path = entry.map_err(|e| Failure::file(folder, &e))?.path();
                if path.extension().is_some_and(|e| e == "json") {
                    paths.push(path);
                }
            }
            paths.sort();
            let name = |p: &Path| {
                let stem = p.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
                // A file may be called anything; a terminal obeys some of it.
                stem.replace(char::is_control, "?")
            };
            paths.iter().map(|p| file(p, &name(p))).collect::<Result<_, _>>()?
        }
        None => BUNDLED
            .iter()
            .map(|b| Ok(MatrixHost::of(evenkeel_hosts::load(b.name)?, Origin::Bundled)))
            .collect::<Result<_, Failure>>()?,
    };
    in_order(&mut hosts);
    Ok(hosts)
}

/// By their kernels' point releases: neighbours are what an upgrade steps over.
pub fn in_order(hosts: &mut [MatrixHost]) {
    hosts.sort_by_key(|h| numbers(&h.point_release));
}

/// `6.12.43` as numbers, to sort by.
fn numbers(release: &str) -> Vec<u64> {
    release.split('.').map(|n| n.parse().unwrap_or(u64::MAX)).collect()
}
