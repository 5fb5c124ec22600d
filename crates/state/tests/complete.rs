//! Every MSR and register that a kernel has named is known to the catalog, and is saved, or says why not: those of
//! the bundled captures, which hold the lists of real kernels from 5.10 to 7.3. What KVM's headers name is held against the
//! catalog in its own tests (`crates/catalog/tests/uapi`).
#![allow(clippy::print_stdout, reason = "the counts are part of the result")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use evenkeel_catalog::{MSRS, REGISTERS, REGS, msr, reg};
use serde_json::Value;

/// Calls `visit` with each object of the document.
fn objects(value: &Value, visit: &mut impl FnMut(&serde_json::Map<String, Value>)) {
    match value {
        Value::Object(map) => {
            visit(map);
            map.values().for_each(|v| objects(v, visit));
        }
        Value::Array(list) => list.iter().for_each(|v| objects(v, visit)),
        _ => {}
    }
}

fn number(map: &serde_json::Map<String, Value>, key: &str) -> Option<u64> {
    u64::from_str_radix(map.get(key)?.as_str()?.strip_prefix("0x")?, 16).ok()
}

/// MSRs that a kernel lists, and ids of registers, of every bundled capture.
fn named() -> (BTreeSet<u64>, BTreeSet<u64>, usize) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hosts/captures");
    let (mut msrs, mut regs, mut captures) = (BTreeSet::new(), BTreeSet::new(), 0);
    for entry in fs::read_dir(&folder).expect("the bundled captures are in the repository") {
        let path = entry.expect("a directory entry").path();
        let document: Value =
            serde_json::from_str(&fs::read_to_string(&path).expect("it can be read")).expect("JSON");
        captures += 1;
        objects(&document, &mut |map| {
            if map.get("listed").and_then(Value::as_bool) == Some(true) {
                msrs.extend(number(map, "msr"));
            }
            if map.contains_key("write") {
                regs.extend(number(map, "id"));
            }
        });
    }
    (msrs, regs, captures)
}

#[test]
fn every_msr_is_saved_or_says_why_not() {
    let (listed, _, captures) = named();
    let known = MSRS.iter().flat_map(|m| m.msr..=m.last.unwrap_or(m.msr)).map(u64::from);
    let all: BTreeSet<u64> = known.chain(listed.iter().copied()).collect();
    let of = |n: &u64| u32::try_from(*n).ok().and_then(msr);
    let unknown: Vec<String> = all.iter().filter(|n| of(n).is_none()).map(|n| format!("{n:#x}")).collect();
    let unsaved = all.iter().filter(|n| of(n).is_some_and(|m| !m.unsaved.is_empty())).count();
    println!(
        "{} of {} MSRs ({} listed by {captures} captures): {} saved, {unsaved} not saved and why",
        all.len() - unknown.len(),
        all.len(),
        listed.len(),
        all.len() - unknown.len() - unsaved,
    );
    assert!(unknown.is_empty(), "neither saved nor said why not: {unknown:?}");
    // A kernel that lists an MSR wants it saved; where it is not, another section has it or it cannot be set.
    let lost: Vec<&str> =
        listed.iter().filter_map(of).filter(|m| !m.unsaved.is_empty()).map(|m| m.name).collect();
    assert!(lost.len() <= 2, "listed, and not saved: {lost:?}");
    assert!(listed.len() >= 120 && captures >= 25);
}

#[test]
fn every_register_is_saved() {
    let (_, ids, _) = named();
    let words: BTreeSet<u64> = REGISTERS.iter().filter_map(|r| r.at.reg).collect();
    let unknown: Vec<String> = ids
        .iter()
        .filter(|id| reg(**id).is_none() && !words.contains(id))
        .map(|id| format!("{id:#x}"))
        .collect();
    println!(
        "{} of {} registers of arm64 captures ({} entries of state, {} words)",
        ids.len() - unknown.len(),
        ids.len(),
        REGS.len(),
        words.len()
    );
    assert!(unknown.is_empty(), "in a list, and without a name: {unknown:?}");
    assert!(ids.len() >= 300);
}
