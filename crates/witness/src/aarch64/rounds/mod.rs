//! Rounds: the witness's guest is stopped in a state that is hard to save, saved, restored into a fresh VM, and asked
//! whether it noticed.
//!
//! [`keep`] makes the machine of a [`Trial`], brings it into its [`Scenario`] and saves it; [`take`], there or on another host,
//! restores it (what is read back is compared), saves that again, restores the second image into a third VM and saves a
//! third time. Then the guest goes on
//! in the second VM: whatever was pending must arrive, once, and everything that it can look at must be as it was.

mod edges;
mod faults;
mod kept;
mod scenarios;
mod vm;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use evenkeel_monitor::Error as MonitorError;
use evenkeel_monitor::aarch64::Shape;
use evenkeel_state::{Became, Elapsed, Image, Noting, Owner, Refused, Report, arm64, compare};
use evenkeel_surface::Hex64;
use evenkeel_sys::{Backend, Deadline, System};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error as WitnessError;
use crate::aarch64::programs::{Look, look, looks};
use crate::aarch64::session::Session;
use crate::observation::Saw;

pub use edges::{Turned, turn_edges};
pub use faults::{Spoilt, spoil};
pub use kept::{Kept, MAX_BYTES};
pub use scenarios::Scenario;
pub use vm::{Copied, Revived, parts, revive, revive_in};

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial {
    /// What the vCPUs are made with.
    pub shape: Shape,
    /// How many there are.
    pub vcpus: u64,
    /// What the guest is stopped in.
    pub scenario: Scenario,
}

/// What became of a trial. Every list is empty where all is well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Told {
    /// The scenario's name.
    pub scenario: String,
    /// The shape's name.
    pub shape: String,
    /// How many vCPUs.
    pub vcpus: u64,
    /// Why it was not tried: the host lacks what it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacking: Option<String>,
    /// Items of state in the image.
    pub items: usize,
    /// Parts of them that were kept, that run, and that are implied by others.
    pub parts: [u32; 3],
    /// Parts that were not kept.
    pub not_kept: Vec<String>,
    /// Parts that are in the new VM and were not saved.
    pub unsaved: Vec<String>,
    /// Of the first vCPU and the VM: registers that were refused, that are altered, and that are there and were not saved.
    pub registers: [BTreeSet<String>; 3],
    /// Parts of the interrupt controllers, events and run state among those that were not kept.
    pub others: usize,
    /// Where the image saved from the restored VM differs from the first.
    pub second: Vec<String>,
    /// Where the third differs from the second.
    pub third: Vec<String>,
    /// What the scenario's guest met otherwise than it should.
    pub met: Vec<String>,
    /// What the guest saw otherwise than before.
    pub seen: Vec<String>,
    /// How much it looked at.
    pub looked: usize,
    /// Microseconds that saving and restoring took.
    pub took_us: [u64; 2],
}

impl Told {
    /// Of a trial of which nothing is known yet.
    fn of(trial: Trial) -> Told {
        Told {
            scenario: trial.scenario.name().to_owned(),
            shape: trial.shape.name().to_owned(),
            vcpus: trial.vcpus,
            ..Told::default()
        }
    }

    /// Nothing was lost and nobody noticed.
    pub fn good(&self) -> bool {
        let lists = [&self.not_kept, &self.unsaved, &self.second, &self.third, &self.met, &self.seen];
        lists.into_iter().all(Vec::is_empty)
    }
}

/// Why a trial came to no end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guest.
    #[error(transparent)]
    Witness(#[from] WitnessError),
    /// Saving or restoring.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl From<MonitorError> for Error {
    fn from(error: MonitorError) -> Error {
        Error::Witness(error.into())
    }
}

impl From<evenkeel_sys::Error> for Error {
    fn from(error: evenkeel_sys::Error) -> Error {
        Error::Witness(error.into())
    }
}

