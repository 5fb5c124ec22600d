//! What can go wrong between a kernel's name and a program's results.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::frame::FrameError;
use crate::host::Lane;

/// An error of the lab. Its text says what, why, and what to do about it where there is something to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No host of this name is known.
    #[error(
        "no host of the lab is called `{name}`\nhint: one of {known}; `-nvhe` after an arm64 kernel's name and `-vmx` after an x86 kernel's are other lanes"
    )]
    UnknownHost {
        /// The name that was asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A kernel cannot run in a lane.
    #[error("{kernel} is built for {arch}, and the lane {lane} is not")]
    Lane {
        /// The kernel's short name.
        kernel: String,
        /// What it was built for.
        arch: &'static str,
        /// The lane that was asked for.
        lane: Lane,
    },
    /// A host takes one job, when it boots.
    #[error("{host} takes no further job: the lane {lane} gives a host one, and boots it for that")]
    OneJob {
        /// The host's name.
        host: String,
        /// Its lane.
        lane: Lane,
    },
    /// A lane has no links.
    #[error(
        "{host} cannot be joined with another host: the lane {lane} has no links\nhint: use the lane svm or arm64"
    )]
    NoLink {
        /// The host's name.
        host: String,
        /// Its lane.
        lane: Lane,
    },
    /// Two hosts could not be joined.
    #[error("cannot join two hosts: {why}")]
    Link {
        /// Why.
        why: String,
    },
    /// The kernel is listed, and not in the cache.
    #[error("{name} is not in {cache}\nhint: evenkeel lab fetch {name}")]
    NotFetched {
        /// The kernel's short name.
        name: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// The archive does not have a kernel, or not any more.
    #[error("{name} is not served: {why}\nhint: {hint}")]
    NotServed {
        /// The kernel's short name.
        name: String,
        /// What is missing.
        why: String,
        /// What to do.
        hint: String,
    },
    /// Nothing of this name is in the cache.
    #[error("the cache holds no kernel `{name}`\nhint: it holds {}", if stored.is_empty() { "none" } else { stored })]
    NotStored {
        /// The name that was asked for.
        name: String,
        /// The names there are.
        stored: String,
    },
    /// A kernel that a user brings cannot be taken.
    #[error("{what}: {why}\nhint: {hint}")]
    Refused {
        /// The file, folder or name.
        what: String,
        /// Why not.
        why: String,
        /// What to do.
        hint: String,
    },
    /// A file or folder could not be used.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A program that the lab needs is missing or failed.
    #[error("{program}: {why}\nhint: {hint}")]
    Tool {
        /// The program's name.
        program: String,
        /// What it said.
        why: String,
        /// What brings it, or what to look at.
        hint: String,
    },
    /// The archive could not be used.
    #[error("cannot fetch {what}: {why}\nhint: {hint}")]
    Fetch {
        /// Package or index.
        what: String,
        /// What went wrong.
        why: String,
        /// What to do.
        hint: &'static str,
    },
    /// A package is not the one that the list names.
    #[error("{package}: its SHA-256 is {found}, it should be {expected}\nhint: fetch again")]
    Digest {
        /// The package's name.
        package: String,
        /// What the list has.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// A kernel's packages do not hold what they should.
    #[error("{what}: {why}")]
    Kernel {
        /// The kernel or the module.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A binary that runs inside is missing.
    #[error(
        "no static {arch} {name} in a folder `static` beside this program or above it\nhint: in evenkeel's source, `cargo xtask cross --arch {arch}` builds it into target/static; EVENKEEL_STATIC names another folder that holds {arch}/{name}"
    )]
    NoBinary {
        /// `evenkeel` or `evenkeel-lab-init`.
        name: String,
        /// The architecture's name.
        arch: &'static str,
    },
    /// The emulated host did not finish in time and was killed.
    #[error("{kernel} did not finish in {} s and was killed\n{console}", after.as_secs())]
    Timeout {
        /// The kernel's short name.
        kernel: String,
        /// How long it was given.
        after: Duration,
        /// The end of its console.
        console: String,
    },
    /// The emulated host stopped without results: a panic, a reset, an emulator that refused its arguments.
    #[error("{kernel} stopped before its results were complete ({why})\n{console}")]
    Died {
        /// The kernel's short name.
        kernel: String,
        /// What is missing or how the emulator ended.
        why: String,
        /// The end of its console.
        console: String,
    },
    /// The init inside could not do its work: a module that does not load, a program that does not start.
    #[error("{kernel}: {message}\n{console}")]
    Inside {
        /// The kernel's short name.
        kernel: String,
        /// What the init said.
        message: String,
        /// The end of its console.
        console: String,
    },
    /// The results came back damaged.
    #[error("{kernel}: damaged results: {source}\n{console}")]
    Damaged {
        /// The kernel's short name.
        kernel: String,
        /// What is wrong with them.
        source: FrameError,
        /// The end of its console.
        console: String,
    },
}

impl Error {
    /// For `map_err` after file operations.
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { what, path, source }
    }
}
