//! Can this host show a guest what it was promised?

use evenkeel_catalog::CHOICES;

use crate::cause;
use crate::contract::{Shown, ShownWord, is_opt_in};
use crate::coord::Coord;
use crate::describe::{axis, coordinate, kernel_or_boot, parts};
use crate::finding::{Axis, Finding, Outcome, Remedy, remedy_of};
use crate::view::{ChoiceOffer, View};

/// The circumstances that a question is asked under.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The host that the guest was started on, or that it comes from: what differs is told against it.
    pub from: &'a View,
    /// The host that is asked.
    pub on: &'a View,
    /// The guest exists already: what its saved state carries need not be selected.
    pub running: bool,
    /// The VMM selects values and takes on duties; otherwise it passes on everything and selects nothing.
    pub pinned: bool,
}

impl Question<'_> {
    fn same(&self) -> bool {
        self.from.same_host(self.on)
    }
}

/// Judges every facet that the guest was shown, and every facet that the host shows beyond that.
pub fn keeps(q: &Question<'_>, shown: &Shown) -> Vec<Finding> {
    let mut findings = Vec::new();
    words(q, shown, &mut findings);
    choices(q, shown, &mut findings);
    tsc(q, &mut findings);
    crate::reach::reach(q, shown, &mut findings);
    findings
}

fn words(q: &Question<'_>, shown: &Shown, findings: &mut Vec<Finding>) {
    let (mut i, mut j) = (0, 0);
    let host = &q.on.words;
    while i < shown.words.len() || j < host.len() {
        let mine = shown.words.get(i);
        let theirs = host.get(j);
        let take_mine = theirs.is_none_or(|t| mine.is_some_and(|m| m.at <= t.at));
        let take_theirs = mine.is_none_or(|m| theirs.is_some_and(|t| t.at <= m.at));
        let wanted = match mine.filter(|_| take_mine) {
            Some(m) => *m,
            None => match theirs {
                Some(t) if !is_opt_in(t.at, t.layout) => {
                    ShownWord { at: t.at, layout: t.layout, value: t.rules().absent, unknown: 0 }
                }
                _ => {
                    i += usize::from(take_mine);
                    j += usize::from(take_theirs);
                    continue;
                }
            },
        };
        let hidden = || crate::contract::guard_of(wanted.at).is_some_and(|needs| shown.field(needs) == 0);
        let absent = crate::layout::layout(wanted.layout).absent;
        if !(wanted.value == absent && wanted.unknown == 0 && matches!(wanted.at, Coord::Msr(_)) && hidden())
        {
            judge_word(q, &wanted, findings);
        }
        i += usize::from(take_mine);
        j += usize::from(take_theirs);
    }
}

fn judge_word(q: &Question<'_>, wanted: &ShownWord, findings: &mut Vec<Finding>) {
    let host = q.on.word_or_absent(wanted.at);
    let (mut bad, mut unsure) = host.refuses(wanted.value);
    let rules = host.rules();
    unsure |= wanted.unknown & !rules.free & !rules.runtime;
    bad &= !unsure;
    if q.same() {
        // What is not determined is the same thing on the same host.
        unsure = 0;
    }
    // Shown by default, with nothing selected? A running guest brings its words along in its saved state.
    let differs =
        (host.value ^ wanted.value) & !rules.runtime & !rules.free & !bad & !unsure & wanted.at.mask();
    let before = q.from.word_or_absent(wanted.at);
    let mut add = |bits: u64, code, outcome, remedy: &dyn Fn() -> Remedy| {
        if bits == 0 {
            return;
        }
        for part in parts(wanted.at, wanted.layout, bits) {
            let name = part.name.as_str();
            let (old, new) = (part.show(wanted.value), part.show(host.value));
            let cause = cause::of_facet(q.on.arch, name, &part.show(before.value), &new)
                .or_else(|| cause::of_facet(q.on.arch, name, &old, &new));
            findings.push(Finding {
                code,
                subject: part.name.clone(),
                title: part.title.to_owned(),
                at: coordinate(wanted.at, &part),
                outcome,
                axis: axis(q.from, q.on, wanted.at, wanted.layout, part.mask),
                before: old,
                after: if code == "facet-unknown" { "not determined".to_owned() } else { new },
                shapes: vec![q.on.shape.clone()],
                cause: cause.map(|c| c.id),
                remedy: match (code, cause) {
                    ("facet-lost", Some(c)) => remedy_of(c),
                    _ => remedy(),
                },
                evidence: q.from.evidence.min(q.on.evidence),
            });
        }
    };
    add(bad, "facet-lost", Outcome::No, &|| Remedy::Refuse {
        because: "the host cannot give this value, whatever a VMM selects".to_owned(),
    });
    add(unsure, "facet-unknown", Outcome::Unknown, &|| Remedy::Observe { name: wanted.at.to_string() });
    if !q.running {
        let selector = || Remedy::Selector { steps: vec![selector_of(wanted)] };
        if q.pinned {
            add(differs, "facet-default-changed", Outcome::HoldsWithSelectors, &selector);
        } else {
            add(differs, "facet-default-changed", Outcome::No, &selector);
        }
    }
}

