//! What the kernel really did: the document.

use evenkeel_catalog::Stage;
use evenkeel_steps::{Difference, StepReport, Unseen};
use schemars::JsonSchema;
use serde::Serialize;

use crate::applying::Applying;
use crate::plan::{Duty, Refusal, Unobserved};

/// The schema's name.
pub const SCHEMA: &str = "evenkeel.apply/1";

/// How it came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything that can be read is as the contract says.
    Kept,
    /// What differs was waived by name.
    Waived,
    /// Something differs, or could not be read.
    Refused,
    /// Nothing differs yet, and steps are still to come.
    Incomplete,
}

/// Which contract.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ContractInfo {
    /// Its name.
    pub name: String,
    /// Its digest.
    pub digest: String,
    /// The shape that it is for.
    pub shape: String,
}

/// Which host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct HostInfo {
    /// `uname -r`.
    pub release: String,
    /// KVM's back-end; empty when nothing tells.
    pub backend: String,
}

/// What became of a contract on one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// Every step was carried out and nothing differs but what was waived: the VM may run its guest.
    pub usable: bool,
    /// Which contract.
    pub contract: ContractInfo,
    /// Which host.
    pub host: HostInfo,
    /// What the host cannot give, known before anything was touched.
    pub refusals: Vec<Refusal>,
    /// The steps, in the order in which they were carried out.
    pub steps: Vec<StepReport>,
    /// How many places were read and were as wanted.
    pub kept: usize,
    /// Work that is left to the VMM.
    pub duties: Vec<Duty>,
    /// What no ioctl shows: selected, or left at what the host gives when nobody asks.
    pub unseen: Vec<Unseen>,
    /// Behaviours that only a look from inside a guest tells.
    pub unobserved: Vec<Unobserved>,
    /// The digest of a contract that this host can keep, where this one is refused and it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_keep: Option<String>,
}

impl Report {
    pub(crate) fn of(applying: &Applying<'_>) -> Report {
        let plan = applying.plan;
        let holds = applying.steps.iter().all(StepReport::holds) && plan.refusals.iter().all(|r| r.waived);
        let waived = plan.refusals.iter().any(|r| r.waived)
            || applying.steps.iter().flat_map(|s| &s.differences).any(|d| d.waived);
        let each = |stage: Stage, done: &[u32]| {
            plan.steps(stage, 0, 0).is_empty() || applying.vcpus.iter().all(|v| done.contains(v))
        };
        let gic = applying.gic_done || plan.steps(Stage::Gic, 0, 0).is_empty();
        let complete = applying.vm_done
            && applying.vcpus.contains(&0)
            && applying.vcpus.len() as u32 >= plan.setup.topology.vcpus
            && gic
            && each(Stage::Late, &applying.late);
        let verdict = match (holds, complete, waived) {
            (false, ..) => Verdict::Refused,
            (_, false, _) => Verdict::Incomplete,
            (_, _, true) => Verdict::Waived,
            _ => Verdict::Kept,
        };
        let selected = applying.steps.iter().flat_map(|s| s.unseen.iter().cloned());
        let mut unseen: Vec<Unseen> = selected.chain(plan.left_alone.iter().cloned()).collect();
        unseen.sort();
        unseen.dedup();
        Report {
            schema: SCHEMA,
            verdict,
            usable: matches!(verdict, Verdict::Kept | Verdict::Waived),
            contract: ContractInfo {
                name: plan.contract.name.clone(),
                digest: plan.digest.clone(),
                shape: plan.contract.shape.clone(),
            },
            host: HostInfo { release: plan.host.0.clone(), backend: plan.host.1.clone() },
            refusals: plan.refusals.clone(),
            kept: applying.steps.iter().map(|s| s.kept).sum(),
            steps: applying.steps.clone(),
            duties: plan.duties.clone(),
            unseen,
            unobserved: plan.unobserved.clone(),
            can_keep: None,
        }
    }

    /// Every difference that a step found, in order.
    pub fn differences(&self) -> impl Iterator<Item = &Difference> {
        self.steps.iter().flat_map(|s| &s.differences)
    }

    /// The names of facets that were refused up front or differ, waived ones left out, each once.
    pub fn findings(&self) -> Vec<&str> {
        let early = self.refusals.iter().filter(|r| !r.waived).map(|r| r.facet.as_str());
        let late = self.differences().filter(|d| !d.waived).map(|d| d.facet.as_str());
        let mut names: Vec<&str> = early.chain(late).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}
