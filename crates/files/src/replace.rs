//! A file is the old one or the new one at every moment, also when the disk is full or the power goes.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

/// Writes a file by `fill`: a file without a name is written, synced, and then given its name; then the folder is synced. When
/// anything goes wrong there is what there was before. Gives what `fill` gives.
///
/// Whoever is killed leaves nothing where the file system has nameless files; elsewhere, a file `.evenkeel-PID-N.new`.
///
/// # Errors
/// What `fill` says, or the operating system.
pub fn replace<T, E: From<io::Error>>(
    path: &Path,
    fill: impl FnOnce(&mut File) -> Result<T, E>,
) -> Result<T, E> {
    if fs::symlink_metadata(path).is_ok_and(|m| !m.is_file() && !m.is_symlink()) {
        return Err(io::Error::other("there is something that is not a regular file").into());
    }
    // A link's target is replaced, not the link.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let parent = folder_of(&target);
    let temporary = Temporary::new(&parent);
    // Readable too: what was written may be verified before it gets its name.
    let mode = Mode::from_raw_mode(0o644);
    let nameless = rustix::fs::openat(CWD, &parent, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode);
    let filled = match nameless {
        Ok(fd) => {
            let mut file = File::from(fd);
            let filled = fill(&mut file)?;
            file.sync_all()?;
            let proc = format!("/proc/self/fd/{}", file.as_raw_fd());
            let link = |to: &Path| rustix::fs::linkat(CWD, proc.as_str(), CWD, to, AtFlags::SYMLINK_FOLLOW);
            match link(&target) {
                Ok(()) => {}
                Err(Errno::EXIST) => {
                    link(&temporary.0).map_err(io::Error::from)?;
                    fs::rename(&temporary.0, &target)?;
                }
                Err(e) => return Err(io::Error::from(e).into()),
            }
            filled
        }
        // Not every file system has nameless files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let mut file = File::options().read(true).write(true).create_new(true).open(&temporary.0)?;
            let filled = fill(&mut file)?;
            file.sync_all()?;
            fs::rename(&temporary.0, &target)?;
            filled
        }
        Err(e) => return Err(io::Error::from(e).into()),
    };
    File::open(parent)?.sync_all()?;
    Ok(filled)
}

pub(crate) fn folder_of(path: &Path) -> PathBuf {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// A name beside the target that goes away with this, unless the file was renamed.
struct Temporary(PathBuf);

impl Temporary {
    fn new(parent: &Path) -> Temporary {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!(".evenkeel-{}-{count}.new", std::process::id()));
        // Of a process that had this number before and was killed.
        let _ = fs::remove_file(&path);
        Temporary(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
