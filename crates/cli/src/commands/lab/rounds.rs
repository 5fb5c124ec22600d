//! `evenkeel lab rounds`: a guest saved on each arm64 kernel goes on on every other, beside what was predicted.

use std::collections::BTreeSet;
use std::path::PathBuf;

use evenkeel_contract::registers::expect;
use evenkeel_lab::{Cache, Host, Options};
use evenkeel_state::arm64::register_name;
use evenkeel_witness::aarch64::rounds::Told;
use serde::{Deserialize, Serialize};

use super::run;
use crate::commands::rounds::Taken;
use crate::failure::Failure;
use crate::{Format, Global, output};

/// A guest saved on each arm64 kernel goes on on every other: what was lost, what it noticed, and what was predicted.
#[derive(clap::Args)]
pub struct Rounds {
    /// Kernels by name; all for arm64 that are fetched when none is named.
    pub kernels: Vec<String>,
    /// What vCPUs are made with: min, pmu or full. Several may be given; full when none is.
    #[arg(long, value_parser = ["min", "pmu", "full"])]
    shape: Vec<String>,
    /// How many vCPUs.
    #[arg(long, default_value_t = 2)]
    vcpus: u64,
    /// What the guest is stopped in; several may be given. An expired timer when none is.
    #[arg(long)]
    scenario: Vec<String>,
    /// Where rounds.json goes.
    #[arg(short, long, value_name = "FOLDER", default_value = ".")]
    output: PathBuf,
}

/// A guest of one kernel on another.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cell {
    from: String,
    on: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    told: Option<Told>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
    /// Registers that were predicted to be refused, altered or there and unsaved, and were not; and the other way round.
    /// Absent where nothing was predicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    against: Option<Against>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Against {
    agreed: usize,
    only_predicted: Vec<String>,
    only_measured: Vec<String>,
}

const KEPT: &str = "kept.json";
const RESULT: &str = "result.json";

impl Rounds {
    /// Does both rounds. Exits with 0 where all was as predicted and nothing else was lost, with 1 where not, with 3 where a
    /// kernel could not be run or a guest came to no end.
    pub fn run(self, hosts: &[Host], cache: Cache, global: Global) -> Result<u8, Failure> {
        if hosts.is_empty() {
            return Err(Failure::bad("no kernel: nothing ran", "evenkeel lab fetch"));
        }
        let mut options = Options::new(cache).map_err(super::failed)?;
        options.timeout = Some(std::time::Duration::from_secs(900));
        std::fs::create_dir_all(&self.output).map_err(|e| Failure::file(&self.output, &e))?;
        let shapes = if self.shape.is_empty() { vec!["full".to_owned()] } else { self.shape.clone() };
        let usual = || vec!["timer-expired".to_owned()];
        let scenarios = if self.scenario.is_empty() { usual() } else { self.scenario.clone() };
        let mut args: Vec<String> = ["rounds", "--keep", KEPT].map(str::to_owned).to_vec();
        args.extend(["--vcpus".to_owned(), self.vcpus.to_string()]);
        args.extend(shapes.iter().flat_map(|s| ["--shape".to_owned(), s.clone()]));
        args.extend(scenarios.iter().flat_map(|s| ["--scenario".to_owned(), s.clone()]));

        let mut failed = 0;
        let mut kept: Vec<(Host, Vec<u8>)> = Vec::new();
        super::registers::round(
            ("round 1, saving", hosts),
            |host| run::document(host, args.iter().cloned(), &[], KEPT, &[0], &options),
            |host, bytes| {
                kept.push((host.clone(), bytes));
                Ok(())
            },
            &mut failed,
        );
        let files: Vec<(String, Vec<u8>)> = kept.iter().map(|(h, b)| (h.name.clone(), b.clone())).collect();
        let takers: Vec<Host> = kept.iter().map(|(host, _)| host.clone()).collect();
        let mut args: Vec<String> = ["rounds", "-o", RESULT, "--take"].map(str::to_owned).to_vec();
        args.extend(files.iter().map(|(name, _)| name.clone()));
        let mut cells: Vec<Cell> = Vec::new();
        super::registers::round(
            ("round 2, restoring", &takers),
            |host| run::document(host, args.iter().cloned(), &files, RESULT, &[0, 1, 3], &options),
            |host, bytes| {
                let taken: Vec<Taken> =
                    serde_json::from_slice(&bytes).map_err(|e| Failure::bad(e.to_string(), ""))?;
                for Taken { file, told, failed } in taken {
                    let against =
                        told.as_ref().map(|told| against(&file, &host.name, told)).transpose()?.flatten();
                    cells.push(Cell { from: file, on: host.name.clone(), told, failed, against });
                }
                Ok(())
            },
            &mut failed,
        );
        let text = serde_json::to_string_pretty(&cells).unwrap_or_default() + "\n";
        output::write(&self.output.join("rounds.json"), text)?;
        match global.format {
            Format::Json => output::json(&cells)?,
            Format::Text => output::print(&text_of(&cells))?,
        }
        let ended = cells.iter().all(|cell| cell.failed.is_none()) && !cells.is_empty() && failed == 0;
        Ok(if ended { u8::from(!cells.iter().all(good)) } else { 3 })
    }
}

