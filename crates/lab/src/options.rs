//! How the lab runs: what is the same for every job.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use crate::cache::Cache;
use crate::error::Error;
use crate::kernel::Arch;

/// The parts that are the same for every job.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the kernels are.
    pub cache: Cache,
    /// The folder with a folder of static binaries for each architecture (`x86_64/evenkeel-lab-init`).
    pub binaries: PathBuf,
    /// The emulated host's memory in MiB.
    pub memory_mib: u32,
    /// When to give up on a boot or a job, on this machine's clock; the lane's own patience when nothing is said.
    pub timeout: Option<Duration>,
    /// Where words about a long wait go, a line each.
    pub progress: Option<fn(&str)>,
    /// Boot anew even where the host could be resumed, and keep no state of it.
    pub fresh: bool,
    /// A raw image that every host has as its disk `/dev/vda` and may write, as storage that hosts share. Such hosts boot anew.
    pub shared: Option<PathBuf>,
}

impl Options {
    /// The program that is process 1 of an emulated host.
    pub(crate) const INIT: &'static str = "evenkeel-lab-init";

    /// Static binaries from `$EVENKEEL_STATIC`, or from the folder `static` beside this program or above it;
    /// 256 MiB; no words; resuming what can be resumed.
    pub fn new(cache: Cache) -> Result<Options, Error> {
        let binaries = match env::var_os("EVENKEEL_STATIC").filter(|value| !value.is_empty()) {
            Some(folder) => PathBuf::from(folder),
            None => beside_this_program()
                .ok_or(Error::NoBinary { name: Options::INIT.to_owned(), arch: Arch::X86_64.name() })?,
        };
        Ok(Options {
            cache,
            binaries,
            memory_mib: 256,
            timeout: None,
            progress: None,
            fresh: false,
            shared: None,
        })
    }

    /// The static binary `name` for `arch`.
    pub fn binary(&self, name: &str, arch: Arch) -> Result<PathBuf, Error> {
        let path = self.binaries.join(arch.name()).join(name);
        if path.is_file() {
            Ok(path)
        } else {
            Err(Error::NoBinary { name: name.to_owned(), arch: arch.name() })
        }
    }
}

fn beside_this_program() -> Option<PathBuf> {
    let program = env::current_exe().ok()?;
    program.ancestors().skip(1).map(|folder| folder.join("static")).find(|folder| folder.is_dir())
}
