//! `evenkeel observe --contract --score`: how much of what a host sets otherwise than it says, the witness notices.

mod choices;
mod runs;
mod words;

use std::fmt::Write as _;

use evenkeel_apply::{Plan, Setup, Topology};
use evenkeel_contract::{Contract, View};
use evenkeel_monitor::Irqchip;
use evenkeel_sys::Live;
use schemars::JsonSchema;
use serde::Serialize;

use crate::failure::Failure;

/// What became of one facet that the host set otherwise while every ioctl answered as though it had not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The guest saw it: under the facet's own name, or under one that the catalog ties to it.
    Noticed,
    /// The guest did not.
    Missed,
    /// Nothing that this host takes shows a guest another value.
    NotAlterable,
}

/// One facet, and what became of altering it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Scored {
    /// The facet.
    pub facet: String,
    /// What was set instead: the call, and what of it.
    pub altered: String,
    /// What became of it.
    pub noticed: Outcome,
    /// Where the guest saw it; or why it did not; or what this host answered.
    pub why: String,
}

/// A facet that is not counted, because the catalog says that no guest sees it by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Aside {
    /// The facet.
    pub facet: String,
    /// What the catalog says of it.
    pub why: String,
}

/// `observe --contract --score`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct WitnessScore {
    /// `evenkeel.witness-score/1`.
    pub schema: &'static str,
    /// `uname -r` of the host.
    pub release: String,
    /// The contract's name.
    pub contract: String,
    /// The machine's shape.
    pub shape: String,
    /// How many guests were run.
    pub runs: usize,
    /// How many alterations reading back noticed in spite of the lie: 0, when the lie is a good one.
    pub read_back: usize,
    /// Only every n-th facet was looked at.
    pub every: usize,
    /// One a facet that a guest can see.
    pub facets: Vec<Scored>,
    /// Facets that no guest sees by itself.
    pub aside: Vec<Aside>,
}

/// The share that must be noticed, in percent.
const ENOUGH: f64 = 90.0;

impl WitnessScore {
    /// How many came out like this.
    pub fn count(&self, noticed: Outcome) -> usize {
        self.facets.iter().filter(|f| f.noticed == noticed).count()
    }

    /// Noticed, of those that could be altered.
    pub fn percent(&self) -> f64 {
        let noticed = self.count(Outcome::Noticed);
        noticed as f64 * 100.0 / (noticed + self.count(Outcome::Missed)).max(1) as f64
    }

    /// The exit code: 0 when enough was noticed, 3 when nothing could be altered.
    pub fn code(&self) -> u8 {
        match self.count(Outcome::Noticed) + self.count(Outcome::Missed) {
            0 => 3,
            _ => u8::from(self.percent() < ENOUGH),
        }
    }

    /// For people: what was missed; with `all`, everything.
    pub fn text(&self, all: bool) -> String {
        let mut w = String::new();
        for f in self.facets.iter().filter(|f| all || f.noticed == Outcome::Missed) {
            let word = match f.noticed {
                Outcome::Noticed => "noticed",
                Outcome::Missed => "MISSED",
                Outcome::NotAlterable => "not alterable here",
            };
            let _ = writeln!(w, "{word}: {} ({}): {}", f.facet, f.altered, f.why);
        }
        for a in self.aside.iter().filter(|_| all) {
            let _ = writeln!(w, "not counted: {}: {}", a.facet, a.why);
        }
        if !all {
            let mut reasons: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
            for f in self.facets.iter().filter(|f| f.noticed == Outcome::NotAlterable) {
                *reasons.entry(&f.why).or_default() += 1;
            }
            for (why, count) in reasons {
                let _ = writeln!(w, "not alterable here, {count}: {why}");
            }
        }
        if self.read_back > 0 {
            let _ = writeln!(w, "{} alterations were read back in spite of the lie", self.read_back);
        }
        let sample = if self.every > 1 { format!(", every {}th", self.every) } else { String::new() };
        let _ = writeln!(
            w,
            "{} facets that a guest can see on {} in shape {}{sample}: {} noticed, {} missed, {} not alterable here: {:.1} % of the alterable ones noticed, in {} runs",
            self.facets.len(),
            self.release,
            self.shape,
            self.count(Outcome::Noticed),
            self.count(Outcome::Missed),
            self.count(Outcome::NotAlterable),
            self.percent(),
            self.runs
        );
        w
    }
}

/// Alters every n-th facet that a guest can see under a contract, and looks whether the guest sees it.
///
/// # Errors
/// There is no plan for the contract here, or no guest that runs under it.
pub fn score(contract: &Contract, every: usize) -> Result<WitnessScore, Failure> {
    let host = evenkeel_hosts::capture_here()?;
    let setup = Setup { topology: Topology { vcpus: 2, threads: 1 }, ..Setup::default() };
    let plan = Plan::new(contract, &host, setup).map_err(|e| {
        Failure::bad(e.to_string(), "`evenkeel baseline here` makes a contract for this host")
    })?;
    let irqchip = super::observe::known(&contract.shape, Irqchip::by_name)?;
    let views = View::all(&host, "this host");
    let view = views
        .iter()
        .find(|v| v.shape == contract.shape)
        .ok_or_else(|| Failure::bad(format!("this host makes no VM of shape `{}`", contract.shape), ""))?;
    let mut runs = runs::Runs::new(&plan, irqchip);
    let (choices, aside) = choices::all(contract, view, &host);
    let mut facets = words::score(&mut runs, &plan, &Live::new(), every)?;
    facets.extend(choices::score(&mut runs, &plan, choices, every)?);
    facets.sort_by(|a, b| a.facet.cmp(&b.facet));
    Ok(WitnessScore {
        schema: "evenkeel.witness-score/1",
        release: plan.host.0.clone(),
        contract: contract.name.clone(),
        shape: contract.shape.clone(),
        runs: runs.made,
        read_back: runs.read_back,
        every,
        facets,
        aside,
    })
}
