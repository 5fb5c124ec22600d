//! The documents that `--format json` prints. Their JSON Schemas are in `docs/schema`, made from these types and
//! held to them by a test.

use evenkeel_contract::baseline::{Conflict, Cost};
use evenkeel_contract::diff::Difference;
use evenkeel_contract::{Axis, Evidence, Finding, Outcome, Verdicts, View};
use schemars::JsonSchema;
use serde::Serialize;

/// Which host something is said of.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct HostInfo {
    /// As the user wrote it.
    pub name: String,
    /// What that stands for, in words.
    pub stands_for: String,
    /// `uname -r`: a hint.
    pub kernel: String,
    /// The CPU's name.
    pub cpu: String,
    /// The digest of what it offers; empty for a prediction.
    pub offer_digest: String,
    /// How well it is known.
    pub evidence: Evidence,
}

impl HostInfo {
    /// Of a host's first view.
    pub fn of(view: &View, stands_for: &str) -> HostInfo {
        let host = &view.host;
        HostInfo {
            name: host.label.clone(),
            stands_for: stands_for.to_owned(),
            kernel: host.provenance.kernel.release.clone(),
            cpu: host.provenance.cpu.name.clone(),
            offer_digest: host.digests.offer.clone(),
            evidence: view.evidence,
        }
    }
}

/// An axis on which two hosts differ.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct AxisDifference {
    /// Which.
    pub axis: Axis,
    /// What differs: `microcode 0x1 on one, 0x2 on the other`.
    pub what: String,
}

/// `evenkeel survive OLD NEW`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct SurviveReport {
    /// `evenkeel.survive/1`.
    pub schema: &'static str,
    /// The host that the guest runs on, O.
    pub old: HostInfo,
    /// The host that it should go to, N.
    pub new: HostInfo,
    /// The worst of all verdicts: what the exit code says.
    pub outcome: Outcome,
    /// Shapes that were looked at.
    pub shapes: Vec<String>,
    /// Where the hosts differ otherwise than in the kernel.
    pub axes: Vec<AxisDifference>,
    /// What keeps the hosts from having a common contract at all.
    pub conflicts: Vec<ConflictInfo>,
    /// The verdicts: for the unpinned and the pinned guest, or for the contract that was given.
    pub guests: Vec<Verdicts>,
}

/// A facet over which hosts cannot agree.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct ConflictInfo {
    /// The facet.
    pub facet: String,
    /// Where the disagreement comes from.
    pub axis: Axis,
    /// Host and value.
    pub values: Vec<(String, String)>,
}

/// `evenkeel diff OLD NEW`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct DiffReport {
    /// `evenkeel.diff/1`.
    pub schema: &'static str,
    /// The old host.
    pub old: HostInfo,
    /// The new host.
    pub new: HostInfo,
    /// Where the hosts differ otherwise than in the kernel.
    pub axes: Vec<AxisDifference>,
    /// Every difference.
    pub differences: Vec<Difference>,
}

/// `evenkeel check CONTRACT HOST…`, a host.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct CheckedHost {
    /// The host.
    pub host: HostInfo,
    /// The answer for a new guest.
    pub outcome: Outcome,
    /// What was found.
    pub findings: Vec<Finding>,
}

/// `evenkeel check CONTRACT HOST…`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct CheckReport {
    /// `evenkeel.check/1`.
    pub schema: &'static str,
    /// The contract's name.
    pub contract: String,
    /// The contract's digest.
    pub digest: String,
    /// The shape that it is for.
    pub shape: String,
    /// The worst of all hosts.
    pub outcome: Outcome,
    /// Each host.
    pub hosts: Vec<CheckedHost>,
}

/// `evenkeel baseline HOST…`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct BaselineReport {
    /// `evenkeel.baseline/1`.
    pub schema: &'static str,
    /// The contract's digest.
    pub digest: String,
    /// The shape that it is for.
    pub shape: String,
    /// How many hosts.
    pub hosts: usize,
    /// How many words and choices the contract names.
    pub names: usize,
    /// What each host cost.
    pub costs: Vec<CostInfo>,
    /// Facets without a common value.
    pub conflicts: Vec<ConflictInfo>,
    /// Identity and topology words that differ.
    pub identities: Vec<String>,
}

/// What a host cost.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct CostInfo {
    /// The host.
    pub host: String,
    /// Facets that are missing because of it alone.
    pub facets: Vec<String>,
}

impl From<&Cost> for CostInfo {
    fn from(cost: &Cost) -> CostInfo {
        CostInfo { host: cost.host.clone(), facets: cost.facets.clone() }
    }
}

impl From<&Conflict> for ConflictInfo {
    fn from(c: &Conflict) -> ConflictInfo {
        ConflictInfo { facet: c.facet.clone(), axis: c.axis, values: c.values.clone() }
    }
}

/// `evenkeel seal CONTRACT HOST`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct SealReport {
    /// `evenkeel.seal/1`.
    pub schema: &'static str,
    /// The contract's name.
    pub contract: String,
    /// The host.
    pub host: HostInfo,
    /// What it is compared with; none: with nothing shown at all.
    pub reference: Option<HostInfo>,
    /// What the host would add that nobody named.
    pub leaks: Vec<Finding>,
}

/// Where two hosts differ besides the kernel, in words.
pub fn axes(o: &View, n: &View) -> Vec<AxisDifference> {
    let mut found = Vec::new();
    let (a, b) = (&o.host.provenance, &n.host.provenance);
    let mut add = |axis, what: &str, x: &str, y: &str| {
        if x != y {
            let show = |t: &str| if t.is_empty() { "unknown".to_owned() } else { t.to_owned() };
            found.push(AxisDifference {
                axis,
                what: format!("{what}: {} on {}, {} on {}", show(x), o.host.label, show(y), n.host.label),
            });
        }
    };
    add(Axis::Cpu, "vendor", &a.cpu.vendor, &b.cpu.vendor);
    add(Axis::Cpu, "family, model, stepping", &a.cpu.id.to_string(), &b.cpu.id.to_string());
    add(Axis::Cpu, "microcode", &a.cpu.microcode, &b.cpu.microcode);
    if a.cpu.raw != b.cpu.raw && a.cpu.id == b.cpu.id && !a.cpu.raw.is_empty() && !b.cpu.raw.is_empty() {
        add(Axis::Cpu, "answers of the CPUID instruction", "one set", "another");
    }
    if n.evidence == Evidence::Declared && o.evidence == Evidence::Declared {
        let words = |v: &str| {
            let mut words: Vec<String> =
                v.split_whitespace().filter(|w| !w.starts_with("BOOT_IMAGE=")).map(str::to_owned).collect();
            words.sort();
            words.join(" ")
        };
        add(Axis::Boot, "kernel command line", &words(&a.kernel.cmdline), &words(&b.kernel.cmdline));
        add(Axis::Boot, "KVM back-end", &a.kernel.backend, &b.kernel.backend);
        for p in &a.parameters {
            // What a parameter is when nobody sets it changes with kernels, too; polling shows no guest anything.
            if let Some(q) = b.parameters.iter().find(|q| q.name == p.name && !q.name.contains("halt_poll")) {
                add(
                    Axis::Boot,
                    &format!("module parameter {} (set, or the kernel's default)", p.name),
                    &p.value,
                    &q.value,
                );
            }
        }
    }
    found
}