fn selector_of(wanted: &ShownWord) -> String {
    match wanted.at {
        Coord::Cpuid { leaf, .. } => format!("KVM_SET_CPUID2: give leaf {leaf:#x} as the contract has it"),
        Coord::Msr(msr) => format!("KVM_SET_MSRS({msr:#x}) = {:#x}, before the first KVM_RUN", wanted.value),
        Coord::Reg(id) => format!("KVM_SET_ONE_REG({id:#x}) = {:#x}, before the first KVM_RUN", wanted.value),
    }
}

fn choices(q: &Question<'_>, shown: &Shown, findings: &mut Vec<Finding>) {
    for offer in &q.on.choices {
        let facet = offer.facet();
        let known =
            shown.choices.binary_search_by_key(&offer.choice, |c| c.0).ok().map(|i| shown.choices[i].1);
        let wanted = match known {
            Some(value) => value,
            None => crate::contract::absent_of(facet),
        };
        judge_choice(q, offer, wanted, findings);
    }
    // A facet that this host does not have at all, though the guest was promised another value than the absent one.
    for (choice, value) in &shown.choices {
        let facet = &CHOICES[usize::from(*choice)];
        let absent = crate::contract::absent_of(facet);
        if q.on.choice(*choice).is_none() && *value != absent && value.is_some() && !q.same() {
            let offer = ChoiceOffer { choice: *choice, default: absent, values: 0, complete: true };
            judge_choice(q, &offer, *value, findings);
        }
    }
}

/// The name of a choice's value.
pub fn value_name(choice: u16, value: Option<u8>) -> String {
    let facet = &CHOICES[usize::from(choice)];
    value
        .and_then(|v| facet.values.get(usize::from(v)))
        .map_or_else(|| "not determined".to_owned(), |v| v.name.to_owned())
}

