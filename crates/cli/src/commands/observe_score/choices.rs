//! Facets that are no words: the argument of the ioctl that selects a value is another one, one facet at a time.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_apply::{Plan, scratch};
use evenkeel_catalog::{
    self as catalog, CHOICES, Call, Choice, DUTIES, FLAGS, Guest, KNOBS, Knob, Look as At, READINGS, Stage,
};
use evenkeel_contract::view::capability;
use evenkeel_contract::{Contract, View};
use evenkeel_steps::{Place, Seen as Read, Target};
use evenkeel_surface::Surface;
use evenkeel_sys::{Alteration, FdKind, Live, Lying};
use evenkeel_witness::compare::shows;
use evenkeel_witness::programs::x86_64::Look;

use super::runs::{Runs, Seen, differences};
use super::{Aside, Outcome, Scored};
use crate::failure::Failure;

/// A facet, and how this host can be made to give another value of it.
pub struct Facet {
    choice: &'static Choice,
    /// Alterations that stand for other values, with words for each.
    tries: Vec<(String, Alteration)>,
    /// Why there are none.
    why: String,
    /// The catalog says that no guest under this contract has it.
    absent: bool,
}

/// What the catalog says of how a guest sees the facet.
fn visible(choice: &Choice, knob: Option<&Knob>) -> Result<(), String> {
    let mut flags = FLAGS.iter().filter(|f| f.facet == choice.name).peekable();
    if let Some(first) = flags.peek() {
        let why = first.why.to_owned();
        return if flags.any(|f| f.guest == Guest::Yes) { Ok(()) } else { Err(why) };
    }
    match knob.and_then(|k| catalog::capability(k.cap, "x86_64")) {
        Some(cap) if cap.guest != "yes" => {
            Err(format!("{}: a guest sees it by what a VMM makes of it", cap.name))
        }
        _ => Ok(()),
    }
}

/// All choices of x86, and those that no guest sees by itself.
pub fn all(contract: &Contract, view: &View, host: &Surface) -> (Vec<Facet>, Vec<Aside>) {
    let shown = contract.resolve(view);
    let wanted: BTreeMap<&str, u64> = shown
        .choices
        .iter()
        .filter_map(|(index, value)| {
            let choice = CHOICES.get(usize::from(*index))?;
            Some((choice.name, choice.values.get(usize::from((*value)?))?.value))
        })
        .collect();
    let shape = host.offer.shapes.iter().position(|s| s.name == contract.shape);
    let mine = |k: &&Knob| k.arch == catalog::Arch::X86_64;
    let (mut facets, mut aside) = (Vec::new(), Vec::new());
    for choice in CHOICES.iter().filter(|c| c.arch == catalog::Arch::X86_64) {
        let knobs = KNOBS.iter().filter(mine).filter(|k| k.sets.iter().any(|s| s.choice == choice.name));
        let knobs: Vec<&Knob> = knobs.collect();
        if let Err(why) = visible(choice, knobs.first().copied()) {
            aside.push(Aside { facet: choice.name.to_owned(), why });
            continue;
        }
        let mut tries = Vec::new();
        for knob in &knobs {
            let cap = match capability(&host.offer, knob.cap, shape) {
                0 if knob.instead != 0 => knob.instead,
                _ => knob.cap,
            };
            let now = wanted.get(choice.name).copied().unwrap_or(choice.default);
            for value in choice.values.iter().filter(|v| v.value != now) {
                tries.extend(
                    alteration(knob, cap, choice, value.value, &wanted)
                        .map(|a| (format!("{}, {} selected", call(knob), value.name), a)),
                );
            }
        }
        let duty = DUTIES.iter().find(|d| d.choice == choice.name);
        let why = match (duty, choice.from.observe.is_empty()) {
            (Some(duty), _) => format!("the VMM's own work ({}): no ioctl that is set here", duty.name),
            (None, false) => "the kernel's own behaviour: no ioctl selects it".to_owned(),
            (None, true) => "no ioctl selects it".to_owned(),
        };
        let guard = &choice.applies.any_of;
        let hidden = !guard.is_empty() && guard.iter().all(|field| shown.field(field) == 0);
        let absent =
            hidden || !shown.choices.iter().any(|(i, _)| CHOICES[usize::from(*i)].name == choice.name);
        facets.push(Facet { choice, tries, why, absent });
    }
    (facets, aside)
}

fn call(knob: &Knob) -> String {
    match knob.call {
        Call::SetupMce => "KVM_X86_SETUP_MCE".to_owned(),
        _ => format!("KVM_ENABLE_CAP({})", knob.cap),
    }
}

