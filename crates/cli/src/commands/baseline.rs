//! `evenkeel baseline`.

use std::path::{Path, PathBuf};

use evenkeel_contract::baseline::{baseline, costs, most};
use evenkeel_contract::{View, document};
use evenkeel_report::model::{BaselineReport, CostInfo};

use crate::failure::Failure;
use crate::{Format, Global, output};

/// The most distinct hosts for which each one's cost is told unless asked for: it takes a baseline without each.
const COSTS_BY_DEFAULT: usize = 100;

/// The richest contract that all of these hosts can keep.
#[derive(clap::Args)]
pub struct Baseline {
    /// The hosts; a directory stands for the `*.json` in it.
    #[arg(required = true)]
    hosts: Vec<String>,
    /// Where to write the contract; standard output otherwise.
    #[arg(short, long, value_name = "CONTRACT")]
    output: Option<PathBuf>,
    /// The VM shape that the contract is for.
    #[arg(long)]
    shape: Option<String>,
    /// What people will call the contract.
    #[arg(long)]
    name: Option<String>,
    /// Promise the most that all of them can give of a facet that a guest has only by being promised: `x86.net.tap.offloads`.
    /// May be given several times.
    #[arg(long, value_name = "FACET")]
    most: Vec<String>,
    /// Tell what each host cost, however many there are.
    #[arg(long)]
    costs: bool,
}

impl Baseline {
    /// Writes the contract; exits with 1 when the hosts have no common value for some facet.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        let files = |h: &String| Path::new(h).exists();
        let (paths, names): (Vec<String>, Vec<String>) = self.hosts.iter().cloned().partition(files);
        let fleet = evenkeel_hosts::load_fleet(&paths.iter().map(PathBuf::from).collect::<Vec<_>>())?;
        let mut members: Vec<(Vec<View>, usize)> =
            fleet.members.into_iter().map(|m| (m.views, m.count)).collect();
        for name in &names {
            members.push((evenkeel_hosts::load(name)?.views, 1));
        }
        let hosts: usize = members.iter().map(|(_, count)| count).sum();
        let first = members.first().and_then(|(views, _)| views.first());
        let Some(first) = first.cloned() else {
            return Err(Failure::bad(
                "no host: nothing to agree on",
                "name captures, or a directory with some",
            ));
        };
        let shape = self.shape.clone().unwrap_or_else(|| default_shape(&first).to_owned());
        let mut views = Vec::with_capacity(members.len());
        for (all, _) in &members {
            let view = all.iter().find(|v| v.shape == shape);
            let label = all.first().map_or("a host", |v| v.host.label.as_str());
            let Some(view) = view else {
                return Err(Failure::bad(
                    format!("{label} was not captured in shape `{shape}`"),
                    "choose one with --shape",
                ));
            };
            if view.arch != first.arch {
                return Err(Failure::architectures(
                    (&first.host.label, first.arch.name()),
                    (label, view.arch.name()),
                ));
            }
            views.push(view);
        }
        let name = self.name.clone().unwrap_or_else(|| super::name_of(&self.hosts));
        let mut meet = baseline(&views, &name);
        for facet in &self.most {
            most(&views, &mut meet.contract, facet).ok_or_else(|| {
                let all = evenkeel_catalog::CHOICES.iter().filter(|c| !c.from.bits.is_empty());
                let names: Vec<&str> = all.map(|c| c.name).collect();
                Failure::bad(format!("`--most {facet}`: no facet that is asked for"), names.join(", "))
            })?;
        }
        let costs = if self.costs || views.len() <= COSTS_BY_DEFAULT {
            costs(&views, &meet.contract)
        } else {
            Vec::new()
        };
        let report = BaselineReport {
            schema: "evenkeel.baseline/1",
            digest: document::digest(&meet.contract),
            shape,
            hosts,
            names: meet.contract.words.len() + meet.contract.choices.len(),
            costs: costs.iter().map(CostInfo::from).collect(),
            conflicts: meet.conflicts.iter().map(Into::into).collect(),
            identities: meet.identities.clone(),
        };
        let text = document::print(&meet.contract);
        match (&self.output, global.format) {
            (Some(path), Format::Text) => {
                output::write(path, &text)?;
                output::print(&evenkeel_report::baseline(&report, global.all))?;
            }
            (Some(path), Format::Json) => {
                output::write(path, &text)?;
                output::json(&report)?;
            }
            (None, Format::Json) => output::json(&report)?,
            (None, Format::Text) => {
                output::print(&text)?;
                anstream::eprint!("{}", evenkeel_report::baseline(&report, global.all));
            }
        }
        Ok(u8::from(!report.conflicts.is_empty()))
    }
}

/// The shape that most VMMs use: the in-kernel irqchip; on arm64 a guest with a PMU.
fn default_shape(view: &View) -> &'static str {
    match view.arch {
        evenkeel_surface::Arch::X86_64 => "kernel",
        evenkeel_surface::Arch::Aarch64 => "pmu",
    }
}
