//! `evenkeel survive`.

use std::path::PathBuf;

use evenkeel_contract::baseline::Conflict;
use evenkeel_contract::pair::pair;
use evenkeel_contract::verdict::under;
use evenkeel_contract::{Outcome, Verdicts};
use evenkeel_report::model::{SurviveReport, axes};

use crate::failure::Failure;
use crate::{Format, Global, output};

/// Does a guest survive the change, and the way back?
#[derive(clap::Args)]
pub struct Survive {
    /// The host that guests run on now, O.
    old: String,
    /// The host that they should go to, N.
    new: String,
    /// Answer for guests under this contract, instead of for unpinned ones and for those under the common baseline.
    #[arg(long, value_name = "FILE")]
    contract: Option<PathBuf>,
    /// Answer for the guest in this capsule: whether each host takes the very state that it is in.
    #[arg(long, value_name = "FILE.capsule", conflicts_with_all = ["contract", "shape"])]
    state: Option<PathBuf>,
    /// Look at this VM shape only; otherwise at all that both hosts were captured in.
    #[arg(long)]
    shape: Option<String>,
}

impl Survive {
    /// Gives the verdicts. Exits by the worst of them.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        let (mut o, mut n) = super::pair(&self.old, &self.new)?;
        if let Some(path) = &self.state {
            return super::survive_state::run(path, &[o, n], global);
        }
        if let Some(shape) = &self.shape {
            super::in_shape(&o, shape)?;
            super::in_shape(&n, shape)?;
            o.views.retain(|v| v.shape == *shape);
            n.views.retain(|v| v.shape == *shape);
        }
        let told =
            |guests: Vec<Verdicts>, shapes, conflicts: &[Conflict]| -> Result<SurviveReport, Failure> {
                let outcome = guests.iter().map(Verdicts::outcome).max().unwrap_or(Outcome::Unknown);
                Ok(SurviveReport {
                    schema: "evenkeel.survive/1",
                    old: super::info(&o)?,
                    new: super::info(&n)?,
                    outcome,
                    shapes,
                    axes: axes(&o.views[0], &n.views[0]),
                    conflicts: conflicts.iter().map(Into::into).collect(),
                    guests,
                })
            };
        let report = match &self.contract {
            Some(path) => {
                let contract = super::contract(path)?;
                super::same_architecture(path, &contract, &o)?;
                super::in_shape(&o, &contract.shape)?;
                super::in_shape(&n, &contract.shape)?;
                told(vec![under(&contract, &o.views, &n.views)], vec![contract.shape.clone()], &[])?
            }
            None => {
                let pair = pair(&o.views, &n.views).ok_or_else(|| {
                    Failure::bad("the two hosts were captured in no common shape", "capture both again")
                })?;
                told(pair.guests.into(), pair.shapes, &pair.conflicts)?
            }
        };
        match global.format {
            Format::Json => output::json(&report)?,
            Format::Text => output::print(&evenkeel_report::survive(&report, global.all))?,
        }
        Ok(super::exit(report.outcome))
    }
}
