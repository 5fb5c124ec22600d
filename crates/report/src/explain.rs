//! What a name means, in plain words, with sources.

use std::fmt::Write as _;

use evenkeel_catalog::{self as catalog, Change, Status};

use crate::style::{DIM, HEAD, NAME, WIDTH, paint, wrap};

/// The explanation of a code, ledger entry, facet, state item or capability; none when the catalog does not know it.
pub fn explain(name: &str) -> Option<String> {
    let name = name.trim();
    if let Some(c) = catalog::change(name) {
        return Some(change(c));
    }
    if let Some(c) = catalog::code(name) {
        return Some(format!("{}: {}\n\n{}\n", paint(HEAD, c.code), c.title, wrap(c.text, WIDTH, "")));
    }
    if let Some(c) = catalog::choice(name) {
        return Some(choice(c));
    }
    if let Some(m) = catalog::measurement(name) {
        let text = format!(
            "{}, measured by a capture: {}\n  for a guest: {}\n",
            paint(HEAD, m.name),
            m.title,
            wrap(m.guest, WIDTH, "      ")
        );
        return Some(text + &mentions(name));
    }
    if let Some(text) = item(name) {
        return Some(text);
    }
    if let Some((r, f)) = catalog::register(&single(name)) {
        return Some(register(name, r, f));
    }
    if let Some(text) = crate::interface::explain(name) {
        return Some(text);
    }
    let number = name.strip_prefix("cap.").unwrap_or(name);
    let cap = number
        .parse()
        .ok()
        .or_else(|| catalog::CAPABILITIES.iter().find(|c| c.name == name).map(|c| c.cap))?;
    let found: Vec<String> = catalog::CAPABILITIES
        .iter()
        .filter(|c| c.cap == cap)
        .map(|c| {
            format!(
                "{} (KVM_CHECK_EXTENSION {}): answers a {}; guest-visible: {}\n",
                paint(HEAD, c.name),
                c.cap,
                c.answer,
                c.guest
            )
        })
        .collect();
    (!found.is_empty()).then(|| found.concat() + &mentions(&format!("cap.{cap}")))
}

/// `cpuid.4.1.eax` is catalogued as `cpuid.4.n.eax`.
fn single(name: &str) -> String {
    if catalog::register(name).is_some() {
        return name.to_owned();
    }
    let mut parts: Vec<&str> = name.split('.').collect();
    if parts.len() >= 4 {
        parts[2] = "n";
    }
    parts.join(".")
}

fn change(c: &Change) -> String {
    let mut out = String::new();
    let w = &mut out;
    let _ = writeln!(w, "{} {}", paint(NAME, c.id), paint(HEAD, c.title));
    let _ = writeln!(w, "\n{}", wrap(c.summary, WIDTH, ""));
    let mut line = |label: &str, text: &str| {
        if !text.is_empty() {
            let _ = writeln!(w, "  {} {}", paint(HEAD, &format!("{label}:")), wrap(text, WIDTH, "      "));
        }
    };
    line("a guest observes", c.guest_observes);
    line("who could notice", c.blast_words);
    let k = &c.kernels;
    let mut kernels = Vec::new();
    for (what, value) in [
        ("last known without", k.last_without),
        ("first known with", k.first_with),
        ("mainline", k.mainline),
        ("stable", k.stable),
    ] {
        if !value.is_empty() {
            kernels.push(format!("{what} {value}"));
        }
    }
    line("kernels (hints, nothing decides by them)", &kernels.join("; "));
    line(
        "when nobody asks",
        match c.default {
            catalog::Era::Old => "the old behaviour",
            catalog::Era::New => "the new behaviour",
        },
    );
    line(
        "selecting the old behaviour",
        match c.selector.status {
            Status::Available => "possible",
            Status::Partial => "possible in part",
            Status::None => "not possible",
            Status::NotNeeded => "not needed",
        },
    );
    for step in c.selector.steps {
        line("  step", step);
    }
    line("  duty", c.selector.duty);
    line("  refuse", c.selector.refusal);
    line("the way back", c.rollback);
    line(
        "told by",
        [c.detect.probe, c.detect.observe, c.detect.undetectable]
            .iter()
            .find(|t| !t.is_empty())
            .unwrap_or(&""),
    );
    for e in c.explains {
        let subject = if e.facet.is_empty() { e.item } else { e.facet };
        let values = match (e.before, e.after) {
            ("", "") => String::new(),
            (b, a) => format!(
                ": {} → {}",
                if b.is_empty() { "any" } else { b },
                if a.is_empty() { "any" } else { a }
            ),
        };
        line("explains", &format!("{subject}{values}"));
    }
    for source in c.sources {
        line("source", source);
    }
    out
}

