//! The cache as a store: who may change it, what is in it, what it holds, and what goes when it is full.
//!
//! | folder | holds |
//! |---|---|
//! | `kernels/RELEASE` | an unpacked kernel of Debian's |
//! | `added/NAME` | a kernel that a user brought |
//! | `partial` | packages, whole or not, of kernels that are being fetched |
//! | `work` | what is being unpacked or removed; nothing in it counts |
//! | `used` | an empty file a kernel, whose date says when it was last used |
//! | `apt` | the package indexes |
//!
//! All changes are made under a lock, and a kernel appears and disappears by a rename: a process that is killed leaves
//! things in `work`, and the next one that changes something sweeps them.

use std::fs::{self, File, FileTimes, TryLockError};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tempfile::TempDir;

use crate::cache::Cache;
use crate::error::Error;
use crate::fetch::Progress;
use crate::kernel::{Kernel, Origin};

/// How many bytes of kernels a cache holds unless `EVENKEEL_CACHE_LIMIT` says otherwise: 8 GiB, some eighty kernels.
const LIMIT: u64 = 8 << 30;

/// The right to change a cache, until it is dropped or the process ends.
#[derive(Debug)]
pub(crate) struct Changes<'a> {
    cache: &'a Cache,
    _lock: File,
}

/// A kernel in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its release, or the name that a user gave it.
    pub name: String,
    /// Whether a user brought it: then nothing can fetch it again, and only `remove` takes it away.
    pub added: bool,
    /// Its files' lengths in bytes.
    pub bytes: u64,
    /// When it was last used, if ever.
    pub used: Option<SystemTime>,
    folder: PathBuf,
}

impl Cache {
    /// How many bytes of kernels it may hold: `$EVENKEEL_CACHE_LIMIT`, with `k`, `M`, `G` or `T` for powers of 1024.
    pub fn limit() -> Result<u64, Error> {
        match std::env::var_os("EVENKEEL_CACHE_LIMIT").filter(|value| !value.is_empty()) {
            None => Ok(LIMIT),
            Some(text) => bytes(&text.to_string_lossy()).ok_or_else(|| Error::Tool {
                program: "lab".to_owned(),
                why: format!("EVENKEEL_CACHE_LIMIT is {}, which is no size", text.to_string_lossy()),
                hint: "a number of bytes, or a number with k, M, G or T: 8G".to_owned(),
            }),
        }
    }

    /// Waits until nobody else changes the cache, and sweeps what others left half done.
    pub(crate) fn change(&self, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Changes<'_>, Error> {
        for folder in ["work", "partial", "used", "kernels", "added"] {
            let folder = self.root().join(folder);
            fs::create_dir_all(&folder).map_err(Error::io("create", folder))?;
        }
        let path = self.root().join("lock");
        let open = File::options().create(true).write(true).truncate(false).open(&path);
        let lock = open.map_err(Error::io("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                progress(Progress::Line("waiting for another lab that changes the cache"));
                lock.lock().map_err(Error::io("lock", &path))?;
            }
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", &path)(e)),
        }
        let changes = Changes { cache: self, _lock: lock };
        changes.sweep(progress);
        Ok(changes)
    }

    /// Every kernel that is here, the one that was used last at the end.
    pub fn stored(&self) -> Result<Vec<Stored>, Error> {
        let mut stored = Vec::new();
        for (part, added) in [("kernels", false), ("added", true)] {
            let part = self.root().join(part);
            for folder in folders(&part)? {
                let Some(name) = folder.file_name().map(|name| name.to_string_lossy().into_owned()) else {
                    continue;
                };
                let used = fs::metadata(self.marker(&name)).and_then(|meta| meta.modified()).ok();
                stored.push(Stored { added, bytes: size(&folder), used, name, folder });
            }
        }
        stored.sort_by(|a, b| (a.used, &a.name).cmp(&(b.used, &b.name)));
        Ok(stored)
    }

    /// How many bytes of unfinished downloads there are.
    pub fn unfinished(&self) -> u64 {
        size(&self.root().join("partial"))
    }