/// The call that selects this value, everything else as wanted; none when the knob does not reach it.
fn alteration(
    knob: &Knob,
    cap: u32,
    choice: &Choice,
    value: u64,
    wanted: &BTreeMap<&str, u64>,
) -> Option<Alteration> {
    let others = knob.sets.iter().filter(|s| s.choice != choice.name);
    let others = others.filter(|s| {
        let default = catalog::choice(s.choice).map(|c| c.default);
        wanted.get(s.choice).copied().or(default) == Some(s.value)
    });
    let bits = others.fold(0, |all, s| all | s.bits);
    let mine = knob.sets.iter().find(|s| s.choice == choice.name && s.value == value);
    let argument = match mine {
        Some(sets) => Some(bits | sets.bits),
        // A value that stands for no bits: those of the others are left, or no call at all.
        None if knob
            .sets
            .iter()
            .any(|s| wanted.get(choice.name) == Some(&s.value) && s.choice == choice.name) =>
        {
            (bits != 0).then_some(bits)
        }
        None => return None,
    };
    match (knob.call, knob.stage, argument) {
        (Call::EnableCap, Stage::Vm, argument) => Some(Alteration::Cap { on: FdKind::Vm, cap, argument }),
        (Call::EnableCap, Stage::Vcpu, argument) => Some(Alteration::Cap { on: FdKind::Vcpu, cap, argument }),
        (Call::SetupMce, _, Some(argument)) => Some(Alteration::Mce(argument)),
        _ => None,
    }
}

/// What else must be so for the facet to show, in both guests that are compared.
fn setting(choice: &str, plan: &Plan) -> Vec<Alteration> {
    let word = |leaf: u32, becomes: u32| {
        let table = plan.table(0);
        let now = table.iter().find(|e| e.function == leaf).map_or(0, |e| e.output[0]);
        vec![Alteration::Cpuid { leaf, subleaf: 0, register: 0, flip: now ^ becomes }]
    };
    match choice {
        // What is enforced are bits that are not shown.
        "x86.enforce-pv-feature-cpuid" => word(0x4000_0001, 0),
        // Hyper-V's signature, and none of its features.
        "x86.hyperv.enforce-cpuid" | "x86.hyperv.synic" => word(0x4000_0001, 0x3123_7648),
        // A contract's feature MSRs are set after it, and it says what they are before.
        "x86.quirk.stuff-feature-msrs" => vec![Alteration::NoMsrs],
        _ => Vec::new(),
    }
}

/// Whether this host takes it, honestly asked, and shows it where an ioctl shows it.
fn takes(
    plan: &Plan,
    setting: &[Alteration],
    alteration: &Alteration,
    choice: &Choice,
) -> Result<(), String> {
    let places: Vec<(Stage, Place, u64)> = READINGS
        .iter()
        .filter(|r| r.choice == choice.name)
        .filter_map(|r| {
            let place = match r.look {
                At::Msr => Place::Msr(r.at as u32),
                At::Lapic => Place::Lapic(r.at as u32),
                At::EventFlags => Place::EventFlags,
                At::OneReg | At::Attr => return None,
            };
            Some((r.stage, place, r.shows.iter().fold(0, |all, s| all | s.mask)))
        })
        .collect();
    let look = |alterations: Vec<Alteration>| -> Result<Vec<Option<u64>>, String> {
        let backend = Lying::honest(Live::new(), alterations);
        let tried = scratch(plan, &backend).map_err(|e| e.to_string())?;
        if let Some(made) = backend.made().last() {
            match &made.refused {
                Some(why) => return Err(format!("the host refuses the call: {why}")),
                None if made.calls == 0 => {
                    return Err("the call is not made".to_owned());
                }
                None => {}
            }
        }
        let seen = Read::look(Target::Vcpu(&tried.vcpus[0], 0), places.iter().map(|(_, place, _)| *place));
        let value = |(_, place, mask): &(Stage, Place, u64)| {
            seen.0.get(place).and_then(|v| v.as_ref().ok()).map(|value| value & mask)
        };
        Ok(places.iter().map(value).collect())
    };
    let before = look(setting.to_vec())?;
    let after = look(setting.iter().chain([alteration]).cloned().collect())?;
    if !places.is_empty() && before == after && before.iter().any(Option::is_some) {
        return Err("the call succeeds, and what an ioctl reads is as before".to_owned());
    }
    Ok(())
}

