//! Which ledger entry explains a difference: facet **and** values must match.

use std::collections::HashMap;
use std::sync::OnceLock;

use evenkeel_catalog::{self as catalog, Arch, CHANGES, Change, Explains};

use crate::view::ItemKey;

type Index = HashMap<&'static str, Vec<(&'static Change, &'static Explains)>>;

/// All explanations, by the facet or item that they name.
fn index() -> &'static Index {
    static INDEX: OnceLock<Index> = OnceLock::new();
    INDEX.get_or_init(|| {
        let mut index: HashMap<&str, Vec<_>> = HashMap::new();
        for change in CHANGES {
            for e in change.explains {
                let key = if e.facet.is_empty() { e.item } else { e.facet };
                index.entry(key).or_default().push((change, e));
            }
        }
        index
    })
}

/// An explanation of a run of items (`msr.1db-1de`): whether they are MSRs, the first, the last.
type Run = (bool, u64, u64, &'static Change, &'static Explains);

/// All explanations of runs.
fn runs() -> &'static [Run] {
    static RUNS: OnceLock<Vec<Run>> = OnceLock::new();
    RUNS.get_or_init(|| {
        let hex = |t: &str| u64::from_str_radix(t, 16).ok();
        let run = |e: &'static Explains| {
            let (kind, rest) = e.item.split_once('.')?;
            let (first, last) = rest.split_once('-')?;
            (kind == "msr" || kind == "reg").then_some((kind == "msr", hex(first)?, hex(last)?))
        };
        CHANGES
            .iter()
            .flat_map(|c| c.explains.iter().map(move |e| (c, e)))
            .filter_map(|(c, e)| run(e).map(|(msr, first, last)| (msr, first, last, c, e)))
            .collect()
    })
}

fn matches(pattern: &str, value: &str, facet: &str) -> bool {
    // A group of state is shown as `listed, 4096 bytes`: the first word says whether it is there.
    pattern.is_empty() || pattern == value || value.split(", ").next() == Some(pattern) || {
        let number = |t: &str| {
            // What userspace may choose of a word is shown as `writable 0x…`.
            let t = t.strip_prefix("writable ").unwrap_or(t);
            // A capability that answers otherwise on VMs: `15 on the system, 11/11/15 on VMs`.
            let t = t.split(" on the system").next().unwrap_or(t);
            let hex = t.strip_prefix("0x").and_then(|d| u64::from_str_radix(d, 16).ok());
            // Capabilities are shown as decimal numbers.
            let decimal = || t.parse().ok();
            hex.or_else(decimal)
                .or_else(|| catalog::choice(facet)?.values.iter().find(|v| v.name == t).map(|v| v.value))
        };
        number(pattern).is_some() && number(pattern) == number(value)
    }
}

fn same_arch(change: &Change, arch: evenkeel_surface::Arch) -> bool {
    (change.arch == Arch::X86_64) == (arch == evenkeel_surface::Arch::X86_64)
}

/// The entry that explains why `facet` (a field, a word or a choice) shows `before` on one host and `after` on the
/// other. In either direction of time, but an entry that tells of this direction goes before one of the other: a
/// behaviour can come, and go again later.
pub fn of_facet(
    arch: evenkeel_surface::Arch,
    facet: &str,
    before: &str,
    after: &str,
) -> Option<&'static Change> {
    let find = |from: &str, to: &str| {
        let fits = |(change, e): &&(&'static Change, &'static Explains)| {
            same_arch(change, arch) && matches(e.before, from, facet) && matches(e.after, to, facet)
        };
        index().get(facet)?.iter().find(fits).map(|(change, _)| *change)
    };
    find(before, after).or_else(|| find(after, before))
}

/// The entry that explains why an item is `before` (`listed`, `unlisted`, `refused`) on one host and `after` on the other.
pub fn of_item(
    arch: evenkeel_surface::Arch,
    key: ItemKey,
    before: &[&str],
    after: &[&str],
) -> Option<&'static Change> {
    let is = |pattern: &str, states: &[&str]| pattern.is_empty() || states.contains(&pattern);
    let fits = |change: &Change, e: &Explains| {
        same_arch(change, arch)
            && ((is(e.before, before) && is(e.after, after)) || (is(e.before, after) && is(e.after, before)))
    };
    let name = key.to_string();
    let single =
        index().get(name.as_str()).and_then(|found| found.iter().find(|(c, e)| fits(c, e)).map(|(c, _)| *c));
    single.or_else(|| {
        let (is_msr, number) = match key {
            ItemKey::Msr(msr) => (true, u64::from(msr)),
            ItemKey::Reg(id) => (false, id),
            ItemKey::Section(_) => return None,
        };
        runs()
            .iter()
            .find(|(msr, first, last, c, e)| {
                *msr == is_msr && (*first..=*last).contains(&number) && fits(c, e)
            })
            .map(|(.., c, _)| *c)
    })
}
