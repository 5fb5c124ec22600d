//! One module a subcommand.

pub mod apply;
pub mod baseline;
pub mod capsule;
pub mod capture;
pub mod check;
pub mod confinement;
pub mod control;
pub mod diff;
pub mod explain;
mod guest;
pub mod handing;
pub mod hosts;
pub mod lab;
pub mod matrix;
mod moving;
pub mod observe;
pub mod observe_contract;
#[cfg(target_arch = "x86_64")]
pub mod observe_score;
mod offloads;
pub mod operate;
pub mod predict;
pub mod registers;
pub mod relay;
pub mod restore;
mod restore_machine;
pub mod rounds;
#[cfg(target_arch = "x86_64")]
pub mod run;
#[cfg(target_arch = "aarch64")]
pub mod run_arm64;
pub mod schema;
pub mod seal;
pub mod snapshot;
pub mod survive;
pub mod survive_state;

use std::path::{Path, PathBuf};

use evenkeel_contract::{Contract, Outcome, View, document};
use evenkeel_hosts::Host;
use evenkeel_report::model::HostInfo;

use crate::failure::Failure;

/// The exit code for an outcome.
pub fn exit(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::No => 1,
        Outcome::Unknown => 3,
        _ => 0,
    }
}

/// Two hosts that may be compared.
pub fn pair(old: &str, new: &str) -> Result<(Host, Host), Failure> {
    let (o, n) = (evenkeel_hosts::load(old)?, evenkeel_hosts::load(new)?);
    if o.surface.arch != n.surface.arch {
        return Err(Failure::architectures((old, o.surface.arch.name()), (new, n.surface.arch.name())));
    }
    Ok((o, n))
}

/// A contract, from a file.
pub fn contract(path: &Path) -> Result<Contract, Failure> {
    let meta = std::fs::metadata(path).map_err(|e| Failure::file(path, &e))?;
    if !meta.is_file() || meta.len() > document::MAX_BYTES as u64 {
        return Err(Failure::bad(
            format!("{} is no contract: not a regular file, or too long", path.display()),
            "",
        ));
    }
    let bytes = std::fs::read(path).map_err(|e| Failure::file(path, &e))?;
    document::read(&bytes)
        .map_err(|e| Failure::document(&path.display().to_string(), &String::from_utf8_lossy(&bytes), &e))
}

/// A contract and a host must be of one architecture.
pub fn same_architecture(path: &Path, contract: &Contract, host: &Host) -> Result<(), Failure> {
    if contract.arch == host.surface.arch {
        return Ok(());
    }
    let name = path.display().to_string();
    Err(Failure::architectures((&name, contract.arch.name()), (&host.name, host.surface.arch.name())))
}

/// A host's view in one shape.
pub fn in_shape<'a>(host: &'a Host, shape: &str) -> Result<&'a View, Failure> {
    host.views.iter().find(|v| v.shape == shape).ok_or_else(|| {
        let shapes: Vec<&str> = host.views.iter().map(|v| v.shape.as_str()).collect();
        Failure::bad(
            format!("{} was not captured in shape `{shape}`", host.name),
            format!("one of {}", shapes.join(", ")),
        )
    })
}

/// What is said of a host in a report.
pub fn info(host: &Host) -> Result<HostInfo, Failure> {
    let view = host.views.first().ok_or_else(|| Failure::bad(format!("{} holds no shape", host.name), ""))?;
    Ok(HostInfo::of(view, &host.stands_for))
}

/// A name for a contract, from where it comes.
pub fn name_of(names: &[String]) -> String {
    let short: Vec<&str> = names
        .iter()
        .map(|n| Path::new(n).file_stem().and_then(|s| s.to_str()).filter(|_| n.contains('/')).unwrap_or(n))
        .take(4)
        .collect();
    let more = if names.len() > 4 { format!(" and {} more", names.len() - 4) } else { String::new() };
    format!("{}{more}", short.join(" + "))
}

/// Where a document goes.
pub fn deliver(text: &str, to: Option<&PathBuf>) -> Result<(), Failure> {
    match to {
        Some(path) => crate::output::write(path, text),
        None => crate::output::print(text),
    }
}