fn choice(c: &catalog::Choice) -> String {
    let mut out = String::new();
    let w = &mut out;
    let _ = writeln!(w, "{}: {}\n", paint(HEAD, c.name), c.title);
    for v in c.values {
        let mut notes = Vec::new();
        if v.value == c.default && c.from.measured.is_empty() {
            notes.push("when nobody asks");
        }
        if v.value == c.absent {
            notes.push("where it is unheard of");
        }
        let notes = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join(", ")) };
        let _ =
            writeln!(w, "  {}{} {}", paint(NAME, v.name), paint(DIM, &notes), wrap(v.means, WIDTH, "      "));
    }
    if !c.from.observe.is_empty() {
        let text = format!(
            "No ioctl tells it: only a look from inside a guest does (observation `{}`).",
            c.from.observe
        );
        let _ = writeln!(w, "\n{}", wrap(&text, WIDTH, ""));
    }
    for step in c.selector {
        let _ = writeln!(w, "  select: {step}");
    }
    if !c.hazard.is_empty() {
        let _ = writeln!(w, "  hazard: {}", wrap(c.hazard, WIDTH, "      "));
    }
    for r in catalog::REGISTERS.iter().filter(|r| r.gate == c.name) {
        let names: Vec<&str> = r.fields.iter().filter(|f| !f.reaches.is_empty()).map(|f| f.name).collect();
        let text = format!("{}: {}", r.name, names.join(", "));
        let _ = writeln!(w, "  decides whether these bits count: {}", wrap(&text, WIDTH, "      "));
    }
    out + &mentions(c.name)
}

fn item(name: &str) -> Option<String> {
    let text = if let Some(msr) = name.strip_prefix("msr.").and_then(|n| u32::from_str_radix(n, 16).ok()) {
        let m = catalog::msr(msr);
        let feature = catalog::register(name).map(|(r, _)| register(name, r, None));
        match (m, feature) {
            (None, None) => return None,
            (m, feature) => {
                let item = m.map(|m| {
                    let absent = m.absent.map_or("not known".to_owned(), |v| format!("{v:#x}"));
                    let droppable = if m.droppable { "; it can be left out of a saved state where it holds that" } else { "" };
                    format!(
                        "{} ({name}), an item of state: {}\n  in a guest that never touched it: {absent}{droppable}\n",
                        paint(HEAD, m.name),
                        m.title
                    )
                });
                let enumerated = catalog::enumerated_by(name).map(|(r, f)| {
                    let text = despite(r, "a guest that is not shown it reaches the MSR all the same");
                    format!(
                        "  enumerated by {}\n",
                        wrap(&format!("{}.{}. {text}", r.name, f.name), WIDTH, "      ")
                    )
                });
                item.unwrap_or_default() + &enumerated.collect::<String>() + &feature.unwrap_or_default()
            }
        }
    } else if let Some(id) = name.strip_prefix("reg.").and_then(|n| u64::from_str_radix(n, 16).ok()) {
        let r = catalog::reg(id)?;
        format!("{} ({name}), an item of state of {} guests: {}\n", paint(HEAD, r.name), r.guests, r.title)
    } else if let Some(r) = catalog::REGS.iter().find(|r| r.name.eq_ignore_ascii_case(name)) {
        return item(&format!("reg.{:x}", r.id));
    } else {
        let s = catalog::section(name)?;
        let instead = if s.instead.is_empty() {
            String::new()
        } else {
            format!("  where it is missing: `{}`, when {}\n", s.instead, s.instead_when)
        };
        format!("{}, a group of state: {}\n  {} / {}\n{instead}", paint(HEAD, s.name), s.title, s.get, s.set)
    };
    Some(text + &mentions(name))
}

