//! The contract that a machine is made under: a file's, or what this host itself keeps.

use std::path::Path;

use evenkeel_apply::{Applying, Plan, Report, Setup, Topology, Verdict, scratch};
use evenkeel_contract::baseline::baseline;
use evenkeel_contract::{Contract, View, document, seal};
use evenkeel_surface::Surface;
use evenkeel_sys::Live;

use crate::failure::Failure;

/// How often what was read back is set again, to find a contract that the host keeps.
const ROUNDS: u32 = 5;
/// How many findings a refusal names.
const SHOWN: usize = 12;
/// What to do about a refusal.
const HINT: &str = "`evenkeel apply CONTRACT -o OTHER` says more, and writes a contract that this host can keep; \
                    --waive FACET goes on without one of them";

/// What a machine with this many vCPUs decides beside the contract; the monitor makes the irqchip.
pub fn setup(vcpus: u32) -> Setup {
    Setup { topology: Topology { vcpus, threads: 1 }, irqchip_made: true, ..Setup::default() }
}

/// Tries the contract on a VM that is thrown away, and reads it back.
///
/// # Errors
/// This host does not keep it.
pub fn try_out(contract: &Contract, host: &Surface, vcpus: u32, waive: &[String]) -> Result<(), Failure> {
    let setup = Setup { topology: Topology { vcpus, threads: 1 }, ..Setup::default() };
    let plan = plan(contract, host, setup, waive)?;
    preflight(&plan)?;
    let live = Live::new();
    let tried = scratch(&plan, &live).map_err(|e| super::failed(&e))?;
    keep(&plan, &tried.applying).map(drop)
}

/// The contract in a file, or this host's own for a machine of this shape.
///
/// # Errors
/// It cannot be read, or this host keeps none.
pub fn choose(path: Option<&Path>, shape: &str, vcpus: u32, host: &Surface) -> Result<Contract, Failure> {
    match path {
        Some(path) => super::super::contract(path),
        None => own(host, shape, vcpus),
    }
}

/// What this host gives a guest today, sealed: nothing is left open for another host to decide. It is tried, and what is read
/// back otherwise is taken as the host gives it.
fn own(host: &Surface, shape: &str, vcpus: u32) -> Result<Contract, Failure> {
    let views = View::all(host, "this host");
    let view = views.iter().find(|view| view.shape == shape);
    let view = view.ok_or_else(|| Failure::bad(format!("this host makes no VM of shape `{shape}`"), ""))?;
    let name = format!("{} as it is", host.provenance.kernel.release);
    let mut contract = seal::sealed(&baseline(&[view], &name).contract, view);
    for _ in 0..ROUNDS {
        let setup = Setup { topology: Topology { vcpus, threads: 1 }, ..Setup::default() };
        let plan = plan(&contract, host, setup, &[])?;
        let live = Live::new();
        let tried = scratch(&plan, &live).map_err(|e| super::failed(&e))?;
        if tried.applying.report().usable {
            return Ok(contract);
        }
        contract = tried.applying.can_keep(host, &name);
    }
    Err(Failure {
        exit: 1,
        ..Failure::bad(
            "this host keeps no contract of its own",
            "`evenkeel apply` says what differs; --contract FILE",
        )
    })
}

/// The contract in a capsule.
pub fn carried(bytes: &[u8], from: &Path) -> Result<Contract, Failure> {
    let name = format!("the contract in {}", from.display());
    document::read(bytes).map_err(|e| Failure::document(&name, &String::from_utf8_lossy(bytes), &e))
}

/// Its plan on this host.
pub fn plan(contract: &Contract, host: &Surface, setup: Setup, waive: &[String]) -> Result<Plan, Failure> {
    let plan = Plan::new(contract, host, setup).map_err(|e| {
        Failure::bad(e.to_string(), "`evenkeel baseline here` makes a contract for this host")
    })?;
    Ok(plan.waive(waive))
}

/// Refuses what is known to fail before anything is touched.
pub fn preflight(plan: &Plan) -> Result<(), Failure> {
    let refusals = plan.refusals.iter().filter(|refusal| !refusal.waived);
    let lines =
        refusals.map(|r| format!("{}: {} wanted, {} offered: {}", r.facet, r.wanted, r.offered, r.remedy));
    refuse(&plan.contract, lines.collect())
}

/// Refuses a machine that is not as its contract says, by what was read back.
pub fn keep(plan: &Plan, applying: &Applying<'_>) -> Result<Report, Failure> {
    let report = applying.report();
    if let Verdict::Kept | Verdict::Waived = report.verdict {
        return Ok(report);
    }
    let differences = report.steps.iter().flat_map(|step| &step.differences).filter(|d| !d.waived);
    let read = |got: &Option<String>| got.clone().unwrap_or_else(|| "nothing".to_owned());
    let mut lines: Vec<String> = differences
        .map(|d| {
            format!(
                "{}: {} wanted, {} read: {} by {}: {}",
                d.facet,
                d.wanted,
                read(&d.got),
                d.outcome.words(),
                d.call,
                d.why
            )
        })
        .collect();
    if lines.is_empty() {
        lines = report.findings().iter().map(ToString::to_string).collect();
    }
    if lines.is_empty() {
        lines.push("not all of it was carried out".to_owned());
    }
    refuse(&plan.contract, lines)?;
    Ok(report)
}

fn refuse(contract: &Contract, mut lines: Vec<String>) -> Result<(), Failure> {
    if lines.is_empty() {
        return Ok(());
    }
    let more = lines.len().saturating_sub(SHOWN);
    lines.truncate(SHOWN);
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    let message =
        format!("this host does not keep the contract `{}`:\n  {}", contract.name, lines.join("\n  "));
    Err(Failure { exit: 1, ..Failure::bad(message, HINT) })
}
