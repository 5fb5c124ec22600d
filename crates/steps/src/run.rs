//! Carries a step out.

use std::collections::BTreeMap;

use evenkeel_contract::Coord;
use evenkeel_contract::coord::Table;
use evenkeel_contract::describe::{coordinate, parts};
use evenkeel_contract::layout::{index_of, layout};
use evenkeel_sys::Error;

use crate::outcome::{Difference, Outcome, StepReport, stage_name};
use crate::seen::{Place, Seen};
use crate::step::{Expect, Facet, Step, Target, choice};

/// What failed while setting: the place, where the failure is one item's, and the error.
type Failures = Vec<(Option<Place>, Error)>;

/// Makes a step's ioctls, looks at what they did, and reports. What was seen comes back too.
pub fn run(step: &Step, target: Target<'_, '_>) -> (StepReport, Seen) {
    let mut failures = Failures::new();
    let mut calls = Vec::with_capacity(step.set.len());
    for set in &step.set {
        calls.push(set.call());
        failures.extend(set.make(target));
        // What comes after a failed ioctl would be set on something that is not what it was planned for.
        if failures.iter().any(|(place, _)| place.is_none()) {
            break;
        }
    }
    let (mut report, seen) = examine(step, target, &failures, false);
    report.calls = calls;
    (report, seen)
}

/// Looks again, without setting anything: after the guest has run.
pub fn compare(step: &Step, target: Target<'_, '_>) -> (StepReport, Seen) {
    examine(step, target, &Failures::new(), true)
}

fn examine(step: &Step, target: Target<'_, '_>, failures: &Failures, later: bool) -> (StepReport, Seen) {
    let due = || step.expect.iter().filter(|e| !(later && e.fresh));
    let mut seen = Seen::look(target, due().map(|e| e.place));
    let whole = failures.iter().find(|(place, _)| place.is_none()).map(|(_, e)| e);
    let by_place: BTreeMap<Place, &Error> =
        failures.iter().filter_map(|(place, e)| Some(((*place)?, e))).collect();
    let setter = step.set.last().map_or_else(String::new, |s| s.call());
    let mut differences = Vec::new();
    let mut kept = 0;
    let mut expected = Vec::with_capacity(step.expect.len());
    for e in due() {
        expected.push(e.place);
        let failure = by_place.get(&e.place).copied().or(whole);
        match seen.0.get(&e.place) {
            Some(Ok(got)) if (got ^ e.wanted) & e.mask == 0 => kept += 1,
            Some(Ok(got)) => differ(e, *got, failure, &setter, &mut differences),
            // A register that is not there shows what a host shows that never heard of it.
            Some(Err(error)) if is_absent(e) && missing(error) => kept += 1,
            Some(Err(error)) => differences.push(unread(e, failure.unwrap_or(error))),
            None => {
                let why = evenkeel_sys::Refusal::Nonsense("there is no such place to look at".to_owned());
                differences.push(unread(e, &Error { ioctl: "read", argument: e.facet.name(), why }));
            }
        }
    }
    expected.sort_unstable();
    for e in unexpected(step, target, &mut seen, &expected, &mut differences) {
        match seen.0.get(&e.place) {
            Some(Ok(got)) if (got ^ e.wanted) & e.mask != 0 => {
                differ(&e, *got, None, &setter, &mut differences);
            }
            Some(Err(error)) if !missing(error) => differences.push(unread(&e, error)),
            _ => {}
        }
    }
    let mut unseen = step.unseen.clone();
    if let Some(error) = whole {
        for u in unseen.drain(..) {
            differences.push(refused(&u.facet, &u.value, error));
        }
        // An ioctl that selects nothing by itself, and is needed all the same.
        if differences.is_empty() && step.expect.is_empty() && !step.may_fail {
            differences.push(refused(&format!("shape.{}", step.name), "made", error));
        }
    }
    if step.may_fail && whole.is_some() {
        differences.clear();
    }
    let worst = differences.iter().map(|d| d.outcome).max();
    let outcome = worst.unwrap_or(if unseen.is_empty() { Outcome::Kept } else { Outcome::Unseen });
    let report = StepReport {
        step: step.name.to_owned(),
        stage: stage_name(step.stage).to_owned(),
        vcpu: match target {
            Target::Vcpu(_, index) => Some(index),
            _ => None,
        },
        calls: Vec::new(),
        failed: failures.iter().map(|(_, e)| e.to_string()).collect(),
        outcome,
        kept,
        differences,
        unseen,
    };
    (report, seen)
}

/// The error says that there is no such thing, rather than that it could not be read.
fn missing(error: &Error) -> bool {
    use evenkeel_sys::{Errno, Refusal};
    error.why == Refusal::NotProcessed || matches!(error.errno(), Some(Errno::ENOENT | Errno::ENXIO))
}

/// The expectation is that the place shows nothing.
fn is_absent(e: &Expect) -> bool {
    match e.facet {
        Facet::Word(at) => e.wanted == layout(index_of(at)).absent,
        Facet::Choice(..) | Facet::Shape(_) => false,
    }
}

