//! The four verdicts as text: the answers first, then what each needs, grouped by cause, most severe first.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use evenkeel_catalog::Blast;
use evenkeel_contract::{Axis, Evidence, Finding, Journey, Outcome, Remedy, Verdict, Verdicts};

use crate::model::SurviveReport;
use crate::style::{DIM, HEAD, NAME, WIDTH, collapse, of, padded, paint, wrap};

fn question(journey: Journey) -> &'static str {
    match journey {
        Journey::RunningUp => "1  a guest running on O moves to N",
        Journey::RunningBack => "2  … and comes back to O",
        Journey::NewGuest => "3  a guest started on N is as one started on O",
        Journey::NewBack => "4  … and can go to O",
    }
}

fn answer(v: &Verdict) -> String {
    match v.outcome {
        Outcome::Unknown => format!("unknown (else {})", v.otherwise.words()),
        outcome => outcome.words().to_owned(),
    }
}

/// The text of `evenkeel survive`. `all`: every facet by name, and the findings that need nothing.
pub fn survive(r: &SurviveReport, all: bool) -> String {
    let mut out = String::new();
    let w = &mut out;
    let _ = writeln!(w, "{}  {}", paint(HEAD, &format!("O = {}", r.old.name)), r.old.stands_for);
    let _ = writeln!(w, "{}  {}", paint(HEAD, &format!("N = {}", r.new.name)), r.new.stands_for);
    axes(w, r);
    let _ = writeln!(w);
    let head: String = r.guests.iter().map(|g| format!("{:<34}", g.guest)).collect();
    let _ = writeln!(w, "{:<50}{}", "", paint(HEAD, head.trim_end()));
    for (i, journey) in Journey::ALL.into_iter().enumerate() {
        let last = r.guests.len() - 1;
        let width = |k: usize| if k == last { 0 } else { 34 };
        let cell =
            |(k, g): (usize, &Verdicts)| padded(of(g.verdicts[i].outcome), &answer(&g.verdicts[i]), width(k));
        let cells: String = r.guests.iter().enumerate().map(cell).collect();
        let _ = writeln!(w, "{:<50}{cells}", question(journey));
    }
    let _ = writeln!(w);
    for g in &r.guests {
        let what = match g.guest.as_str() {
            "unpinned" => "the VMM passes on all that KVM offers, selects nothing, and saves every listed MSR: the worst case".to_owned(),
            "pinned" => format!(
                "the VMM applies the sealed baseline of the two (evenkeel baseline {} {} -o FILE), selects and takes on duties",
                r.old.name, r.new.name
            ),
            name => format!("the VMM applies the contract `{name}`, selects and takes on duties"),
        };
        let _ = writeln!(w, "{}", wrap(&format!("{}: {what}.", g.guest), WIDTH, "    "));
    }
    let _ = writeln!(w, "Looked at in these VM shapes: {}.", r.shapes.join(", "));
    for c in &r.conflicts {
        let values: Vec<String> = c.values.iter().map(|(h, v)| format!("{v} on {h}")).collect();
        let _ = writeln!(
            w,
            "No common contract over `{}`: {} ({}).",
            c.facet,
            values.join(", "),
            axis_words(c.axis)
        );
    }
    for guest in &r.guests {
        section(w, guest, all);
    }
    if !all {
        unknown(w, &r.guests);
    }
    footer(w, r, all);
    out
}

fn axes(w: &mut String, r: &SurviveReport) {
    if r.axes.is_empty() {
        let _ = writeln!(
            w,
            "The CPU and the boot options are the same: what differs below, differs by the kernel."
        );
        return;
    }
    let _ = writeln!(w, "{}", paint(HEAD, "The hosts differ in more than the kernel:"));
    for a in &r.axes {
        let _ = writeln!(w, "    {}", wrap(&format!("{} ({})", a.what, axis_words(a.axis)), WIDTH, "      "));
    }
    let _ = writeln!(w, "Findings on those axes are marked: the kernel change did not cause them.");
}

fn axis_words(axis: Axis) -> &'static str {
    match axis {
        Axis::Kernel => "kernel",
        Axis::Cpu => "CPU, not a kernel change",
        Axis::Boot => "boot options, not a kernel change",
        Axis::Shape => "VM shape, not a kernel change",
    }
}

