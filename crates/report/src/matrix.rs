//! All ordered pairs of many hosts: the document, what it is built from, and how it is looked at.
//!
//! Findings repeat over pairs, so they are in one table and a verdict names them by index; [`text`] and [`html`] print
//! the document.

mod build;
mod html;
mod look;
mod text;

use evenkeel_contract::{Axis, Evidence, Finding, Journey, Outcome};
use evenkeel_surface::Arch;
use schemars::JsonSchema;
use serde::Serialize;

use crate::model::{ConflictInfo, HostInfo};

pub use build::{Input, Pairing, build, orders};
pub use html::html;
pub use look::{Answer, Guest, Look, Tally, Trip};
pub use text::text;

/// `evenkeel lab matrix`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct MatrixReport {
    /// `evenkeel.matrix/1`.
    pub schema: &'static str,
    /// The hosts, in the order in which they were given.
    pub hosts: Vec<MatrixHost>,
    /// The lanes: hosts that are compared with each other.
    pub lanes: Vec<MatrixLane>,
    /// The ledger entries that findings name.
    pub causes: Vec<CauseInfo>,
    /// The codes that findings carry.
    pub codes: Vec<CodeInfo>,
    /// Every finding that any pair has, once.
    pub findings: Vec<Finding>,
    /// The ordered pairs, a lane after the other, row by row.
    pub pairs: Vec<MatrixPair>,
    /// Ordered pairs of a lane of which nothing is known.
    pub not_asked: Vec<NotAsked>,
}

/// Where a capture comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// It was captured for this matrix: a kernel that was booted, or this machine.
    CapturedNow,
    /// A file that the user named.
    Given,
    /// It came with the program: captured earlier.
    Bundled,
}

impl Origin {
    /// In words; empty for what was captured for this matrix.
    pub fn words(self) -> &'static str {
        match self {
            Origin::CapturedNow => "",
            Origin::Given => "from a file",
            Origin::Bundled => "captured earlier",
        }
    }
}

/// A host of the matrix.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct MatrixHost {
    /// What it is.
    #[serde(flatten)]
    pub info: HostInfo,
    /// Its name without what all names of the lane have in common.
    pub short: String,
    /// The kernel's point release, to read and to sort by; nothing is decided by it.
    pub point_release: String,
    /// Where the capture comes from.
    pub origin: Origin,
}

/// Hosts of one architecture that were captured on one kind of CPU or emulator.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct MatrixLane {
    /// `svm`, `vmx`, `arm64`.
    pub name: String,
    /// The architecture.
    pub arch: Arch,
    /// Its hosts, as indices into `hosts`: the order of rows and columns.
    pub hosts: Vec<usize>,
}

/// A change from one host to another.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct MatrixPair {
    /// The host that the guest runs on, an index into `hosts`.
    pub from: usize,
    /// The host that it should go to.
    pub to: usize,
    /// The shapes that were looked at.
    pub shapes: Vec<String>,
    /// What keeps the two from having a common contract.
    pub conflicts: Vec<ConflictInfo>,
    /// The axes besides the kernel on which findings were put.
    pub axes: Vec<Axis>,
    /// The verdicts for the unpinned guest, then for the one under the sealed baseline of the two.
    pub guests: Vec<MatrixGuest>,
}

/// The four answers for one guest.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct MatrixGuest {
    /// `unpinned` or `pinned`.
    pub guest: String,
    /// The four answers, in the order of [`Journey::ALL`].
    pub verdicts: Vec<MatrixVerdict>,
}

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct MatrixVerdict {
    /// The question.
    pub journey: Journey,
    /// The answer.
    pub outcome: Outcome,
    /// What the answer would be if everything that is not determined turned out well.
    pub otherwise: Outcome,
    /// The weakest evidence that it rests on.
    pub evidence: Evidence,
    /// What was found, most severe first: indices into the matrix' `findings`.
    pub findings: Vec<usize>,
}

/// A pair of which nothing is known.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct NotAsked {
    /// An index into `hosts`.
    pub from: usize,
    /// An index into `hosts`.
    pub to: usize,
    /// Why.
    pub why: String,
}

/// A ledger entry, as far as a reader of the matrix needs it; `evenkeel explain ID` has all of it.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct CauseInfo {
    /// `X86-063`.
    pub id: &'static str,
    /// The change in a line.
    pub title: &'static str,
    /// What happened and what it means.
    pub summary: &'static str,
    /// What a guest can observe.
    pub guest_observes: &'static str,
    /// Who could notice.
    pub who: &'static str,
    /// The kernels between which it came, in words: hints, nothing is decided by them.
    pub kernels: String,
    /// Can a guest go back, and what stops it?
    pub rollback: &'static str,
    /// Kernel file and line, changelog or measurement.
    pub sources: Vec<&'static str>,
}

/// A code that findings carry.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct CodeInfo {
    /// `item-refused`.
    pub code: &'static str,
    /// What it says, in a line.
    pub title: &'static str,
    /// What it means, what usually causes it, what to do.
    pub text: &'static str,
}

impl MatrixReport {
    /// The pair of these two hosts.
    pub fn pair(&self, from: usize, to: usize) -> Option<&MatrixPair> {
        self.pairs.iter().find(|p| (p.from, p.to) == (from, to))
    }

    /// The findings of a verdict, expanded.
    pub fn expand<'a>(&'a self, verdict: &'a MatrixVerdict) -> impl Iterator<Item = &'a Finding> {
        verdict.findings.iter().map(|i| &self.findings[*i])
    }
}
