//! Hosts that were booted once and are kept as files: resuming one takes a fraction of a boot.
//!
//! The file is a header of ours and after it the emulator's own migration stream. It is written under no name and gets
//! one when it is whole, so nothing half-written can be found later. It is a cache: one that does not fit any more, or
//! is damaged, is dropped and the host booted.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};
use serde_json::json;

use crate::cache::Cache;
use crate::emulator::Console;
use crate::emulator::qemu;
use crate::error::Error;
use crate::host::Host;
use crate::kernel::Arch;
use crate::machine::{Boot, Machine, Start};
use crate::memfile::MemFile;
use crate::options::Options;
use crate::tool;

/// What a file begins with; the release follows, then zeros up to [`HEADER`].
const MAGIC: &[u8] = b"evenkeel idle host 1\n";

/// The header's length in bytes.
const HEADER: usize = 256;

/// What is kept free for the next state. Together they may have half of what kernels may have.
const ROOM: u64 = 128 << 20;

/// How long writing or reading a state may take: it is some 100 MiB.
const PATIENCE: Duration = Duration::from_secs(30);

impl Machine {
    /// A host that takes jobs: resumed where there is a file of it, else booted, and then kept for the next time where
    /// its lane allows that.
    ///
    /// # Errors
    /// Besides all that can go wrong: [`Error::OneJob`], where [`run`](crate::run) is the way.
    pub fn up(host: &Host, options: &Options) -> Result<Machine, Error> {
        Machine::up_with(host, options, None)
    }

    /// The same, with one end of a link to another host.
    pub(crate) fn up_with(host: &Host, options: &Options, link: Option<OwnedFd>) -> Result<Machine, Error> {
        if host.lane.one_job() {
            return Err(Error::OneJob { host: host.name.clone(), lane: host.lane });
        }
        let boot = Boot::of(host, options)?;
        let start = |link| -> Result<Start<'_>, Error> {
            let console = Console::Kept(MemFile::new("console", b"")?);
            Ok(Start { host, options, console, link })
        };
        if options.fresh || options.shared.is_some() || !host.lane.resumable() {
            return Machine::start(start(link)?, &boot, None);
        }
        let file = place(host, options, &boot)?;
        if let Some((state, release)) = open(&file) {
            // The link is used up by an attempt, so there are as many ends of it as attempts.
            let again =
                link.as_ref().map(OwnedFd::try_clone).transpose().map_err(Error::io("use", "a link"))?;
            match Machine::start(start(again)?, &boot, Some((state.into(), release))) {
                Ok(machine) => {
                    touch(&file);
                    return Ok(machine);
                }
                // Damaged, or written by another emulator under the same version: it is of no use to anybody.
                Err(_) => drop(fs::remove_file(&file)),
            }
        }
        let mut machine = Machine::start(start(link)?, &boot, None)?;
        machine.keep(&file, options)?;
        Ok(machine)
    }

    /// Writes the idle host to `file` and lets it go on. That it could not be kept is no failure of the host; that it
    /// does not go on is.
    fn keep(&mut self, file: &Path, options: &Options) -> Result<(), Error> {
        let Ok(unnamed) = create(file, self.release()) else { return Ok(()) };
        let mut qmp = self.qmp()?;
        // By way of our own descriptor: the emulator has no name for the file either.
        let to = format!("exec:cat >> /proc/{}/fd/{}", std::process::id(), unnamed.as_raw_fd());
        // Room for one more of some 110 MiB.
        options.cache.forget_idle((Cache::limit()? / 2).saturating_sub(ROOM));
        let written = qmp
            .execute("stop", json!({}))
            .and_then(|_| {
                qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": 8_u64 << 30 }))?;
                qmp.execute("migrate", json!({ "uri": to }))?;
                qmp.until("query-migrate", &["completed", "failed"], PATIENCE)
            })
            .is_ok_and(|status| status == "completed");
        if written {
            // Another lab may have been faster; its file is as good.
            let _ = name(&unnamed, file);
        }
        qmp.execute("cont", json!({})).map(drop).map_err(|why| self.died(format!("it does not go on: {why}")))
    }
}