/// Places that show something though nobody planned for them: CPUID entries that came back and were never given, and
/// registers that are listed only now.
fn unexpected(
    step: &Step,
    target: Target<'_, '_>,
    seen: &mut Seen,
    expected: &[Place],
    differences: &mut Vec<Difference>,
) -> Vec<Expect> {
    let mut found = Vec::new();
    for place in seen.0.keys().filter(|p| expected.binary_search(p).is_err()) {
        if let Place::Cpuid(leaf, subleaf, register) = *place {
            let at = Coord::Cpuid { table: Table::Supported, leaf, subleaf, register };
            let mask = at.mask() & !layout(index_of(at)).runtime;
            found.push(Expect { place: *place, mask, wanted: 0, facet: Facet::Word(at), fresh: false });
        }
    }
    if let Some(known) = &step.relist {
        match seen.relist(target, known) {
            Ok(places) => {
                for place in places {
                    let Place::Reg(id) = place else { continue };
                    let at = Coord::Reg(id);
                    let rules = layout(index_of(at));
                    let (mask, wanted) = (!rules.runtime, rules.absent);
                    found.push(Expect { place, mask, wanted, facet: Facet::Word(at), fresh: false });
                }
            }
            Err(error) => differences.push(Difference {
                outcome: Outcome::Unread,
                ..refused("shape.registers", "listed", &error)
            }),
        }
    }
    found
}

/// Names what differs, a facet at a time.
fn differ(e: &Expect, got: u64, failure: Option<&Error>, setter: &str, differences: &mut Vec<Difference>) {
    let (outcome, call, why) = match failure {
        Some(error) => (Outcome::Refused, error.call(), error.why.to_string()),
        None if setter.is_empty() => {
            (Outcome::Altered, String::new(), "the host shows it without being asked".to_owned())
        }
        None => {
            (Outcome::Altered, setter.to_owned(), "it succeeded and something else is in force".to_owned())
        }
    };
    match e.facet {
        Facet::Word(at) => {
            for part in parts(at, index_of(at), (got ^ e.wanted) & e.mask) {
                differences.push(Difference {
                    facet: part.name.clone(),
                    title: part.title.to_owned(),
                    at: coordinate(at, &part),
                    outcome,
                    wanted: part.show(e.wanted),
                    got: Some(part.show(got)),
                    call: call.clone(),
                    why: why.clone(),
                    waived: false,
                });
            }
        }
        Facet::Choice(index, value) => {
            let facet = choice(index);
            differences.push(Difference {
                facet: facet.name.to_owned(),
                title: facet.title.to_owned(),
                at: format!("{:?}", e.place),
                outcome,
                wanted: facet.values.get(usize::from(value)).map_or("?", |v| v.name).to_owned(),
                got: Some(shown(e, got)),
                call: if call.is_empty() { selector(facet.name) } else { call },
                why,
                waived: false,
            });
        }
        Facet::Shape(_) => differences.push(Difference {
            facet: e.facet.name(),
            title: String::new(),
            at: String::new(),
            outcome,
            wanted: (e.wanted & e.mask).to_string(),
            got: Some((got & e.mask).to_string()),
            call,
            why,
            waived: false,
        }),
    }
}

/// The value of a choice that the place shows, by name where one looks like this.
fn shown(e: &Expect, got: u64) -> String {
    let Facet::Choice(index, _) = e.facet else { return String::new() };
    let facet = choice(index);
    let readings = evenkeel_catalog::READINGS.iter().filter(|r| r.choice == facet.name);
    let mut like = readings.flat_map(|r| r.shows).filter(|s| s.mask == e.mask && got & s.mask == s.reads);
    let value = like.next().and_then(|s| facet.values.iter().find(|v| v.value == s.value));
    value.map_or_else(|| format!("{:#x}", got & e.mask), |v| v.name.to_owned())
}

/// The ioctl that selects a choice's values, for a step that only looks.
fn selector(choice: &str) -> String {
    let knob = evenkeel_catalog::KNOBS.iter().find(|k| k.sets.iter().any(|s| s.choice == choice));
    knob.map_or_else(String::new, |k| match k.call {
        evenkeel_catalog::Call::EnableCap => format!("KVM_ENABLE_CAP({})", k.cap),
        evenkeel_catalog::Call::SetupMce => "KVM_X86_SETUP_MCE".to_owned(),
        evenkeel_catalog::Call::OneReg => format!("KVM_SET_ONE_REG({:#x})", k.reg),
        evenkeel_catalog::Call::Attr => format!("KVM_SET_DEVICE_ATTR(group {}, attr {:#x})", k.group, k.attr),
        evenkeel_catalog::Call::VcpuFeature => "KVM_ARM_VCPU_INIT".to_owned(),
        evenkeel_catalog::Call::VmType => "KVM_CREATE_VM".to_owned(),
    })
}

fn unread(e: &Expect, error: &Error) -> Difference {
    let wanted = match e.facet {
        Facet::Choice(index, value) => {
            choice(index).values.get(usize::from(value)).map_or("?", |v| v.name).to_owned()
        }
        _ => format!("{:#x}", e.wanted & e.mask),
    };
    Difference { outcome: Outcome::Unread, ..refused(&e.facet.name(), &wanted, error) }
}

fn refused(facet: &str, wanted: &str, error: &Error) -> Difference {
    let title = evenkeel_catalog::choice(facet).map_or("", |c| c.title).to_owned();
    Difference {
        facet: facet.to_owned(),
        title,
        at: String::new(),
        outcome: Outcome::Refused,
        wanted: wanted.to_owned(),
        got: None,
        call: error.call(),
        why: error.why.to_string(),
        waived: false,
    }
}
