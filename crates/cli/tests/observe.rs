//! `evenkeel observe --contract`: a guest under a contract is asked what it sees, here and on kernels of the lab.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn evenkeel(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evenkeel")).args(args).output().unwrap()
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().unwrap().to_owned()
}

fn document(bytes: &[u8]) -> Value {
    let report: Value =
        serde_json::from_slice(bytes).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(bytes)));
    let schema = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/schema/observed-contract.json");
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(schema).unwrap()).unwrap();
    assert!(jsonschema::is_valid(&schema, &report), "{report}");
    report
}

fn list<'v>(report: &'v Value, name: &str) -> &'v [Value] {
    report[name].as_array().unwrap()
}

/// How many facets of a kind were seen as promised, otherwise, not at all.
fn kind(report: &Value, name: &str) -> [u64; 3] {
    let kind = list(report, "kinds").iter().find(|k| k["kind"] == name);
    let kind = kind.unwrap_or_else(|| panic!("{name}: {report}"));
    ["as_promised", "otherwise", "not_seen"].map(|n| kind[n].as_u64().unwrap())
}

/// Which vCPUs this happened to, each once, and whether anything was read back otherwise than set.
fn occasion(report: &Value, name: &str) -> (Vec<u64>, bool) {
    let mine: Vec<&Value> = list(report, "again").iter().filter(|a| a["occasion"] == name).collect();
    let mut vcpus: Vec<u64> = mine.iter().filter_map(|a| a["vcpu"].as_u64()).collect();
    vcpus.sort_unstable();
    vcpus.dedup();
    (vcpus, mine.iter().all(|a| a["differences"].as_array().unwrap().is_empty() && a["kept"] != 0))
}

/// The host's own contract is kept; one that hides what the host cannot hide is seen through, and the leak is named.
#[cfg(target_arch = "x86_64")]
#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_a_guest_under_a_contract_is_asked_what_it_sees() {
    let dir = tempfile::tempdir().unwrap();
    let (capture, own) = (path(dir.path(), "here.json"), path(dir.path(), "own.toml"));
    // With what only a guest sees: behaviours are in the contract by name.
    let made = evenkeel(&["capture", "--observe", "-o", &capture]);
    assert_eq!(made.status.code(), Some(0), "{}", String::from_utf8_lossy(&made.stderr));
    let made = evenkeel(&["baseline", &capture, "-o", &own]);
    assert_eq!(made.status.code(), Some(0), "{}", String::from_utf8_lossy(&made.stderr));
    let kept = evenkeel(&["observe", "--contract", &own, "--format", "json"]);
    let report = document(&kept.stdout);
    assert_eq!((kept.status.code(), report["applied"].as_str()), (Some(0), Some("kept")), "{report}");
    assert!(list(&report, "leaks").is_empty() && list(&report, "implied").is_empty(), "{report}");
    assert!(kind(&report, "CPUID words")[0] > 20, "{report}");
    assert!(kind(&report, "feature MSRs")[0] > 1 && kind(&report, "choices")[0] > 5, "{report}");

    // Again after the first run, on a vCPU that is made later, and at a reset; and what the guest saw from there.
    assert_eq!(occasion(&report, "made"), (vec![0, 1], true), "{report}");
    assert_eq!(occasion(&report, "first_run"), (vec![0, 1, 2], true), "{report}");
    assert_eq!(occasion(&report, "made_later"), (vec![2], true), "{report}");
    assert_eq!(occasion(&report, "reset"), (vec![0, 1, 2], true), "{report}");
    let looks = list(&report, "looks");
    assert_eq!(
        looks.iter().map(|l| l["when"].as_str().unwrap()).collect::<Vec<_>>(),
        ["second", "later", "reset"]
    );
    for look in looks {
        assert_eq!((&look["why_not"], &look["otherwise"]), (&Value::Null, &0.into()), "{report}");
        assert!(look["as_promised"].as_u64().unwrap() > 20, "{report}");
    }

    // The lab's contract on whatever this is: each facet that leaks was also read back otherwise than set, but for what
    // no ioctl shows.
    let foreign = path(dir.path(), "foreign.toml");
    evenkeel(&["baseline", "debian-6.1", "debian-7.3", "-o", &foreign]);
    let asked = evenkeel(&["observe", "--contract", &foreign, "--format", "json"]);
    let report = document(&asked.stdout);
    let read_back: Vec<&str> = list(&report, "read_back").iter().map(|f| f.as_str().unwrap()).collect();
    for leak in list(&report, "leaks") {
        let facet = leak["facet"].as_str().unwrap();
        let silent = facet.starts_with("x86.");
        assert!(
            silent || read_back.contains(&facet),
            "{facet} leaks, and reading back did not notice: {report}"
        );
    }
}

