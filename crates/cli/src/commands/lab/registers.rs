//! `evenkeel lab registers`: the registers of each kernel on every kernel, in two rounds, beside what was predicted.

use std::path::{Path, PathBuf};

use evenkeel_contract::registers::expect;
use evenkeel_lab::{Cache, Host, Options, each};
use evenkeel_state::registers::matrix::{Against, Cell, Matrix, PredictedHost, Prediction, Sets};
use evenkeel_state::registers::{LoadReport, Shape, parse_file, parse_report};
use evenkeel_surface::canonical::{Canonical, digest};
use evenkeel_surface::{Arch, Hex64};

use super::run;
use crate::commands::registers::{gic, name};
use crate::failure::Failure;
use crate::{Format, Global, output};

/// The registers of each kernel on every kernel: saved, set, read back, and compared with what was predicted.
#[derive(clap::Args)]
pub struct Registers {
    /// Kernels by name; all for arm64 that are fetched when none is named.
    pub kernels: Vec<String>,
    /// What vCPUs are made with: min, pmu or full. Several may be given; all of them when none is.
    #[arg(long, value_parser = crate::commands::registers::shape)]
    shape: Vec<Shape>,
    /// Also with registers that were given other values before they were saved.
    #[arg(long)]
    fill: bool,
    /// Predict from captures in this folder, FOLDER/KERNEL.json, as `lab capture -o` writes them; the bundled ones
    /// otherwise.
    #[arg(long, value_name = "FOLDER")]
    captures: Option<PathBuf>,
    /// Where the files go: registers.json is the matrix.
    #[arg(short, long, value_name = "FOLDER", default_value = ".")]
    output: PathBuf,
}

/// The file that a program inside writes.
const RESULT: &str = "result.json";

/// Exit codes of the program inside that come with a result: 1 says that some registers were not kept, which is what
/// the matrix is about; 3 names vCPUs in the report.
const CODES: &[i32] = &[0, 1, 3];

impl Registers {
    /// Does both rounds. Exits with 0 when all that was measured had been predicted, with 1 when not, with 3 when a
    /// kernel could not be run.
    pub fn run(self, hosts: &[Host], cache: Cache, global: Global) -> Result<u8, Failure> {
        if let Some(other) = hosts.iter().find(|h| h.kernel.arch != evenkeel_lab::Arch::Aarch64) {
            return Err(Failure::bad(
                format!("{} is not for arm64: x86 has no registers by id", other.name),
                "name kernels that end in -arm64",
            ));
        }
        if hosts.is_empty() {
            return Err(Failure::bad("no kernel: nothing ran", "evenkeel lab fetch"));
        }
        let options = &Options::new(cache).map_err(super::failed)?;
        let shapes = if self.shape.is_empty() { Shape::ALL.to_vec() } else { self.shape.clone() };
        std::fs::create_dir_all(&self.output).map_err(|e| Failure::file(&self.output, &e))?;
        let mut failed = 0;

        let mut args: Vec<&str> = vec!["registers", "save", "-o", RESULT];
        args.extend(shapes.iter().flat_map(|s| ["--shape", s.name()]));
        args.extend(self.fill.then_some("--fill"));
        let mut saved: Vec<(&Host, Vec<u8>)> = Vec::new();
        let places = |host: &Host| hosts.iter().position(|h| h.name == host.name);
        round(
            ("round 1, saving", hosts),
            |host| run::document(host, args.iter().copied(), &[], RESULT, CODES, options),
            |host, bytes| {
                parse_file(&bytes).map_err(|e| Failure::bad(e.to_string(), ""))?;
                output::write(&self.output.join(format!("{}.saved.json", host.name)), &bytes)?;
                saved.extend(places(host).map(|at| (&hosts[at], bytes)));
                Ok(())
            },
            &mut failed,
        );
        if saved.is_empty() {
            return Err(Failure {
                exit: 3,
                ..Failure::bad("no kernel saved anything: there is no matrix", "")
            });
        }

        // Before anything is measured, and not changed after.
        let names: Vec<&str> = saved.iter().map(|(h, _)| h.name.as_str()).collect();
        let prediction = predict(&names, &shapes, self.captures.as_deref())?;
        let text = prediction.canonical();
        let digest = digest(&text);
        output::write(&self.output.join("predicted.json"), text + "\n")?;
        anstream::eprintln!("predicted before measuring: {digest}");

        let files: Vec<(String, Vec<u8>)> =
            saved.iter().map(|(h, bytes)| (format!("{}.json", h.name), bytes.clone())).collect();
        let mut reports: Vec<(String, LoadReport)> = Vec::new();
        let args: Vec<&str> = ["registers", "load", "-o", RESULT]
            .into_iter()
            .chain(files.iter().map(|f| f.0.as_str()))
            .collect();
        let loading: Vec<Host> = saved.iter().map(|(host, _)| (*host).clone()).collect();
        round(
            ("round 2, loading", &loading),
            |host| run::document(host, args.iter().copied(), &files, RESULT, CODES, options),
            |host, bytes| {
                let report = parse_report(&bytes).map_err(|e| Failure::bad(e.to_string(), ""))?;
                reports.push((host.name.clone(), report));
                Ok(())
            },
            &mut failed,
        );
        // Pairs are places in the list of hosts, which must be the same one.
        let whole = reports.len() == saved.len();
        let prediction = if whole {
            prediction
        } else {
            let left: Vec<&str> = reports.iter().map(|(n, _)| n.as_str()).collect();
            predict(&left, &shapes, self.captures.as_deref())?
        };
        let matrix = Matrix::new(&reports, Some((&prediction, digest)));
        if matrix.cells.is_empty() {
            return Err(Failure {
                exit: 3,
                ..Failure::bad("no kernel loaded anything: there is no matrix", "")
            });
        }
        output::write(&self.output.join("registers.json"), matrix.canonical() + "\n")?;
        match global.format {
            Format::Json => output::json(&matrix)?,
            Format::Text => output::print(&text_of(&matrix, global.all))?,
        }
        let surprises = matrix
            .cells
            .iter()
            .any(|c| c.failed.is_some() || c.against.as_ref().is_some_and(|a| !a.agrees()));
        Ok(if failed > 0 { 3 } else { u8::from(surprises) })
    }
}

