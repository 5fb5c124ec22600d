//! What must hold between the files of `data/`. Every rule says which entry breaks it and how.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Act, Data, Detect, Rule, Status};

/// Appends a line for each rule that `data` breaks.
pub fn check(data: &Data, problems: &mut Vec<String>) {
    let facets = registers(data, problems);
    choices(data, &facets, problems);
    let items = items(data, &facets, problems);
    reaches(data, &facets, &items, problems);
    rest(data, &facets, &items, problems);
    changes(data, &facets, &items, problems);
    translators(data, problems);
    super::knobs::check(data, |f| facets.contains_key(f), problems);
    super::interface::check(data, |f| facets.contains_key(f), |i| items.contains(i), problems);
}

fn unique<'a>(
    what: &str,
    names: impl Iterator<Item = &'a str>,
    problems: &mut Vec<String>,
) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for name in names {
        if name.is_empty() {
            problems.push(format!("a {what} has no name"));
        } else if !seen.insert(name.to_owned()) {
            problems.push(format!("{what} `{name}` is there twice"));
        }
    }
    seen
}

/// Facet names, with the values' names where a facet has named values.
type Facets = BTreeMap<String, Vec<(u64, String)>>;

fn registers(data: &Data, problems: &mut Vec<String>) -> Facets {
    let mut facets = Facets::new();
    unique("register", data.register.iter().map(|r| r.name.as_str()), problems);
    for r in &data.register {
        let places = [r.at.leaf.is_some(), r.at.msr.is_some(), r.at.reg.is_some()];
        if places.iter().filter(|p| **p).count() != 1 {
            problems
                .push(format!("register `{}`: exactly one of leaf, msr and reg says where it is", r.name));
        }
        if r.at.leaf.is_some() && !["eax", "ebx", "ecx", "edx"].contains(&r.at.register.as_str()) {
            problems.push(format!("register `{}`: `{}` is no CPUID register", r.name, r.at.register));
        }
        if !["", "supported", "emulated", "hyperv"].contains(&r.at.table.as_str()) {
            problems.push(format!("register `{}`: `{}` is no CPUID table", r.name, r.at.table));
        }
        if r.title.is_empty() {
            problems.push(format!("register `{}` has no title", r.name));
        }
        let top = if r.at.leaf.is_some() { 31 } else { 63 };
        let mut next = 0u8;
        for f in &r.fields.0 {
            if f.lo > f.hi || f.hi > top || f.lo < next {
                problems.push(format!(
                    "{}.{}: bits {}..{} overlap, descend or do not fit",
                    r.name, f.name, f.lo, f.hi
                ));
            }
            next = f.hi + 1;
            if matches!(f.rule, Rule::Flag | Rule::Accumulate) && f.lo != f.hi {
                problems.push(format!("{}.{}: a {:?} is one bit wide", r.name, f.name, f.rule));
            }
            let name = format!("{}.{}", r.name, f.name);
            if facets.insert(name.clone(), Vec::new()).is_some() {
                problems.push(format!("facet `{name}` is there twice"));
            }
        }
        facets.insert(r.name.clone(), Vec::new());
        // The bits of it that userspace may choose change between kernels, too.
        facets.insert(format!("{}.writable", r.name), Vec::new());
    }
    for r in &data.register {
        for f in &r.fields.0 {
            for need in f.needs.iter().filter(|n| !facets.contains_key(*n)) {
                problems.push(format!("{}.{}: needs `{need}`, which is no facet", r.name, f.name));
            }
        }
    }
    unique("measurement", data.measurement.iter().map(|m| m.name.as_str()), problems);
    // Captures differ in these too, so the ledger may explain them.
    facets.extend(data.measurement.iter().map(|m| (m.name.clone(), Vec::new())));
    facets.extend(data.capability.iter().map(|c| (format!("cap.{}", c.cap), Vec::new())));
    for c in &data.choice {
        let named = c.values.iter().map(|v| (v.value, v.name.clone())).collect();
        if facets.insert(c.name.clone(), named).is_some() {
            problems.push(format!("facet `{}` is there twice", c.name));
        }
    }
    facets
}

