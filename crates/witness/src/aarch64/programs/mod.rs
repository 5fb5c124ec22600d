//! What to ask on arm64, and what the answers mean.
//!
//! Most of it is a table of [`Look`]s, asked three times: of the first vCPU, of the second, which PSCI brings up, and of
//! the first again after a reset that the guest asked for. The second and third time only what differs is recorded, behind
//! `@vcpu1` and `@reset`. What a guest without a PMU sees of PMU registers comes from a machine of its own (`@min`).

mod choices;
mod gic;
mod instructions;
mod registers;
mod smccc;

pub(crate) use choices::derive;
pub(crate) use smccc::CPU_ON;

use std::collections::BTreeMap;
use std::time::Instant;

use evenkeel_monitor::aarch64::{Configure, ForVcpu, Machine, Shape};
use evenkeel_surface::{Arch, Hex64};
use evenkeel_sys::{Deadline, System};

use crate::Error;
use crate::aarch64::abi;
use crate::aarch64::probe::{ISB, Outcome, Probe};
use crate::aarch64::session::{Session, area, load};
use crate::observation::{Observation, Record, Saw, Volatile};

/// One thing to look at.
#[derive(Clone, Debug)]
pub struct Look {
    /// What it is called.
    pub name: String,
    /// How to look.
    pub probe: Probe,
    /// What of the result is meant.
    pub take: Take,
}

/// What of a result is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// The value in X0.
    Value,
    /// X0 to X3, each with a name of its own: `.x1` and so on.
    Four,
    /// Whether it can be done.
    Whether,
    /// The value in X0, which runs by itself or is random; and whether it can be read.
    Running,
    /// The answer of a call: the failures of SMCCC are values, what else comes is only an answer.
    Answer,
}

impl Look {
    fn new(name: impl Into<String>, probe: Probe, take: Take) -> Look {
        Look { name: name.into(), probe, take }
    }
}

/// All of them, in the order in which they are asked.
pub fn looks() -> Vec<Look> {
    let mut all = registers::looks();
    all.extend(instructions::looks());
    all.extend(gic::looks());
    all.extend(smccc::looks());
    all
}

/// What was seen of a list of looks: what stays, and what runs.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) seen: BTreeMap<String, Saw>,
    running: BTreeMap<String, Saw>,
    pub(crate) silent: Vec<String>,
}

pub(crate) fn look(session: &mut Session<'_, '_, '_>, looks: &[Look]) -> Result<View, Error> {
    let probes: Vec<Probe> = looks.iter().map(|look| look.probe.clone()).collect();
    let outcomes = session.ask(&probes)?;
    let mut view = View::default();
    for (look, outcome) in looks.iter().zip(&outcomes) {
        take(look, outcome, &mut view);
    }
    Ok(view)
}

fn take(look: &Look, outcome: &Outcome, view: &mut View) {
    let (Some(plain), Some(value)) = (outcome.plain(), outcome.saw(0)) else {
        view.silent.push(look.name.clone());
        return;
    };
    let saw = match look.take {
        Take::Value => value,
        Take::Whether => plain,
        Take::Running => {
            if let Saw::Value(_) = value {
                view.running.insert(look.name.clone(), value);
            }
            plain
        }
        Take::Answer => match value {
            // -1 to -4: not supported, not required, invalid.
            Saw::Value(Hex64(number)) if number as i32 >= 0 || (number as i32) < -4 => {
                view.running.insert(look.name.clone(), value);
                Saw::Executes
            }
            _ => value,
        },
        Take::Four => {
            if let Some(registers) = outcome.registers() {
                for (n, register) in registers.iter().enumerate().take(4).skip(1) {
                    view.seen.insert(format!("{}.x{n}", look.name), Saw::Value(Hex64(*register)));
                }
            }
            value
        }
    };
    view.seen.insert(look.name.clone(), saw);
}

/// Records what another look saw otherwise.
fn differing(record: &mut Record, first: &View, other: View, mark: &str) {
    for (name, saw) in other.seen {
        if first.seen.get(&name) != Some(&saw) {
            record.saw(format!("{name}@{mark}"), saw);
        }
    }
    for name in other.silent {
        record.unasked(format!("{name}@{mark}"), SILENT);
    }
}

const SILENT: &str = "the guest wrote no result";

