//! Many hosts' reports as one matrix: the registers of each host on every host, beside what was predicted.
//!
//! Cells that are alike are written once, with the pairs of hosts that they are of. No value that runs is in it, so the
//! same kernels give the same bytes.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_surface::{Arch, Hex64};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::document::{Became, LoadReport, Loaded, parse};
use super::error::Malformed;
use super::gic::GicRevisions;
use super::shape::Shape;
use super::value::Value;

/// The schema name of a [`Matrix`].
pub const SCHEMA: &str = "evenkeel.registers-matrix/1";
/// The schema name of a [`Prediction`].
pub const PREDICTION_SCHEMA: &str = "evenkeel.registers-predicted/1";

/// A host from which registers go, and one that they come to: places in the list of hosts.
pub type Pair = (u16, u16);

/// What became of the registers of each host on every host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Matrix {
    /// [`SCHEMA`].
    pub schema: String,
    /// The architecture.
    pub arch: Arch,
    /// The digest of the [`Prediction`], which was written before anything was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<String>,
    /// The hosts.
    pub hosts: Vec<MatrixHost>,
    /// The cells, those that are alike together.
    pub cells: Vec<Cell>,
}

/// A host of the matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MatrixHost {
    /// What it is called.
    pub name: String,
    /// `uname -r`.
    pub kernel: String,
    /// The revisions of its interrupt controller.
    pub gic: GicRevisions,
}

/// What became of the registers of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// What the vCPU was made with.
    pub shape: Shape,
    /// Its registers were given other values than KVM's own before they were saved.
    pub filled: bool,
    /// From which host to which.
    pub pairs: Vec<Pair>,
    /// Why no such vCPU could be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// Registers whose set failed, by id.
    pub refused: Vec<Refused>,
    /// Registers that the other host lists and that were not saved, by id.
    pub unsaved: Vec<Hex64>,
    /// Registers whose set succeeded, and which hold another value, by id.
    pub altered: Vec<Altered>,
    /// Registers that read back different at first and hold the saved value now that others were set, by id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settled: Vec<Hex64>,
    /// What was predicted otherwise; absent where nothing was predicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<Against>,
}

/// A register whose set failed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    /// The ONE_REG id.
    pub id: Hex64,
    /// The errno.
    pub errno: String,
    /// Whether the other host lists it.
    pub listed: bool,
}

/// A register whose set succeeded, and which holds another value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Altered {
    /// The ONE_REG id.
    pub id: Hex64,
    /// The saved value.
    pub saved: Value,
    /// The value that was read back; absent when it could not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<Value>,
    /// It was kept when it was set, and changed when others were.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub later: bool,
}

/// Prediction against measurement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Against {
    /// Of the registers that are refused.
    pub refused: Versus,
    /// Of those that are here and were not saved.
    pub unsaved: Versus,
    /// Of those that hold another value.
    pub altered: Versus,
}

impl Against {
    /// Nothing was predicted otherwise.
    pub fn agrees(&self) -> bool {
        [&self.refused, &self.unsaved, &self.altered].into_iter().all(Versus::agrees)
    }
}

/// Two sets of registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Versus {
    /// How many are in both.
    pub agreed: u32,
    /// Predicted, and not measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only_predicted: Vec<Hex64>,
    /// Measured, and not predicted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only_measured: Vec<Hex64>,
}

impl Versus {
    /// Nothing is in one of them alone.
    pub fn agrees(&self) -> bool {
        self.only_predicted.is_empty() && self.only_measured.is_empty()
    }

    fn of(predicted: &BTreeSet<u64>, measured: &BTreeSet<u64>) -> Versus {
        let only = |a: &BTreeSet<u64>, b: &BTreeSet<u64>| a.difference(b).copied().map(Hex64).collect();
        Versus {
            agreed: predicted.intersection(measured).count() as u32,
            only_predicted: only(predicted, measured),
            only_measured: only(measured, predicted),
        }
    }
}

/// What is predicted of the registers of each host on every host, from captures. Says nothing of filled registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Prediction {
    /// [`PREDICTION_SCHEMA`].
    pub schema: String,
    /// The hosts, with the digests of the captures that were asked.
    pub hosts: Vec<PredictedHost>,
    /// The cells, those that are alike together.
    pub cells: Vec<PredictedCell>,
}

/// A host that was captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PredictedHost {
    /// What it is called.
    pub name: String,
    /// The digest of what its capture says it offers; absent when there is no capture, and nothing is predicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offer: Option<String>,
}

/// What is predicted of the registers of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PredictedCell {
    /// What the vCPU is made with.
    pub shape: Shape,
    /// From which host to which.
    pub pairs: Vec<Pair>,
    /// What becomes of its registers.
    #[serde(flatten)]
    pub sets: Sets,
}

/// Registers that are not kept, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Sets {
    /// Those whose set fails.
    pub refused: BTreeSet<Hex64>,
    /// Those that the other host lists and that are not saved.
    pub unsaved: BTreeSet<Hex64>,
    /// Those whose set succeeds, and which hold another value.
    pub altered: BTreeSet<Hex64>,
}

impl Prediction {
    /// Puts predictions together.
    pub fn new(hosts: Vec<PredictedHost>, each: Vec<(Shape, Pair, Sets)>) -> Prediction {
        let mut alike: BTreeMap<(Shape, Sets), Vec<Pair>> = BTreeMap::new();
        for (shape, pair, sets) in each {
            alike.entry((shape, sets)).or_default().push(pair);
        }
        let cell = |((shape, sets), pairs): ((Shape, Sets), Vec<Pair>)| PredictedCell { shape, pairs, sets };
        let mut cells: Vec<PredictedCell> = alike.into_iter().map(cell).collect();
        cells.sort_by_key(|c| (c.shape, c.pairs.first().copied()));
        Prediction { schema: PREDICTION_SCHEMA.to_owned(), hosts, cells }
    }