pub(crate) fn judge_choice(
    q: &Question<'_>,
    offer: &ChoiceOffer,
    wanted: Option<u8>,
    findings: &mut Vec<Finding>,
) {
    let facet = offer.facet();
    if q.same() && (wanted.is_none() || offer.is_unknown()) {
        return;
    }
    let offered = wanted.is_some_and(|w| offer.values >> w & 1 == 1);
    let by_default = wanted.is_some() && wanted == offer.default;
    let old = value_name(offer.choice, wanted);
    let new = value_name(offer.choice, offer.default);
    let cause = cause::of_facet(q.on.arch, facet.name, &old, &new).or_else(|| {
        // Where there is no value to match, the entry about the facet is what there is to read.
        let about = |c: &&evenkeel_catalog::Change| c.explains.iter().any(|e| e.facet == facet.name);
        offer.is_unknown().then(|| evenkeel_catalog::CHANGES.iter().find(about)).flatten()
    });
    let selector = || Remedy::Selector { steps: steps(offer.choice, wanted) };
    let (code, outcome, remedy) = if by_default {
        return;
    } else if wanted.is_none() || (!offered && !offer.complete) || offer.is_unknown() {
        let name = if facet.from.observe.is_empty() { facet.name } else { facet.from.observe };
        ("facet-unknown", Outcome::Unknown, Remedy::Observe { name: name.to_owned() })
    } else if !offered {
        let hazard = if facet.hazard.is_empty() { "the host cannot give this value" } else { facet.hazard };
        ("facet-lost", Outcome::No, Remedy::Refuse { because: hazard.to_owned() })
    } else if q.running && facet.carried {
        return;
    } else if q.pinned {
        ("facet-default-changed", Outcome::HoldsWithSelectors, selector())
    } else {
        ("facet-default-changed", Outcome::No, selector())
    };
    findings.push(Finding {
        code,
        subject: facet.name.to_owned(),
        title: facet.title.to_owned(),
        at: String::new(),
        outcome,
        axis: if q.from.shape == q.on.shape { kernel_or_boot(q.from, q.on) } else { Axis::Shape },
        before: old,
        after: new,
        shapes: vec![q.on.shape.clone()],
        cause: cause.map(|c| c.id),
        remedy,
        evidence: q.from.evidence.min(q.on.evidence),
    });
}

/// The steps that select a value. A step of the catalog may be for one value only: then it starts with its name.
fn steps(choice: u16, wanted: Option<u8>) -> Vec<String> {
    let facet = &CHOICES[usize::from(choice)];
    let name = value_name(choice, wanted);
    let of = |step: &&'static str| match step.split_once(": ") {
        Some((value, rest)) if facet.values.iter().any(|v| v.name == value) => {
            (value == name).then(|| rest.to_owned())
        }
        _ => Some(step.replace("{value}", &value_number(choice, wanted))),
    };
    let steps: Vec<String> = facet.selector.iter().filter_map(of).collect();
    if steps.is_empty() { vec![format!("do not select anything else for `{}`", facet.name)] } else { steps }
}

fn value_number(choice: u16, value: Option<u8>) -> String {
    let facet = &CHOICES[usize::from(choice)];
    value
        .and_then(|v| facet.values.get(usize::from(v)))
        .map_or_else(String::new, |v| format!("{:#x}", v.value))
}

/// KVM takes another TSC rate without scaling when it lies within 250 ppm (`kvm.tsc_tolerance_ppm`); with scaling, any.
fn tsc(q: &Question<'_>, findings: &mut Vec<Finding>) {
    let (Some(from), Some(on)) = (q.from.host.tsc_khz, q.on.host.tsc_khz) else { return };
    let ppm = u64::from(from.abs_diff(on)) * 1_000_000 / u64::from(from.max(1));
    if ppm <= 250 {
        return;
    }
    let outcome = match (q.on.host.tsc_scaling, q.pinned || q.running) {
        (false, _) => Outcome::No,
        (true, true) => Outcome::HoldsWithSelectors,
        (true, false) => Outcome::No,
    };
    findings.push(Finding {
        code: "tsc-rate",
        subject: "tsc.khz".to_owned(),
        title: "the rate of the time-stamp counter".to_owned(),
        at: String::new(),
        outcome,
        axis: Axis::Cpu,
        before: format!("{from} kHz"),
        after: format!("{on} kHz"),
        shapes: vec![q.on.shape.clone()],
        cause: None,
        remedy: if q.on.host.tsc_scaling {
            Remedy::Selector { steps: vec![format!("KVM_SET_TSC_KHZ({from}) on each vCPU before its first run")] }
        } else {
            let because = "without TSC scaling KVM either refuses the rate or keeps it by catching up, which is not keeping it";
            Remedy::Refuse { because: because.to_owned() }
        },
        evidence: q.from.evidence.min(q.on.evidence),
    });
}