/// A round: every host, two at a time, with what it brought back in order. One that fails is counted.
pub(super) fn round(
    (name, hosts): (&str, &[Host]),
    work: impl Fn(&Host) -> Result<Vec<u8>, evenkeel_lab::Error> + Sync,
    mut take: impl FnMut(&Host, Vec<u8>) -> Result<(), Failure>,
    failed: &mut usize,
) {
    each(
        hosts,
        |i, host| {
            let line = format!("{name} [{}/{}] {}\n", i + 1, hosts.len(), host.name);
            anstream::eprint!("{line}");
        },
        work,
        |host, done| {
            let taken = done.map_err(super::failed).and_then(|bytes| take(host, bytes));
            if let Err(failure) = taken {
                failure.print();
                *failed += 1;
            }
        },
    );
}

/// What captures say of every ordered pair: those in a folder, or the bundled ones.
fn predict(names: &[&str], shapes: &[Shape], folder: Option<&Path>) -> Result<Prediction, Failure> {
    let mut hosts = Vec::new();
    let mut captures = Vec::new();
    for name in names {
        let host = match folder {
            Some(folder) => {
                let path = folder.join(format!("{name}.json"));
                if path.exists() { Some(evenkeel_hosts::load(&path.to_string_lossy())?) } else { None }
            }
            None if evenkeel_hosts::BUNDLED.iter().any(|b| b.name == *name) => {
                Some(evenkeel_hosts::load(name)?)
            }
            None => None,
        };
        let offer = host.as_ref().map(|h| h.surface.digests.offer.clone());
        hosts.push(PredictedHost { name: (*name).to_owned(), offer });
        captures.push(host);
    }
    let mut each = Vec::new();
    for (i, from) in captures.iter().enumerate() {
        for (j, on) in captures.iter().enumerate() {
            let (Some(from), Some(on)) = (from, on) else { continue };
            for &shape in shapes {
                let view = |host: &evenkeel_hosts::Host| {
                    host.views.iter().find(|v| v.shape == shape.name() && v.arch == Arch::Aarch64).cloned()
                };
                let (Some(from), Some(on)) = (view(from), view(on)) else { continue };
                let expected = expect(&from, &on);
                let ids = |set: std::collections::BTreeSet<u64>| set.into_iter().map(Hex64).collect();
                let sets = Sets {
                    refused: ids(expected.refused),
                    unsaved: ids(expected.unsaved),
                    altered: ids(expected.altered),
                };
                each.push((shape, (i as u16, j as u16), sets));
            }
        }
    }
    Ok(Prediction::new(hosts, each))
}

