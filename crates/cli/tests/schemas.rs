//! The documents of `--format json` are described by the schemas in docs/schema, and keep to them.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

const DOCUMENTS: [&str; 30] = [
    "surface",
    "observation",
    "snapshot",
    "survive-state",
    "restored",
    "lab-capsules",
    "lab-journey",
    "observation-diff",
    "observed-contract",
    "witness-score",
    "survive",
    "diff",
    "check",
    "baseline",
    "seal",
    "predict",
    "matrix",
    "lab-run",
    "lab-observe",
    "registers",
    "registers-loaded",
    "registers-matrix",
    "bisect",
    "apply",
    "inspect",
    "capsule-diff",
    "control-request",
    "control-line",
    "confinement",
    "moved",
];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/schema")
}

fn run(args: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_evenkeel")).args(args).output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}

fn schema(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder().join(format!("{name}.json"))).unwrap()).unwrap()
}

fn validate(name: &str, document: &str) {
    let validator = jsonschema::validator_for(&schema(name)).unwrap();
    let document: Value =
        serde_json::from_str(document).unwrap_or_else(|e| panic!("{name}: {e}: {document}"));
    let errors: Vec<String> =
        validator.iter_errors(&document).map(|e| format!("{e} at {}", e.instance_path())).take(5).collect();
    assert_eq!(errors, Vec::<String>::new(), "{name}");
}

#[test]
fn schemas_in_the_tree_are_those_of_the_types() {
    for name in DOCUMENTS {
        let now = run(&["schema", name]);
        let path = folder().join(format!("{name}.json"));
        if std::env::var_os("EVENKEEL_UPDATE").is_some() {
            std::fs::write(&path, &now).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            kept, now,
            "{name}: EVENKEEL_UPDATE=1 cargo test writes it anew; say in CHANGELOG.md what changed"
        );
    }
}

#[test]
fn answers_validate() {
    validate("survive", &run(&["survive", "debian-6.1", "debian-7.3", "--format", "json"]));
    validate("survive", &run(&["survive", "debian-7.3-arm64", "debian-6.12-arm64", "--format", "json"]));
    validate("survive", &run(&["survive", "debian-6.1", "debian-6.1@debian-7.3", "--format", "json"]));
    validate("diff", &run(&["diff", "debian-6.1", "debian-7.3", "--format", "json"]));
    validate("baseline", &run(&["baseline", "debian-6.1", "debian-7.3", "--format", "json"]));
    validate("predict", &run(&["predict", "debian-6.1@debian-7.3", "--format", "json"]));
    validate("matrix", &run(&["lab", "matrix", "--bundled", "debian-6.1", "debian-7.3", "--format", "json"]));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    let path = path.to_str().unwrap();
    run(&["baseline", "debian-6.1", "debian-7.3", "-o", path]);
    validate("check", &run(&["check", path, "debian-6.1", "--format", "json"]));
    validate("seal", &run(&["seal", path, "debian-6.1", "--format", "json"]));
}

#[test]
fn every_bundled_capture_validates() {
    assert!(evenkeel_hosts::BUNDLED.len() >= 8);
    for bundled in evenkeel_hosts::BUNDLED {
        validate("surface", bundled.text);
    }
}

#[test]
fn the_measured_matrix_of_registers_validates() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../state/tests/data/registers-arm64.json");
    validate("registers-matrix", &std::fs::read_to_string(path).unwrap());
}

#[cfg(target_arch = "x86_64")]
#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_observations_validate_and_are_the_same_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("o.json");
    let path = path.to_str().unwrap();
    run(&["observe", "--shape", "split", "-o", path]);
    let first = std::fs::read_to_string(path).unwrap();
    validate("observation", &first);
    let again = run(&["observe", "--shape", "split", "--against", path, "--format", "json"]);
    validate("observation-diff", &again);
    let again: Value = serde_json::from_str(&again).unwrap();
    assert_eq!(again["differences"], Value::Array(vec![]), "the same host");
    assert_eq!(again["undetermined"], Value::Array(vec![]));
    assert!(again["alike"].as_u64().unwrap() > 1000, "{again}");
    // What is claimed and what is done of EOI broadcasts with a split irqchip is not the same by default.
    let first: Value = serde_json::from_str(&first).unwrap();
    let seen = |name: &str| {
        let list = first["seen"].as_array().unwrap();
        list.iter().find(|s| s["name"] == name).map(|s| s["saw"]["value"].as_str().unwrap().to_owned())
    };
    assert_eq!(seen("apic.suppress-eoi.claimed").as_deref(), Some("0x1"));
    assert_eq!(seen("apic.suppress-eoi.broadcast").as_deref(), Some("0x1"));
    // Where it can be chosen, both choices mean what they say.
    let chosen = |flag: &str| {
        ["claimed", "broadcast"].map(|what| seen(&format!("apic.suppress-eoi.{what}@suppress-eoi-{flag}")))
    };
    let is = |a: &str, b: &str| Some([Some(a.to_owned()), Some(b.to_owned())]);
    for (flag, means) in [("enabled", is("0x1", "0x0")), ("disabled", is("0x0", "0x1"))] {
        let saw = chosen(flag);
        assert!(saw == [None, None] || Some(saw.clone()) == means, "{flag}: {saw:?}");
    }
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_here_against_its_prediction_validates() {
    let report = run(&["survive", "here", "here@debian-7.3", "--format", "json"]);
    validate("survive", &report);
    let report: Value = serde_json::from_str(&report).unwrap();
    let findings = report["guests"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|g| g["verdicts"].as_array().unwrap())
        .flat_map(|v| v["findings"].as_array().unwrap());
    assert!(findings.clone().count() > 0);
    for f in findings {
        assert_ne!(f["axis"], "cpu", "no difference is put on a CPU that is the same: {f}");
    }
    assert_eq!(report["axes"], Value::Array(vec![]));
}
