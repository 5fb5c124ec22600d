//! The other answers as text: diff, check, baseline, seal.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use evenkeel_contract::diff::{Class, Difference};
use evenkeel_contract::{Axis, Finding, Remedy};

use crate::model::{BaselineReport, CheckReport, ConflictInfo, DiffReport, SealReport};
use crate::style::{DIM, HEAD, NAME, WIDTH, collapse, of, paint, wrap};

fn class_words(class: Class) -> &'static str {
    match class {
        Class::NotSelectable => "The default changed, and the old value cannot be selected",
        Class::NoLongerOffered => "No longer offered",
        Class::Selectable => "The default changed; the old value can be selected",
        Class::NewlyOffered => "Newly offered: shown to every guest whose VMM passes on everything",
        Class::NewlySelectable => "Newly selectable: nothing changes unless a VMM asks",
        Class::Undetermined => "Not determined on one of the two",
        Class::Interface => "Only a VMM can tell: capabilities, saved state, attributes",
    }
}

/// The text of `evenkeel diff`. `all`: every facet on a line of its own.
pub fn diff(r: &DiffReport, all: bool) -> String {
    let mut out = String::new();
    let w = &mut out;
    let _ = writeln!(w, "{}  {}", paint(HEAD, &r.old.name), r.old.stands_for);
    let _ = writeln!(w, "{}  {}", paint(HEAD, &r.new.name), r.new.stands_for);
    for a in &r.axes {
        let _ = writeln!(w, "    differs besides the kernel: {}", a.what);
    }
    if r.differences.is_empty() {
        let _ = writeln!(w, "\nThe two hosts offer the same.");
        return out;
    }
    let mut last = None;
    /// Class, whether the cause is unknown, the cause, whether the CPU made it, the shapes.
    type Key<'a> = (Class, bool, Option<&'a str>, bool, &'a str);
    let mut groups: BTreeMap<Key<'_>, Vec<&Difference>> = BTreeMap::new();
    for d in &r.differences {
        groups
            .entry((d.class, d.cause.is_none(), d.cause, d.axis == Axis::Cpu, d.shape.as_str()))
            .or_default()
            .push(d);
    }
    for ((class, _, cause, cpu, shape), list) in groups {
        if last != Some(class) {
            let _ = writeln!(w, "\n{}", paint(HEAD, class_words(class)));
            last = Some(class);
        }
        let title = match cause.and_then(evenkeel_catalog::change) {
            Some(c) => format!("{} {}", paint(NAME, c.id), c.title),
            None => "cause unknown".to_owned(),
        };
        let shape = if shape.is_empty() { String::new() } else { format!(" [shape {shape}]") };
        let cpu = if cpu { " [CPU, not a kernel change]" } else { "" };
        let _ = writeln!(w, "  {title}{}{}", paint(DIM, cpu), paint(DIM, &shape));
        if all || list.len() <= 3 {
            for d in list {
                let title = if d.title.is_empty() { String::new() } else { format!("  {}", d.title) };
                let _ = writeln!(w, "      {}: {} → {}{}", d.subject, d.before, d.after, paint(DIM, &title));
            }
        } else {
            let names: Vec<&str> = list.iter().map(|d| d.subject.as_str()).collect();
            let _ = writeln!(w, "      {}", wrap(&collapse(&names, false), WIDTH, "        "));
        }
    }
    let explained = r.differences.iter().filter(|d| d.cause.is_some()).count();
    let text = format!(
        "{} differences, {explained} explained by the ledger. --all names each.",
        r.differences.len()
    );
    let _ = writeln!(w, "\n{}", paint(DIM, &text));
    out
}

/// The text of `evenkeel check`.
pub fn check(r: &CheckReport, all: bool) -> String {
    let mut out = String::new();
    let w = &mut out;
    let _ = writeln!(w, "contract {} (shape {}, {})", paint(HEAD, &r.contract), r.shape, short(&r.digest));
    for h in &r.hosts {
        let _ = writeln!(
            w,
            "  {:<24} {}  {}",
            h.host.name,
            paint(of(h.outcome), h.outcome.words()),
            paint(DIM, &h.host.stands_for)
        );
        findings(w, &h.findings, all, "      ");
    }
    out
}

fn findings(w: &mut String, list: &[Finding], all: bool, indent: &str) {
    let shown = if all { list.len() } else { 12 };
    for f in list.iter().take(shown) {
        let cause = f.cause.map_or("cause unknown".to_owned(), |c| paint(NAME, c));
        let what = match &f.remedy {
            Remedy::Selector { steps } => steps.join("; "),
            Remedy::Duty { work } => work.clone(),
            Remedy::Refuse { because } => because.clone(),
            Remedy::Observe { name } => format!("observe `{name}` from inside a guest"),
            Remedy::Nothing => String::new(),
        };
        let text = format!("{}: {} → {} ({}) {what}", f.subject, f.before, f.after, f.outcome.words());
        let _ = writeln!(w, "{indent}{} {cause}", wrap(&text, WIDTH, &format!("{indent}  ")));
    }
    if list.len() > shown {
        let _ = writeln!(w, "{indent}and {} more (--all)", list.len() - shown);
    }
}

fn short(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}

fn tell_conflicts(w: &mut String, conflicts: &[ConflictInfo]) {
    for c in conflicts {
        let values: Vec<String> = c.values.iter().map(|(h, v)| format!("{v} on {h}")).collect();
        let text = format!("no common value of `{}`: {}", c.facet, values.join(", "));
        let _ = writeln!(w, "  ✗ {}", wrap(&text, WIDTH, "    "));
    }
}

/// The text of `evenkeel baseline`, beside the contract itself.
pub fn baseline(r: &BaselineReport, all: bool) -> String {
    let mut out = String::new();
    let w = &mut out;
    let _ = writeln!(
        w,
        "{} hosts, shape {}: {} words and choices, {}",
        r.hosts,
        r.shape,
        r.names,
        short(&r.digest)
    );
    tell_conflicts(w, &r.conflicts);
    if !r.identities.is_empty() {
        let names: Vec<&str> = r.identities.iter().map(String::as_str).collect();
        let text = format!(
            "identity or topology differs (free to set, the lowest is taken): {}",
            collapse(&names, all)
        );
        let _ = writeln!(w, "  · {}", wrap(&text, WIDTH, "    "));
    }
    for c in &r.costs {
        let names: Vec<&str> = c.facets.iter().map(String::as_str).collect();
        let text = format!("{} alone costs {}: {}", c.host, c.facets.len(), collapse(&names, all));
        let _ = writeln!(w, "  · {}", wrap(&text, WIDTH, "    "));
    }
    if r.costs.is_empty() && r.hosts > 1 {
        let _ = writeln!(w, "  · no host alone costs anything");
    }
    out
}

/// The text of `evenkeel seal`.
pub fn seal(r: &SealReport, all: bool) -> String {
    let mut out = String::new();
    let w = &mut out;
    let against = match &r.reference {
        Some(reference) => format!("what {} would add over {}", r.host.name, reference.name),
        None => format!("what {} decides", r.host.name),
    };
    if r.leaks.is_empty() {
        let _ = writeln!(w, "{} is sealed: nothing is left open of {against}.", r.contract);
        return out;
    }
    let _ = writeln!(w, "{} is not sealed: {} facets are left open of {against}", r.contract, r.leaks.len());
    findings(w, &r.leaks, all, "  ");
    out
}