fn choices(data: &Data, facets: &Facets, problems: &mut Vec<String>) {
    let caps: BTreeSet<u32> = data.capability.iter().map(|c| c.cap).collect();
    for c in &data.choice {
        unique(&format!("value of `{}`", c.name), c.values.iter().map(|v| v.name.as_str()), problems);
        let numbers: BTreeSet<u64> = c.values.iter().map(|v| v.value).collect();
        if numbers.len() != c.values.len() {
            problems.push(format!("`{}`: two values share a number", c.name));
        }
        let measured = !c.from.measured.is_empty() || c.from.reg.is_some();
        for (what, value) in [("default", c.default), ("absent", c.absent)] {
            let told_by_measuring = measured && what == "default";
            if !numbers.contains(&value) && !told_by_measuring {
                problems.push(format!("`{}`: its {what} {value} is none of its values", c.name));
            }
        }
        for value in c.prefer.iter().filter(|v| !numbers.contains(v)) {
            problems.push(format!("`{}`: prefers {value}, which is none of its values", c.name));
        }
        let bits = &c.from.bits;
        if !bits.is_empty() && (c.default != 0 || data.measurement.iter().all(|m| m.name != *bits)) {
            problems
                .push(format!("`{}`: `{bits}` is no measurement, or it has another default than 0", c.name));
        }
        if c.title.is_empty() {
            problems.push(format!("`{}` has no title", c.name));
        }
        let conditions =
            |v: &'_ crate::Choosable| [v.when.0.clone(), v.or_when.0.clone(), v.unsure_when.0.clone()];
        for condition in c.values.iter().flat_map(conditions).flatten() {
            match condition.cap {
                Some(cap) if caps.contains(&cap) => {}
                Some(cap) => problems.push(format!("`{}`: capability {cap} is not in the catalog", c.name)),
                None => problems.push(format!("`{}`: a condition without a capability", c.name)),
            }
        }
        for name in c.applies.any_of.iter().filter(|n| !facets.contains_key(*n)) {
            problems.push(format!("`{}`: applies to `{name}`, which is no facet", c.name));
        }
    }
}

/// What a bit enumerates must be there, and there must be a choice that decides whether the bit counts.
fn reaches(data: &Data, facets: &Facets, items: &BTreeSet<String>, problems: &mut Vec<String>) {
    for r in &data.register {
        let any = r.fields.iter().any(|f| !f.reaches.is_empty());
        let gate = data.choice.iter().any(|c| c.name == r.gate && c.values.iter().any(|v| v.value == 0));
        if any == r.gate.is_empty() || (any && !gate) {
            problems.push(format!(
                "register `{}`: reaches something if and only if a choice is its gate",
                r.name
            ));
        }
        if !r.within.is_empty() && (r.gate.is_empty() || !facets.contains_key(&r.within)) {
            problems.push(format!("register `{}`: within `{}`, which is no facet", r.name, r.within));
        }
        for what in r.fields.iter().flat_map(|f| f.reaches.iter()) {
            let call = what
                .strip_prefix("hypercall.")
                .or(what.strip_prefix("hv-hypercall."))
                .map(|n| u32::from_str_radix(n, 16).is_ok());
            if !call.unwrap_or_else(|| ends(what).iter().all(|i| items.contains(i))) {
                problems.push(format!("register `{}`: reaches `{what}`, which is nothing", r.name));
            }
        }
    }
}

