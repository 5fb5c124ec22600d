//! What a tap takes is a facet of the contract: promised when asked for, and refused by name where it is missing.

use std::path::Path;
use std::process::{Command, Output};

use evenkeel_surface::{Hex64, Measured, canonical};
use serde_json::Value;

const FACET: &str = "x86.net.tap.offloads";

fn evenkeel(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evenkeel")).args(args).current_dir(folder).output().expect("it runs")
}

/// The findings about the facet when a guest under this contract goes from one host to the other.
fn findings(folder: &Path, contract: &str, new: &str) -> Vec<Value> {
    let args = [
        "survive",
        "debian-7.3",
        new,
        "--contract",
        contract,
        "--shape",
        "kernel",
        "--all",
        "--format",
        "json",
    ];
    let out = evenkeel(folder, &args);
    let report: Value = serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out.stderr)));
    let mut found = Vec::new();
    collect(&report, &mut found);
    found
}

fn collect(value: &Value, found: &mut Vec<Value>) {
    match value {
        Value::Object(map) if map.get("subject").is_some_and(|s| s == FACET) => found.push(value.clone()),
        Value::Object(map) => map.values().for_each(|v| collect(v, found)),
        Value::Array(all) => all.iter().for_each(|v| collect(v, found)),
        _ => {}
    }
}

#[test]
fn offloads_are_promised_when_asked_for_and_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let made = |hosts: &[&str], more: &[&str], name: &str| {
        let args = [&["baseline"], hosts, &["--shape", "kernel", "-o", name], more].concat();
        let out = evenkeel(at, &args);
        assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
        std::fs::read_to_string(at.join(name)).unwrap()
    };
    let plain = made(&["debian-5.10", "debian-7.3"], &[], "plain.toml");
    assert!(!plain.contains(FACET), "{plain}");
    let both = made(&["debian-5.10", "debian-7.3"], &["--most", FACET], "both.toml");
    assert!(both.lines().any(|line| line.contains(FACET) && line.contains("\"csum-tso-ufo\"")), "{both}");
    let new = made(&["debian-7.3"], &["--most", FACET], "new.toml");
    assert!(new.contains("csum-tso-ufo-uso-tunnel"), "{new}");

    assert!(findings(at, "plain.toml", "debian-5.10").is_empty(), "nobody was promised any");
    let lost = |found: &[Value]| found.iter().any(|f| f["code"] == "facet-lost" && f["outcome"] == "no");
    assert!(!lost(&findings(at, "both.toml", "debian-5.10")));
    let found = findings(at, "new.toml", "debian-5.10");
    assert!(lost(&found) && found.iter().any(|f| f["cause"] == "X86-272"), "{found:#?}");

    // The same host, whose tap takes checksums alone; and one that was not asked.
    let known = evenkeel_hosts::load("debian-5.10").unwrap().surface;
    for (name, value, code) in
        [("weak.json", Some(Hex64(1)), "facet-lost"), ("unasked.json", None, "facet-unknown")]
    {
        let mut surface = known.clone();
        let is_tap = |m: &Measured| m.facet == "net.tap.offloads";
        match value {
            Some(value) => {
                surface.offer.measured.iter_mut().filter(|m| is_tap(m)).for_each(|m| m.value = value)
            }
            None => surface.offer.measured.retain(|m| !is_tap(m)),
        }
        canonical::seal(&mut surface);
        std::fs::write(at.join(name), canonical::print(&surface)).unwrap();
        let found = findings(at, "both.toml", name);
        assert!(found.iter().any(|f| f["code"] == code), "{name}: {found:#?}");
    }
    let out = evenkeel(at, &["baseline", "debian-7.3", "--most", "x86.quirk.lint0"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains(FACET), "the names are told");
}
