//! `evenkeel survive`.

use std::path::PathBuf;

use evenkeel_contract::baseline::baseline;
use evenkeel_contract::verdict::{fold_guests, under, unpinned};
use evenkeel_contract::{Contract, Outcome, View};
use evenkeel_report::model::{SurviveReport, axes, conflicts};

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
    /// Look at this VM shape only; otherwise at all that both hosts were captured in.
    #[arg(long)]
    shape: Option<String>,
}

impl Survive {
    /// Gives the verdicts. Exits by the worst of them.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        let (mut o, mut n) = super::pair(&self.old, &self.new)?;
        if let Some(shape) = &self.shape {
            super::in_shape(&o, shape)?;
            super::in_shape(&n, shape)?;
            o.views.retain(|v| v.shape == *shape);
            n.views.retain(|v| v.shape == *shape);
        }
        let common: Vec<(&View, &View)> = o
            .views
            .iter()
            .filter_map(|old| n.views.iter().find(|new| new.shape == old.shape).map(|new| (old, new)))
            .collect();
        if common.is_empty() {
            return Err(Failure::bad("the two hosts were captured in no common shape", "capture both again"));
        }
        let mut found_conflicts = Vec::new();
        let mut shapes: Vec<String> = common.iter().map(|(old, _)| old.shape.clone()).collect();
        let guests = match &self.contract {
            Some(path) => {
                let contract = super::contract(path)?;
                super::same_architecture(path, &contract, &o)?;
                super::in_shape(&o, &contract.shape)?;
                super::in_shape(&n, &contract.shape)?;
                shapes = vec![contract.shape.clone()];
                vec![under(&contract, &o.views, &n.views)]
            }
            None => {
                // A contract is for one shape: the pinned guest is asked for in each, and the answers are folded.
                let mut pinned = Vec::with_capacity(common.len());
                for (old, new) in &common {
                    let meet = baseline(&[old, new], "pinned");
                    for c in conflicts(&meet) {
                        if !found_conflicts.contains(&c) {
                            found_conflicts.push(c);
                        }
                    }
                    let contract: Contract = meet.contract;
                    pinned.push(under(&contract, &o.views, &n.views));
                }
                vec![unpinned(&o.views, &n.views), fold_guests(pinned)]
            }
        };
        let outcome =
            guests.iter().map(evenkeel_contract::Verdicts::outcome).max().unwrap_or(Outcome::Unknown);
        let report = SurviveReport {
            schema: "evenkeel.survive/1",
            old: super::info(&o)?,
            new: super::info(&n)?,
            outcome,
            shapes,
            axes: axes(&o.views[0], &n.views[0]),
            conflicts: found_conflicts,
            guests,
        };
        match global.format {
            Format::Json => output::json(&report)?,
            Format::Text => output::print(&evenkeel_report::survive(&report, global.all))?,
        }
        Ok(super::exit(outcome))
    }
}
