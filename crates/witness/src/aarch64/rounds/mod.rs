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

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use evenkeel_monitor::aarch64::{Configure, Shape};
use evenkeel_state::{Became, Elapsed, Image, Noting, Owner, Report, arm64, compare};
use evenkeel_surface::{Arch, Hex64};
use evenkeel_sys::{Backend, Deadline, System};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::aarch64::programs::{derive, look, looks};
use crate::aarch64::session::Session;
use crate::compare::compare as observed;
use crate::moved::Taken;
use crate::observation::{Observation, Record, Saw, Volatile};

pub use crate::moved::MoveError as Error;
pub use edges::{Turned, turn_edges};
pub use faults::{Spoilt, spoil};
pub use kept::Kept;
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

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

/// Tries it on one host.
///
/// # Errors
/// There is no such machine, the guest is lost, or saving or restoring is refused.
pub fn go(backend: &dyn Backend, image: &[u8], trial: Trial) -> Result<Told, Error> {
    let kept = match keep(&Noting::new(backend), image, trial, &Configure::default()) {
        Ok(kept) => kept,
        Err(Error::Lacking(lacking)) => return Ok(Told { lacking: Some(lacking), ..Told::of(trial) }),
        Err(error) => return Err(error),
    };
    let begin = Instant::now();
    let taken = take(backend, &kept)?;
    let mut told = Told { items: kept.saved.image.items.len(), ..Told::of(trial) };
    told.took_us = [micros(kept.took), micros(taken.took)];
    tell(&mut told, &taken.report);
    told.second = differences(&kept.saved.image, &taken.image, begin);
    told.third = taken.third.iter().map(ToString::to_string).collect();
    told.met = taken.met;
    told.looked = taken.seen.seen.len();
    told.seen = differing(&kept.seen, &taken.seen);
    Ok(told)
}

/// Brings a guest into its scenario, and saves it.
///
/// # Errors
/// As [`go`]; or the host lacks what the scenario takes.
pub fn keep(
    noting: &Noting<'_>,
    image: &[u8],
    trial: Trial,
    configure: &Configure<'_>,
) -> Result<Kept, Error> {
    let system = System::open(noting)?;
    let deadline = Deadline::new();
    let machine = scenarios::machine(&system, image, trial, configure)?;
    let mut first = Session::new(&machine, 0, &deadline)?;
    first.start()?;
    scenarios::prepare(&mut first)?;
    let mut others = scenarios::bring_up(&machine, &mut first, &deadline, trial)?;
    // The first time leaves traces: a register selected, a frame written.
    look(&mut first, &looks())?;
    let seen = observe(&mut first, trial)?;
    let left = scenarios::stop(trial.scenario, &machine, &mut first)?;
    let early = Some(Copied::of(&noting.memory(0))?);

    let begin = Instant::now();
    let manifest = noting.manifest(0).unwrap_or_default();
    let mut runners = vec![first.runner()];
    runners.extend(others.iter_mut().map(Session::runner));
    let saved = arm64::save(&mut parts(&machine, runners), &manifest)?;
    let took = begin.elapsed();
    let memory = Copied::of(&noting.memory(0))?;
    Ok(Kept { trial, saved, memory, early, seen, took, left })
}

/// Restores what was kept, here or on another host, and lets the guest go on.
///
/// # Errors
/// As [`go`].
pub fn take(backend: &dyn Backend, kept: &Kept) -> Result<Taken, Error> {
    let (trial, first) = (kept.trial, &kept.saved.image);
    let system = System::open(backend)?;
    let deadline = Deadline::new();
    let begin = Instant::now();
    let (revived, report) = revive(&system, first, &kept.memory)?;
    let took = begin.elapsed();

    let image = arm64::save(&mut parts(&revived.machine, Vec::new()), &first.manifest)?.image;
    let third = {
        let memory = Copied::of(&[(revived.slot, revived.machine.ram().clone())])?;
        let (third, _) = revive(&system, &image, &memory)?;
        let third = arm64::save(&mut parts(&third.machine, Vec::new()), &image.manifest)?;
        compare(&image, &third.image, Elapsed::of(begin.elapsed()))
    };

    let mut session = Session::new(&revived.machine, 0, &deadline)?;
    let mut met = scenarios::check(trial.scenario, &revived.machine, &mut session, &kept.left)?;
    let seen = observe(&mut session, trial)?;
    met.extend(scenarios::others_go_on(&revived.machine, &deadline, trial)?);
    Ok(Taken { report, third, met, seen, image, took })
}

/// What the guest sees that stays the same, but for what its scenario changes.
fn observe(session: &mut Session<'_, '_, '_>, trial: Trial) -> Result<Observation, Error> {
    let mut record = Record::default();
    for (name, saw) in look(session, &looks())?.seen {
        if !trial.scenario.changes(&name) {
            let saw = known(&name, saw);
            record.saw(name, saw);
        }
    }
    derive(&mut record, trial.shape.name());
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    Ok(record.finish(Arch::Aarch64, trial.shape.name(), Volatile { kernel, ..Volatile::default() }))
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
fn known(name: &str, saw: Saw) -> Saw {
    match saw {
        Saw::Value(Hex64(value)) if name.ends_with("-ctl-el0") && value & 1 == 0 => {
            Saw::Value(Hex64(value & !4))
        }
        saw => saw,
    }
}

/// What was seen otherwise.
fn differing(before: &Observation, after: &Observation) -> Vec<String> {
    let compared = observed(before, after);
    let differences = compared.differences.iter().chain(&compared.undetermined);
    differences.map(|d| format!("{}: {} before, {} after", d.name, d.before, d.after)).collect()
}
