//! `evenkeel diff`.

use evenkeel_contract::diff::diff;
use evenkeel_report::model::{DiffReport, axes};

use crate::failure::Failure;
use crate::{Format, Global, output};

/// What differs between two hosts?
#[derive(clap::Args)]
pub struct Diff {
    /// The host that there was.
    old: String,
    /// The host that there is.
    new: String,
}

impl Diff {
    /// Compares. Exits with 0 when the hosts offer the same, otherwise with 1.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        let (o, n) = super::pair(&self.old, &self.new)?;
        let report = DiffReport {
            schema: "evenkeel.diff/1",
            old: super::info(&o)?,
            new: super::info(&n)?,
            axes: axes(&o.views[0], &n.views[0]),
            differences: diff((&o.surface, &o.views), (&n.surface, &n.views)),
        };
        match global.format {
            Format::Json => output::json(&report)?,
            Format::Text => output::print(&evenkeel_report::diff(&report, global.all))?,
        }
        Ok(u8::from(!report.differences.is_empty()))
    }
}
