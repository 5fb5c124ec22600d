//! Rounds of the arm64 witness on real kernels under emulation: saved in states that are hard to save, restored, asked.
//! Boots kernels: ignored unless `EVENKEEL_REQUIRE_LAB` is set; then whatever is missing is a failure.
#![cfg_attr(not(lab), allow(dead_code))]

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Output};

use evenkeel_catalog::{Arch, EDGES};
use serde_json::Value;

/// Kernels whose idle hosts are resumed: the oldest, a stable and the newest.
const RESUMED: [&str; 3] = ["debian-6.1-arm64-nvhe", "debian-6.12-arm64-nvhe", "debian-7.3-arm64-nvhe"];
/// The same in the lane whose CPU has SVE and pointer authentication.
const WHOLE: [&str; 3] = ["debian-6.1-arm64", "debian-6.12-arm64", "debian-7.3-arm64"];
const SCENARIOS: usize = 13;

fn evenkeel(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evenkeel")).args(args).output().unwrap()
}

fn lab(hosts: &[&str], rounds: &[&str]) -> (String, Option<i32>) {
    let timeout = ["--timeout", "1200", "--", "evenkeel", "rounds"];
    let out = evenkeel(&[&["lab", "run"], hosts, &timeout, rounds].concat());
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (text, out.status.code())
}

#[test]
#[cfg_attr(not(lab), ignore = "boots kernels: set EVENKEEL_REQUIRE_LAB")]
fn a_guest_does_not_notice_wherever_it_was_stopped() {
    for host in RESUMED {
        let (text, code) = lab(&[host], &["--shape", "pmu", "--vcpus", "2"]);
        assert_eq!(code, Some(0), "{host}: {text}");
        let good = text.matches(": good, ").count();
        // 6.1 cannot move both counters together.
        let lacking = text.matches("not tried: KVM_CAP_COUNTER_OFFSET").count();
        assert_eq!(
            (good + lacking, lacking),
            (SCENARIOS, usize::from(host.contains("6.1-"))),
            "{host}: {text}"
        );
    }
}

#[test]
#[cfg_attr(not(lab), ignore = "boots kernels: set EVENKEEL_REQUIRE_LAB")]
fn every_shape_and_up_to_four_vcpus_are_restored() {
    let shapes = ["--shape", "min", "--shape", "full", "--vcpus", "1", "--vcpus", "4"];
    let scenarios = ["--scenario", "idle", "--scenario", "lpi"];
    for host in WHOLE {
        let (text, code) = lab(&[host], &[&shapes[..], &scenarios].concat());
        assert_eq!(code, Some(0), "{host}: {text}");
        assert_eq!(text.matches(": good, ").count(), 8, "{host}: {text}");
    }
}

#[test]
#[cfg_attr(not(lab), ignore = "boots kernels: set EVENKEEL_REQUIRE_LAB")]
fn spoilt_calls_are_told_and_do_no_harm() {
    let args = ["--shape", "min", "--vcpus", "1", "--scenario", "sgi", "--faults", "97"];
    let (text, code) = lab(&["debian-6.12-arm64-nvhe"], &args);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(text.matches("0 missed, 0 harmed").count(), 4, "{text}");
}

#[test]
#[cfg_attr(not(lab), ignore = "boots kernels: set EVENKEEL_REQUIRE_LAB")]
fn what_is_lost_between_kernels_is_what_was_foretold() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let stopped = ["--stopped-in", "timer-expired", "-o", path, "--format", "json"];
    let out = evenkeel(&[&["lab", "capsules"], &WHOLE[..], &stopped].concat());
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(0), "{}{told}", String::from_utf8_lossy(&out.stdout));
    let square: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(square["pairs"].as_array().unwrap().len(), 9);
    for pair in square["pairs"].as_array().unwrap() {
        let count = |list: &str| pair[list].as_array().unwrap().len();
        assert_eq!([count("disagree"), count("lost")], [0, 0], "{pair}");
        let own = pair["from"] == pair["on"];
        assert_eq!(own, count("forced") == 0, "each of these kernels lacks something of each other: {pair}");
        assert!(!own || count("seen") == 0, "{pair}");
    }
    // Where all that 7.3 has not is what nobody can reach, the guest goes on.
    let goes_on = |p: &&Value| p["from"] == "debian-6.12-arm64" && p["on"] == "debian-7.3-arm64";
    let pair = square["pairs"].as_array().unwrap().iter().find(goes_on).unwrap();
    assert_eq!(pair["refused"].as_array().map(Vec::len), Some(0), "{pair}");
}

/// Each edge of the order is turned round, in the scenarios that the catalog names and no others: what goes wrong shows what it
/// is for. The others are implied, or known from their sources alone.
#[test]
#[cfg_attr(not(lab), ignore = "boots kernels: set EVENKEEL_REQUIRE_LAB")]
fn edges_that_are_turned_round_show() {
    let mine = || EDGES.iter().filter(|e| e.arch == Arch::Aarch64 && e.phase != "apply");
    let scenarios: BTreeSet<&str> = mine().map(|e| e.shown_by).filter(|by| !by.is_empty()).collect();
    let mut args = vec!["--edges", "--shape", "pmu", "--vcpus", "2"];
    args.extend(scenarios.iter().flat_map(|scenario| ["--scenario", scenario]));
    let (text, code) = lab(&["debian-6.12-arm64-nvhe"], &args);
    assert_eq!(code, Some(0), "{text}");
    // A heading `pmu 2 lpi:`, then a line an edge.
    let mut shown: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
    let mut scenario = "";
    for line in text.lines() {
        if let Some(heading) = line.trim().strip_prefix("pmu 2 ") {
            scenario = heading.trim_end_matches(':');
        } else if let Some((edge, what)) =
            line.trim().split_once(": ").filter(|(e, _)| e.contains(" before "))
        {
            shown.entry(scenario).or_default().insert(edge, what);
        }
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for e in mine() {
        let name = format!("{} {} before {}", e.phase, e.before, e.after);
        let said: Vec<&str> = shown.values().filter_map(|all| all.get(name.as_str()).copied()).collect();
        assert_eq!(said.len(), scenarios.len(), "{name}: {text}");
        let told = shown.get(e.shown_by).and_then(|all| all.get(name.as_str()).copied());
        let kind = match told {
            _ if said[0].starts_with("cannot be turned") => "implied",
            Some(what) if what != "nothing shows" => "shown",
            _ => "documented",
        };
        *counts.entry(kind).or_default() += 1;
        if (kind == "shown") == e.shown_by.is_empty() {
            wrong.push(format!("{name}: {kind}, and the catalog says `{}`", e.shown_by));
        }
        println!("{name}: {kind}: {}", told.unwrap_or_default());
    }
    println!("{counts:?}");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(counts.get("shown").copied().unwrap_or(0) >= 9, "{counts:?}");
}