/// What findings are grouped by. Without a known cause, findings of one sort and one kind of remedy are told together.
type Key = (u8, Outcome, Option<&'static str>, Axis, String, String);

struct Group<'a> {
    journeys: Vec<usize>,
    findings: Vec<&'a Finding>,
}

fn groups<'a>(guest: &'a Verdicts) -> BTreeMap<Key, Group<'a>> {
    let mut groups: BTreeMap<Key, Group<'a>> = BTreeMap::new();
    for (i, verdict) in guest.verdicts.iter().enumerate() {
        for f in &verdict.findings {
            let sort = match f.cause {
                Some(_) => String::new(),
                None => format!("{} {:?}", f.code, std::mem::discriminant(&f.remedy)),
            };
            let key = (f.severity(), f.outcome, f.cause, f.axis, sort, f.shapes.join(", "));
            let group =
                groups.entry(key).or_insert_with(|| Group { journeys: Vec::new(), findings: Vec::new() });
            if !group.journeys.contains(&(i + 1)) {
                group.journeys.push(i + 1);
            }
            if !group.findings.iter().any(|g| g.subject == f.subject) {
                group.findings.push(f);
            }
        }
    }
    groups
}

fn section(w: &mut String, guest: &Verdicts, all: bool) {
    let heading = |outcome: Outcome| match outcome {
        Outcome::No => "What stands in the way",
        Outcome::HoldsWithDuties => "What the VMM must do itself",
        Outcome::HoldsWithSelectors => "What the VMM must select",
        Outcome::Unknown => "What nobody has observed yet",
        Outcome::HoldsByDefault => "What needs nothing",
    };
    let mut last = None;
    for ((_, outcome, cause, axis, _, shapes), group) in &groups(guest) {
        if *outcome == Outcome::Unknown && !all {
            continue;
        }
        if last != Some(*outcome) {
            let _ = writeln!(w, "\n{}", paint(HEAD, &format!("{} ({})", heading(*outcome), guest.guest)));
            last = Some(*outcome);
        }
        tell(w, *outcome, *cause, *axis, shapes, group, all);
    }
}

/// What is unknown, for all guests at once: it is the same for each, or nearly.
fn unknown(w: &mut String, guests: &[Verdicts]) {
    let mut names: Vec<&str> = Vec::new();
    for f in guests
        .iter()
        .flat_map(|g| &g.verdicts)
        .flat_map(|v| &v.findings)
        .filter(|f| f.outcome == Outcome::Unknown)
    {
        if !names.contains(&f.subject.as_str()) {
            names.push(&f.subject);
        }
    }
    if names.is_empty() {
        return;
    }
    let _ = writeln!(w, "\n{}", paint(HEAD, "What nobody has observed yet"));
    let (behaviours, rest): (Vec<&str>, Vec<&str>) =
        names.iter().partition(|n| evenkeel_catalog::choice(n).is_some_and(|c| !c.from.observe.is_empty()));
    if !behaviours.is_empty() {
        let text = format!(
            "{} behaviours that no ioctl tells, only a look from inside a guest: {}",
            behaviours.len(),
            collapse(&behaviours, false)
        );
        let _ = writeln!(w, "  ? {}", wrap(&text, WIDTH, "    "));
    }
    if !rest.is_empty() {
        let text = format!(
            "{} facets or state items that were not determined on one host: {}",
            rest.len(),
            collapse(&rest, false)
        );
        let _ = writeln!(w, "  ? {}", wrap(&text, WIDTH, "    "));
    }
}

