//! `evenkeel lab fetch`, `add`, `import`, `remove` and `cache`: which kernels are here.

use std::collections::BTreeSet;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use evenkeel_lab::{
    Addition, Arch, Cache, Error, Fetched, Here, Kernel, Kernels, Progress, add, fetch, import, show_bytes,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::lab::failed;
use crate::failure::Failure;
use crate::{Format, Global, output};

/// Shows what a long task says of itself: a bar on a terminal, otherwise a line now and then.
#[derive(Default)]
pub struct Teller {
    bar: Option<(String, ProgressBar)>,
    /// What was last said of a download without a terminal, when, and how much of it was there.
    said: Option<(String, Instant, u64)>,
}

/// How often a download is mentioned where there is no terminal.
const MENTION: Duration = Duration::from_secs(10);

impl Teller {
    /// Says it, on standard error.
    pub fn say(&mut self, progress: Progress<'_>) {
        match progress {
            Progress::Line(line) => {
                self.end();
                anstream::eprintln!("{line}");
            }
            Progress::Bytes { what, done, total } if std::io::stderr().is_terminal() => {
                if self.bar.as_ref().is_none_or(|(of, _)| of != what) {
                    self.end();
                    let bar = ProgressBar::new(total).with_message(what.to_owned());
                    let style = "{bar:30} {bytes:>11} of {total_bytes} {bytes_per_sec:>12} {eta:>3}  {msg}";
                    bar.set_style(
                        ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
                    );
                    self.bar = Some((what.to_owned(), bar));
                }
                if let Some((_, bar)) = &self.bar {
                    bar.set_position(done);
                }
            }
            Progress::Bytes { what, done, total } => {
                let due = match &self.said {
                    Some((of, when, said)) if of == what => {
                        *said < done && (when.elapsed() >= MENTION || done == total)
                    }
                    _ => true,
                };
                if due {
                    anstream::eprintln!("  {what}: {} of {}", show_bytes(done), show_bytes(total));
                    self.said = Some((what.to_owned(), Instant::now(), done));
                }
            }
        }
    }

    fn end(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish();
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.end();
    }
}

/// Fetch kernels from Debian's archive into the cache; installs nothing.
///
/// What was downloaded before an interruption is gone on with. A kernel that the archive does not serve any more is
/// reported and does not keep the others away: exit code 3 if it was named, 0 if all were asked for and others are here.
#[derive(clap::Args)]
pub struct Fetch {
    /// Names of kernels (`evenkeel lab list`), or releases that the archive has (`6.12.57+deb12-cloud-amd64`); the
    /// whole list when none is named.
    kernels: Vec<String>,
}

impl Fetch {
    /// Fetches.
    pub fn run(self, cache: &Cache) -> Result<u8, Failure> {
        let mut teller = Teller::default();
        let known = Kernels::load(cache);
        let mut wanted: Vec<Kernel> = Vec::new();
        let mut unlisted: Vec<&String> = Vec::new();
        if self.kernels.is_empty() {
            wanted.extend(evenkeel_lab::kernels().cloned());
        }
        for name in &self.kernels {
            match known.host(name) {
                Ok(host) => wanted.push(host.kernel),
                Err(_) if name.starts_with(|c: char| c.is_ascii_digit()) => unlisted.push(name),
                Err(e) => return Err(Failure { exit: 2, ..failed(e) }),
            }
        }
        if !unlisted.is_empty() {
            for name in unlisted {
                let served = evenkeel_lab::served(name, cache, &mut |p| teller.say(p)).map_err(failed)?;
                let found = served.into_iter().find(|kernel| kernel.release == *name);
                wanted.push(found.ok_or_else(|| not_in_archive(name))?);
            }
        }
        let wanted: Vec<&Kernel> = wanted.iter().collect();
        let fetched = fetch(&wanted, cache, &mut |p| teller.say(p)).map_err(failed)?;
        drop(teller);
        Ok(report(&fetched, self.kernels.is_empty()))
    }
}

fn not_in_archive(name: &str) -> Failure {
    let hint = "`evenkeel lab list` names the lab's kernels; `apt-cache search linux-image` others";
    Failure { exit: 3, ..Failure::bad(format!("the archive serves no kernel {name}"), hint) }
}

/// Says what is missing and why, and counts. Returns the exit code.
fn report(fetched: &Fetched, all: bool) -> u8 {
    let (mut gone, mut broken) = (0, 0);
    for (name, done) in fetched {
        match done {
            Ok(_) => {}
            Err(Error::NotServed { why, hint, .. }) => {
                gone += 1;
                anstream::eprintln!("{name}: not served any more: {why}");
                match evenkeel_hosts::BUNDLED.iter().find(|bundled| bundled.name == name) {
                    Some(bundled) => anstream::eprintln!(
                        "  captured earlier: its capture is bundled as {}, so that every comparison works",
                        bundled.name
                    ),
                    None => anstream::eprintln!("  hint: {hint}"),
                }
            }
            Err(e) => {
                broken += 1;
                Failure { message: format!("{name}: {}", failed_text(e).0), ..failed_of(e) }.print();
            }
        }
    }
    let count = |here: Here| fetched.values().filter(|done| matches!(done, Ok(h) if *h == here)).count();
    let (new, already) = (count(Here::New), count(Here::Already));
    let mut words = vec![format!("{new} fetched"), format!("{already} were here")];
    words.extend((gone > 0).then(|| format!("{gone} not served any more")));
    words.extend((broken > 0).then(|| format!("{broken} failed")));
    anstream::eprintln!("{}", words.join(", "));
    match (broken, gone) {
        (0, 0) => 0,
        (0, _) if all && new + already > 0 => 0,
        _ => 3,
    }
}

fn failed_text(e: &Error) -> (String, String) {
    let text = e.to_string();
    let (message, hint) = text.split_once("\nhint: ").unwrap_or((&text, ""));
    (message.to_owned(), hint.to_owned())
}

fn failed_of(e: &Error) -> Failure {
    let (message, hint) = failed_text(e);
    Failure { exit: 3, ..Failure::bad(message, hint) }
}

/// Add a kernel that you built: it becomes a host of the lab like the others.
#[derive(clap::Args)]
pub struct Add {
    /// What it shall be called.
    name: String,
    /// The image: arch/x86/boot/bzImage or arch/arm64/boot/Image of a build, or a vmlinuz.
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// Its modules: the folder that `make modules_install INSTALL_MOD_PATH=` filled, or one with *.ko in it.
    #[arg(long, value_name = "FOLDER")]
    modules: Option<PathBuf>,
    /// What it is built for; the image tells, this only checks: x86_64 or aarch64.
    #[arg(long, value_parser = arch)]
    arch: Option<Arch>,
    /// What `uname -r` says under it, where neither the image nor the modules tell.
    #[arg(long)]
    release: Option<String>,
    /// Take the place of a kernel that was added under this name.
    #[arg(long)]
    replace: bool,
}

fn arch(name: &str) -> Result<Arch, String> {
    let known = |arch: &Arch| arch.name() == name || arch.debian() == name;
    Arch::ALL.into_iter().find(known).ok_or_else(|| "x86_64 or aarch64".to_owned())
}

impl Add {
    /// Adds it.
    pub fn run(self, cache: &Cache, global: Global) -> Result<u8, Failure> {
        let mut teller = Teller::default();
        not_bundled(&self.name)?;
        let addition = Addition {
            name: &self.name,
            image: &self.image,
            modules: self.modules.as_deref(),
            arch: self.arch,
            release: self.release.as_deref(),
            from: None,
            replace: self.replace,
        };
        let kernel = add(&addition, cache, &mut |p| teller.say(p)).map_err(refused)?;
        added(&[kernel], global).map(|()| 0)
    }
}

/// Add a kernel from Debian package files, also from those that `make bindeb-pkg` builds.
///
/// Packages that the lab's list names complete that kernel; all others together are one kernel.
#[derive(clap::Args)]
pub struct Import {
    /// linux-image, or linux-binary and linux-modules.
    #[arg(required = true, value_name = "FILE.deb")]
    files: Vec<PathBuf>,
    /// What it shall be called; its release otherwise.
    #[arg(long)]
    name: Option<String>,
    /// Take the place of a kernel that was added under this name.
    #[arg(long)]
    replace: bool,
}

impl Import {
    /// Imports them.
    pub fn run(self, cache: &Cache, global: Global) -> Result<u8, Failure> {
        let mut teller = Teller::default();
        if let Some(name) = &self.name {
            not_bundled(name)?;
        }
        let files: Vec<&Path> = self.files.iter().map(PathBuf::as_path).collect();
        let imported = import(&files, self.name.as_deref(), self.replace, cache, &mut |p| teller.say(p))
            .map_err(refused)?;
        added(&imported.kernels, global)?;
        for (kernel, missing) in &imported.incomplete {
            anstream::eprintln!(
                "{}: kept; still missing {}: import it too, or `evenkeel lab fetch {}`",
                kernel.name,
                missing.join(", "),
                kernel.name
            );
        }
        Ok(if imported.incomplete.is_empty() { 0 } else { 3 })
    }
}

/// Names of bundled captures mean these.
fn not_bundled(name: &str) -> Result<(), Failure> {
    match evenkeel_hosts::BUNDLED.iter().any(|bundled| bundled.name == name) {
        true => Err(Failure::bad(format!("`{name}` is the name of a bundled capture"), "another name")),
        false => Ok(()),
    }
}

fn refused(e: Error) -> Failure {
    let bad = matches!(e, Error::Refused { .. } | Error::Kernel { .. } | Error::Io { .. });
    Failure { exit: if bad { 2 } else { 3 }, ..failed(e) }
}

/// A kernel that was added.
#[derive(Serialize)]
struct Added<'a> {
    name: &'a str,
    arch: &'a str,
    release: &'a str,
}

