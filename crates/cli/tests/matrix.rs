//! `evenkeel lab matrix` on captures.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// On captures: nothing is booted.
fn matrix(args: &[&str]) -> Output {
    let quick: &[&str] = if args.contains(&"--from") { &[] } else { &["--bundled"] };
    Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .args(["lab", "matrix"])
        .args(quick)
        .args(args)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn json(args: &[&str]) -> Value {
    let out = matrix(&[args, &["--format", "json"]].concat());
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn put(folder: &Path, name: &str, capture: &str) {
    let bundled = evenkeel_hosts::BUNDLED.iter().find(|b| b.name == capture).unwrap();
    std::fs::write(folder.join(format!("{name}.json")), bundled.text).unwrap();
}

/// A verdict of the pair of these names, and its findings.
fn verdict<'a>(
    m: &'a Value,
    from: &str,
    to: &str,
    guest: usize,
    journey: usize,
) -> (&'a str, Vec<&'a Value>) {
    let index = |name: &str| m["hosts"].as_array().unwrap().iter().position(|h| h["name"] == name).unwrap();
    let (from, to) = (index(from), index(to));
    let pair = m["pairs"].as_array().unwrap().iter().find(|p| p["from"] == from && p["to"] == to).unwrap();
    let v = &pair["guests"][guest]["verdicts"][journey];
    let findings = v["findings"].as_array().unwrap();
    let findings = findings.iter().map(|i| &m["findings"][i.as_u64().unwrap() as usize]).collect();
    (v["outcome"].as_str().unwrap(), findings)
}

#[test]
fn known_cells() {
    let m = json(&["debian-6.1", "debian-7.3", "debian-7.2-arm64", "debian-7.3-arm64"]);
    assert_eq!(m["schema"], "evenkeel.matrix/1");
    assert_eq!(m["pairs"].as_array().unwrap().len(), 4, "architectures are not mixed");
    // Without pinning there is no way back from 7.3 to 6.1.
    let (back, found) = verdict(&m, "debian-6.1", "debian-7.3", 0, 1);
    assert_eq!(back, "no");
    assert!(found.iter().any(|f| f["cause"] == "X86-063" && f["outcome"] == "no"), "{found:?}");
    // A guest with a PMU cannot go from 7.3 to 7.2 on arm64.
    let (up, found) = verdict(&m, "debian-7.3-arm64", "debian-7.2-arm64", 0, 0);
    assert_eq!(up, "no");
    let pmmir = found.iter().find(|f| f["outcome"] == "no").unwrap();
    assert!(pmmir["title"].as_str().unwrap().contains("PMMIR_EL1"), "{pmmir}");
    assert!(pmmir["shapes"].as_array().unwrap().iter().any(|s| s == "pmu"), "{pmmir}");
    // Pinned, the VMM can leave it out.
    let (up, found) = verdict(&m, "debian-7.3-arm64", "debian-7.2-arm64", 1, 0);
    assert_eq!(up, "unknown");
    assert!(found.iter().any(|f| f["subject"] == pmmir["subject"] && f["outcome"] == "holds_with_duties"));
    let said = text(&matrix(&["debian-7.2-arm64", "debian-7.3-arm64", "--guest", "unpinned"]).stdout);
    assert!(said.lines().any(|l| l.contains("ARM-023") && l.trim_start().starts_with('N')), "{said}");
}

#[test]
fn a_cell_says_what_survive_says() {
    let m = json(&["debian-6.18", "debian-7.3"]);
    let out = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .args(["survive", "debian-6.18", "debian-7.3", "--format", "json"])
        .output()
        .unwrap();
    let survive: Value = serde_json::from_slice(&out.stdout).unwrap();
    for guest in 0..2 {
        for journey in 0..4 {
            let (outcome, findings) = verdict(&m, "debian-6.18", "debian-7.3", guest, journey);
            let v = &survive["guests"][guest]["verdicts"][journey];
            assert_eq!(outcome, v["outcome"]);
            assert_eq!(findings, v["findings"].as_array().unwrap().iter().collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_host_to_itself_holds_by_default() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "one", "debian-6.12");
    put(dir.path(), "two", "debian-6.12");
    let from = dir.path().to_str().unwrap();
    let m = json(&["--from", from]);
    assert_eq!(m["pairs"].as_array().unwrap().len(), 2);
    assert!(m["hosts"].as_array().unwrap().iter().all(|h| h["origin"] == "given"));
    for guest in 0..2 {
        for journey in 0..4 {
            let (outcome, findings) = verdict(&m, "one", "two", guest, journey);
            assert_eq!((outcome, findings.len()), ("holds_by_default", 0));
        }
    }
    let said = text(&matrix(&["--from", from]).stdout);
    let row = said.lines().find(|l| l.contains(" one ") && l.contains('·')).unwrap();
    assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["one", "·", "H"]);
    // A name is looked for in the folder first, then among the bundled.
    let m = json(&["--from", from, "two", "debian-6.12"]);
    let origins: Vec<&Value> = m["hosts"].as_array().unwrap().iter().map(|h| &h["origin"]).collect();
    assert_eq!(origins, ["given", "bundled"]);
}

#[test]
fn zero_pairs_fail_loudly() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("m.html");
    let page = page.to_str().unwrap();
    for (args, why) in [
        (vec!["debian-6.1"], "no two hosts are of one architecture and lane: debian-6.1 (svm)"),
        (vec!["debian-6.1", "debian-6.1-arm64"], "debian-6.1-arm64 (arm64)"),
        (vec!["--from", dir.path().to_str().unwrap()], "there is no host"),
    ] {
        let out = matrix(&[&args[..], &["-o", page]].concat());
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(3), "{args:?}: {said}");
        assert!(said.contains("zero pairs") && said.contains(why) && said.contains("hint:"), "{said}");
        assert!(out.stdout.is_empty() && !Path::new(page).exists(), "{args:?}");
    }
    let twice = matrix(&["debian-6.1", "debian-6.1"]);
    assert_eq!(twice.status.code(), Some(2));
    assert!(text(&twice.stderr).contains("named twice"));
}

