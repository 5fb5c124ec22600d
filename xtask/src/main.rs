//! Tasks of this repository that are more than one cargo command: `cargo xtask cross`, `cargo xtask captures`.

#![forbid(unsafe_code)]

mod captures;
mod cross;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

/// What a task returns: words for a person.
type Result<T = ()> = std::result::Result<T, String>;

/// Tasks of this repository.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Task {
    /// Build the static binaries that the lab runs inside emulated hosts, into target/static/ARCH/.
    Cross(cross::Cross),
    /// Fetch kernels from Debian's archive into the lab's cache, checking signatures and digests.
    Fetch {
        /// By short name; all without any.
        kernels: Vec<String>,
    },
    /// Boot each kernel of the lab's list, capture it, and write crates/hosts/captures/NAME.json.
    Captures(captures::Captures),
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Cross(task) => task.run(),
        Task::Fetch { kernels } => captures::fetch_kernels(&kernels),
        Task::Captures(task) => task.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(words) => {
            eprintln!("error: {words}");
            ExitCode::FAILURE
        }
    }
}

/// The repository's root, wherever cargo was started.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// The folder of static binaries.
fn static_binaries() -> PathBuf {
    root().join("target/static")
}