impl From<evenkeel_sys::Outside> for Error {
    fn from(error: evenkeel_sys::Outside) -> Error {
        Error::Witness(error.into())
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Tries it on one host.
///
/// # Errors
/// There is no such machine, the guest is lost, or saving or restoring is refused.
pub fn go(backend: &dyn Backend, image: &[u8], trial: Trial) -> Result<Told, Error> {
    match keep(backend, image, trial)? {
        Ok(kept) => take(backend, &kept),
        Err(lacking) => Ok(Told { lacking: Some(lacking), ..Told::of(trial) }),
    }
}

/// Brings a guest into its scenario, and saves it; or says what the host lacks for that.
///
/// # Errors
/// As [`go`].
pub fn keep(backend: &dyn Backend, image: &[u8], trial: Trial) -> Result<Result<Kept, String>, Error> {
    let noting = Noting::new(backend);
    let system = System::open(&noting)?;
    let deadline = Deadline::new();
    let machine = match scenarios::machine(&system, image, trial)? {
        Ok(machine) => machine,
        Err(lacking) => return Ok(Err(lacking)),
    };
    let mut first = Session::new(&machine, 0, &deadline)?;
    first.start()?;
    scenarios::prepare(&mut first)?;
    let mut others = scenarios::bring_up(&machine, &mut first, &deadline, trial)?;
    let looks: Vec<Look> = looks();
    // The first time leaves traces: a register selected, a frame written.
    look(&mut first, &looks)?;
    let before = look(&mut first, &looks)?;
    let left = scenarios::stop(trial.scenario, &machine, &mut first)?;

    let begin = Instant::now();
    let manifest = noting.manifest(0).unwrap_or_default();
    let mut runners = vec![first.runner()];
    runners.extend(others.iter_mut().map(Session::runner));
    let saved = arm64::save(&mut parts(&machine, runners), &manifest)?;
    let took_us = micros(begin);
    let memory = Copied::of(&noting.memory(0))?;
    Ok(Ok(Kept { trial, image: saved.image, memory, seen: before.seen, took_us, left }))
}

/// Restores what was kept, here or on another host, and lets the guest go on.
///
/// # Errors
/// As [`go`].
pub fn take(backend: &dyn Backend, kept: &Kept) -> Result<Told, Error> {
    let trial = kept.trial;
    let mut told = Told { items: kept.image.items.len(), ..Told::of(trial) };
    let system = System::open(backend)?;
    let deadline = Deadline::new();
    let begin = Instant::now();
    let (revived, report) = revive(&system, &kept.image, &kept.memory)?;
    told.took_us = [kept.took_us, micros(begin)];
    tell(&mut told, &report);

    let again = arm64::save(&mut parts(&revived.machine, Vec::new()), &kept.image.manifest)?;
    told.second = differences(&kept.image, &again.image, begin);
    {
        let memory = Copied::of(&[(revived.slot, revived.machine.ram().clone())])?;
        let (third, _) = revive(&system, &again.image, &memory)?;
        let third = arm64::save(&mut parts(&third.machine, Vec::new()), &again.image.manifest)?;
        told.third = differences(&again.image, &third.image, begin);
    }

    let mut session = Session::new(&revived.machine, 0, &deadline)?;
    told.met = scenarios::check(trial.scenario, &revived.machine, &mut session, &kept.left)?;
    let after = look(&mut session, &looks())?;
    told.looked = after.seen.len();
    told.seen = differing(&kept.seen, &after.seen, trial.scenario);
    told.seen.extend(scenarios::others_go_on(&revived.machine, &deadline, trial)?);
    Ok(told)
}

fn tell(told: &mut Told, report: &Report) {
    told.parts = [report.kept, report.running, report.implied];
    told.not_kept = report.not_kept.iter().map(ToString::to_string).collect();
    let unsaved = |u: &evenkeel_state::Unsaved| format!("{}/{}/{}: {:x?}", u.owner, u.item, u.field, u.now);
    told.unsaved = report.unsaved.iter().map(unsaved).collect();
    let is_register = |owner: Owner, item: &str| {
        matches!(owner, Owner::Vm | Owner::Vcpu(0))
            && (item.ends_with("registers") || item == "arm64-counters")
    };
    for lost in &report.not_kept {
        if is_register(lost.owner, &lost.item) {
            let place = usize::from(lost.became != Became::Refused);
            told.registers[place].insert(lost.field.clone());
        } else if !lost.item.ends_with("registers") {
            told.others += 1;
        }
    }
    for there in report.unsaved.iter().filter(|u| is_register(u.owner, &u.item)) {
        told.registers[2].insert(there.field.clone());
    }
}

/// Where two images differ beyond what the catalog's rules allow, in the time since the first was saved.
fn differences(before: &Image, after: &Image, since: Instant) -> Vec<String> {
    let elapsed = Elapsed::of(since.elapsed());
    compare(before, after, elapsed).iter().map(ToString::to_string).collect()
}

/// What was seen without what the architecture leaves open: bit 2 of a timer's control (its condition is met) is unknown
/// while the timer is off.
fn known(name: &str, saw: Option<&Saw>) -> Option<Saw> {
    match saw {
        Some(Saw::Value(Hex64(value))) if name.ends_with("-ctl-el0") && value & 1 == 0 => {
            Some(Saw::Value(Hex64(value & !4)))
        }
        saw => saw.cloned(),
    }
}

/// What was seen otherwise.
fn differing(
    before: &BTreeMap<String, Saw>,
    after: &BTreeMap<String, Saw>,
    scenario: Scenario,
) -> Vec<String> {
    let names = before.keys().chain(after.keys()).collect::<BTreeSet<_>>();
    names
        .into_iter()
        .filter(|name| {
            let differs = known(name, before.get(*name)) != known(name, after.get(*name));
            differs && !scenario.changes(name)
        })
        .map(|name| format!("{name}: {:?} before, {:?} after", before.get(name), after.get(name)))
        .collect()
}