/// The matrix for a person.
fn text_of(matrix: &Matrix, all: bool) -> String {
    let mut text = String::from(
        "rows: where registers were saved; columns: where they were set.\n\
         refused / there but not saved / read back different; `=` as predicted, `!` not so, `?` nothing was predicted\n",
    );
    let mut tables: Vec<(bool, Shape)> = matrix.cells.iter().map(|c| (c.filled, c.shape)).collect();
    tables.sort_unstable();
    tables.dedup();
    for (filled, shape) in tables {
        text += &table(matrix, shape, filled);
    }
    text += "\n";
    let (mut agree, mut measured) = (0, 0);
    for cell in &matrix.cells {
        if let Some(against) = &cell.against {
            measured += cell.pairs.len();
            agree += if against.agrees() { cell.pairs.len() } else { 0 };
        }
        text += &differences(matrix, cell, all);
    }
    for host in &matrix.hosts {
        text += &format!("{}: {}", host.name, gic(&host.gic));
    }
    text + &format!("{agree} of {measured} cells are as predicted\n")
}

fn short(name: &str) -> &str {
    name.trim_start_matches("debian-").trim_end_matches("-arm64")
}

fn table(matrix: &Matrix, shape: Shape, filled: bool) -> String {
    let width = 12;
    let mut text = format!(
        "\n{}{}\n{:>9}",
        shape.name(),
        if filled { ", filled before they were saved" } else { ", as KVM made them" },
        ""
    );
    for host in &matrix.hosts {
        text += &format!("{:>width$}", short(&host.name));
    }
    text += "\n";
    for (from, host) in matrix.hosts.iter().enumerate() {
        text += &format!("{:>9}", short(&host.name));
        for to in 0..matrix.hosts.len() {
            let cell = matrix.cell(shape, filled, (from as u16, to as u16));
            text += &format!("{:>width$}", cell.map_or("-".to_owned(), counts));
        }
        text += "\n";
    }
    text
}

fn counts(cell: &Cell) -> String {
    if cell.failed.is_some() {
        return "failed".to_owned();
    }
    let mark = match &cell.against {
        None => "?",
        Some(against) if against.agrees() => "=",
        Some(_) => "!",
    };
    format!("{}/{}/{}{mark}", cell.refused.len(), cell.unsaved.len(), cell.altered.len())
}

/// What became of registers in the pairs of a cell: with `all` every one, else those that were predicted otherwise.
fn differences(matrix: &Matrix, cell: &Cell, all: bool) -> String {
    let (from, to) = cell.pairs[0];
    let host = |i: u16| matrix.hosts.get(usize::from(i)).map_or("?", |h| short(&h.name));
    let more = if cell.pairs.len() > 1 {
        format!(" and {} pairs more", cell.pairs.len() - 1)
    } else {
        String::new()
    };
    let title = format!(
        "{}{}: {} to {}{more}\n",
        cell.shape.name(),
        if cell.filled { ", filled" } else { "" },
        host(from),
        host(to)
    );
    let mut text = String::new();
    if let Some(why) = &cell.failed {
        text += &format!("  no vCPU: {why}\n");
    }
    if all {
        for r in &cell.refused {
            let listed = if r.listed { "" } else { ", not listed there" };
            text += &format!("  {:<44} {}{listed}\n", name(r.id.0), r.errno);
        }
        for a in &cell.altered {
            let now = a.now.as_ref().map_or("unreadable".to_owned(), |v| v.to_string());
            text += &format!("  {:<44} {} became {now}\n", name(a.id.0), a.saved);
        }
        for id in &cell.settled {
            text += &format!("  {:<44} right only once others were set\n", name(id.0));
        }
        for id in &cell.unsaved {
            text += &format!("  {:<44} there, and not saved\n", name(id.0));
        }
    }
    if let Some(Against { refused, unsaved, altered }) = &cell.against {
        for (what, versus) in [("refused", refused), ("not saved", unsaved), ("altered", altered)] {
            for id in &versus.only_predicted {
                text += &format!("  {:<44} was predicted to be {what}, and is not\n", name(id.0));
            }
            for id in &versus.only_measured {
                text += &format!("  {:<44} is {what}, and that was not predicted\n", name(id.0));
            }
        }
    }
    if text.is_empty() { text } else { title + &text }
}
