//! `evenkeel observe --contract`: a guest under a contract, and what it really sees.

mod against;
mod carried;
pub use carried::setup;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use evenkeel_apply::{Plan, Verdict};
use evenkeel_contract::Contract;
use evenkeel_witness::observation::Observation;
use schemars::JsonSchema;
use serde::Serialize;

pub use self::carried::Again;
use crate::failure::Failure;

/// `evenkeel observe --contract`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct ContractObserved {
    /// `evenkeel.observed-contract/1`.
    pub schema: &'static str,
    /// The contract's name.
    pub contract: String,
    /// What came of applying it, read back: `kept`, `refused` or `incomplete`.
    pub applied: &'static str,
    /// What was read back otherwise than set, by facet.
    pub read_back: Vec<String>,
    /// What the guest saw otherwise than promised.
    pub leaks: Vec<Leak>,
    /// Behaviours that the contract does not name, and that the guest saw otherwise than a contract implies that does
    /// not name them: whoever wrote it had not observed them.
    pub implied: Vec<Leak>,
    /// How many facets the guest saw as promised on its first vCPU.
    pub as_promised: usize,
    /// The same by kind.
    pub kinds: Vec<Kind>,
    /// Where else the guest looked at its words, and what became of it.
    pub looks: Vec<Look>,
    /// What the guest did not look at, or could not.
    pub not_seen: Vec<NotSeen>,
    /// Each time that something was set or read back, in order.
    pub again: Vec<Again>,
    /// The observation's digest.
    pub observation: String,
}

/// Facets of one kind, as the first vCPU saw them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Kind {
    /// `CPUID words`, `feature MSRs`, `ID registers`, `firmware registers` or `choices`.
    pub kind: &'static str,
    /// Seen as promised.
    pub as_promised: usize,
    /// Seen otherwise, in any part.
    pub otherwise: usize,
    /// Not seen.
    pub not_seen: usize,
}

/// When a guest looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// On its first vCPU.
    Start,
    /// On the second, which it brought up.
    Second,
    /// On one that was made when the guest had been running for a while.
    Later,
    /// On the first again, after a reset.
    Reset,
}

impl When {
    /// In words.
    fn words(self) -> &'static str {
        match self {
            When::Start => "first vCPU",
            When::Second => "second vCPU",
            When::Later => "vCPU made later",
            When::Reset => "first vCPU after a reset",
        }
    }
}

/// The words of a vCPU, seen once more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Look {
    /// When.
    pub when: When,
    /// How many words were seen as promised.
    pub as_promised: usize,
    /// How many were not.
    pub otherwise: usize,
    /// Why nothing was seen; none when it was.
    pub why_not: Option<String>,
}

/// Something that a guest saw otherwise than its contract says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Leak {
    /// The facet.
    pub facet: String,
    /// In a line.
    pub title: String,
    /// What the contract says.
    pub promised: String,
    /// What the guest saw.
    pub saw: String,
    /// When; of what differs on the first vCPU from the start, only that.
    pub when: When,
    /// The ledger's entry.
    pub cause: Option<String>,
    /// Its title; empty without one.
    pub cause_title: String,
}

/// Something that a guest did not see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct NotSeen {
    /// The facet.
    pub facet: String,
    /// What the contract says.
    pub promised: String,
    /// Why.
    pub why: String,
    /// An ioctl shows it, as promised.
    pub read_back: bool,
    /// The guest has a look for it, which gave nothing: the observation is not complete.
    pub lost: bool,
}