/// The contract of an old arm64 kernel, observed there, on that kernel and on a new one.
#[cfg_attr(not(lab), ignore = "boots kernels: set EVENKEEL_REQUIRE_LAB")]
#[test]
fn lab_an_arm64_guest_under_the_contract_of_an_old_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let contract = path(dir.path(), "old.toml");
    let (old, new) = ("debian-6.1-arm64-nvhe", "debian-7.3-arm64-nvhe");
    let capture = ["evenkeel", "capture", "--observe", "-o", "old.json"];
    let into = dir.path().to_str().unwrap();
    let out =
        evenkeel(&[&["lab", "run", old, "--bring", "old.json", "--into", into, "--"], &capture[..]].concat());
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    let brought = find(dir.path(), "old.json").expect("the capture is brought back");
    let made = evenkeel(&["baseline", brought.to_str().unwrap(), "-o", &contract]);
    assert_eq!(made.status.code(), Some(0), "{}", String::from_utf8_lossy(&made.stderr));

    let observe = ["evenkeel", "observe", "--contract", "old.toml", "--format", "json"];
    let run = ["lab", "run", old, new, "--format", "json", "--send", &contract, "--"];
    let out = evenkeel(&[&run[..], &observe[..]].concat());
    let ran: Value = serde_json::from_slice(&out.stdout).unwrap();
    let of = |n: usize| {
        let run = &ran["runs"][n];
        let text = run["stdout"].as_str().unwrap_or_else(|| panic!("{run}"));
        assert!(!text.is_empty(), "{run}");
        (run["exit"].as_i64().unwrap(), document(text.as_bytes()))
    };
    let (home_exit, home) = of(0);
    let (away_exit, away) = of(1);
    for (host, exit, report) in [(old, home_exit, &home), (new, away_exit, &away)] {
        println!("{host}: exit {exit}, {}", report["kinds"]);
        assert_eq!((exit, report["applied"].as_str()), (1, Some("kept")), "{host}: {report}");
        assert!(list(report, "implied").is_empty(), "everything that is observed there is named: {report}");
    }
    // What the old kernel promises in a register and its own guests see otherwise; then what no contract can select.
    let leaks = |report: &Value| -> Vec<(String, String)> {
        let text = |leak: &Value, name: &str| leak[name].as_str().unwrap_or("none").to_owned();
        list(report, "leaks").iter().map(|l| (text(l, "facet"), text(l, "cause"))).collect()
    };
    let pair = |facet: &str, cause: &str| (facet.to_owned(), cause.to_owned());
    assert_eq!(leaks(&home), [pair("arm64.ctr-el0.idc", "ARM-033")]);
    let behaviours = [
        ("arm64.guest.ccsidr-beyond", "ARM-032"),
        ("arm64.guest.ctr-el0-idc", "ARM-033"),
        ("arm64.guest.pmceid-chain", "ARM-022"),
        ("arm64.guest.pmcr-imp", "ARM-020"),
        ("arm64.guest.smc-conduit", "ARM-120"),
    ];
    assert_eq!(leaks(&away), behaviours.map(|(facet, cause)| pair(facet, cause)));
    for report in [&home, &away] {
        assert!(kind(report, "ID registers")[0] > 25, "{report}");
        assert!(kind(report, "firmware registers")[0] >= 2 && kind(report, "choices")[0] >= 8, "{report}");
        for name in ["made", "first_run", "reset", "gic_ready"] {
            assert_eq!(occasion(report, name).0, [0, 1], "{name}: {report}");
        }
        let why =
            |when: &str| list(report, "looks").iter().find(|l| l["when"] == when).unwrap()["why_not"].clone();
        assert_eq!((why("second"), why("reset")), (Value::Null, Value::Null), "{report}");
        assert!(why("later").as_str().unwrap().contains("EBUSY"), "{report}");
    }
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    for entry in std::fs::read_dir(folder).ok()?.flatten() {
        let at = entry.path();
        if at.is_dir() {
            if let Some(found) = find(&at, name) {
                return Some(found);
            }
        } else if at.file_name()?.to_str()? == name {
            return Some(at);
        }
    }
    None
}