    /// Removes the kernel with this name or release, a user's or a fetched one. Returns how many bytes that frees.
    pub fn remove(&self, name: &str) -> Result<u64, Error> {
        let changes = self.change(&mut |_| {})?;
        let stored = self.stored()?;
        let found = stored.iter().find(|stored| stored.name == name).ok_or_else(|| Error::NotStored {
            name: name.to_owned(),
            stored: stored.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", "),
        })?;
        changes.remove(found)?;
        Ok(found.bytes)
    }

    /// Removes unfinished downloads, and kernels that were fetched until what is left is at most `limit` bytes.
    /// Returns what went.
    pub fn prune(&self, limit: u64) -> Result<Vec<Stored>, Error> {
        let changes = self.change(&mut |_| {})?;
        for file in changes.partial_files()? {
            fs::remove_file(&file).map_err(Error::io("remove", &file))?;
        }
        changes.make_room(0, limit, &[])
    }

    pub(crate) fn mark_used(&self, kernel: &Kernel) {
        // A cache that cannot be written to can still be read; then nothing is evicted from it either.
        let marker = self.marker(stored_name(kernel));
        let _ = fs::create_dir_all(self.root().join("used"));
        if let Ok(file) = File::options().create(true).write(true).truncate(false).open(marker) {
            let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
        }
    }

    fn marker(&self, name: &str) -> PathBuf {
        self.root().join("used").join(name)
    }
}

/// The name of a kernel's folder.
pub(crate) fn stored_name(kernel: &Kernel) -> &str {
    match kernel.origin {
        Origin::Debian { .. } => &kernel.release,
        Origin::Added { .. } => &kernel.name,
    }
}

impl Changes<'_> {
    /// A folder to put things together in, on the file system of the cache. It goes when it is dropped.
    pub fn work(&self) -> Result<TempDir, Error> {
        let work = self.cache.root().join("work");
        tempfile::tempdir_in(&work).map_err(Error::io("create a folder in", work))
    }

    /// Where a package with this digest is kept until its kernel is unpacked.
    pub fn partial(&self, sha256: &str) -> PathBuf {
        self.cache.root().join("partial").join(format!("{sha256}.deb"))
    }

    /// Makes `folder`, which is in [`Changes::work`], the kernel's. Kernels that were used least recently go if
    /// the cache would hold more than `limit` bytes; never those named in `keep`.
    pub fn install(
        &self,
        folder: &Path,
        target: &Path,
        limit: u64,
        keep: &[&str],
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Error> {
        let needed = size(folder);
        for gone in self.make_room(needed, limit, keep)? {
            let words = format!("removed {} ({}): the cache is full", gone.name, show_bytes(gone.bytes));
            progress(Progress::Line(&words));
        }
        let held: u64 = self.cache.stored()?.iter().map(|stored| stored.bytes).sum();
        if held + needed > limit {
            let words = format!(
                "the cache holds {}, more than its limit of {}: there is nothing more that may go",
                show_bytes(held + needed),
                show_bytes(limit)
            );
            progress(Progress::Line(&words));
        }
        if target.exists() {
            // Not a whole kernel, or nobody would have asked for it.
            let grave = self.work()?;
            fs::rename(target, grave.path().join("gone")).map_err(Error::io("remove", target))?;
        }
        fs::rename(folder, target).map_err(Error::io("create", target))
    }

    /// Removes kernels until `needed` more bytes fit into `limit`, or nothing is left that may go.
    fn make_room(&self, needed: u64, limit: u64, keep: &[&str]) -> Result<Vec<Stored>, Error> {
        let stored = self.cache.stored()?;
        let mut held: u64 = stored.iter().map(|stored| stored.bytes).sum();
        let mut gone = Vec::new();
        for candidate in stored {
            if held + needed <= limit {
                break;
            }
            // What nobody serves any more or what a user made cannot be had again.
            let kept = candidate.added || keep.contains(&candidate.name.as_str());
            if kept || candidate.folder.join(IMPORTED).exists() {
                continue;
            }
            self.remove(&candidate)?;
            held -= candidate.bytes;
            gone.push(candidate);
        }
        Ok(gone)
    }

    /// Removes a kernel: it disappears at once, its files after that.
    pub fn remove(&self, stored: &Stored) -> Result<(), Error> {
        let work = self.work()?;
        let grave = work.path().join("gone");
        fs::rename(&stored.folder, &grave).map_err(Error::io("remove", &stored.folder))?;
        let _ = fs::remove_file(self.cache.marker(&stored.name));
        work.close().map_err(Error::io("remove", grave))
    }

    fn partial_files(&self) -> Result<Vec<PathBuf>, Error> {
        let folder = self.cache.root().join("partial");
        let entries = fs::read_dir(&folder).map_err(Error::io("read", &folder))?;
        Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
    }

    /// Removes what others left in the working folder, and beginnings of downloads that nobody has gone on with for
    /// a week. Under the lock, so nobody works with them now.
    fn sweep(&self, progress: &mut dyn FnMut(Progress<'_>)) {
        for file in self.partial_files().unwrap_or_default() {
            // Not its own date, which is the server's.
            let changed = fs::metadata(&file).map_or(i64::MAX, |meta| meta.ctime());
            if changed < now() - KEPT_SECONDS {
                let _ = fs::remove_file(file);
            }
        }
        let work = self.cache.root().join("work");
        for folder in folders(&work).unwrap_or_default() {
            // A tool that outlived its lab for a moment can still write into it; then the next sweep gets it.
            match fs::remove_dir_all(&folder) {
                Ok(()) => progress(Progress::Line("removed what an interrupted lab left half done")),
                Err(e) => progress(Progress::Line(&format!("cannot remove {}: {e}", folder.display()))),
            }
        }
    }
}

/// How long the beginning of a download is kept.
const KEPT_SECONDS: i64 = 7 * 24 * 3600;

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.ok().and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or(0)
}