fn items(data: &Data, facets: &Facets, problems: &mut Vec<String>) -> BTreeSet<String> {
    let mut items = unique("section", data.section.iter().map(|s| s.name.as_str()), problems);
    let mut next = 0u64;
    for m in &data.msr {
        let last = m.last.unwrap_or(m.msr);
        if u64::from(m.msr) < next || last < m.msr {
            problems.push(format!("msr {:#x} ({}): overlaps the one before it", m.msr, m.name));
        }
        next = u64::from(last) + 1;
        for number in m.msr..=last {
            items.insert(format!("msr.{number:x}"));
        }
        if m.name.is_empty() || m.title.is_empty() {
            problems.push(format!("msr {:#x} has no name or no title", m.msr));
        }
        if m.droppable && m.absent.is_none() {
            problems.push(format!("msr {:#x}: droppable, but no absent value is given", m.msr));
        }
        for name in m.any_of.iter().filter(|n| !facets.contains_key(*n)) {
            problems.push(format!("msr {:#x}: `{name}` is no facet", m.msr));
        }
    }
    let mut next = 0u64;
    for r in &data.reg {
        let last = r.last.unwrap_or(r.id);
        if r.id < next || last < r.id || last - r.id > 4096 {
            problems.push(format!(
                "reg {:#x} ({}): overlaps the one before it, or its run is too long",
                r.id, r.name
            ));
        }
        next = last + 1;
        for id in r.id..=last {
            items.insert(format!("reg.{id:x}"));
        }
        if r.name.is_empty() {
            problems.push(format!("reg {:#x} has no name", r.id));
        }
        if let Some(of) = r.alias_of.filter(|of| !data.reg.iter().any(|o| o.id == *of)) {
            problems.push(format!("reg {:#x}: an alias of {of:#x}, which is no item", r.id));
        }
        if r.droppable && r.absent.is_none() {
            problems.push(format!("reg {:#x}: droppable, but no absent value is given", r.id));
        }
    }
    for s in data.section.iter().filter(|s| !s.instead.is_empty()) {
        if !items.contains(&s.instead) {
            problems.push(format!("section `{}`: `{}` cannot stand in, it is no section", s.name, s.instead));
        }
    }
    items
}

fn translators(data: &Data, problems: &mut Vec<String>) {
    unique("translator", data.translator.iter().map(|t| t.id.as_str()), problems);
    let section = |name: &str, arch| data.section.iter().find(|s| s.name == name && s.arch == arch);
    for t in &data.translator {
        let mut wrong = |what: String| problems.push(format!("translator `{}`: {what}", t.id));
        if t.because.is_empty() || t.sources.is_empty() || t.title.is_empty() {
            wrong("it says what it does, why nothing is lost, and from where that is known".to_owned());
        }
        let Some(of) = section(&t.section, t.arch) else {
            wrong(format!("`{}` is no section", t.section));
            continue;
        };
        let fields = t.lossless_when.iter().map(|h| h.field.as_str()).chain([t.field.as_str()]);
        for name in fields.filter(|name| !name.is_empty() && !of.fields.iter().any(|f| f.name == *name)) {
            wrong(format!("`{name}` is no field of `{}`", t.section));
        }
        match t.act {
            Act::Replace if section(&t.into, t.arch).is_none() || t.common > t.length || t.length == 0 => {
                wrong(format!("`{}` of {} bytes cannot take its place", t.into, t.length));
            }
            Act::Clear | Act::UnreachableComponents if t.field.is_empty() => {
                wrong("which field?".to_owned());
            }
            Act::Replace | Act::Clear if t.lossless_when.is_empty() => {
                wrong("when is nothing lost?".to_owned())
            }
            _ => {}
        }
    }
}

fn rest(data: &Data, facets: &Facets, items: &BTreeSet<String>, problems: &mut Vec<String>) {
    unique("code", data.code.iter().map(|c| c.code.as_str()), problems);
    let mut seen = BTreeSet::new();
    for c in &data.capability {
        if !seen.insert((c.cap, c.arch.clone())) || c.name.is_empty() {
            problems.push(format!("capability {} is there twice or has no name", c.cap));
        }
    }
    for c in &data.constraint {
        for name in [&c.facet, &c.needs].into_iter().filter(|n| !n.is_empty() && !facets.contains_key(*n)) {
            problems.push(format!("constraint on `{}`: `{name}` is no facet", c.facet));
        }
        if c.needs.is_empty() == c.shape.is_empty() || c.why.is_empty() {
            problems.push(format!("constraint on `{}`: one of needs and shape, and a why", c.facet));
        }
    }
    for e in &data.edge {
        for name in [&e.before, &e.after].into_iter().filter(|n| e.phase != "apply" && !items.contains(*n)) {
            problems.push(format!("edge {} -> {}: `{name}` is no state item", e.before, e.after));
        }
        if e.why.is_empty()
            || e.sources.is_empty()
            || !["save", "restore", "apply"].contains(&e.phase.as_str())
        {
            problems.push(format!("edge {} -> {}: needs a why, sources, and a phase", e.before, e.after));
        }
    }
}