fn tell(
    w: &mut String,
    outcome: Outcome,
    cause: Option<&str>,
    axis: Axis,
    shapes: &str,
    group: &Group<'_>,
    all: bool,
) {
    let change = cause.and_then(evenkeel_catalog::change);
    let mark = match outcome {
        Outcome::No => "✗",
        Outcome::Unknown => "?",
        _ => "·",
    };
    let first = group.findings[0];
    let title = match change {
        Some(c) => format!("{} {}", paint(NAME, c.id), c.title),
        None => {
            format!("cause unknown: {}", evenkeel_catalog::code(first.code).map_or(first.code, |c| c.title))
        }
    };
    let journeys: Vec<String> = group.journeys.iter().map(usize::to_string).collect();
    let mut asides = vec![format!("verdict {}", journeys.join(", "))];
    if !shapes.is_empty() {
        asides.push(format!("shape {shapes}"));
    }
    if axis != Axis::Kernel {
        asides.push(axis_words(axis).to_owned());
    }
    if group.findings.iter().any(|f| f.evidence == Evidence::Predicted) {
        asides.push("predicted".to_owned());
    }
    let _ = writeln!(
        w,
        "  {} {title}  {}",
        paint(of(outcome), mark),
        paint(DIM, &format!("[{}]", asides.join("; ")))
    );
    let subjects: Vec<&str> = group.findings.iter().map(|f| f.subject.as_str()).collect();
    let one_value = group.findings.iter().all(|f| (&f.before, &f.after) == (&first.before, &first.after));
    let values = if one_value { format!(": {} → {}", first.before, first.after) } else { String::new() };
    let _ = writeln!(
        w,
        "      {}",
        wrap(&format!("{}{}{values}", collapse(&subjects, all), item_names(&subjects)), WIDTH, "        ")
    );
    if let Some(c) = change {
        let _ = writeln!(w, "      who: {}", wrap(&blast(c.blast, c.blast_words), WIDTH, "        "));
    }
    if all {
        for f in &group.findings {
            let title = if f.title.is_empty() { String::new() } else { format!("  {}", f.title) };
            let at = if f.at.is_empty() { String::new() } else { format!("  ({})", f.at) };
            let _ = writeln!(w, "        {} {} → {}{title}{}", f.subject, f.before, f.after, paint(DIM, &at));
        }
    }
    for line in remedies(&group.findings) {
        let _ = writeln!(w, "      → {}", wrap(&line, WIDTH, "        "));
    }
}

/// The manuals' names of saved registers, in brackets; nothing for facets, whose names speak for themselves.
fn item_names(subjects: &[&str]) -> String {
    let number = |s: &str| s.split_once('.').and_then(|(_, n)| u64::from_str_radix(n, 16).ok());
    let name = |s: &&str| match s.split_once('.')?.0 {
        "reg" => evenkeel_catalog::reg(number(s)?).map(|r| r.name),
        "msr" => evenkeel_catalog::msr(u32::try_from(number(s)?).ok()?).map(|m| m.name),
        _ => None,
    };
    let mut names: Vec<&str> = subjects.iter().filter_map(name).collect();
    names.dedup();
    match names.len() {
        0 => String::new(),
        n if n > 4 => format!(" ({} and {} more)", names[..4].join(", "), n - 4),
        _ => format!(" ({})", names.join(", ")),
    }
}

fn blast(blast: Blast, words: &str) -> String {
    if words.is_empty() {
        return match blast {
            Blast::EveryGuest => "every guest",
            Blast::ManyGuests => "many guests",
            Blast::FewGuests => "few guests",
            Blast::OnlyVmm => "the VMM only",
        }
        .to_owned();
    }
    words.to_owned()
}

fn remedies(findings: &[&Finding]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for f in findings {
        let line = match &f.remedy {
            Remedy::Nothing => "nothing to do: the old behaviour stays until somebody asks".to_owned(),
            Remedy::Selector { steps } if steps.iter().all(|s| s.starts_with("KVM_SET_CPUID2")) => {
                "select: KVM_SET_CPUID2 with the contract's table".to_owned()
            }
            Remedy::Selector { steps } => format!("select: {}", steps.join("; ")),
            Remedy::Duty { work } => format!("duty: {work}"),
            Remedy::Refuse { because } => format!("nothing selects the old value: {because}"),
            Remedy::Observe { name } => format!("settled by observing `{name}` from inside a guest"),
        };
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    let more = lines.len().saturating_sub(3);
    lines.truncate(3);
    if more > 0 {
        lines.push(format!("and {more} more such steps (--format json has them all)"));
    }
    lines
}

fn footer(w: &mut String, r: &SurviveReport, all: bool) {
    let causes: std::collections::BTreeSet<&str> =
        r.guests.iter().flat_map(|g| &g.verdicts).flat_map(|v| &v.findings).filter_map(|f| f.cause).collect();
    let _ = writeln!(w);
    if let Some(first) = causes.iter().next() {
        let text =
            format!("evenkeel explain {first} says more, with sources; so does it for every name above.");
        let _ = writeln!(w, "{}", paint(DIM, &text));
    }
    if !all {
        let _ = writeln!(
            w,
            "{}",
            paint(DIM, "Every facet by name: --all. All of it for machines: --format json.")
        );
    }
}