fn register(name: &str, r: &catalog::Register, f: Option<&catalog::Field>) -> String {
    let mut out = String::new();
    let w = &mut out;
    match f {
        Some(f) => {
            let bits = if f.lo == f.hi { format!("bit {}", f.lo) } else { format!("bits {}:{}", f.hi, f.lo) };
            let _ = writeln!(w, "{}: {} ({bits} of {})", paint(HEAD, name), f.title, r.name);
            let _ = writeln!(w, "  rule: {:?}; comes from: {:?}", f.rule, f.kind);
            if !f.since.is_empty() {
                let _ = writeln!(w, "  first kernel read that advertises it: {}", f.since);
            }
            for need in f.needs {
                let _ = writeln!(w, "  needs {need}");
            }
            if !f.reaches.is_empty() {
                let what: Vec<String> = f.reaches.iter().map(|r| reached(r)).collect();
                let text =
                    format!("{}. {}", what.join(", "), despite(r, "hiding the bit does not take that away"));
                let _ = writeln!(w, "  enumerates {}", wrap(&text, WIDTH, "      "));
            }
        }
        None => {
            let _ = writeln!(w, "{}: {}", paint(HEAD, name), r.title);
            for f in r.fields {
                let bits = if f.lo == f.hi { format!("{}", f.lo) } else { format!("{}:{}", f.hi, f.lo) };
                let _ = writeln!(w, "  {bits:>6}  {} {}", paint(NAME, &format!("{:<24}", f.name)), f.title);
            }
            let _ = writeln!(w, "  other bits: {:?}", r.rest);
        }
    }
    out + &mentions(name)
}

/// `msr.4b564d02` with its symbol, `hypercall.b` in words.
fn reached(what: &str) -> String {
    let number = |t: &str| u32::from_str_radix(t, 16).ok();
    let first = what.strip_prefix("msr.").and_then(|run| number(run.split('-').next().unwrap_or(run)));
    match (first.and_then(catalog::msr), what.rsplit_once("hypercall.")) {
        (Some(msr), _) => format!("{} ({what})", msr.name),
        (None, Some((prefix, n))) => {
            format!("{}hypercall 0x{n}", if prefix.is_empty() { "" } else { "Hyper-V " })
        }
        _ => what.to_owned(),
    }
}

/// What the gate of a register makes of its bits, and how to shut it.
fn despite(r: &catalog::Register, but: &str) -> String {
    let within =
        if r.within.is_empty() { String::new() } else { format!(" (as long as {} is shown)", r.within) };
    let how = catalog::choice(r.gate)
        .and_then(|c| c.selector.first())
        .map_or("", |step| step.trim_start_matches("on: "));
    format!(
        "While `{}` is off, {but}{within}. To make KVM heed the bit: {how}. To take away one MSR: KVM_X86_SET_MSR_FILTER.",
        r.gate
    )
}

/// The ledger entries that speak of a facet or item.
fn mentions(name: &str) -> String {
    let mut out = String::new();
    let number = |t: &str| u64::from_str_radix(t, 16).ok();
    for c in catalog::CHANGES {
        let names = c.explains.iter().any(|e| {
            let run = e.item.split_once('.').and_then(|(kind, rest)| {
                let (first, last) = rest.split_once('-')?;
                let (mine, n) = name.split_once('.')?;
                Some(kind == mine && (number(first)?..=number(last)?).contains(&number(n)?))
            });
            e.facet == name
                || e.item == name
                || run == Some(true)
                || e.facet.strip_prefix(name).is_some_and(|r| r.starts_with('.'))
        });
        if names {
            let _ = writeln!(out, "  changed by {} {}", paint(NAME, c.id), c.title);
        }
    }
    out
}