fn changes(data: &Data, facets: &Facets, items: &BTreeSet<String>, problems: &mut Vec<String>) {
    unique("change", data.change.iter().map(|c| c.id.as_str()), problems);
    for c in &data.change {
        let mut say = |what: String| problems.push(format!("{}: {what}", c.id));
        for (what, text) in [("title", &c.title), ("summary", &c.summary), ("rollback", &c.rollback)] {
            if text.is_empty() {
                say(format!("no {what}"));
            }
        }
        if c.sources.is_empty() {
            say("no sources".into());
        }
        let Detect { probe, observe, undetectable } = &c.detect;
        if [probe, observe, undetectable].iter().filter(|s| !s.is_empty()).count() != 1 {
            say("detect is by exactly one of probe, observe and undetectable".into());
        }
        if ["uname", "release", "version string", "kernel version"]
            .iter()
            .any(|w| probe.to_lowercase().contains(w))
        {
            say(format!("a detect that compares releases is not a way: `{probe}`"));
        }
        if !observe.is_empty() && !data.choice.iter().any(|f| f.from.observe == *observe) {
            say(format!("`{observe}` is no facet's observation"));
        }
        match c.selector.status {
            Status::None if c.selector.duty.is_empty() && c.selector.refusal.is_empty() => {
                say("without a selector it must name the duty or the refusal that remains".into());
            }
            Status::Available if c.selector.steps.is_empty() => say("an available selector has steps".into()),
            _ => {}
        }
        for e in &c.explains.0 {
            match (e.facet.is_empty(), e.item.is_empty()) {
                (false, true) => match facets.get(&e.facet) {
                    None => say(format!("explains `{}`, which is no facet", e.facet)),
                    Some(named) => {
                        for value in [&e.before, &e.after].into_iter().filter(|v| !v.is_empty()) {
                            let number =
                                value.strip_prefix("0x").and_then(|d| u64::from_str_radix(d, 16).ok());
                            // Attributes and listed leaves are there or not.
                            let presence = named.is_empty()
                                && ["none", "there", "listed", "not listed", "read", "not read: ENOENT"]
                                    .contains(&value.as_str());
                            if number.is_none() && !presence && !named.iter().any(|(_, n)| n == value) {
                                say(format!("`{value}` is no value of `{}`", e.facet));
                            }
                        }
                    }
                },
                (true, false) => {
                    for item in ends(&e.item).into_iter().filter(|i| !items.contains(i)) {
                        say(format!("explains `{item}`, which is no state item"));
                    }
                    for value in [&e.before, &e.after].into_iter().filter(|v| !v.is_empty()) {
                        if !["unlisted", "listed", "refused", "kept", "altered"].contains(&value.as_str()) {
                            say(format!("`{value}` is nothing that an item can be"));
                        }
                    }
                }
                _ => say("an explanation names a facet or an item".into()),
            }
        }
    }
}

/// `msr.1db-1de` names a run: both ends must exist.
fn ends(item: &str) -> Vec<String> {
    match item.split_once('.').and_then(|(kind, rest)| rest.split_once('-').map(|(a, b)| (kind, a, b))) {
        Some((kind @ ("msr" | "reg"), first, last)) => {
            vec![format!("{kind}.{first}"), format!("{kind}.{last}")]
        }
        _ => vec![item.to_owned()],
    }
}