    /// What was predicted for one pair.
    pub fn of(&self, shape: Shape, pair: Pair) -> Option<&Sets> {
        self.cells.iter().find(|c| c.shape == shape && c.pairs.contains(&pair)).map(|c| &c.sets)
    }
}

impl Matrix {
    /// Puts the reports of hosts together, each with the host's name. The files that a report speaks of are called after
    /// the hosts that saved them (`NAME.json`); those of hosts without a report are left out. A prediction comes with its
    /// digest, and is of the same hosts in the same order.
    pub fn new(reports: &[(String, LoadReport)], prediction: Option<(&Prediction, String)>) -> Matrix {
        let place = |name: &str| reports.iter().position(|(n, _)| n == name).map(|i| i as u16);
        let mut cells: Vec<Cell> = Vec::new();
        for (to, (_, report)) in reports.iter().enumerate() {
            for load in &report.loads {
                let Some(from) = load.file.strip_suffix(".json").and_then(place) else { continue };
                let pair = (from, to as u16);
                let mut cell = match &load.loaded {
                    Some(loaded) => cell_of(loaded),
                    None => Cell { failed: load.failed.clone(), ..empty(load.shape) },
                };
                let sets = prediction.as_ref().filter(|_| !cell.filled && cell.failed.is_none());
                cell.against =
                    sets.and_then(|(p, _)| p.of(load.shape, pair)).map(|sets| against(&cell, sets));
                match cells.iter_mut().find(|c| alike(c, &cell)) {
                    Some(known) => known.pairs.push(pair),
                    None => cells.push(Cell { pairs: vec![pair], ..cell }),
                }
            }
        }
        for cell in &mut cells {
            cell.pairs.sort_unstable();
        }
        cells.sort_by_key(|c| (c.filled, c.shape, c.pairs.first().copied()));
        let host = |(name, report): &(String, LoadReport)| MatrixHost {
            name: name.clone(),
            kernel: report.kernel.clone(),
            gic: report.gic.clone(),
        };
        Matrix {
            schema: SCHEMA.to_owned(),
            arch: Arch::Aarch64,
            predicted: prediction.map(|(_, digest)| digest),
            hosts: reports.iter().map(host).collect(),
            cells,
        }
    }

    /// The cell of one pair.
    pub fn cell(&self, shape: Shape, filled: bool, pair: Pair) -> Option<&Cell> {
        self.cells.iter().find(|c| c.shape == shape && c.filled == filled && c.pairs.contains(&pair))
    }

    /// The place of a host.
    pub fn host(&self, name: &str) -> Option<u16> {
        self.hosts.iter().position(|h| h.name == name).map(|i| i as u16)
    }
}

/// Reads a matrix.
///
/// # Errors
/// It is too long, no JSON, another document, or a pair names a host that is not there.
pub fn parse_matrix(bytes: &[u8]) -> Result<Matrix, Malformed> {
    let matrix: Matrix = parse(bytes, SCHEMA)?;
    let hosts = matrix.hosts.len();
    for (from, to) in matrix.cells.iter().flat_map(|c| &c.pairs) {
        if usize::from(*from.max(to)) >= hosts {
            return Err(Malformed(format!("a cell from {from} to {to}, and there are {hosts} hosts")));
        }
    }
    Ok(matrix)
}

fn empty(shape: Shape) -> Cell {
    Cell {
        shape,
        filled: false,
        pairs: Vec::new(),
        failed: None,
        refused: Vec::new(),
        unsaved: Vec::new(),
        altered: Vec::new(),
        settled: Vec::new(),
        against: None,
    }
}

fn alike(a: &Cell, b: &Cell) -> bool {
    let all = |c: &Cell| (c.shape, c.filled);
    all(a) == all(b)
        && a.failed == b.failed
        && a.refused == b.refused
        && a.unsaved == b.unsaved
        && a.altered == b.altered
        && a.settled == b.settled
        && a.against == b.against
}

fn cell_of(loaded: &Loaded) -> Cell {
    let mut cell = Cell { filled: loaded.filled, ..empty(loaded.shape) };
    for n in &loaded.not_kept {
        if n.became.is_refusal() {
            let errno = n.errno.clone().unwrap_or_default();
            cell.refused.push(Refused { id: n.id, errno, listed: n.became == Became::Refused });
        } else if let Some(saved) = n.saved.clone() {
            cell.altered.push(Altered { id: n.id, saved, now: n.now.clone(), later: false });
        }
    }
    cell.altered.extend(loaded.overwritten.iter().map(|o| Altered {
        id: o.id,
        saved: o.saved.clone(),
        now: Some(o.now.clone()),
        later: true,
    }));
    cell.refused.sort();
    cell.altered.sort();
    cell.settled.clone_from(&loaded.settled);
    cell.unsaved.extend(&loaded.unsaved);
    cell.unsaved.sort();
    cell
}

fn against(cell: &Cell, predicted: &Sets) -> Against {
    let numbers = |set: &BTreeSet<Hex64>| set.iter().map(|id| id.0).collect();
    Against {
        refused: Versus::of(&numbers(&predicted.refused), &cell.refused.iter().map(|r| r.id.0).collect()),
        unsaved: Versus::of(&numbers(&predicted.unsaved), &cell.unsaved.iter().map(|id| id.0).collect()),
        altered: Versus::of(&numbers(&predicted.altered), &cell.altered.iter().map(|a| a.id.0).collect()),
    }
}
