//! `evenkeel apply`, on this machine's KVM and on kernels of the lab.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn evenkeel(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evenkeel")).args(args).output().unwrap()
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().unwrap().to_owned()
}

fn document(out: &Output) -> Value {
    let report: Value = serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out.stderr)));
    let schema = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/schema/apply.json");
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(schema).unwrap()).unwrap();
    assert!(jsonschema::is_valid(&schema, &report), "{report}");
    report
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_a_foreign_contract_is_refused_and_one_that_can_be_kept_is_named() {
    let dir = tempfile::tempdir().unwrap();
    // An emulated EPYC's: whatever this machine is, it is not that.
    let foreign = path(dir.path(), "foreign.toml");
    evenkeel(&["baseline", "debian-6.1", "debian-7.3", "-o", &foreign]);
    let kept = path(dir.path(), "kept.toml");
    let out = evenkeel(&["apply", &foreign, "-o", &kept, "--format", "json"]);
    assert_eq!(out.status.code(), Some(1), "{}", String::from_utf8_lossy(&out.stderr));
    let report = document(&out);
    assert_eq!((&report["verdict"], &report["usable"]), (&"refused".into(), &false.into()));
    let refused = report["refusals"].as_array().unwrap().len();
    let steps = report["steps"].as_array().unwrap();
    let differ: usize = steps.iter().map(|s| s["differences"].as_array().unwrap().len()).sum();
    assert!(refused + differ > 0);
    // What it can keep is kept.
    let out = evenkeel(&["apply", &kept, "--format", "json"]);
    let report = document(&out);
    assert_eq!((out.status.code(), &report["verdict"]), (Some(0), &"kept".into()), "{report}");
    // And for two vCPUs.
    let out = evenkeel(&["apply", &kept, "--vcpus", "2", "--format", "json"]);
    println!("two vCPUs: {}", document(&out)["verdict"]);
}

#[test]
fn a_contract_for_the_other_architecture_is_bad_input_or_cannot_be_tried() {
    let dir = tempfile::tempdir().unwrap();
    let name = if cfg!(target_arch = "x86_64") { "debian-7.3-arm64" } else { "debian-7.3" };
    let contract = path(dir.path(), "other.toml");
    evenkeel(&["baseline", name, "-o", &contract]);
    // Without KVM the host cannot be asked: 3.
    let out = evenkeel(&["apply", &contract]);
    assert!(matches!(out.status.code(), Some(2 | 3)), "{out:?}");
    assert!(out.stdout.is_empty());
}

/// The seed example: what is selected shows in the APIC of a real kernel with the flags, and a kernel without them
/// refuses before anything is touched.
#[cfg_attr(not(lab), ignore = "boots kernels: set EVENKEEL_REQUIRE_LAB")]
#[test]
fn lab_the_seed_example_is_applied() {
    let dir = tempfile::tempdir().unwrap();
    let base = path(dir.path(), "base.toml");
    evenkeel(&["baseline", "debian-6.18", "debian-7.3", "--shape", "split", "-o", &base]);
    let base = std::fs::read_to_string(base).unwrap();
    let base: Vec<&str> =
        base.lines().filter(|l| !l.starts_with("digest") && !l.contains("suppress-eoi-broadcast")).collect();
    let apply = |host: &str, value: &str| -> (i64, Value) {
        let contract = path(dir.path(), "contract.toml");
        let text = format!("{}\n\"x86.x2apic.suppress-eoi-broadcast\" = \"{value}\"\n", base.join("\n"));
        std::fs::write(&contract, text).unwrap();
        let args = ["lab", "run", host, "--format", "json", "--send", &contract, "--"];
        let inside = ["evenkeel", "apply", "contract.toml", "--format", "json"];
        let out = evenkeel(&[&args[..], &inside[..]].concat());
        let ran: Value = serde_json::from_slice(&out.stdout).unwrap();
        let ran = &ran["runs"][0];
        let report = serde_json::from_str(ran["stdout"].as_str().unwrap());
        (ran["exit"].as_i64().unwrap(), report.unwrap_or_else(|e| panic!("{e}: {ran}")))
    };
    for value in ["legacy", "enabled", "disabled"] {
        let (exit, report) = apply("debian-7.3", value);
        assert_eq!((exit, &report["verdict"]), (0, &"kept".into()), "{value}: {report}");
    }
    let (exit, report) = apply("debian-6.18", "legacy");
    assert_eq!((exit, &report["verdict"]), (0, &"kept".into()), "{report}");
    let (exit, report) = apply("debian-6.18", "disabled");
    assert_eq!((exit, &report["verdict"]), (1, &"refused".into()), "{report}");
    let refused = report["refusals"].as_array().unwrap();
    assert!(refused.iter().any(|r| r["facet"] == "x86.x2apic.suppress-eoi-broadcast"), "{report}");
    // The kernel takes no such flag, and the APIC shows that nothing became of it.
    let look = report["steps"].as_array().unwrap().iter().find(|s| s["step"] == "look").unwrap();
    let seen = &look["differences"][0];
    assert_eq!((&seen["wanted"], &seen["got"]), (&"disabled".into(), &"legacy".into()), "{report}");
}