impl ContractObserved {
    /// The exit code: 0 when the guest saw what was promised, 1 when not, 3 when it lost a look, or saw a behaviour
    /// otherwise that the contract does not name.
    pub fn code(&self) -> u8 {
        let unsure = !self.implied.is_empty() || self.not_seen.iter().any(|n| n.lost);
        match (self.leaks.is_empty() && self.applied == "kept", unsure) {
            (false, _) => 1,
            (true, true) => 3,
            (true, false) => 0,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut w = String::new();
        let _ = writeln!(
            w,
            "contract {}, read back: {}; {} facets seen as promised, {} not",
            self.contract,
            self.applied,
            self.as_promised,
            self.leaks.len()
        );
        for k in &self.kinds {
            let Kind { kind, as_promised, otherwise, not_seen } = k;
            let _ = writeln!(
                w,
                "  {kind}: {as_promised} as promised, {otherwise} otherwise, {not_seen} not seen"
            );
        }
        for l in &self.looks {
            let _ = match &l.why_not {
                Some(why) => writeln!(w, "  {}: not seen: {why}", l.when.words()),
                None => writeln!(
                    w,
                    "  {}: {} words as promised, {} otherwise",
                    l.when.words(),
                    l.as_promised,
                    l.otherwise
                ),
            };
        }
        self.told(&mut w, "Seen otherwise", &self.leaks);
        self.told(&mut w, "Not named by the contract, and seen otherwise than that implies", &self.implied);
        let silent: Vec<&str> = self
            .read_back
            .iter()
            .map(String::as_str)
            .filter(|facet| !self.leaks.iter().any(|leak| leak.facet == *facet))
            .collect();
        if !silent.is_empty() {
            let _ = writeln!(
                w,
                "\nRead back otherwise than set, and not seen by this guest: {}",
                silent.join(", ")
            );
        }
        let _ = writeln!(w, "\nSet and read back");
        let mut lines: Vec<(String, usize)> = Vec::new();
        for text in self.again.iter().map(Again::text) {
            match lines.iter_mut().find(|(line, _)| *line == text) {
                Some((_, times)) => *times += 1,
                None => lines.push((text, 1)),
            }
        }
        for (line, times) in lines {
            let times = if times > 1 { format!(" ({times} times)") } else { String::new() };
            let _ = writeln!(w, "  {line}{times}");
        }
        // One line a reason.
        let mut reasons: BTreeMap<(bool, &str, bool), Vec<String>> = BTreeMap::new();
        for n in &self.not_seen {
            let name = format!("{} = {}", n.facet, n.promised);
            reasons.entry((!n.lost, &n.why, n.read_back)).or_default().push(name);
        }
        if !reasons.is_empty() {
            let _ = writeln!(w, "\nNot seen");
        }
        for ((known, why, read_back), names) in reasons {
            let lost = if known { "" } else { "lost, " };
            let read_back = if read_back { "; read back as promised" } else { "" };
            let _ = writeln!(w, "  {lost}{why}{read_back}: {}", names.join(", "));
        }
        if self.applied != "kept" {
            let _ = writeln!(
                w,
                "hint: `evenkeel apply CONTRACT -o OTHER` writes a contract that this host can keep"
            );
        }
        w
    }

    fn told(&self, w: &mut String, head: &str, leaks: &[Leak]) {
        if leaks.is_empty() {
            return;
        }
        let _ = writeln!(w, "\n{head}");
        for leak in leaks {
            let when = if leak.when == When::Start { "" } else { leak.when.words() };
            let when = if when.is_empty() { String::new() } else { format!(", {when}") };
            let why = match &leak.cause {
                Some(id) => format!("[{id}: {}]", leak.cause_title),
                None => format!("({})", leak.title),
            };
            let _ = writeln!(
                w,
                "  {}: {} promised, the guest saw {}{when}  {why}",
                leak.facet, leak.promised, leak.saw
            );
        }
    }
}

/// Runs the witness under a contract, whatever reading back says, and compares.
pub fn observe(contract: &Contract) -> Result<(ContractObserved, Observation), Failure> {
    let host = evenkeel_hosts::capture_here()?;
    let plan = Plan::new(contract, &host, carried::setup()).map_err(|e| {
        Failure::bad(e.to_string(), "`evenkeel baseline here` makes a contract for this host")
    })?;
    let (seen, report, again) = carried::out(&plan)?;
    let compared = against::compare(&plan, &seen, &report);
    let observed = ContractObserved {
        schema: "evenkeel.observed-contract/1",
        contract: contract.name.clone(),
        applied: match report.verdict {
            Verdict::Kept | Verdict::Waived => "kept",
            Verdict::Refused => "refused",
            Verdict::Incomplete => "incomplete",
        },
        read_back: report.findings().into_iter().map(str::to_owned).collect(),
        leaks: compared.leaks,
        implied: compared.implied,
        as_promised: compared.kinds.iter().map(|k| k.as_promised).sum(),
        kinds: compared.kinds,
        looks: compared.looks,
        not_seen: compared.not_seen,
        again,
        observation: seen.digest.clone(),
    };
    Ok((observed, seen))
}
