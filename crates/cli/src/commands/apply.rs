//! `evenkeel apply`.

use std::fmt::Write as _;
use std::path::PathBuf;

use evenkeel_apply::{Plan, Report, Setup, Topology, Verdict, score, scratch};
use evenkeel_contract::{Contract, document};
use evenkeel_surface::Surface;
use evenkeel_sys::Live;

use crate::failure::Failure;
use crate::{Format, Global, output};

/// How many findings are told before the rest is counted, without `--all`.
const SHOWN: usize = 30;

/// How often what was read back is set again, to find a contract that the host keeps.
const ROUNDS: u32 = 5;

/// Makes a scratch VM on this host, applies a contract to it, reads everything back, and says what the kernel really did.
#[derive(clap::Args)]
pub struct Apply {
    /// The contract.
    contract: PathBuf,
    /// Facets that may differ, by name: a field, or a word with all its fields.
    #[arg(long, value_name = "FACET")]
    waive: Vec<String>,
    /// How many vCPUs the VM gets.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    vcpus: u32,
    /// Where to write a contract that this host can keep, when it cannot keep this one.
    #[arg(short, long, value_name = "CONTRACT")]
    output: Option<PathBuf>,
    /// Instead: alter what each ioctl sets, one facet at a time, and count what reading back notices.
    #[arg(long)]
    score: bool,
}

impl Apply {
    /// Applies; exits with 0 when the contract is kept, 1 when it is not, 3 when it could not be tried.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        let contract = super::contract(&self.contract)?;
        let host = evenkeel_hosts::capture_here()?;
        let setup = Setup { topology: Topology { vcpus: self.vcpus, threads: 1 }, ..Setup::default() };
        let plan = Plan::new(&contract, &host, setup).map_err(cannot_plan)?.waive(&self.waive);
        if self.score {
            return self.run_score(&plan, global);
        }
        let backend = Live::new();
        let tried = scratch(&plan, &backend).map_err(|e| Failure {
            exit: 3,
            ..Failure::bad(format!("no VM to apply the contract to: {e}"), "is /dev/kvm usable by this user?")
        })?;
        let mut report = tried.applying.report();
        let instead = if report.usable { None } else { self.instead(&tried.applying, &contract, &host)? };
        report.can_keep = instead.as_ref().map(document::digest);
        match global.format {
            Format::Json => output::json(&report)?,
            Format::Text => {
                output::print(&text(&report, global.all))?;
                if let (Some(path), Some(_)) = (&self.output, &instead) {
                    anstream::eprintln!("a contract that this host can keep is in {}", path.display());
                }
            }
        }
        Ok(match report.verdict {
            Verdict::Kept | Verdict::Waived => 0,
            Verdict::Refused => 1,
            Verdict::Incomplete => 3,
        })
    }

    /// The contract that this host can keep, tried and written where one was asked for.
    fn instead(
        &self,
        applying: &evenkeel_apply::Applying<'_>,
        contract: &Contract,
        host: &Surface,
    ) -> Result<Option<Contract>, Failure> {
        let name = format!("{}, as {} keeps it", contract.name, host.provenance.kernel.release);
        let mut other = applying.can_keep(host, &name);
        // A host that makes up one word from another may differ again: what it shows then is the next attempt.
        for round in 1.. {
            let setup = Setup { topology: Topology { vcpus: self.vcpus, threads: 1 }, ..Setup::default() };
            let plan = Plan::new(&other, host, setup).map_err(cannot_plan)?;
            let backend = Live::new();
            let Ok(tried) = scratch(&plan, &backend) else { return Ok(None) };
            let again = tried.applying.report();
            if again.usable {
                break;
            }
            if round == ROUNDS {
                let names = again.findings();
                let (count, first) = (names.len(), names.first().copied().unwrap_or("none"));
                anstream::eprintln!(
                    "what was read back is not kept either when it is set: {count} facets, {first} among them"
                );
                return Ok(None);
            }
            other = tried.applying.can_keep(host, &name);
        }
        if let Some(path) = &self.output {
            output::write(path, document::print(&other))?;
        }
        Ok(Some(other))
    }

    fn run_score(&self, plan: &Plan, global: Global) -> Result<u8, Failure> {
        let score = score::score(plan, &|| Box::new(Live::new())).map_err(|e| Failure {
            exit: 3,
            ..Failure::bad(format!("no VM to try the contract on: {e}"), "")
        })?;
        match global.format {
            Format::Json => output::json(&score)?,
            Format::Text => output::print(&score.text(global.all))?,
        }
        Ok(u8::from(score.percent() < 95.0))
    }
}

