//! `evenkeel diff`.

use std::path::Path;

use evenkeel_contract::diff::diff;
use evenkeel_report::model::{DiffReport, axes};

use crate::failure::Failure;
use crate::{Format, Global, output};

/// What differs between two hosts, or between two capsules?
#[derive(clap::Args)]
pub struct Diff {
    /// The host that there was, or a capsule.
    old: String,
    /// The host that there is, or a capsule.
    new: String,
}

impl Diff {
    /// Compares. Exits with 0 when the hosts offer the same, otherwise with 1.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        let (old, new) = (Path::new(&self.old), Path::new(&self.new));
        match (super::capsule::is_capsule(old), super::capsule::is_capsule(new)) {
            (true, true) => return super::capsule::diff::run(old, new, global),
            (false, false) => {}
            _ => {
                let message = format!("of {} and {}, one is a capsule and one is not", self.old, self.new);
                return Err(Failure::bad(message, "name two hosts or two capsules"));
            }
        }
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
