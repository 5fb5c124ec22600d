//! `evenkeel predict`.

use evenkeel_contract::diff::{Difference, diff};
use evenkeel_report::model::{DiffReport, HostInfo};
use schemars::JsonSchema;
use serde::Serialize;

use crate::failure::Failure;
use crate::{Format, Global, output};

/// The surface of a kernel that is not installed.
#[derive(clap::Args)]
pub struct Predict {
    /// `here@KERNEL`, or a capture under another kernel: `debian-6.1@debian-7.3`.
    host: String,
}

/// `evenkeel predict HOST@KERNEL`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct PredictReport {
    /// `evenkeel.predict/1`.
    pub schema: &'static str,
    /// The predicted host.
    pub host: HostInfo,
    /// Bits of words that are predicted.
    pub determined_bits: u64,
    /// Words with bits that are not determined, and those bits.
    pub unknown: Vec<(String, String)>,
    /// What would be otherwise than on the host that the prediction starts from.
    pub differences: Vec<Difference>,
}

impl Predict {
    /// Predicts; exits with 3 when something stays undetermined, which is usual.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        let Some((base, _)) = self.host.rsplit_once('@') else {
            return Err(Failure::bad(
                format!("`{}` names no kernel", self.host),
                "for example here@debian-7.3",
            ));
        };
        let predicted = evenkeel_hosts::load(&self.host)?;
        let base = evenkeel_hosts::load(base)?;
        let unknown: Vec<(String, String)> = predicted.views[0]
            .words
            .iter()
            .filter(|w| w.unknown != 0)
            .map(|w| (w.at.to_string(), format!("{:#x}", w.unknown & w.at.mask())))
            .collect();
        let determined =
            predicted.views[0].words.iter().map(|w| u64::from((!w.unknown & w.at.mask()).count_ones())).sum();
        let report = PredictReport {
            schema: "evenkeel.predict/1",
            host: super::info(&predicted)?,
            determined_bits: determined,
            unknown,
            differences: diff((&base.surface, &base.views), (&predicted.surface, &predicted.views)),
        };
        match global.format {
            Format::Json => output::json(&report)?,
            Format::Text => {
                let shown = DiffReport {
                    schema: "evenkeel.diff/1",
                    old: super::info(&base)?,
                    new: report.host.clone(),
                    axes: Vec::new(),
                    differences: report.differences.clone(),
                };
                output::print(&evenkeel_report::diff(&shown, global.all))?;
                let bits: u32 =
                    predicted.views[0].words.iter().map(|w| (w.unknown & w.at.mask()).count_ones()).sum();
                output::print(&format!(
                    "{} bits are predicted, {bits} in {} words are not determined.\n",
                    report.determined_bits,
                    report.unknown.len()
                ))?;
            }
        }
        Ok(if report.unknown.is_empty() { 0 } else { 3 })
    }
}
