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

/// An ELF file whose one instruction asks for a reset.
#[cfg(target_arch = "x86_64")]
fn kernel() -> Vec<u8> {
    let code = [0xb0, 0xfe, 0xe6, 0x64, 0xf4];
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2_u16, 62].iter().flat_map(|n| n.to_le_bytes()));
    file.extend(1_u32.to_le_bytes());
    file.extend([0x10_0000_u64, 64, 0].iter().flat_map(|n| n.to_le_bytes()));
    file.extend(0_u32.to_le_bytes());
    file.extend([64_u16, 56, 1, 0, 0, 0].iter().flat_map(|n| n.to_le_bytes()));
    file.extend([1_u32, 5].iter().flat_map(|n| n.to_le_bytes()));
    file.extend([0x100_u64, 0x10_0000, 0x10_0000, 5, 5, 0x100].iter().flat_map(|n| n.to_le_bytes()));
    file.resize(0x100, 0);
    file.extend(code);
    file
}

#[test]
#[cfg(target_arch = "x86_64")]
#[cfg_attr(not(all(kvm, tap)), ignore = "needs /dev/kvm, /dev/net/tun, and root to make an interface")]
fn kvm_a_card_has_no_more_than_its_contract() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("kernel"), kernel()).unwrap();
    let card = format!("tap:ekc{},offloads=csum+tso4", std::process::id());
    let run = |more: &[&str]| {
        let args = ["run", "--memory", "32", "--limit", "60", "--kernel", "kernel", "--net", &card];
        let out = evenkeel(at, &[&args[..], more].concat());
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    // Its own contract promises what its card has.
    let (code, said) = run(&[]);
    assert_eq!(code, Some(0), "{said}");
    let contract = |more: &[&str], name: &str| {
        let out = evenkeel(at, &[&["baseline", "here", "--shape", "kernel", "-o", name], more].concat());
        assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    };
    contract(&[], "none.toml");
    let (code, said) = run(&["--contract", "none.toml"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(FACET) && said.contains("promises `none`") && said.contains("--most"), "{said}");
    contract(&["--most", FACET], "most.toml");
    let promised = std::fs::read_to_string(at.join("most.toml")).unwrap();
    assert!(promised.contains(FACET), "{promised}");
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
