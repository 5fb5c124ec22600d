//! Linux guests at work that go from one real kernel to another and back. Boots kernels: ignored unless `EVENKEEL_REQUIRE_LAB`
//! is set; then whatever is missing is a failure.
#![cfg_attr(not(all(lab, target_arch = "x86_64")), allow(dead_code))]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

fn journey(args: &[&str]) -> (Value, Option<i32>, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .args(["--format", "json", "lab", "journey"])
        .args(args)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    (serde_json::from_slice(&out.stdout).unwrap_or_default(), out.status.code(), said)
}

#[test]
#[cfg_attr(not(all(lab, target_arch = "x86_64")), ignore = "boots kernels: set EVENKEEL_REQUIRE_LAB")]
fn a_guest_at_work_goes_to_another_kernel_and_back() {
    let (told, code, said) =
        journey(&["debian-6.1", "debian-7.3", "--guest", "debian-6.1", "--vcpus", "2", "--timeout", "900"]);
    assert_eq!(code, Some(0), "{said}\n{told:#}");
    let journeys = told["journeys"].as_array().unwrap();
    assert_eq!(journeys.len(), 2, "{told:#}");
    for one in journeys {
        assert_eq!(one["legs"].as_array().unwrap().len(), 3, "{one:#}");
        assert_eq!(one["wrong"], serde_json::json!([]), "{one:#}");
        assert_eq!((&one["told"]["passes"], &one["told"]["right"]), (&16.into(), &16.into()), "{one:#}");
        let releases: Vec<&str> =
            one["legs"].as_array().unwrap().iter().map(|leg| leg["release"].as_str().unwrap()).collect();
        assert!(releases[0] == releases[2] && releases[0] != releases[1], "{releases:?}");
        // It stood still between the hosts, and its clock knows.
        assert!(one["told"]["ended_after"].as_f64() > one["told"]["up_after"].as_f64(), "{one:#}");
    }
}

/// The contract that two hosts of the lab keep, from captures made now: those of this lane are not bundled.
fn contract(folder: &Path, hosts: [&str; 2]) -> String {
    let run = |args: &[&str]| {
        let out =
            Command::new(env!("CARGO_BIN_EXE_evenkeel")).args(args).current_dir(folder).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    run(&["lab", "capture", hosts[0], hosts[1], "-o", "."]);
    let captures = hosts.map(|host| format!("{host}.json"));
    run(&["baseline", &captures[0], &captures[1], "--shape", "full", "-o", "contract.toml"]);
    folder.join("contract.toml").to_str().unwrap().to_owned()
}

#[test]
#[cfg_attr(not(all(lab, target_arch = "x86_64")), ignore = "boots kernels: set EVENKEEL_REQUIRE_LAB")]
fn an_arm64_guest_at_work_goes_to_another_kernel_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let hosts = ["debian-6.12-arm64-nvhe", "debian-7.3-arm64-nvhe"];
    let contract = contract(folder.path(), hosts);
    let args = ["--guest", "debian-6.1-arm64", "--vcpus", "2", "--timeout", "600", "--contract", &contract];
    let (told, code, said) = journey(&[&hosts[..], &args[..]].concat());
    assert_eq!(code, Some(0), "{said}\n{told:#}");
    let journeys = told["journeys"].as_array().unwrap();
    assert_eq!(journeys.len(), 2, "{told:#}");
    for one in journeys {
        assert_eq!(one["wrong"], serde_json::json!([]), "{one:#}");
        assert_eq!((&one["told"]["passes"], &one["told"]["right"]), (&16.into(), &16.into()), "{one:#}");
        assert_eq!(one["told"]["clocksource"][1], "arch_sys_counter", "{one:#}");
    }
}
