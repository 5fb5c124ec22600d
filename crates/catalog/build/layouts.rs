//! Layouts of state: files of their own (`data/*/fields-*.toml`), in which structures that occur in several places are
//! written once. Here they are put into the sections, and checked: every byte of a structure has a name, nothing overlaps,
//! whatever is not compared as it is says why, and only time runs.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::{Compare, Data, List, Section, StateField};

/// The layout of a section's payload.
#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Layout {
    section: String,
    size: u32,
    entry: u32,
    tag_at: u32,
    tag_size: u32,
    field: Vec<Line>,
}

/// A structure that occurs within others.
#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Structure {
    name: String,
    size: u32,
    field: Vec<Line>,
}

/// A field as it is written: `of` puts a structure in its place.
#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Line {
    name: String,
    of: String,
    group: Option<u32>,
    at: u32,
    size: u32,
    count: u32,
    stride: u32,
    compare: Compare,
    ignore: u64,
    clock: String,
    deadline: bool,
    why: String,
    facet: String,
    shown: u64,
    follows: String,
    of_last: bool,
    unseen: String,
}

/// Clocks that something can run with (`StateField::clock`).
const CLOCKS: &[&str] = &["tsc", "counter", "apic-bus", "nanoseconds", "hundred-ns"];
/// Ways of cutting a payload (`Section::cut`).
const CUTS: &[&str] =
    &["", "entries", "msrs", "registers", "attributes", "cpuid", "manifest", "memory", "opaque"];

/// Puts the layouts into their sections.
pub fn lay_out(data: &mut Data, problems: &mut Vec<String>) {
    let structures: BTreeMap<String, Structure> =
        data.structure.iter().map(|s| (s.name.clone(), s.clone())).collect();
    let mut seen = BTreeSet::new();
    for layout in &data.layout {
        if !seen.insert(layout.section.clone()) {
            problems.push(format!("layout of `{}` is there twice", layout.section));
        }
        let mut fields = Vec::new();
        for line in &layout.field {
            expand(line, "", 0, None, &structures, 0, &mut fields, problems);
        }
        fields.sort_by_key(|f| (f.group, f.at));
        match data.section.iter_mut().find(|s| s.name == layout.section) {
            Some(section) => {
                section.size = layout.size;
                section.entry = layout.entry;
                section.tag_at = layout.tag_at;
                section.tag_size = layout.tag_size;
                section.fields = List(fields);
            }
            None => problems.push(format!("layout of `{}`, which is no section", layout.section)),
        }
    }
}

/// Appends the fields that a line stands for: itself, or those of a structure, as often as it is there.
#[allow(clippy::too_many_arguments, reason = "a recursion with what it carries along")]
fn expand(
    line: &Line,
    prefix: &str,
    base: u32,
    group: Option<u32>,
    structures: &BTreeMap<String, Structure>,
    depth: u32,
    out: &mut Vec<StateField>,
    problems: &mut Vec<String>,
) {
    let name = format!("{prefix}{}", line.name);
    let group = line.group.or(group);
    if line.of.is_empty() {
        out.push(StateField {
            name,
            group,
            at: base + line.at,
            size: line.size,
            count: line.count,
            stride: line.stride,
            compare: line.compare,
            ignore: line.ignore,
            clock: line.clock.clone(),
            deadline: line.deadline,
            why: line.why.clone(),
            facet: line.facet.clone(),
            shown: line.shown,
            follows: line.follows.clone(),
            of_last: line.of_last,
            unseen: line.unseen.clone(),
        });
        return;
    }
    let Some(structure) = structures.get(&line.of).filter(|_| depth < 4) else {
        problems.push(format!("field `{name}`: `{}` is no structure", line.of));
        return;
    };
    for index in 0..line.count.max(1) {
        let prefix = match line {
            // What two structures have in common has no name of its own in them.
            Line { name: own, .. } if own.is_empty() => prefix.to_owned(),
            Line { count: 0 | 1, .. } => format!("{name}."),
            _ => format!("{name}.{index}."),
        };
        let stride = if line.stride == 0 { structure.size } else { line.stride };
        for inner in &structure.field {
            let base = base + line.at + index * stride;
            expand(inner, &prefix, base, group, structures, depth + 1, out, problems);
        }
    }
}