/// Nothing was lost beside registers that were predicted to be.
fn good(cell: &Cell) -> bool {
    let agrees = |a: &Against| a.only_predicted.is_empty() && a.only_measured.is_empty();
    cell.told.as_ref().is_some_and(|told| told.third.is_empty() && told.met.is_empty() && told.others == 0)
        && cell.against.as_ref().is_none_or(agrees)
}

/// Altered when a register alone is set, and not when a guest is restored: registers that show others once more are not
/// set, those which only set bits are cleared through their counterparts first, and bits that KVM computes do not count.
fn mended(id: u64) -> bool {
    let of = |reg: &evenkeel_catalog::Reg| reg.alias_of.is_some() || reg.computed != 0;
    evenkeel_catalog::reg(id).is_some_and(of)
        || evenkeel_catalog::REGS.iter().any(|reg| reg.alias_of == Some(id))
}

/// What captures foretell of the registers, against what was measured.
fn against(from: &str, on: &str, told: &Told) -> Result<Option<Against>, Failure> {
    let view = |name: &str| -> Result<_, Failure> {
        if !evenkeel_hosts::BUNDLED.iter().any(|bundled| bundled.name == name) {
            return Ok(None);
        }
        Ok(evenkeel_hosts::load(name)?.views.into_iter().find(|view| view.shape == told.shape))
    };
    let (Some(from), Some(on)) = (view(from)?, view(on)?) else { return Ok(None) };
    let expected = expect(&from, &on);
    let is_alias = |id: u64| evenkeel_catalog::reg(id).is_some_and(|reg| reg.alias_of.is_some());
    let names = |ids: BTreeSet<u64>, left_out: &dyn Fn(u64) -> bool| -> BTreeSet<String> {
        ids.into_iter().filter(|id| !left_out(*id)).map(register_name).collect()
    };
    let predicted = [
        names(expected.refused, &is_alias),
        names(expected.altered, &mended),
        names(expected.unsaved, &|_| false),
    ];
    let mut against = Against::default();
    for ((what, predicted), measured) in
        ["refused", "altered", "unsaved"].into_iter().zip(&predicted).zip(&told.registers)
    {
        against.agreed += predicted.intersection(measured).count();
        let named = |name: &String| format!("{what} {name}");
        against.only_predicted.extend(predicted.difference(measured).map(named));
        against.only_measured.extend(measured.difference(predicted).map(named));
    }
    Ok(Some(against))
}

fn text_of(cells: &[Cell]) -> String {
    let mut text = String::new();
    let (mut agree, mut known) = (0, 0);
    for cell in cells {
        let short = |name: &str| name.trim_start_matches("debian-").to_owned();
        text += &format!("{} on {}: ", short(&cell.from), short(&cell.on));
        let Some(told) = &cell.told else {
            text += &format!("no end: {}\n", cell.failed.as_deref().unwrap_or_default());
            continue;
        };
        let [refused, altered, unsaved] = &told.registers;
        text += &format!(
            "{} {}: {} kept, {} refused, {} altered, {} here and unsaved, {} other parts lost; {} looks differ\n",
            told.shape,
            told.scenario,
            told.parts[0],
            refused.len(),
            altered.len(),
            unsaved.len(),
            told.others,
            told.seen.len()
        );
        for (what, lines) in [("met", &told.met), ("third", &told.third)] {
            text.extend(lines.iter().map(|line| format!("  {what}: {line}\n")));
        }
        if let Some(against) = &cell.against {
            known += 1;
            agree += usize::from(against.only_predicted.is_empty() && against.only_measured.is_empty());
            text.extend(against.only_predicted.iter().map(|name| format!("  predicted only: {name}\n")));
            text.extend(against.only_measured.iter().map(|name| format!("  measured only: {name}\n")));
        }
    }
    text + &format!("{agree} of {known} guests lost the registers that were predicted, and no others\n")
}
