//! How much the ledger holds, and by what each change is told and undone: printed for people, with floors under the
//! numbers that only grow.
#![allow(clippy::print_stdout, reason = "the counts are what this test is for")]

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_catalog::{Arch, CHANGES, Change};

/// Changes known on x86 from reading and comparing kernels 5.10 to 7.3: 119 ids from X86-001 to X86-158, with gaps.
const X86_KNOWN: usize = 119;
/// Those of arm64, ARM-001 to ARM-052.
const ARM64_KNOWN: usize = 52;

/// How many changes have an id with this prefix and a number up to `last`.
fn present(prefix: &str, last: u32) -> usize {
    let number = |c: &Change| c.id.strip_prefix(prefix).and_then(|n| n.parse::<u32>().ok());
    let numbers: BTreeSet<u32> = CHANGES.iter().filter_map(number).collect();
    numbers.range(1..=last).count()
}

/// How a change is told on a running host.
fn told_by(change: &Change) -> &'static str {
    let detect = &change.detect;
    if !detect.probe.is_empty() {
        "by a probe"
    } else if !detect.observe.is_empty() {
        "by an observation from inside a guest"
    } else {
        "not at all"
    }
}

fn count(of: impl Fn(&Change) -> String) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for change in CHANGES {
        *counts.entry(of(change)).or_default() += 1;
    }
    counts.iter().map(|(what, n)| format!("{n} {what}")).collect::<Vec<_>>().join(", ")
}

#[test]
fn the_ledger_holds_what_is_known() {
    println!("{} changes: {}", CHANGES.len(), count(|c| format!("{:?}", c.arch)));
    for (arch, name) in [(Arch::X86_64, "x86"), (Arch::Aarch64, "arm64")] {
        let of = |wanted: &str| CHANGES.iter().filter(|c| c.arch == arch && told_by(c) == wanted).count();
        let [probe, observe, none] =
            ["by a probe", "by an observation from inside a guest", "not at all"].map(of);
        println!("{name}: told by a probe {probe}, by an observation {observe}, not at all {none}");
    }
    println!("told {}", count(|c| told_by(c).to_owned()));
    println!("selector: {}", count(|c| format!("{:?}", c.selector.status)));
    println!("disposition: {}", count(|c| format!("{:?}", c.disposition)));
    println!("explaining something: {}", CHANGES.iter().filter(|c| !c.explains.is_empty()).count());

    let (x86, arm64) = (present("X86-", 158), present("ARM-", 52));
    println!("x86 {x86} of {X86_KNOWN}, arm64 {arm64} of {ARM64_KNOWN}");
    assert_eq!(x86, X86_KNOWN, "the ledger has lost changes of x86");
    assert_eq!(arm64, ARM64_KNOWN, "the ledger has lost changes of arm64");
}