/// Appends a line for each rule that the layouts and comparators break.
pub fn check(data: &Data, problems: &mut Vec<String>) {
    let mut timed = BTreeSet::new();
    let mut compared = |of: String,
                        (compare, ignore, clock, deadline, why): (Compare, u64, &str, bool, &str),
                        problems: &mut Vec<String>| {
        let runs = matches!(compare, Compare::Monotonic | Compare::Rearmed);
        if (compare == Compare::Masked) != (ignore != 0) {
            problems.push(format!("`{of}`: bits are ignored if and only if it is compared masked"));
        }
        if (compare != Compare::Identical) == why.is_empty() {
            problems.push(format!("`{of}`: what is not compared as it is says why, and nothing else does"));
        }
        if runs == clock.is_empty() || (deadline && compare != Compare::Rearmed) {
            problems.push(format!("`{of}`: what runs has a clock, and only what is armed again a deadline"));
        }
        if runs || !clock.is_empty() {
            match data.time.iter().find(|t| t.of == of) {
                Some(time) if time.clock == clock => {
                    timed.insert(of);
                }
                Some(time) => {
                    problems.push(format!("`{of}` runs with `{clock}`, and is time of `{}`", time.clock))
                }
                None => problems.push(format!("`{of}` is said to run, and is no quantity of time")),
            }
        }
    };
    let choices: BTreeSet<&str> = data.choice.iter().map(|c| c.name.as_str()).collect();
    for s in &data.section {
        shape(s, problems);
        foretold(s, &choices, problems);
        for f in &s.fields.0 {
            let of = format!("{}/{}", s.name, f.name);
            compared(of, (f.compare, f.ignore, &f.clock, f.deadline, &f.why), problems);
        }
    }
    for m in &data.msr {
        let of = format!("msr.{:x}", m.msr);
        if m.running && m.compare == Compare::Identical {
            problems.push(format!("`{of}` runs, and is compared as if it stood still"));
        }
        compared(of, (m.compare, m.ignore, &m.clock, m.deadline, &m.why), problems);
    }
    for r in &data.reg {
        let of = format!("reg.{:x}", r.id);
        if r.running != (r.compare == Compare::Monotonic) {
            problems.push(format!("`{of}` runs if and only if it is compared as what runs"));
        }
        // `computed` says why by itself.
        let masked = r.compare == Compare::Masked;
        let ignore = if masked { r.computed } else { 0 };
        if r.computed != 0 && !masked {
            problems.push(format!("`{of}` has computed bits, and is not compared masked"));
        }
        if r.counters && r.masked != u64::MAX {
            problems.push(format!("`{of}` has a bit for each counter, and is not masked whole"));
        }
        compared(of, (r.compare, ignore, &r.clock, r.deadline, &r.why), problems);
    }
    gaps(data, problems);
    for t in &data.time {
        if !timed.contains(&t.of) {
            problems.push(format!("`{}` is a quantity of time, and nothing that runs", t.of));
        }
        if !CLOCKS.contains(&t.clock.as_str()) || t.why.is_empty() || t.sources.is_empty() {
            problems.push(format!("time `{}`: needs a known clock, a why, and sources", t.of));
        }
    }
}

/// What saving does about state that KVM cannot save.
const HANDLINGS: &[&str] = &["retired", "refused", "reported", "duty", "documented"];

fn gaps(data: &Data, problems: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for g in &data.gap {
        let mut say = |what: &str| problems.push(format!("gap `{}`: {what}", g.id));
        if g.id.is_empty() || !seen.insert(&g.id) {
            say("has no id, or one that another has");
        }
        if !HANDLINGS.contains(&g.handling.as_str()) || (g.handling == "documented" && g.in_image) {
            say(
                "what is found is retired, refused, reported or a duty, and `documented` is what nothing tells",
            );
        }
        if g.title.is_empty() || g.loses.is_empty() || g.detect.is_empty() || g.sources.is_empty() {
            say("needs a title, what is lost, how it is found, and sources");
        }
        // Saving cannot refuse over what it does not see.
        if g.handling == "refused" && !g.in_image {
            say("refused, and nothing shows it");
        }
    }
}