fn added(kernels: &[Kernel], global: Global) -> Result<(), Failure> {
    let all: Vec<Added<'_>> =
        kernels.iter().map(|k| Added { name: &k.name, arch: k.arch.name(), release: &k.release }).collect();
    match global.format {
        Format::Json => output::json(&all),
        Format::Text => {
            let lines = all.iter().map(|k| format!("{}: {} for {}\n", k.name, k.release, k.arch));
            output::print(&lines.collect::<String>())
        }
    }
}

/// Remove a kernel that was added or imported.
#[derive(clap::Args)]
pub struct Remove {
    /// Its name.
    name: String,
}

impl Remove {
    /// Removes it.
    pub fn run(self, cache: &Cache) -> Result<u8, Failure> {
        let stored = cache.stored().map_err(failed)?;
        if !stored.iter().any(|stored| stored.added && stored.name == self.name) {
            let names: Vec<&str> = stored.iter().filter(|s| s.added).map(|s| s.name.as_str()).collect();
            let hint = match (Kernels::load(cache).host(&self.name).is_ok(), names.is_empty()) {
                (true, _) => format!("it was fetched: `evenkeel lab cache --remove {}`", self.name),
                (_, true) => "`evenkeel lab add` and `evenkeel lab import` add kernels".to_owned(),
                _ => format!("one of {}", names.join(", ")),
            };
            return Err(Failure::bad(format!("no kernel `{}` was added", self.name), hint));
        }
        let bytes = cache.remove(&self.name).map_err(failed)?;
        anstream::eprintln!("{} is removed: {} are free again", self.name, show_bytes(bytes));
        Ok(0)
    }
}