/// In the folder of a kernel of the list that a user imported.
pub(crate) const IMPORTED: &str = ".imported";

/// The folders in a folder; none in one that is not there.
fn folders(parent: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(parent) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io("read", parent))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("read", parent))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// The lengths of all files in a folder, as far as it can be read. Links are not followed.
pub(crate) fn size(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size(&entry.path()),
        Ok(meta) if meta.is_file() => meta.len(),
        _ => 0,
    };
    entries.flatten().map(of).sum()
}

/// A size that a user wrote.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let text = text.strip_suffix("iB").or(text.strip_suffix('B')).unwrap_or(text);
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        (at, 't' | 'T') => (&text[..at], 40),
        _ => (text, 0),
    };
    digits.trim_end().parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A size for a person: `33.9 MiB`.
pub fn show_bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A cache with kernels of a mebibyte each, used in this order.
    fn cache(names: &[&str]) -> (TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        drop(cache.change(&mut |_| {}).unwrap());
        for (i, name) in names.iter().enumerate() {
            let boot = folder.path().join("kernels").join(name).join("boot");
            fs::create_dir_all(&boot).unwrap();
            fs::write(boot.join("vmlinuz"), vec![0; 1 << 20]).unwrap();
            let marker = File::create(cache.marker(name)).unwrap();
            let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 + i as u64);
            marker.set_times(FileTimes::new().set_modified(then)).unwrap();
        }
        (folder, cache)
    }

    fn names(stored: &[Stored]) -> Vec<&str> {
        stored.iter().map(|s| s.name.as_str()).collect()
    }

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, expected) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("8G", Some(8 << 30)),
            ("8 GiB", Some(8 << 30)),
            ("100MB", Some(100 << 20)),
            ("1k", Some(1024)),
            ("2T", Some(2 << 40)),
            ("", None),
            ("G", None),
            ("-1", None),
            ("1.5G", None),
            ("99999999999T", None),
            ("\u{20ac}", None),
        ] {
            assert_eq!(bytes(text), expected, "{text:?}");
        }
        let shown: Vec<String> = [5, 2048, 35_546_112, 8 << 30].into_iter().map(show_bytes).collect();
        assert_eq!(shown, ["5 B", "2.0 KiB", "33.9 MiB", "8.0 GiB"]);
    }

    #[test]
    fn the_least_recently_used_go_first_and_those_asked_for_never() {
        let (_folder, cache) = cache(&["c", "a", "b", "d"]);
        assert_eq!(names(&cache.stored().unwrap()), ["c", "a", "b", "d"]);
        let changes = cache.change(&mut |_| {}).unwrap();
        let gone = changes.make_room(1 << 20, 3 << 20, &["c"]).unwrap();
        assert_eq!(names(&gone), ["a", "b"]);
        assert_eq!(names(&cache.stored().unwrap()), ["c", "d"]);
        // What cannot be had again stays, however full it is.
        fs::write(cache.root().join("kernels/d").join(IMPORTED), "").unwrap();
        assert_eq!(names(&changes.make_room(0, 0, &[]).unwrap()), ["c"]);
        assert_eq!(names(&cache.stored().unwrap()), ["d"]);
    }

    #[test]
    fn a_full_cache_takes_a_kernel_and_says_so() {
        let (folder, cache) = cache(&["a", "b"]);
        let changes = cache.change(&mut |_| {}).unwrap();
        let work = changes.work().unwrap();
        let tree = work.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("x"), vec![0; 2 << 20]).unwrap();
        let mut lines = Vec::new();
        let target = folder.path().join("kernels/new");
        let mut progress = |p: Progress<'_>| {
            if let Progress::Line(line) = p {
                lines.push(line.to_owned());
            }
        };
        changes.install(&tree, &target, 1 << 20, &["b", "new"], &mut progress).unwrap();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("removed a (1.0 MiB)"), "{lines:?}");
        assert!(lines[1].contains("more than its limit of 1.0 MiB"), "{lines:?}");
        assert_eq!(names(&cache.stored().unwrap()), ["new", "b"]);
    }

    #[test]
    fn what_stands_in_the_way_and_is_no_kernel_goes() {
        let (folder, cache) = cache(&["a"]);
        let changes = cache.change(&mut |_| {}).unwrap();
        let work = changes.work().unwrap();
        let tree = work.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("new"), "x").unwrap();
        let target = folder.path().join("kernels/a");
        changes.install(&tree, &target, LIMIT, &["a"], &mut |_| {}).unwrap();
        assert!(target.join("new").exists() && !target.join("boot").exists());
    }

    #[test]
    fn leftovers_are_swept_by_the_next_and_not_under_a_living_one() {
        let (folder, cache) = cache(&["a"]);
        let changes = cache.change(&mut |_| {}).unwrap();
        let work = changes.work().unwrap();
        fs::write(work.path().join("half"), "x").unwrap();
        let path = work.path().to_owned();
        // Another lab waits, and so sweeps nothing of ours.
        let (waiting, told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let mut progress = |p: Progress<'_>| {
                    if let Progress::Line(line) = p {
                        waiting.send(line.to_owned()).unwrap();
                    }
                };
                drop(cache.change(&mut progress).unwrap());
            });
            assert!(told.recv().unwrap().contains("waiting"));
            assert!(path.join("half").exists());
            // As a killed process would: the lock goes, the folder stays.
            let _ = work.keep();
            drop(changes);
            other.join().unwrap();
        });
        assert!(!path.exists());
        assert_eq!(names(&cache.stored().unwrap()), ["a"]);
        assert!(folder.path().join("lock").exists());
    }

    #[test]
    fn what_is_removed_is_gone_and_what_is_not_there_is_said() {
        let (_folder, cache) = cache(&["a", "b"]);
        assert_eq!(cache.remove("a").unwrap(), 1 << 20);
        assert_eq!(names(&cache.stored().unwrap()), ["b"]);
        for name in ["a", "../kernels/b", "", ".", "/"] {
            let error = cache.remove(name).unwrap_err().to_string();
            assert!(error.contains('b'), "{error}");
        }
        fs::write(cache.root().join("partial/x.deb"), "x").unwrap();
        assert_eq!(names(&cache.prune(0).unwrap()), ["b"]);
        assert!(fs::read_dir(cache.root().join("partial")).unwrap().next().is_none());
    }
}
