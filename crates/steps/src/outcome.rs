//! What became of steps.

use evenkeel_catalog::Stage;
use schemars::JsonSchema;
use serde::Serialize;

/// What became of a facet, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Read back as wanted.
    Kept,
    /// No ioctl shows it: what was selected is written down, and only a look from inside a guest tells.
    Unseen,
    /// The kernel did not let it be read: nobody knows.
    Unread,
    /// The ioctl that sets it failed, and it is not what was wanted.
    Refused,
    /// The ioctl that sets it succeeded, and it is not what was wanted.
    Altered,
}

impl Outcome {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Outcome::Kept => "kept",
            Outcome::Unseen => "write-only",
            Outcome::Unread => "not read back",
            Outcome::Refused => "refused",
            Outcome::Altered => "altered",
        }
    }
}

/// One facet that is not what was wanted, or not known to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Difference {
    /// Its name: a field, or a bit where the catalog has no name.
    pub facet: String,
    /// In a line; may be empty.
    pub title: String,
    /// The raw coordinate: `CPUID leaf 0x7 subleaf 0x0 ECX bit 7`; empty for a facet that is no word.
    pub at: String,
    /// What became of it.
    pub outcome: Outcome,
    /// What was wanted.
    pub wanted: String,
    /// What was read; none when nothing could be.
    pub got: Option<String>,
    /// The call that failed, or that did something else than it said.
    pub call: String,
    /// The errno, or words.
    pub why: String,
    /// The user waived it by name.
    pub waived: bool,
}

/// A facet that no ioctl shows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct Unseen {
    /// Its name.
    pub facet: String,
    /// The wanted value's name.
    pub value: String,
    /// Whether it was selected; otherwise the host gives the value when nobody asks, and nobody asked.
    pub selected: bool,
}

/// What became of one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct StepReport {
    /// Its name.
    pub step: String,
    /// `vm`, `vcpu`, `gic` or `late`.
    pub stage: String,
    /// The vCPU's index; none for a step on another file descriptor.
    pub vcpu: Option<u32>,
    /// The ioctls that set something, in order; none of them for a step that only looks.
    pub calls: Vec<String>,
    /// Ioctls that failed, whether or not it mattered: call and reason.
    pub failed: Vec<String>,
    /// The worst of what became of its facets.
    pub outcome: Outcome,
    /// How many places were read and were as wanted.
    pub kept: usize,
    /// What is not as wanted.
    pub differences: Vec<Difference>,
    /// What it selected that no ioctl shows.
    pub unseen: Vec<Unseen>,
}

impl StepReport {
    /// Nothing differs, but for what was waived.
    pub fn holds(&self) -> bool {
        self.differences.iter().all(|d| d.waived)
    }
}

/// The name of a stage in documents.
pub fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Vm => "vm",
        Stage::Vcpu => "vcpu",
        Stage::Gic => "gic",
        Stage::Late => "late",
    }
}