#[test]
fn all_bundled_kernels_fit_a_terminal_and_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("m.html");
    let out = matrix(&["-o", page.to_str().unwrap()]);
    let said = text(&out.stdout);
    assert_eq!(out.status.code(), Some(0), "a survey: {}", text(&out.stderr));
    let bundled = evenkeel_hosts::BUNDLED;
    let mut lanes: Vec<&str> = bundled.iter().map(|b| b.lane()).collect();
    lanes.sort_unstable();
    lanes.dedup();
    assert!(lanes.len() >= 3, "{lanes:?}");
    for lane in lanes {
        let n = bundled.iter().filter(|b| b.lane() == lane).count();
        let head =
            said.lines().find(|l| l.starts_with(&format!("{lane} "))).unwrap_or_else(|| panic!("{said}"));
        assert!(head.contains(&format!("{n} kernels, {} pairs", n * (n - 1))), "{head}");
        assert!(head.chars().count() <= 80, "{head}");
    }
    let rows: Vec<&str> =
        said.lines().map(str::trim_end).filter(|l| l.contains(" ·  ") || l.ends_with(" ·")).collect();
    assert_eq!(rows.len(), bundled.len(), "{said}");
    assert!(rows.iter().all(|r| r.chars().count() <= 80), "{rows:?}");
    assert!(!said.contains('\u{1b}'), "no colour where none is wanted");
    // Sorted by release: 6.12.43 is before 6.12, which is 6.12.117.
    let at = |name: &str| rows.iter().position(|r| r.split_whitespace().next() == Some(name)).unwrap();
    assert!(at("6.12.43") < at("6.12") && at("6.12") < at("6.18"), "{rows:?}");
    assert!(said.contains("captured earlier: all"));
    let size = std::fs::metadata(&page).unwrap().len();
    assert!((100 << 10..3 << 20).contains(&size), "{size} bytes");
    let shown = matrix(&["debian-6.1", "debian-7.3", "--guest", "unpinned", "--journey", "back"]);
    let shown = text(&shown.stdout);
    assert!(shown.starts_with("Unpinned guest, the way back:"), "{shown}");
    assert!(shown.lines().any(|l| l.split_whitespace().eq(["6.1", "·", "N"])), "{shown}");
}
