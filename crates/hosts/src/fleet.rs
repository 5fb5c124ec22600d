//! Many capture files at once. Hosts of one make under one kernel have the same stable part: it is parsed once.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use evenkeel_contract::View;
use evenkeel_contract::view::Host as ViewHost;
use evenkeel_surface::{Limits, Provenance, read};

use crate::Error;

/// Hosts that offer the same: one set of views, and how many files have it.
#[derive(Clone, Debug)]
pub struct Member {
    /// The views, labelled by the first of the files.
    pub views: Vec<View>,
    /// How many hosts.
    pub count: usize,
    /// The first file, by name.
    pub first: PathBuf,
}

/// A fleet, its members distinct by what they offer, ascending by the first file's name.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// The distinct members.
    pub members: Vec<Member>,
    /// How many hosts in all.
    pub hosts: usize,
}

/// Reads many captures: files, and directories whose `*.json` are captures.
///
/// # Errors
/// The first file, by name, that cannot be used: a fleet with a hole in it has no baseline.
pub fn load_fleet(paths: &[PathBuf]) -> Result<Fleet, Error> {
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        if path.is_dir() {
            let entries = fs::read_dir(path).map_err(|error| Error::File { path: path.clone(), error })?;
            for entry in entries {
                let file = entry.map_err(|error| Error::File { path: path.clone(), error })?.path();
                if file.extension().is_some_and(|e| e == "json") {
                    files.push(file);
                }
            }
        } else {
            files.push(path.clone());
        }
    }
    files.sort();
    files.dedup();
    let known: Mutex<HashMap<blake3::Hash, usize>> = Mutex::new(HashMap::new());
    let members: Mutex<Vec<Member>> = Mutex::new(Vec::new());
    let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(files.len().max(1));
    std::thread::scope(|scope| {
        for t in 0..threads {
            let (files, known, members, failed) = (&files, &known, &members, &failed);
            scope.spawn(move || {
                let mut buffer = Vec::new();
                for (i, file) in files.iter().enumerate().skip(t).step_by(threads) {
                    if let Err(e) = one(file, &mut buffer, known, members) {
                        let mut failed = lock(failed);
                        if failed.as_ref().is_none_or(|(first, _)| i < *first) {
                            *failed = Some((i, e));
                        }
                        return;
                    }
                }
            });
        }
    });
    if let Some((_, e)) = lock(&failed).take() {
        return Err(e);
    }
    let mut members = std::mem::take(&mut *lock(&members));
    members.sort_by(|a, b| a.first.cmp(&b.first));
    Ok(Fleet { members, hosts: files.len() })
}

/// A lock is only poisoned by a panic in another thread, which `scope` passes on.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn one(
    file: &Path,
    buffer: &mut Vec<u8>,
    known: &Mutex<HashMap<blake3::Hash, usize>>,
    members: &Mutex<Vec<Member>>,
) -> Result<(), Error> {
    use std::io::Read as _;
    buffer.clear();
    let limits = Limits::default();
    let failed = |error| Error::File { path: file.to_owned(), error };
    fs::File::open(file)
        .map_err(failed)?
        .take(limits.bytes as u64 + 1)
        .read_to_end(buffer)
        .map_err(failed)?;
    let unusable = |error| Error::Read {
        name: file.display().to_string(),
        text: String::from_utf8_lossy(buffer).into_owned(),
        error,
    };
    let text = read::text(buffer, &limits).map_err(unusable)?;
    let parts = read::split(text).map_err(unusable)?;
    // Over the bytes, not over the digest that the file claims: a lie must not borrow another host's surface.
    let key = blake3::hash(parts.offer.as_bytes());
    let count = |at: usize| {
        let mut members = lock(members);
        members[at].count += 1;
        if file < members[at].first.as_path() {
            members[at].first = file.to_owned();
        }
    };
    if let Some(at) = lock(known).get(&key).copied() {
        count(at);
        return Ok(());
    }
    let offer = read::offer(text, &parts, &limits).map_err(unusable)?;
    let provenance: Provenance = read::provenance(text, &parts).map_err(unusable)?;
    let host = Arc::new(ViewHost {
        label: file.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        digests: parts.digests.clone(),
        provenance,
        tsc_khz: None,
        tsc_scaling: false,
    });
    let views = View::of_offer(parts.arch, &offer, host);
    let mut known = lock(known);
    if let Some(at) = known.get(&key).copied() {
        drop(known);
        count(at);
    } else {
        let mut members = lock(members);
        known.insert(key, members.len());
        members.push(Member { views, count: 1, first: file.to_owned() });
    }
    Ok(())
}