/// Looks at everything, in a machine of this shape.
///
/// # Errors
/// There is no such machine, or the guest does not come to its end.
pub fn observe(
    system: &System<'_>,
    image: &[u8],
    shape: Shape,
    configure: &Configure<'_>,
    volatile: Volatile,
) -> Result<Observation, Error> {
    let start = Instant::now();
    let mut record = Record::default();
    let deadline = Deadline::new();
    let machine = Machine::new(system, shape, abi::MEMORY, 2, configure)?;
    load(machine.ram(), image)?;
    let mut session = Session::new(&machine, 0, &deadline)?;
    session.at_reset = configure.reset;
    session.start()?;
    // The plainest thing that a guest can do: its first KVM_RUN.
    session.one(Probe::new(&[ISB]))?;
    (configure.ran)(session.vcpu(), 0)?;
    let all: Vec<Look> =
        looks().into_iter().filter(|l| machine.no_gic.is_none() || !gic::is_frame(&l.name)).collect();
    if let Some(why) = &machine.no_gic {
        record.unasked("arm64.gicd", why);
    }
    if let Some(why) = &machine.no_its {
        record.unasked("arm64.gits", why);
    }

    let first = look(&mut session, &all)?;
    for (name, saw) in &first.seen {
        record.saw(name, saw.clone());
    }
    for (name, saw) in &first.running {
        record.runs(name, saw.clone());
    }
    for name in &first.silent {
        record.unasked(name, SILENT);
    }

    // The second vCPU. It is run only after CPU_ON said that it is on: before that, KVM_RUN waits.
    let mpidr = 1;
    let on = session.one(Probe::call(smccc::CPU_ON, &[mpidr, abi::CODE, area(1)]))?;
    let again = session.one(Probe::call(smccc::CPU_ON, &[mpidr, abi::CODE, area(1)]))?;
    for (name, outcome) in [("smccc.c4000003", &on), ("smccc.c4000003.again", &again)] {
        if let Some(saw) = outcome.saw(0) {
            record.saw(name, saw);
        }
    }
    let mut probes = 0;
    if on.registers().is_some_and(|x| x[0] == 0) {
        let mut second = Session::new(&machine, 1, &deadline)?;
        second.at_reset = configure.reset;
        second.one(Probe::new(&[ISB]))?;
        (configure.ran)(second.vcpu(), 1)?;
        differing(&mut record, &first, look(&mut second, &all)?, "vcpu1");
        probes += second.probes;
    } else {
        record.unasked("@vcpu1", "CPU_ON did not bring it up");
    }

    if let Some(make) = configure.vcpu {
        later(&machine, make, &mut record)?;
    }

    // What ends the guest; the host resets it each time, as a VMM does, so that the last look is one after a reset.
    for look in smccc::endings() {
        let outcome = session.one(look.probe.clone())?;
        let mut view = View::default();
        take(&look, &outcome, &mut view);
        for (name, saw) in view.seen {
            record.saw(name, saw);
        }
    }
    differing(&mut record, &first, look(&mut session, &all)?, "reset");
    probes += session.probes;

    // A configuration is for one shape.
    if shape != Shape::Min && configure.vcpu.is_some() {
        record.unasked("@min", "the guest's configuration is for another shape");
    } else if shape != Shape::Min {
        let machine = Machine::new(system, Shape::Min, abi::MEMORY, 2, configure)?;
        load(machine.ram(), image)?;
        let mut session = Session::new(&machine, 0, &deadline)?;
        session.start()?;
        let monitors: Vec<Look> = all.iter().filter(|l| registers::is_pmu(&l.name)).cloned().collect();
        for (name, saw) in look(&mut session, &monitors)?.seen {
            record.saw(format!("{name}@min"), saw);
        }
        probes += session.probes;
    }
    derive(&mut record, shape.name());
    record.probes = probes;
    let took_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(record.finish(Arch::Aarch64, shape.name(), Volatile { took_ms, ..volatile }))
}

/// A vCPU that is made when the guest has been running for a while. Only where there is no GIC will a kernel make one;
/// then it is configured like the others, and does not run.
fn later(machine: &Machine<'_, '_>, make: &ForVcpu<'_>, record: &mut Record) -> Result<(), Error> {
    match machine.another(LATE) {
        Ok(vcpu) => {
            make(&vcpu, LATE)?;
            record.unasked("@late", "it is configured and read back, and nothing starts it");
        }
        Err(why) => record.unasked("@late", format!("no vCPU is made once the GIC is ready: {why}")),
    }
    Ok(())
}

/// The number of a vCPU that is made later.
const LATE: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_probes_fit() {
        let mut names = std::collections::BTreeSet::new();
        for look in looks().into_iter().chain(smccc::endings()) {
            assert!(look.probe.code.len() < abi::CODE_MOST, "{}", look.name);
            assert!(!look.probe.code.is_empty(), "{}", look.name);
            assert!(names.insert(look.name.clone()), "{} twice", look.name);
        }
        assert!(names.len() < abi::BATCH / 2, "{} need more than one batch", names.len());
        assert!(names.contains("arm64.id-aa64pfr0-el1") && names.contains("arm64.ccsidr-el1.0"));
    }

    #[test]
    fn answers_that_say_no_are_values_and_others_run() {
        let mut view = View::default();
        let ask = Look::new("smccc.86000001", Probe::call(0x8600_0001, &[]), Take::Answer);
        take(&ask, &Outcome::Returned([u64::MAX, 0, 0, 0, 0, 0]), &mut view);
        assert_eq!(view.seen["smccc.86000001"], Saw::Value(Hex64(u64::MAX)));
        take(&ask, &Outcome::Returned([0x18ea_a0d8, 1, 0, 0, 0, 0]), &mut view);
        assert_eq!(view.seen["smccc.86000001"], Saw::Executes);
        assert_eq!(view.running["smccc.86000001"], Saw::Value(Hex64(0x18ea_a0d8)));
        take(&ask, &Outcome::Silent, &mut view);
        assert_eq!(view.silent, ["smccc.86000001"]);
    }
}