/// The file of a host. Its name changes with everything that decides what the state means.
fn place(host: &Host, options: &Options, boot: &Boot) -> Result<PathBuf, Error> {
    let identity = qemu::identity(host.lane, options.memory_mib);
    let package = match host.kernel.arch {
        Arch::X86_64 => "qemu-system-x86",
        Arch::Aarch64 => "qemu-system-arm",
    };
    let version = tool::output(std::process::Command::new(&identity[0]).arg("--version"), package)?;
    let image = fs::read(&boot.installed.image).map_err(Error::io("read", &boot.installed.image))?;
    let mut digest = blake3::Hasher::new();
    for part in [version.as_slice(), identity.join("\n").as_bytes(), &image, &boot.initramfs] {
        digest.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    let digest = digest.finalize().to_hex();
    Ok(folder(options).join(format!("{}-{}", host.name, &digest[..16])))
}

fn folder(options: &Options) -> PathBuf {
    options.cache.root().join("idle")
}

/// Opens a state, at the emulator's part of it.
fn open(file: &Path) -> Option<(File, String)> {
    let mut state = File::open(file).ok()?;
    let mut header = [0; HEADER];
    state.read_exact(&mut header).ok()?;
    let release = header.strip_prefix(MAGIC)?;
    let release = release.split(|byte| *byte == 0).next()?;
    Some((state, String::from_utf8(release.to_vec()).ok()?))
}

/// A file without a name, beside where it is to be, with its header.
fn create(file: &Path, release: &str) -> io::Result<File> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    // The memory of a host that ran as root: nobody else's business.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mut unnamed = File::from(openat(CWD, folder, flags, Mode::RUSR | Mode::WUSR)?);
    let mut header = [MAGIC, release.as_bytes()].concat();
    header.resize(HEADER, 0);
    unnamed.write_all(&header)?;
    Ok(unnamed)
}

impl Cache {
    /// How many hosts are kept idle, and their files' bytes.
    pub fn idle(&self) -> (usize, u64) {
        let states = states(&self.root().join("idle"));
        (states.len(), states.iter().map(|state| state.bytes).sum())
    }

    /// Removes the states that were used least recently until those that are left have at most `most` bytes.
    /// Returns how many bytes that frees.
    pub fn forget_idle(&self, most: u64) -> u64 {
        let mut left = self.idle().1;
        let before = left;
        for state in states(&self.root().join("idle")) {
            if left > most && fs::remove_file(&state.path).is_ok() {
                left = left.saturating_sub(state.bytes);
            }
        }
        before - left
    }
}

/// A host that is kept idle.
struct State {
    used: SystemTime,
    bytes: u64,
    path: PathBuf,
}

/// All of a folder, the one that was used last at the end.
fn states(folder: &Path) -> Vec<State> {
    let state = |entry: io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        let meta = entry.metadata().ok()?;
        Some(State { used: meta.modified().ok()?, bytes: meta.len(), path: entry.path() })
    };
    let mut all: Vec<State> = fs::read_dir(folder).into_iter().flatten().filter_map(state).collect();
    all.sort_by_key(|state| state.used);
    all
}

/// Gives a whole file its name, and takes older states of the same host away.
fn name(unnamed: &File, file: &Path) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", unnamed.as_raw_fd());
    linkat(CWD, path.as_str(), CWD, file, AtFlags::SYMLINK_FOLLOW)?;
    let (Some(folder), Some(own)) = (file.parent(), file.file_name().and_then(|n| n.to_str())) else {
        return Ok(());
    };
    let host = own.rsplit_once('-').map_or(own, |(host, _)| host);
    for entry in fs::read_dir(folder)?.flatten() {
        let other = entry.file_name();
        let other = other.to_str().unwrap_or_default();
        if other != own && other.rsplit_once('-').is_some_and(|(name, _)| name == host) {
            // In use or not: who has it open keeps it.
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Marks a file as used.
fn touch(file: &Path) {
    if let Ok(file) = File::open(file) {
        let _ = file.set_modified(SystemTime::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_appears_whole_and_replaces_older_ones() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("idle/host-1"), folder.path().join("idle/host-2"));
        let other = folder.path().join("idle/host-nvhe-1");
        for file in [&old, &other] {
            name(&create(file, "6.1").unwrap(), file).unwrap();
        }
        let mut unnamed = create(&new, "6.1.0-x").unwrap();
        unnamed.write_all(b"stream").unwrap();
        assert!(!new.exists(), "it has a name before it is whole");
        name(&unnamed, &new).unwrap();
        assert!(!old.exists() && other.exists());
        let (mut state, release) = open(&new).unwrap();
        let mut rest = String::new();
        state.read_to_string(&mut rest).unwrap();
        assert_eq!((release.as_str(), rest.as_str()), ("6.1.0-x", "stream"));
    }

    #[test]
    fn the_least_recently_used_state_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        assert_eq!((cache.idle(), cache.forget_idle(0)), ((0, 0), 0));
        let file = |name: &str| folder.path().join("idle").join(name);
        for (name, age) in [("old-1", 20), ("older-1", 30), ("new-1", 10)] {
            let mut state = create(&file(name), "6.1").unwrap();
            state.write_all(&[0; 744]).unwrap();
            self::name(&state, &file(name)).unwrap();
            state.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        assert_eq!(cache.idle(), (3, 3000));
        assert_eq!(cache.forget_idle(1500), 2000);
        assert!(file("new-1").exists() && !file("old-1").exists() && !file("older-1").exists());
    }

    #[test]
    fn what_is_no_state_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        assert!(open(&file).is_none());
        for content in [&b""[..], b"evenkeel idle host 1\n", &[0xff; 400]] {
            fs::write(&file, content).unwrap();
            assert!(open(&file).is_none());
        }
        fs::write(&file, [MAGIC, &[0xff; 400][..]].concat()).unwrap();
        assert!(open(&file).is_none(), "a release that is no text");
    }
}
