//! `evenkeel observe --score`: the witness against a host that lies, on this machine's KVM and on kernels of the lab.
#![cfg(target_arch = "x86_64")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn evenkeel(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evenkeel")).args(args).output().unwrap()
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().unwrap().to_owned()
}

/// The document, as its schema says; and how many facets were noticed, missed, not alterable.
fn read(text: &[u8]) -> (Value, [usize; 3]) {
    let score: Value =
        serde_json::from_slice(text).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(text)));
    let schema = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/schema/witness-score.json");
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(schema).unwrap()).unwrap();
    assert!(jsonschema::is_valid(&schema, &score), "{score}");
    let facets = score["facets"].as_array().unwrap();
    let count = |what: &str| facets.iter().filter(|f| f["noticed"] == what).count();
    let counts = ["noticed", "missed", "not_alterable"].map(count);
    (score, counts)
}

fn missed(score: &Value) -> Vec<&Value> {
    score["facets"].as_array().unwrap().iter().filter(|f| f["noticed"] == "missed").collect()
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_the_witness_notices_what_a_host_does_not_admit() {
    let dir = tempfile::tempdir().unwrap();
    let contract = path(dir.path(), "here.toml");
    evenkeel(&["baseline", "here", "-o", &contract]);
    let args = ["observe", "--contract", &contract, "--score", "--every", "6", "--format", "json"];
    let out = evenkeel(&args);
    let (score, [noticed, missed_count, not_alterable]) = read(&out.stdout);
    println!("{noticed} noticed, {missed_count} missed, {not_alterable} not alterable");
    assert!(noticed >= 60, "too few to say anything: {noticed}");
    assert!(noticed * 10 >= (noticed + missed_count) * 9, "{:#?}", missed(&score));
    assert_eq!(out.status.code(), Some(0));
    assert_eq!(score["read_back"], 0, "the lie is told to the end");
    // Far fewer guests than facets, and each is told apart all the same.
    assert!(score["runs"].as_u64().unwrap() < noticed as u64, "{}", score["runs"]);
}

/// Two kernels that run every instruction as hardware does, with the contract of each.
#[cfg_attr(not(lab), ignore = "boots kernels: set EVENKEEL_REQUIRE_LAB")]
#[test]
fn lab_the_witness_notices_what_a_host_does_not_admit() {
    let dir = tempfile::tempdir().unwrap();
    for host in ["debian-6.1", "debian-7.3"] {
        let contract = path(dir.path(), "contract.toml");
        evenkeel(&["baseline", host, "-o", &contract]);
        let args = ["lab", "run", host, "--timeout", "600", "--format", "json", "--send", &contract, "--"];
        let inside = ["evenkeel", "observe", "--contract", "contract.toml", "--score", "--format", "json"];
        let out = evenkeel(&[&args[..], &inside[..]].concat());
        let ran: Value = serde_json::from_slice(&out.stdout).unwrap();
        let (score, [noticed, missed_count, not_alterable]) =
            read(ran["runs"][0]["stdout"].as_str().unwrap().as_bytes());
        println!("{host}: {noticed} noticed, {missed_count} missed, {not_alterable} not alterable");
        assert!(noticed >= 500 && noticed * 10 >= (noticed + missed_count) * 9, "{:#?}", missed(&score));
        assert_eq!(score["read_back"], 0);
    }
}