/// What captures foretell of a section's fields: only attributes are asked for, and only bits that a host shows follow.
fn foretold(s: &Section, choices: &BTreeSet<&str>, problems: &mut Vec<String>) {
    let mut say = |what: String| problems.push(format!("section `{}`: {what}", s.name));
    for f in &s.fields.0 {
        let foretold = !f.facet.is_empty() || f.shown != 0;
        let of_shown = f.of_last || !f.follows.is_empty() || !f.unseen.is_empty();
        if foretold && s.cut != "attributes" || f.shown == 0 && of_shown {
            say(format!("field `{}`: only attributes show bits of their own, and only such follow", f.name));
        }
        let unknown = |name: &&String| !name.is_empty() && !choices.contains(name.as_str());
        if let Some(facet) = [&f.facet, &f.follows].into_iter().find(unknown) {
            say(format!("field `{}`: `{facet}` is no choice", f.name));
        }
    }
}

/// How a section is cut, and that its fields fit.
fn shape(s: &Section, problems: &mut Vec<String>) {
    let mut say = |what: String| problems.push(format!("section `{}`: {what}", s.name));
    if !CUTS.contains(&s.cut.as_str()) {
        say(format!("`{}` is no way to cut it", s.cut));
    }
    if (s.cut == "entries") != (s.entry != 0) || ![0, 1, 2, 4].contains(&s.tag_size) {
        say("entries have a size, and a tag 1, 2 or 4 bytes".into());
    }
    let needs_fields = ["", "entries", "attributes"].contains(&s.cut.as_str());
    if needs_fields == s.fields.is_empty() && !["registers", "cpuid"].contains(&s.cut.as_str()) {
        say("a structure and attributes have fields, and what is not cut has none".into());
    }
    let mut names = BTreeSet::new();
    for f in &s.fields.0 {
        if f.name.is_empty() || !names.insert((f.group, f.name.clone())) {
            say(format!("field `{}` has no name, or one that another has", f.name));
        }
        let number = [1, 2, 4, 8].contains(&f.size);
        if f.compare != Compare::Identical
            && !number
            && !matches!(f.compare, Compare::Lost | Compare::Computed)
        {
            say(format!("field `{}`: only numbers have bits, or run", f.name));
        }
        if f.group.is_some() && s.tag_size == 0 && ["", "entries"].contains(&s.cut.as_str()) {
            say(format!("field `{}` is there for a tag, and there is none", f.name));
        }
    }
    if ["", "entries"].contains(&s.cut.as_str()) {
        let mut groups: BTreeSet<Option<u32>> = s.fields.iter().map(|f| f.group).collect();
        if groups.len() > 1 {
            groups.remove(&None);
        }
        for group in groups {
            covered(s, group, &mut say);
        }
    }
}

/// Every byte of the structure belongs to one field, and to no second one.
fn covered(s: &Section, group: Option<u32>, say: &mut impl FnMut(String)) {
    let mut bytes: Vec<Option<&str>> = Vec::new();
    let mut rest = None;
    for f in s.fields.iter().filter(|f| f.group.is_none() || f.group == group) {
        if f.size == 0 {
            rest = Some(f.at as usize);
            continue;
        }
        let stride = if f.stride == 0 { f.size } else { f.stride };
        for index in 0..f.count.max(1) {
            for at in f.at + index * stride..f.at + index * stride + f.size {
                let at = at as usize;
                if bytes.len() <= at {
                    bytes.resize(at + 1, None);
                }
                if let Some(other) = bytes[at].replace(&f.name) {
                    say(format!("byte {at} belongs to `{other}` and to `{}`", f.name));
                    return;
                }
            }
        }
    }
    if let Some(at) = bytes.iter().position(Option::is_none) {
        say(format!("byte {at} has no name (tag {group:?})"));
    }
    let size = if s.cut == "entries" { s.entry } else { s.size } as usize;
    if size != 0 && bytes.len() != size || rest.is_some_and(|at| at != bytes.len()) {
        say(format!("its fields end at {}, not at {size}, or leave a rest elsewhere", bytes.len()));
    }
}
