//! `evenkeel lab matrix`, with hosts that are booted for it.

use evenkeel_hosts::BUNDLED;
use evenkeel_lab::{Cache, Host, Kernels, Options, each};
use evenkeel_report::matrix::Origin;

use super::failed;
use super::run;
use crate::Global;
use crate::commands::matrix::{self, MatrixHost};
use crate::failure::Failure;

/// The file that a capture is written to, inside.
const FILE: &str = "surface.json";

/// Captures the hosts and asks for all their pairs. Exits with 3 when a host could not be captured; the others are
/// asked all the same.
pub fn matrix(
    cache: &Cache,
    names: &[String],
    options: &matrix::Options,
    global: Global,
) -> Result<u8, Failure> {
    let mut found: Vec<MatrixHost> = Vec::new();
    let mut to_boot: Vec<Host> = Vec::new();
    let known = Kernels::load(cache);
    let bundled = |name: &str| BUNDLED.iter().any(|b| b.name == name);
    if names.is_empty() {
        for host in known.hosts() {
            if cache.has(&host.kernel) && host.lane.quick() {
                to_boot.push(host);
            } else if bundled(&host.name) {
                anstream::eprintln!("{}: captured earlier", host.name);
                found.push(MatrixHost::of(evenkeel_hosts::load(&host.name)?, Origin::Bundled));
            } else {
                anstream::eprintln!("{}: not fetched, and no capture of it is bundled", host.name);
            }
        }
    } else {
        for name in names {
            match known.host(name) {
                Ok(host) if cache.has(&host.kernel) => to_boot.push(host),
                _ => {
                    let origin = if bundled(name) { Origin::Bundled } else { Origin::Given };
                    found.push(MatrixHost::of(evenkeel_hosts::load(name)?, origin));
                }
            }
        }
    }
    let mut worst = 0;
    let mut failure = None;
    if !to_boot.is_empty() {
        let options = Options { fresh: true, ..Options::new(cache.clone()).map_err(failed)? };
        each(
            &to_boot,
            |i, host| {
                let line = format!("[{}/{}] {}: boot and capture\n", i + 1, to_boot.len(), host.name);
                anstream::eprint!("{line}");
            },
            |host| run::document(host, ["capture", "-o", FILE], &[], FILE, &[0], &options),
            |host, captured| match captured.map_err(failed).and_then(|bytes| {
                let loaded = evenkeel_hosts::emulated(&host.name, &bytes)?;
                Ok(MatrixHost {
                    lane: host.lane.name().to_owned(),
                    ..MatrixHost::of(loaded, Origin::CapturedNow)
                })
            }) {
                Ok(host) => found.push(host),
                Err(e) => {
                    e.print();
                    worst = 3;
                    failure = Some(e);
                }
            },
        );
    }
    matrix::in_order(&mut found);
    match (found.len(), failure) {
        // Why there is nothing has been said above.
        (0, Some(failure)) => Err(failure),
        _ => Ok(matrix::matrix(&found, options, global)?.max(worst)),
    }
}
