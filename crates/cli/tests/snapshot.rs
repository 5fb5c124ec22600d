//! `evenkeel snapshot`, `restore` and `survive --state`, as a user runs them. What needs /dev/kvm says so.
#![cfg(target_arch = "x86_64")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn evenkeel(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evenkeel")).args(args).current_dir(folder).output().expect("it runs")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
#[cfg_attr(not(kvm), ignore = "there is no usable /dev/kvm")]
fn kvm_a_guest_goes_on_from_its_capsule_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (name, flag) in [("eager", None), ("lazy", Some("--lazy")), ("zstd", Some("--compress"))] {
        let file = format!("{name}.capsule");
        let mut args = vec!["snapshot", "-o", &file, "--format", "json"];
        args.extend(flag);
        let done = evenkeel(at, &args);
        assert_eq!(done.status.code(), Some(0), "{}", words(&done));
        assert!(json(&done)["items"].as_u64() > Some(20));
        let done = evenkeel(at, &["restore", &file, "--format", "json"]);
        assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stdout));
        let guest = &json(&done)["guests"][0];
        assert!(guest["alike"].as_u64() > Some(1000), "the guest looked: {guest}");
        assert!(guest["parts"][0].as_u64() > Some(500), "{guest}");
        // It is restored once.
        let again = evenkeel(at, &["restore", &file]);
        assert_eq!(again.status.code(), Some(1), "{}", words(&again));
        assert!(
            words(&again).contains("restored before") && words(&again).contains("--clone"),
            "{}",
            words(&again)
        );
        let clone = evenkeel(at, &["restore", &file, "--clone"]);
        assert_eq!(clone.status.code(), Some(0), "{}", words(&clone));
    }
}

#[test]
#[cfg_attr(not(kvm), ignore = "there is no usable /dev/kvm")]
fn kvm_a_damaged_capsule_runs_nothing_and_stays_to_be_restored() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let done = evenkeel(at, &["snapshot", "-o", "a.capsule"]);
    assert_eq!(done.status.code(), Some(0), "{}", words(&done));
    let whole = std::fs::read(at.join("a.capsule")).unwrap();
    for place in [200, 5000, whole.len() / 2, whole.len() - 100] {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x10;
        std::fs::write(at.join("b.capsule"), &bytes).unwrap();
        let done = evenkeel(at, &["restore", "b.capsule"]);
        assert_eq!(done.status.code(), Some(2), "byte {place}: {}", words(&done));
    }
    // Nothing was claimed by any of these.
    let done = evenkeel(at, &["restore", "a.capsule"]);
    assert_eq!(done.status.code(), Some(0), "{}", words(&done));
}

#[test]
#[cfg_attr(not(kvm), ignore = "there is no usable /dev/kvm")]
fn kvm_the_state_itself_says_whether_a_host_takes_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let done = evenkeel(at, &["snapshot", "-o", "a.capsule"]);
    assert_eq!(done.status.code(), Some(0), "{}", words(&done));
    let args = ["survive", "here", "debian-5.10", "--state", "a.capsule", "--format", "json"];
    let report = json(&evenkeel(at, &args));
    let hosts = report["hosts"].as_array().unwrap();
    // Its own host takes it, and 5.10 needs the older forms.
    assert!(
        ["holds_by_default", "holds_with_duties"].contains(&hosts[0]["outcome"].as_str().unwrap()),
        "{report}"
    );
    let lines =
        hosts[1]["rewritten"].as_array().unwrap().iter().chain(hosts[1]["refused"].as_array().unwrap());
    assert!(lines.count() > 0, "{report}");
    let arm = evenkeel(at, &["survive", "debian-6.1-arm64", "debian-7.3-arm64", "--state", "a.capsule"]);
    assert_eq!(arm.status.code(), Some(2), "{}", words(&arm));
}

/// The fixtures are of both architectures and need no KVM.
#[test]
fn fixtures_are_judged_without_a_guest() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/compat/v1");
    let done = evenkeel(&fixtures, &["survive", "debian-6.1", "debian-7.3", "--state", "x86-zstd.capsule"]);
    assert_eq!(done.status.code(), Some(0), "{}", words(&done));
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let left_out = "duty: vcpu.1/msr.1db is left out: it holds what a guest finds that never touched it";
    for line in ["saved on 7.3.4", "debian-6.1: holds with duties", left_out] {
        assert!(text.contains(line), "{text}");
    }
    // A guest of another maker's CPU.
    let done = evenkeel(&fixtures, &["survive", "debian-6.1", "debian-7.3", "--state", "x86-eager.capsule"]);
    assert_eq!(done.status.code(), Some(1), "{}", words(&done));
    assert!(String::from_utf8_lossy(&done.stdout).contains("no: vcpu.0/msr.122"), "{}", words(&done));
    let done =
        evenkeel(&fixtures, &["survive", "debian-6.1", "debian-7.3", "--state", "arm64-eager.capsule"]);
    assert_eq!(done.status.code(), Some(2), "{}", words(&done));
}
