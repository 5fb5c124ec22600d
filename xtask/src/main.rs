//! Tasks of this repository that are more than one cargo command: `cargo xtask --help` lists them.

#![forbid(unsafe_code)]

mod captures;
mod cross;
mod peers;

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
    /// Write docs/reference from the ledger; with --check, only say whether it is as the ledger has it.
    Reference {
        /// Write nothing, and fail where a page is another one.
        #[arg(long)]
        check: bool,
    },
    /// Boot each kernel of the lab's list, capture it, and write crates/hosts/captures/NAME.json.
    Captures(captures::Captures),
    /// Fetch QEMU from Debian's backports into a root of its own, and time how it saves memory.
    Peers(peers::Peers),
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Cross(task) => task.run(),
        Task::Reference { check } => reference(check),
        Task::Captures(task) => task.run(),
        Task::Peers(task) => task.run(),
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

/// `cargo xtask reference`.
fn reference(check: bool) -> Result {
    use evenkeel_report::reference::{html, markdown};
    let folder = root().join("docs/reference");
    let mut pages = markdown();
    pages.insert("index.html".to_owned(), html());
    if check {
        let stale: Vec<&String> = pages
            .iter()
            .filter(|(name, page)| std::fs::read_to_string(folder.join(name)).ok().as_ref() != Some(page))
            .map(|(name, _)| name)
            .collect();
        return if stale.is_empty() {
            Ok(())
        } else {
            Err(format!("docs/reference is not as the ledger has it ({stale:?}): cargo xtask reference"))
        };
    }
    std::fs::remove_dir_all(&folder)
        .or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
        .map_err(|e| e.to_string())?;
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    for (name, page) in &pages {
        std::fs::write(folder.join(name), page).map_err(|e| format!("{name}: {e}"))?;
    }
    eprintln!("{} pages in {}", pages.len(), folder.display());
    Ok(())
}
