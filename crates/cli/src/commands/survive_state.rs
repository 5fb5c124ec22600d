//! `evenkeel survive --state`: whether hosts take the very state that a guest is in.

use std::fmt::Write as _;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use evenkeel_capsule::Reader;
use evenkeel_contract::view::ItemKey;
use evenkeel_contract::{Outcome, carries};
use evenkeel_hosts::Host;
use evenkeel_state::entries::{self, Key};
use evenkeel_state::file::{self, Guest};
use evenkeel_state::translate::{Destination, translate};
use evenkeel_state::{Image, gaps};
use schemars::JsonSchema;
use serde::Serialize;

use super::capsule::refused;
use crate::failure::Failure;
use crate::{Format, Global, output};

/// What `survive --state` says.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct StateReport {
    /// `evenkeel.survive-state/1`.
    pub schema: &'static str,
    /// The shape of the guest's VM.
    pub shape: String,
    /// `uname -r` where it was saved; empty when the capsule does not say.
    pub saved_on: String,
    /// State that KVM could not save, as far as the image shows it.
    pub gaps: Vec<String>,
    /// The hosts, in their order.
    pub hosts: Vec<Taken>,
}

/// What one host does with the state.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Taken {
    /// The host.
    pub host: String,
    /// The verdict: holds as it is, with duties (rewrites), no, or unknown.
    pub outcome: Outcome,
    /// What is rewritten, and why nothing is lost.
    pub rewritten: Vec<String>,
    /// What it does not take, and why that cannot be rewritten.
    pub refused: Vec<String>,
    /// Items of which its capture says nothing, and which hold something.
    pub unknown: Vec<String>,
}

/// Answers for each host. Exits by the worst.
pub fn run(path: &Path, hosts: &[Host], global: Global) -> Result<u8, Failure> {
    let io = File::open(path).map_err(|e| Failure::file(path, &e))?;
    let mut reader = Reader::open(BufReader::new(io), &file::known).map_err(|e| refused(path, &e))?;
    let guest = Guest::read(&mut reader).map_err(|e| refused(path, &e))?;
    let shape = guest.image.manifest.shape();
    let gaps = gaps(&guest.image);
    let mut report = StateReport {
        schema: "evenkeel.survive-state/1",
        shape: shape.to_owned(),
        saved_on: guest.provenance.as_ref().map_or(String::new(), |p| p.kernel.clone()),
        gaps: gaps.iter().map(|g| format!("{}: {}: {}", g.gap.id, g.owner, g.seen)).collect(),
        hosts: Vec::new(),
    };
    for host in hosts {
        if host.surface.arch != guest.image.arch {
            let (a, b) = (path.display().to_string(), host.name.clone());
            let archs = (guest.image.arch.name(), host.surface.arch.name());
            return Err(Failure::architectures((&a, archs.0), (&b, archs.1)));
        }
        report.hosts.push(taken(&guest.image, host, shape)?);
    }
    match global.format {
        Format::Json => output::json(&report)?,
        Format::Text => output::print(&text(&report, global.all))?,
    }
    let worst = report.hosts.iter().map(|h| h.outcome).max().unwrap_or(Outcome::Unknown);
    Ok(super::exit(worst))
}

fn taken(image: &Image, host: &Host, shape: &str) -> Result<Taken, Failure> {
    let view = host.views.iter().find(|view| view.shape == shape).ok_or_else(|| {
        let why = format!("{} was not captured in shape {shape}, which the guest has", host.name);
        Failure::bad(why, "capture it again")
    })?;
    let mut taken = Taken {
        host: host.name.clone(),
        outcome: Outcome::HoldsByDefault,
        rewritten: Vec::new(),
        refused: Vec::new(),
        unknown: Vec::new(),
    };
    for item in &image.items {
        for entry in entries::of(item).unwrap_or_default() {
            let key = match entry.key {
                Key::Msr(msr) => ItemKey::Msr(msr),
                Key::Reg(id) => ItemKey::Reg(id),
            };
            let absent = carries::known(key).droppable_at.unwrap_or(0).to_le_bytes();
            let holds =
                entry.value.iter().zip(absent.iter().chain(std::iter::repeat(&0))).any(|(a, b)| a != b);
            if holds && carries::taken(view, key).is_none() {
                taken.unknown.push(format!("{}/{key}", item.owner));
            }
        }
    }
    match translate(image, &Destination { view, offer: &host.surface.offer }) {
        Ok(done) => {
            let line = |r: &evenkeel_state::translate::Rewrite| {
                let what = if r.after.is_some() { "rewritten" } else { "left out" };
                format!("{}/{} is {what}: {}", r.owner, r.part, r.because)
            };
            taken.rewritten = done.log.iter().map(line).collect();
        }
        Err(lost) => {
            let line = |r: &evenkeel_state::translate::Refusal| {
                format!("{}/{} ({}): {}", r.owner, r.part, r.title, r.because)
            };
            taken.refused = lost.iter().map(line).collect();
        }
    }
    taken.outcome = match (taken.refused.is_empty(), taken.unknown.is_empty(), taken.rewritten.is_empty()) {
        (false, ..) => Outcome::No,
        (_, false, _) => Outcome::Unknown,
        (_, _, false) => Outcome::HoldsWithDuties,
        _ => Outcome::HoldsByDefault,
    };
    Ok(taken)
}

fn text(report: &StateReport, all: bool) -> String {
    let mut w = String::new();
    let from = if report.saved_on.is_empty() { "an unnamed kernel" } else { &report.saved_on };
    let _ = writeln!(w, "A guest in shape {}, saved on {from}", report.shape);
    for gap in &report.gaps {
        let _ = writeln!(w, "  not saved: {gap}");
    }
    for host in &report.hosts {
        let _ = writeln!(w, "{}: {}", host.host, host.outcome.words());
        for (head, list, always) in [
            ("no", &host.refused, true),
            ("unknown", &host.unknown, true),
            ("duty", &host.rewritten, all || host.rewritten.len() <= 12),
        ] {
            for line in list.iter().filter(|_| always) {
                let _ = writeln!(w, "  {head}: {line}");
            }
            if !always {
                let _ = writeln!(
                    w,
                    "  {head}: {} items are rewritten without a loss: --all lists them",
                    list.len()
                );
            }
        }
    }
    w
}
