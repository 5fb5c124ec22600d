//! Data on standard output, words on standard error, and files that are whole or not there.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use serde::Serialize;

use crate::failure::Failure;

/// Prints to standard output; colours go where they are wanted.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(Failure::pipe()),
        Err(e) => Err(Failure::bad(format!("standard output: {e}"), "")),
    }
}

/// Prints a document.
pub fn json<T: Serialize>(document: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|e| Failure::bad(format!("the answer cannot be written as JSON: {e}"), ""))?;
    print(&(text + "\n"))
}

/// Writes a file so that it is the old one or the new one at every moment, also when the disk is full or the power
/// goes: a file without a name is written, synced, and then given its name.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<(), Failure> {
    write_whole(path, content.as_ref()).map_err(|e| {
        let hint = match e.kind() {
            io::ErrorKind::NotFound => "the directory must exist",
            io::ErrorKind::StorageFull => "nothing was written; free some space",
            _ => "nothing was written",
        };
        Failure::bad(format!("cannot write {}: {e}", path.display()), hint)
    })
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|m| !m.is_file() && !m.is_symlink()) {
        return Err(io::Error::other("there is something that is not a regular file"));
    }
    // A link's target is replaced, not the link.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mode = Mode::from_raw_mode(0o644);
    let temporary = parent.join(format!(".evenkeel-{}.new", std::process::id()));
    let nameless = rustix::fs::openat(CWD, parent, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, mode);
    match nameless {
        Ok(fd) => {
            let mut file = File::from(fd);
            file.write_all(bytes)?;
            file.sync_all()?;
            let proc = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
            let link = |to: &Path| rustix::fs::linkat(CWD, proc.as_str(), CWD, to, AtFlags::SYMLINK_FOLLOW);
            match link(&target) {
                Ok(()) => {}
                Err(rustix::io::Errno::EXIST) => {
                    let _ = fs::remove_file(&temporary);
                    link(&temporary)?;
                    fs::rename(&temporary, &target).inspect_err(|_| {
                        let _ = fs::remove_file(&temporary);
                    })?;
                }
                Err(e) => return Err(e.into()),
            }
        }
        // Not every file system has nameless files.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::INVAL) => {
            let written =
                File::create(&temporary).and_then(|mut f| f.write_all(bytes).and_then(|()| f.sync_all()));
            written.and_then(|()| fs::rename(&temporary, &target)).inspect_err(|_| {
                let _ = fs::remove_file(&temporary);
            })?;
        }
        Err(e) => return Err(e.into()),
    }
    File::open(parent)?.sync_all()
}