fn cannot_plan(error: evenkeel_apply::PlanError) -> Failure {
    Failure::bad(error.to_string(), "`evenkeel baseline here` makes a contract for this host")
}

/// The report, for people.
fn text(report: &Report, all: bool) -> String {
    let mut out = String::new();
    let verdict = match report.verdict {
        Verdict::Kept => "kept",
        Verdict::Waived => "kept, but for what was waived",
        Verdict::Refused => "REFUSED",
        Verdict::Incomplete => "incomplete",
    };
    let _ = writeln!(
        out,
        "contract {} in shape {} on {} {}: {verdict}",
        report.contract.name, report.contract.shape, report.host.release, report.host.backend
    );
    let _ = writeln!(out, "{} places were read back as wanted in {} steps", report.kept, report.steps.len());
    let limit = if all { usize::MAX } else { SHOWN };
    if !report.refusals.is_empty() {
        let _ = writeln!(out, "\nthis host cannot give, known before anything was set:");
        for r in report.refusals.iter().take(limit) {
            let waived = if r.waived { " (waived)" } else { "" };
            let cause = r.cause.map_or_else(String::new, |c| format!(" [{c}]"));
            let _ = writeln!(out, "  {}: {} wanted, {} offered{cause}{waived}", r.facet, r.wanted, r.offered);
            if all {
                let _ = writeln!(out, "      {}", r.remedy);
            }
        }
        more(&mut out, report.refusals.len(), limit);
    }
    let differences: Vec<_> =
        report.steps.iter().flat_map(|s| s.differences.iter().map(move |d| (s, d))).collect();
    if !differences.is_empty() {
        let _ = writeln!(out, "\nwhat the kernel did with what was set:");
        for (step, d) in differences.iter().take(limit) {
            let vcpu = step.vcpu.map_or_else(String::new, |v| format!(" (vCPU {v})"));
            let got = d.got.as_deref().unwrap_or("nothing");
            let waived = if d.waived { " (waived)" } else { "" };
            let what = d.outcome.words();
            let _ = writeln!(
                out,
                "  {}: {} wanted, {got} read: {what} by {}{vcpu}{waived}",
                d.facet, d.wanted, d.call
            );
            if all || d.got.is_none() {
                let _ = writeln!(out, "      {}", d.why);
            }
        }
        more(&mut out, differences.len(), limit);
    }
    for step in report.steps.iter().filter(|s| !s.failed.is_empty() && s.holds()) {
        let _ = writeln!(out, "\nin step {}, without consequence: {}", step.step, step.failed.join("; "));
    }
    if !report.duties.is_empty() {
        let _ = writeln!(out, "\nleft to the VMM:");
        for d in &report.duties {
            let _ = writeln!(out, "  {} ({} = {}): {}", d.name, d.facet, d.value, d.work);
        }
    }
    let selected: Vec<_> = report.unseen.iter().filter(|u| u.selected).collect();
    if !selected.is_empty() {
        let _ = writeln!(out, "\nselected, and no ioctl shows it:");
        for u in selected {
            let _ = writeln!(out, "  {} = {}", u.facet, u.value);
        }
    }
    let alone = report.unseen.len() - report.unseen.iter().filter(|u| u.selected).count();
    let _ = writeln!(
        out,
        "\n{alone} facets are left at what the host gives when nobody asks, and {} behaviours only a look from inside a guest tells",
        report.unobserved.len()
    );
    if all {
        for u in report.unseen.iter().filter(|u| !u.selected) {
            let _ = writeln!(out, "  {} = {}", u.facet, u.value);
        }
        for u in &report.unobserved {
            let _ = writeln!(out, "  {} = {}, not observed", u.facet, u.wanted);
        }
    }
    if let Some(digest) = &report.can_keep {
        let _ = writeln!(out, "\nthis host can keep {digest}; -o FILE writes that contract");
    }
    out
}

fn more(out: &mut String, count: usize, limit: usize) {
    if count > limit {
        let _ = writeln!(out, "  and {} more; --all shows them", count - limit);
    }
}
