//! What `run` and `restore --run` have in common: a machine for Linux, its contract, its console and its saving.

pub mod contract;
mod disks;
mod drive;
#[cfg(target_arch = "aarch64")]
#[path = "engine_arm64.rs"]
pub mod engine;
#[cfg(target_arch = "x86_64")]
#[path = "engine_x86.rs"]
pub mod engine;
mod leave;
pub mod links;
pub mod live;
pub mod revive;
pub mod save;

use std::fs::File;
use std::path::PathBuf;

use evenkeel_monitor::devices::virtio::{Device, block::Block};

pub use drive::{Console, drive};

use super::operate::{Operating, Operator};
use crate::failure::Failure;

/// What can be done with a machine while it runs.
#[derive(clap::Args)]
pub struct Running {
    /// A disk: a raw file. May be given several times.
    #[arg(long, value_name = "FILE")]
    pub disk: Vec<PathBuf>,
    #[command(flatten)]
    pub links: links::Links,
    /// Stop after this many seconds, with exit code 3.
    #[arg(long, value_name = "SECONDS")]
    pub limit: Option<u64>,
    /// Save the guest into this capsule and end, without `--snapshot-at` or `--snapshot-after` as soon as it runs.
    #[arg(long, value_name = "FILE.capsule")]
    pub snapshot: Option<PathBuf>,
    /// Save when the guest has written this to its serial port.
    #[arg(long, value_name = "TEXT", requires = "snapshot")]
    pub snapshot_at: Option<String>,
    /// Save this many seconds later.
    #[arg(long, value_name = "SECONDS", requires = "snapshot")]
    pub snapshot_after: Option<f64>,
    /// Compress memory in the capsule.
    #[arg(long, requires = "snapshot")]
    pub compress: bool,
    #[command(flatten)]
    operating: Operating,
}

/// Something that went wrong with a machine.
pub fn failed(e: &dyn std::fmt::Display) -> Failure {
    Failure { exit: 3, ..Failure::bad(e.to_string(), "") }
}

impl Running {
    /// What is needed from outside to operate it.
    pub fn operator(&self) -> Result<Operator, Failure> {
        self.operating.prepare(self.snapshot.is_some())
    }

    /// The files of the disks, each with its path.
    pub fn files(&self) -> Result<Vec<(PathBuf, File)>, Failure> {
        let open = |path: &PathBuf| {
            let file = File::options().read(true).write(true).open(path);
            file.map(|file| (path.clone(), file)).map_err(|e| Failure::file(path, &e))
        };
        self.disk.iter().map(open).collect()
    }

    /// Disks for a new machine.
    pub fn disks(&self) -> Result<Vec<Box<dyn Device>>, Failure> {
        let disk = |(index, (_, file)): (usize, (PathBuf, File))| -> Result<Box<dyn Device>, Failure> {
            Ok(Box::new(Block::new(file, false, &format!("disk{index}")).map_err(|e| failed(&e))?))
        };
        self.files()?.into_iter().enumerate().map(disk).collect()
    }
}
