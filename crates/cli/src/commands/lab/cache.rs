//! `evenkeel lab cache`: what is here.

use std::collections::BTreeSet;
use std::path::PathBuf;

use evenkeel_lab::{Cache, Kernel, Kernels, show_bytes};
use serde::Serialize;

use super::failed;
use crate::failure::Failure;
use crate::{Format, Global, output};

/// What the cache holds, how much it may hold, and what to remove from it.
///
/// A fetch that would make it hold more than EVENKEEL_CACHE_LIMIT (8 GiB unless set: a number with k, M, G or T) removes
/// the kernels that were used least recently. Kernels that a user added or imported are never removed by themselves.
#[derive(clap::Args)]
pub struct CacheCommand {
    /// Remove unfinished downloads, hosts that are kept idle, and the kernels used least recently until the limit is
    /// kept.
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
    /// Hosts that are kept idle, to be resumed.
    idle: usize,
    /// Their files' bytes. They may have half of the limit besides the kernels.
    idle_bytes: u64,
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
            let freed = cache.forget_idle(0);
            if freed > 0 {
                anstream::eprintln!(
                    "hosts that were kept idle are removed: {} are free again",
                    show_bytes(freed)
                );
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
        let (idle, idle_bytes) = cache.idle();
        let folder = cache.root().to_owned();
        let report = CacheReport { folder, bytes, limit, unfinished, idle, idle_bytes, kernels };
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
    if report.idle > 0 {
        let (what, size) = (format!("{} idle hosts", report.idle), show_bytes(report.idle_bytes));
        text += &format!("{what:<28} {size:>10}  resumed instead of booted; at most half of the limit\n");
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