/// What the cache holds, how much it may hold, and what to remove from it.
///
/// A fetch that would make it hold more than EVENKEEL_CACHE_LIMIT (8 GiB unless set: a number with k, M, G or T) removes
/// the kernels that were used least recently. Kernels that a user added or imported are never removed by themselves.
#[derive(clap::Args)]
pub struct CacheCommand {
    /// Remove unfinished downloads, and the kernels used least recently until the limit is kept.
    #[arg(long)]
    prune: bool,
    /// Remove this kernel, by name or release.
    #[arg(long, value_name = "NAME")]
    remove: Vec<String>,
}

/// A kernel in the cache.
#[derive(Serialize)]
struct InCache {
    /// A kernel's name; its release if it has no other.
    name: String,
    release: String,
    bytes: u64,
    added: bool,
    /// Seconds since 1970.
    used: Option<u64>,
}

#[derive(Serialize)]
struct CacheReport {
    folder: PathBuf,
    bytes: u64,
    limit: u64,
    /// Bytes of downloads that were interrupted.
    unfinished: u64,
    kernels: Vec<InCache>,
}

impl CacheCommand {
    /// Shows or removes.
    pub fn run(self, cache: &Cache, global: Global) -> Result<u8, Failure> {
        let limit = Cache::limit().map_err(|e| Failure { exit: 2, ..failed(e) })?;
        let known = Kernels::load(cache);
        for name in &self.remove {
            // A name stands for the folder of its kernel.
            let folder = match known.get(name) {
                Some(Kernel { origin: evenkeel_lab::Origin::Debian { .. }, release, .. }) => release,
                _ => name,
            };
            let bytes = cache.remove(folder).map_err(|e| Failure { exit: 2, ..failed(e) })?;
            anstream::eprintln!("{name} is removed: {} are free again", show_bytes(bytes));
        }
        if self.prune {
            for gone in cache.prune(limit).map_err(failed)? {
                anstream::eprintln!("{} is removed: {} are free again", gone.name, show_bytes(gone.bytes));
            }
        }
        for problem in &known.problems {
            anstream::eprintln!("not usable: {problem}");
        }
        if !self.remove.is_empty() && global.format == Format::Text {
            return Ok(0);
        }
        let stored = cache.stored().map_err(failed)?;
        let name_of = |folder: &str, added: bool| -> (String, String) {
            let found = match added {
                true => known.get(folder),
                false => known.iter().find(|k| k.release == folder && !k.packages().is_empty()),
            };
            found.map_or((folder.to_owned(), String::new()), |k| (k.name.clone(), k.release.clone()))
        };
        let since = |time: std::time::SystemTime| time.duration_since(std::time::UNIX_EPOCH).ok();
        let kernels: Vec<InCache> = stored
            .iter()
            .map(|s| {
                let (name, release) = name_of(&s.name, s.added);
                let used = s.used.and_then(since).map(|d| d.as_secs());
                InCache { name, release, bytes: s.bytes, added: s.added, used }
            })
            .collect();
        let bytes = kernels.iter().map(|k| k.bytes).sum();
        let unfinished = cache.unfinished();
        let report = CacheReport { folder: cache.root().to_owned(), bytes, limit, unfinished, kernels };
        match global.format {
            Format::Json => output::json(&report)?,
            Format::Text => output::print(&table(&report))?,
        }
        Ok(0)
    }
}

fn table(report: &CacheReport) -> String {
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let mut text = String::new();
    for k in &report.kernels {
        let used = match k.used.map(|used| now.saturating_sub(used)) {
            None => "never used".to_owned(),
            Some(0..120) => "used now".to_owned(),
            Some(s @ 120..7200) => format!("used {} minutes ago", s / 60),
            Some(s @ 7200..172_800) => format!("used {} hours ago", s / 3600),
            Some(s) => format!("used {} days ago", s / 86400),
        };
        let added = if k.added { ", yours" } else { "" };
        text += &format!("{:<28} {:>10}  {:<34} {used}{added}\n", k.name, show_bytes(k.bytes), k.release);
    }
    if report.unfinished > 0 {
        let size = show_bytes(report.unfinished);
        text += &format!("{:<28} {size:>10}  the next fetch goes on with them\n", "unfinished downloads");
    }
    let distinct: BTreeSet<&str> = report.kernels.iter().map(|k| k.name.as_str()).collect();
    text + &format!(
        "{} kernels, {} of {} (EVENKEEL_CACHE_LIMIT), in {}\n",
        distinct.len(),
        show_bytes(report.bytes),
        show_bytes(report.limit),
        report.folder.display()
    )
}
