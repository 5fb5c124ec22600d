//! What must hold between knobs, readings, duties, choices and the edges that order them.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Arch, BUILT_IN_STEPS, Call, Choice, Data, Stage};

pub fn check(data: &Data, facets: impl Fn(&str) -> bool, problems: &mut Vec<String>) {
    let choices: BTreeMap<&str, &Choice> = data.choice.iter().map(|c| (c.name.as_str(), c)).collect();
    let caps: BTreeSet<u32> = data.capability.iter().map(|c| c.cap).collect();
    let valued =
        |name: &str, value: u64| choices.get(name).is_some_and(|c| c.values.iter().any(|v| v.value == value));
    let mut served: BTreeSet<(String, u64)> = BTreeSet::new();
    let mut names: BTreeSet<(bool, String)> =
        BUILT_IN_STEPS.iter().map(|(a, n, _)| (*a == Arch::Aarch64, (*n).to_owned())).collect();
    for k in &data.knob {
        let mut say = |what: String| problems.push(format!("knob `{}`: {what}", k.name));
        if k.name.is_empty() || !names.insert((k.arch == Arch::Aarch64, k.name.clone())) {
            say("has no name, or one that another step has".into());
        }
        if k.title.is_empty() || k.sources.is_empty() || k.sets.is_empty() {
            say("needs a title, sources, and what it sets".into());
        }
        let given = [k.cap != 0, k.reg != 0, k.group != 0];
        let wanted = [k.call == Call::EnableCap, k.call == Call::OneReg, k.call == Call::Attr];
        if given != wanted {
            say("cap, reg and group belong to enable-cap, one-reg and attr".into());
        }
        for cap in [k.cap, k.instead].into_iter().filter(|c| *c != 0 && !caps.contains(c)) {
            say(format!("capability {cap} is not in the catalog"));
        }
        for s in k.sets.iter() {
            if !valued(&s.choice, s.value) {
                say(format!("{} is no value of `{}`", s.value, s.choice));
            } else if choices[s.choice.as_str()].arch != k.arch {
                say(format!("`{}` is of the other architecture", s.choice));
            }
            served.insert((s.choice.clone(), s.value));
        }
    }
    for d in &data.duty {
        let any = choices.get(d.choice.as_str()).filter(|_| d.any);
        if d.name.is_empty() || d.work.is_empty() || (any.is_none() && !valued(&d.choice, d.value)) {
            problems.push(format!("duty `{}`: needs a name, work, and a value of a choice", d.name));
        }
        served.insert((d.choice.clone(), d.value));
        served.extend(any.iter().flat_map(|c| c.values.iter().map(|v| (c.name.clone(), v.value))));
    }
    for r in &data.reading {
        let mut say = |what: String| problems.push(format!("reading of `{}`: {what}", r.choice));
        if r.shows.is_empty() || r.sources.is_empty() {
            say("needs sources, and what it shows".into());
        }
        if !r.needs.is_empty() && !facets(&r.needs) {
            say(format!("needs `{}`, which is no facet", r.needs));
        }
        for s in r.shows.iter() {
            if !valued(&r.choice, s.value) || s.mask == 0 || s.reads & !s.mask != 0 {
                say(format!("{}: no value of it, or nothing to look at", s.value));
            }
        }
    }
    // What people can select by the words of a choice, a machine can select too, or it knows whose work it is.
    for c in data.choice.iter().filter(|c| !c.selector.is_empty()) {
        for v in c.values.iter().filter(|v| v.value != c.default) {
            if !served.contains(&(c.name.clone(), v.value)) {
                problems.push(format!("`{}`: no knob and no duty gives `{}`", c.name, v.name));
            }
        }
    }
    order(data, &names, problems);
}

/// Edges of phase `apply`: both ends are steps, none goes back in time, and they have no cycle.
fn order(data: &Data, names: &BTreeSet<(bool, String)>, problems: &mut Vec<String>) {
    for arch in [Arch::X86_64, Arch::Aarch64] {
        let is_arm = arch == Arch::Aarch64;
        let stage = |name: &str| -> Stage {
            let built_in = BUILT_IN_STEPS.iter().find(|(a, n, _)| *a == arch && *n == name).map(|s| s.2);
            let knob = data.knob.iter().find(|k| k.arch == arch && k.name == name).map(|k| k.stage);
            built_in.or(knob).unwrap_or_default()
        };
        let edges: Vec<(&str, &str)> = data
            .edge
            .iter()
            .filter(|e| e.phase == "apply" && e.arch == arch)
            .map(|e| (e.before.as_str(), e.after.as_str()))
            .collect();
        for (before, after) in &edges {
            for name in [before, after].into_iter().filter(|n| !names.contains(&(is_arm, (**n).to_owned()))) {
                problems.push(format!("edge {before} -> {after}: `{name}` is no step"));
            }
            if stage(before) as u8 > stage(after) as u8 {
                problems
                    .push(format!("edge {before} -> {after}: goes back from one stage to an earlier one"));
            }
        }
        // Kahn's algorithm: what is left when no step without a predecessor remains is a cycle.
        let mut left: BTreeSet<&str> =
            names.iter().filter(|(a, _)| *a == is_arm).map(|(_, n)| n.as_str()).collect();
        loop {
            let free: Vec<&str> = left
                .iter()
                .copied()
                .filter(|n| !edges.iter().any(|(b, a)| a == n && left.contains(b)))
                .collect();
            if free.is_empty() {
                break;
            }
            for name in free {
                left.remove(name);
            }
        }
        if !left.is_empty() {
            problems.push(format!("edges of phase `apply` go round in a circle among {left:?}"));
        }
    }
}