/// Alters every n-th of them.
///
/// # Errors
/// There is no guest to compare with.
pub fn score(
    runs: &mut Runs<'_>,
    plan: &Plan,
    facets: Vec<Facet>,
    every: usize,
) -> Result<Vec<Scored>, Failure> {
    let mut scored = Vec::new();
    let mut references: Vec<(Vec<Alteration>, Seen, BTreeSet<String>)> = Vec::new();
    for facet in facets.into_iter().skip(every - 1).step_by(every) {
        let setting = setting(facet.choice.name, plan);
        let mut why = facet.why.clone();
        let mut altered =
            facet.tries.first().map_or_else(|| "nothing".to_owned(), |(words, _)| words.clone());
        let mut best: Option<Scored> = None;
        for (words, alteration) in &facet.tries {
            if let Err(e) = takes(plan, &setting, alteration, facet.choice) {
                (why, altered) = (e, words.clone());
                continue;
            }
            if references.iter().all(|(other, ..)| *other != setting) {
                let plain = runs.reference(&setting, Look::Machine)?;
                let noise = differences(&plain, &runs.reference(&setting, Look::Machine)?);
                references.push((setting.clone(), plain, noise));
            }
            let Some((_, plain, noise)) = references.iter().find(|(other, ..)| *other == setting) else {
                continue;
            };
            let list: Vec<Alteration> = setting.iter().chain([alteration]).cloned().collect();
            let (noticed, why) = match runs.altered(&list, Look::Machine, plain) {
                Err(why) => (Outcome::Missed, why),
                Ok(seen) => match told(&differences(plain, &seen), noise, facet.choice.name) {
                    (Outcome::Missed, why) if facet.absent => (
                        Outcome::NotAlterable,
                        format!("{why}, and the catalog says that it does not apply here"),
                    ),
                    told => told,
                },
            };
            let made = Scored { facet: facet.choice.name.to_owned(), altered: words.clone(), noticed, why };
            // The worst of several values counts.
            if best.as_ref().is_none_or(|b| b.noticed == Outcome::Noticed) {
                best = Some(made);
            }
        }
        scored.push(best.unwrap_or_else(|| Scored {
            facet: facet.choice.name.to_owned(),
            altered,
            noticed: Outcome::NotAlterable,
            why,
        }));
    }
    Ok(scored)
}

fn told(found: &BTreeSet<String>, noise: &BTreeSet<String>, facet: &str) -> (Outcome, String) {
    let mut found = found.difference(noise);
    if let Some(name) = found.clone().find(|name| shows(name, facet)) {
        return (Outcome::Noticed, name.clone());
    }
    let why = match found.next() {
        Some(other) => format!("seen under another name only: {other}"),
        None => "the guest saw nothing of it".to_owned(),
    };
    (Outcome::Missed, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_selected_by_its_bits_beside_those_of_the_others() {
        let knob = KNOBS.iter().find(|k| k.name == "disable-quirks").unwrap();
        let choice = catalog::choice("x86.quirk.lapic-mmio-hole").unwrap();
        let wanted = BTreeMap::from([("x86.quirk.lint0-reenabled", 0), ("x86.quirk.lapic-mmio-hole", 1)]);
        let cap = |argument| Some(Alteration::Cap { on: FdKind::Vm, cap: 213, argument });
        assert_eq!(alteration(knob, 213, choice, 0, &wanted), cap(Some(5)));
        // Turned back on: only the other's bit is left.
        let wanted = BTreeMap::from([("x86.quirk.lint0-reenabled", 0), ("x86.quirk.lapic-mmio-hole", 0)]);
        assert_eq!(alteration(knob, 213, choice, 1, &wanted), cap(Some(1)));
        let wanted = BTreeMap::from([("x86.quirk.lapic-mmio-hole", 0)]);
        assert_eq!(alteration(knob, 213, choice, 1, &wanted), cap(None), "the call is not made");
    }

    #[test]
    fn what_is_seen_counts_by_its_name_only() {
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<String>>();
        let facet = "x86.quirk.lint0-reenabled";
        assert_eq!(told(&set(&["xapic.350"]), &set(&[]), facet).0, Outcome::Noticed);
        assert_eq!(
            told(&set(&["xapic.350"]), &set(&["xapic.350"]), facet).0,
            Outcome::Missed,
            "it always differs"
        );
        let (noticed, why) = told(&set(&["cr0"]), &set(&[]), facet);
        assert_eq!((noticed, why.as_str()), (Outcome::Missed, "seen under another name only: cr0"));
    }
}
