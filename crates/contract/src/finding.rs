//! One difference or failure: what, why, who could notice, and what to do.

use evenkeel_catalog::{Blast, Change, Status};
use schemars::JsonSchema;
use serde::Serialize;

use crate::view::Evidence;

/// How a verdict comes out, from best to worst. A conclusion is the worst of its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing has to be done.
    HoldsByDefault,
    /// It holds when the VMM selects the old behaviour through the kernel.
    HoldsWithSelectors,
    /// It holds when the VMM takes on work of its own (drops, filters, translates).
    HoldsWithDuties,
    /// Not determined: something nobody has observed yet decides.
    Unknown,
    /// It does not hold.
    No,
}

impl Outcome {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Outcome::HoldsByDefault => "holds by default",
            Outcome::HoldsWithSelectors => "holds with selectors",
            Outcome::HoldsWithDuties => "holds with duties",
            Outcome::Unknown => "unknown",
            Outcome::No => "no",
        }
    }

    /// Whether it is one of the three that hold.
    pub fn holds(self) -> bool {
        self < Outcome::Unknown
    }
}

/// What a difference comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// The kernel.
    Kernel,
    /// The CPU, its microcode or firmware.
    Cpu,
    /// The kernel's command line, module parameters or mitigations.
    Boot,
    /// How the VM was made.
    Shape,
}

/// What helps.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Remedy {
    /// Nothing has to be done.
    Nothing,
    /// The kernel lets userspace select the value: these steps.
    Selector {
        /// In order.
        steps: Vec<String>,
    },
    /// Work for the VMM.
    Duty {
        /// What to do, and under which condition nothing is lost.
        work: String,
    },
    /// Nothing helps: refuse, and why.
    Refuse {
        /// What remains.
        because: String,
    },
    /// Look from inside a guest.
    Observe {
        /// The observation's name.
        name: String,
    },
}

/// One difference or failure.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
pub struct Finding {
    /// A code of the catalog, stable: `facet-lost`, `item-refused`.
    pub code: &'static str,
    /// The facet or state item.
    pub subject: String,
    /// What it is called by people; may be empty.
    pub title: String,
    /// The raw coordinate: `CPUID leaf 0x7 subleaf 0x0 ECX bit 7`, `MSR 0x1db`, `ONE_REG 0x6030…`.
    pub at: String,
    /// What it does to the verdict.
    pub outcome: Outcome,
    /// What it comes from.
    pub axis: Axis,
    /// The value on the host that the guest comes from, or that the contract names.
    pub before: String,
    /// The value on the host it goes to, or what that host could give.
    pub after: String,
    /// The shapes in which it was found; all of those asked when empty.
    pub shapes: Vec<String>,
    /// The ledger entry that explains facet and values; none: the cause is unknown.
    pub cause: Option<&'static str>,
    /// What helps.
    pub remedy: Remedy,
    /// How well it is known.
    pub evidence: Evidence,
}

impl Finding {
    /// The ledger entry that explains it.
    pub fn change(&self) -> Option<&'static Change> {
        self.cause.and_then(evenkeel_catalog::change)
    }

    /// Who could notice: a number to sort by, most severe first.
    pub fn severity(&self) -> u8 {
        let blast = match self.change().map(|c| c.blast) {
            Some(Blast::EveryGuest) => 0,
            Some(Blast::ManyGuests) => 1,
            // A cause that nobody knows could concern anybody.
            None => 1,
            Some(Blast::FewGuests) => 2,
            Some(Blast::OnlyVmm) => 3,
        };
        let rank = match self.outcome {
            Outcome::No => 0,
            Outcome::HoldsWithDuties => 1,
            Outcome::HoldsWithSelectors => 2,
            Outcome::Unknown => 3,
            Outcome::HoldsByDefault => 4,
        };
        rank * 4 + blast
    }

    /// What identifies a finding apart from the shapes it was found in.
    pub(crate) fn identity(&self) -> (&'static str, &str, Outcome, Axis, &str, &str) {
        (self.code, &self.subject, self.outcome, self.axis, &self.before, &self.after)
    }
}

/// The selector that a ledger entry names, as a remedy.
pub(crate) fn remedy_of(change: &Change) -> Remedy {
    let s = &change.selector;
    match s.status {
        Status::Available => Remedy::Selector { steps: s.steps.iter().map(|t| (*t).to_owned()).collect() },
        Status::NotNeeded => Remedy::Nothing,
        Status::Partial | Status::None if !s.duty.is_empty() => Remedy::Duty { work: s.duty.to_owned() },
        Status::Partial if !s.steps.is_empty() => {
            Remedy::Selector { steps: s.steps.iter().map(|t| (*t).to_owned()).collect() }
        }
        Status::Partial | Status::None => Remedy::Refuse { because: s.refusal.to_owned() },
    }
}

/// Folds findings that differ only in the shape they were found in; `asked` is how many shapes were looked at.
pub(crate) fn fold(findings: Vec<Finding>, asked: usize) -> Vec<Finding> {
    let mut folded: Vec<Finding> = Vec::with_capacity(findings.len());
    let mut index: std::collections::HashMap<String, usize> = std::collections::HashMap::new();
    for finding in findings {
        let key = format!("{:?}", finding.identity());
        match index.get(&key) {
            Some(i) => {
                for shape in finding.shapes {
                    if !folded[*i].shapes.contains(&shape) {
                        folded[*i].shapes.push(shape);
                    }
                }
            }
            None => {
                index.insert(key, folded.len());
                folded.push(finding);
            }
        }
    }
    for finding in &mut folded {
        if finding.shapes.len() == asked {
            finding.shapes.clear();
        }
    }
    folded.sort_by(|a, b| {
        (a.severity(), a.cause.is_none(), a.cause, &a.subject).cmp(&(
            b.severity(),
            b.cause.is_none(),
            b.cause,
            &b.subject,
        ))
    });
    folded
}
