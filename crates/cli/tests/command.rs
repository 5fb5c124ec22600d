//! The command as a user meets it: what it prints, where, and how it exits.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn evenkeel(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .args(args)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn file(dir: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn capture_of(name: &str) -> &'static str {
    evenkeel_hosts::BUNDLED.iter().find(|b| b.name == name).unwrap().text
}

#[test]
fn survive_answers_first_and_names_what_stops_todays_vmms() {
    for (old, new, back) in
        [("debian-6.1", "debian-7.3", "verdict 2, 4"), ("debian-7.3", "debian-6.1", "verdict 1")]
    {
        let out = evenkeel(&["survive", old, new]);
        let said = text(&out.stdout);
        assert_eq!(out.status.code(), Some(1), "{said}");
        let head: Vec<&str> = said.lines().take(10).collect();
        assert!(
            head[0].starts_with(&format!("O = {old}"))
                && head[0].contains("Linux ")
                && head[0].contains("emulated"),
            "{said}"
        );
        assert!(
            head.iter().any(|l| l.starts_with("1  a guest running on O moves to N")),
            "the verdicts come first: {said}"
        );
        assert!(said.contains("msr.1db to msr.1de"), "{said}");
        let cause = said.lines().find(|l| l.contains("X86-063")).expect("the cause is in the ledger");
        assert!(cause.contains(back), "{cause}");
        assert!(
            said.contains("leave it out of the saved state where it holds its absent value 0x0"),
            "{said}"
        );
        assert!(said.contains("What nobody has observed yet"), "the unobserved is unknown: {said}");
        assert!(said.contains("unknown (else holds"), "{said}");
        assert!(!said.contains('\u{1b}'), "no colour where none is wanted");
    }
    // 6.18 refuses them too.
    let said = text(&evenkeel(&["survive", "debian-6.18", "debian-7.3"]).stdout);
    assert!(said.contains("msr.1db to msr.1de"), "{said}");
}

#[test]
fn the_seed_example_end_to_end() {
    let dir = tempfile::tempdir().unwrap();
    let value = |host: &str| -> Vec<(String, Vec<String>)> {
        let surface = evenkeel_hosts::load(host).unwrap();
        let index = evenkeel_catalog::CHOICES
            .iter()
            .position(|c| c.name == "x86.x2apic.suppress-eoi-broadcast")
            .unwrap();
        let names = |v: &evenkeel_contract::View| {
            // Without an irqchip in the kernel there is no local APIC to have the facet.
            let Some(offer) = v.choice(index as u16) else { return Vec::new() };
            let values = offer.facet().values.iter().enumerate().filter(|(i, _)| offer.values >> i & 1 == 1);
            values.map(|(_, v)| v.name.to_owned()).collect()
        };
        surface.views.iter().map(|v| (v.shape.clone(), names(v))).collect()
    };
    // Three values with a split irqchip where the host has the flags; without ENABLE in the other shapes.
    for (shape, values) in value("debian-7.3") {
        let all = match shape.as_str() {
            "split" => vec!["legacy", "enabled", "disabled"],
            "kernel" => vec!["legacy", "disabled"],
            _ => vec![],
        };
        assert_eq!(values, all, "shape {shape}");
    }
    for (shape, values) in value("debian-6.18") {
        let one = if shape == "none" { vec![] } else { vec!["legacy"] };
        assert_eq!(values, one, "shape {shape} of a host without the flags");
    }
    // Old → new keeps the old behaviour by default.
    let contract = |name: &str, value: &str| {
        let base = dir.path().join(format!("{name}.toml"));
        let base = base.to_str().unwrap().to_owned();
        let made = evenkeel(&["baseline", "debian-6.18", "debian-7.3", "--shape", "split", "-o", &base]);
        assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
        let kept: String = std::fs::read_to_string(&base)
            .unwrap()
            .lines()
            .filter(|l| !l.starts_with("digest") && !l.contains("suppress-eoi-broadcast"))
            .map(|l| format!("{l}\n"))
            .collect();
        std::fs::write(&base, format!("{kept}\"x86.x2apic.suppress-eoi-broadcast\" = \"{value}\"\n"))
            .unwrap();
        base
    };
    let find = |path: &str| -> serde_json::Value {
        let out = evenkeel(&["survive", "debian-6.18", "debian-7.3", "--contract", path, "--format", "json"]);
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&out.stderr)))
    };
    let eoi = |report: &serde_json::Value, journey: usize| -> Option<serde_json::Value> {
        let findings = report["guests"][0]["verdicts"][journey]["findings"].as_array().unwrap();
        findings.iter().find(|f| f["subject"] == "x86.x2apic.suppress-eoi-broadcast").cloned()
    };
    let legacy = find(&contract("legacy", "legacy"));
    assert!((0..4).all(|j| eoi(&legacy, j).is_none()), "legacy is the default everywhere");
    // A new guest with DISABLE cannot go to a kernel without the flag, and is told why.
    let disabled = find(&contract("disabled", "disabled"));
    let back = eoi(&disabled, 3).expect("the way back is refused");
    assert_eq!((back["outcome"].as_str(), back["cause"].as_str()), (Some("no"), Some("X86-001")), "{back}");
    assert!(back["remedy"]["because"].as_str().unwrap().contains("bit 24"), "{back}");
    // In a shape without a split irqchip ENABLE contradicts itself.
    let enabled = contract("enabled", "enabled");
    let kernel =
        std::fs::read_to_string(&enabled).unwrap().replace("shape = \"split\"", "shape = \"kernel\"");
    let kernel = file(dir.path(), "kernel.toml", kernel.as_bytes());
    let out = evenkeel(&["check", kernel.to_str().unwrap(), "debian-7.3"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("shape split"), "{}", text(&out.stderr));
}

#[test]
fn x86_and_arm64_are_not_compared() {
    let out = evenkeel(&["survive", "debian-6.1", "debian-6.12-arm64"]);
    assert_eq!(out.status.code(), Some(2));
    let said = text(&out.stderr);
    assert!(
        said.contains("error[arch-mismatch]")
            && said.contains("no guest moves between them")
            && said.contains("hint:"),
        "{said}"
    );
}

#[test]
fn an_arm64_guest_with_a_pmu_cannot_go_back_from_7_3() {
    let pmmir = "reg.603000000013c4f6";
    for old in ["debian-6.12-arm64", "debian-7.2-arm64"] {
        let out = evenkeel(&["survive", old, "debian-7.3-arm64", "--shape", "pmu", "--format", "json"]);
        let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        let of = |guest: usize, journey: usize| report["guests"][guest]["verdicts"][journey].clone();
        let found = |v: &serde_json::Value| {
            v["findings"].as_array().unwrap().iter().find(|f| f["subject"] == pmmir).cloned()
        };
        let back = found(&of(0, 1)).unwrap_or_else(|| panic!("{old}: PMMIR_EL1 stops the way back"));
        assert_eq!(
            (back["outcome"].as_str(), back["code"].as_str(), back["cause"].as_str()),
            (Some("no"), Some("item-refused"), Some("ARM-023"))
        );
        assert!(back["title"].as_str().unwrap().contains("PMMIR_EL1"), "{back}");
        // No facet differs over it: the guest is shown the same.
        let facets = of(0, 0)["findings"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|f| f["subject"].as_str().unwrap().contains("pmmir") && f["outcome"] != "unknown")
            .count();
        assert_eq!(facets, 0);
        // Pinned, the VMM may drop it where it holds 0.
        assert_eq!(found(&of(1, 1)).unwrap()["outcome"], "holds_with_duties");
        // A guest without a PMU never has it.
        let out = evenkeel(&["survive", old, "debian-7.3-arm64", "--shape", "min", "--format", "json"]);
        let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        assert!(found(&report["guests"][0]["verdicts"][1]).is_none());
    }
    let said = text(&evenkeel(&["survive", "debian-7.2-arm64", "debian-7.3-arm64", "--shape", "pmu"]).stdout);
    assert!(said.contains("ARM-023"), "{said}");
}

#[test]
fn bad_input_is_shown_with_its_line_and_exits_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let good = capture_of("debian-6.1");
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("cut.json", good.as_bytes()[..good.len() / 2].to_vec(), "error[bad-document]"),
        ("newer.json", good.replacen("surface/1", "surface/3", 1).into_bytes(), "error[schema-newer]"),
        (
            "edited.json",
            good.replacen("\"cap\":3,\"all\":1", "\"cap\":3,\"all\":2", 1).into_bytes(),
            "error[digest-mismatch]",
        ),
        ("utf8.json", vec![0xff; 100], "is not UTF-8"),
        ("empty.json", vec![], "error"),
        ("control.json", b"{\"schema\":\"\x1b[31mred\"}".to_vec(), "error"),
        ("huge.json", vec![b' '; 5 << 20], "too many"),
    ];
    for (name, content, says) in cases {
        let path = file(dir.path(), name, content);
        let out = evenkeel(&["survive", path.to_str().unwrap(), "debian-7.3"]);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{name}: {said}");
        assert!(said.contains(says), "{name}: {said}");
        assert!(said.len() < 8000 && !said.contains('\u{1b}'), "{name}: {said}");
        assert!(out.stdout.is_empty());
    }
    for args in [
        &["survive", "nobody", "debian-7.3"][..],
        &["survive", "/no/such/file.json", "debian-7.3"],
        &["survive", "/dev/zero", "debian-7.3"],
        &["frobnicate"],
    ] {
        let out = evenkeel(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        assert!(text(&out.stderr).contains("error"), "{args:?}");
    }
    let hint = text(&evenkeel(&["survive", "debian-9.9", "debian-7.3"]).stderr);
    assert!(hint.contains("hint:") && hint.contains("debian-6.1"), "{hint}");
}

#[test]
fn a_file_is_whole_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    let name = path.to_str().unwrap();
    assert_eq!(evenkeel(&["baseline", "debian-6.1", "-o", name]).status.code(), Some(0));
    let old = std::fs::read(&path).unwrap();
    // A limit on file sizes stands in for a full disk: the write fails midway.
    let full = Command::new("sh")
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 1; exec \"$0\" baseline debian-6.1 debian-7.3 -o \"$1\"",
            env!("CARGO_BIN_EXE_evenkeel"),
            name,
        ])
        .output()
        .unwrap();
    assert_eq!(full.status.code(), Some(2), "{}", text(&full.stderr));
    assert!(text(&full.stderr).contains("cannot write"), "{}", text(&full.stderr));
    assert_eq!(std::fs::read(&path).unwrap(), old, "the old file is still there");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "and nothing else");
    let out = evenkeel(&["baseline", "debian-6.1", "-o", "/no/such/place/c.toml"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("hint:"));
}

#[test]
fn a_baseline_is_kept_by_its_hosts_and_is_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("both.toml");
    let name = path.to_str().unwrap();
    let out = evenkeel(&["baseline", "debian-6.1", "debian-7.3", "-o", name]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stdout));
    assert!(text(&out.stdout).contains("alone costs"), "{}", text(&out.stdout));
    let check = evenkeel(&["check", name, "debian-6.1", "debian-7.3"]);
    assert!(!text(&check.stdout).contains("(no)"), "{}", text(&check.stdout));
    let seal = evenkeel(&["seal", name, "debian-7.3"]);
    assert_eq!(seal.status.code(), Some(0), "{}", text(&seal.stdout));
}

#[test]
fn every_name_that_is_printed_is_explained() {
    for (old, new) in [("debian-6.1", "debian-7.3"), ("debian-6.12-arm64", "debian-7.3-arm64")] {
        let out = evenkeel(&["survive", old, new, "--format", "json"]);
        let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        let mut names = std::collections::BTreeSet::new();
        for f in report["guests"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|g| g["verdicts"].as_array().unwrap())
            .flat_map(|v| v["findings"].as_array().unwrap())
        {
            names.extend([&f["code"], &f["cause"]].into_iter().filter_map(|v| v.as_str().map(str::to_owned)));
            // Unnamed bits are shown as `word[bit]`.
            names.insert(f["subject"].as_str().unwrap().split('[').next().unwrap().to_owned());
        }
        for name in names {
            assert!(evenkeel_report::explain(&name).is_some(), "{name} is not explained");
        }
    }
    let out = evenkeel(&["explain", "shstk"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("cpuid.7.0.ecx.shstk"), "{}", text(&out.stderr));
}

#[test]
fn help_completions_and_manual_pages() {
    assert!(text(&evenkeel(&["--help"]).stdout).contains("Exit codes: 0 holds"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(text(&evenkeel(&["completions", shell]).stdout).contains("survive"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(evenkeel(&["man", dir.path().to_str().unwrap()]).status.code(), Some(0));
    assert!(dir.path().join("evenkeel-survive.1").exists());
    let hosts = text(&evenkeel(&["hosts"]).stdout);
    assert!(hosts.lines().count() >= 8, "{hosts}");
}

#[test]
fn a_prediction_blames_no_cpu_on_the_kernel() {
    // A capture's CPU under another kernel: what that CPU lacks is never a kernel's doing.
    let out = evenkeel(&["survive", "debian-6.1", "debian-6.1@debian-7.3", "--format", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["new"]["evidence"], "predicted");
    let findings: Vec<&serde_json::Value> = report["guests"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|g| g["verdicts"].as_array().unwrap())
        .flat_map(|v| v["findings"].as_array().unwrap())
        .collect();
    assert!(!findings.is_empty());
    assert!(findings.iter().all(|f| f["axis"] != "cpu"), "the CPU is the same");
    assert!(findings.iter().any(|f| f["subject"] == "msr.1db" && f["evidence"] == "predicted"));
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_captures_from_different_cpus_have_one_offer_digest() {
    let dir = tempfile::tempdir().unwrap();
    let capture = |cpu: &str| {
        let path = dir.path().join(format!("cpu{cpu}.json"));
        let out = Command::new("taskset")
            .args(["-c", cpu, env!("CARGO_BIN_EXE_evenkeel"), "capture", "-o"])
            .arg(&path)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", text(&out.stderr));
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.len() <= 64 << 10, "{} bytes", text.len());
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        (document["digests"].clone(), document["volatile"]["ran_on_cpu"].as_u64())
    };
    let cpus = std::thread::available_parallelism().unwrap().get();
    let last = (cpus - 1).to_string();
    let (first, second) = (capture("0"), capture(&last));
    assert_eq!(first.0, second.0, "offer and provenance");
    assert_eq!(first.1, Some(0));
    assert_eq!(second.1, last.parse().ok());
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_a_capture_that_is_killed_leaves_no_file_or_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("here.json");
    let mut killed = 0;
    for wait in 0..24u64 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
            .args(["capture", "-o"])
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(wait * 4));
        killed += usize::from(child.kill().is_ok() && !child.wait().unwrap().success());
        // Whatever is there is a whole capture, and nothing else is there.
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(names.iter().all(|n| n == "here.json"), "{names:?}");
        if path.exists() {
            let bytes = std::fs::read(&path).unwrap();
            evenkeel_surface::read::surface(&bytes, &evenkeel_surface::Limits::default()).unwrap();
        }
    }
    assert!(killed > 0, "none was killed midway");
}

#[test]
fn everything_in_the_catalog_is_explained() {
    use evenkeel_catalog as c;
    let fields =
        c::REGISTERS.iter().flat_map(|r| r.fields.iter().map(move |f| format!("{}.{}", r.name, f.name)));
    let names: Vec<String> = fields
        .chain(c::REGISTERS.iter().map(|r| r.name.to_owned()))
        .chain(c::CHOICES.iter().map(|x| x.name.to_owned()))
        .chain(c::CODES.iter().map(|x| x.code.to_owned()))
        .chain(c::CHANGES.iter().map(|x| x.id.to_owned()))
        .chain(c::MSRS.iter().map(|x| format!("msr.{:x}", x.msr)))
        .chain(c::REGS.iter().map(|x| format!("reg.{:x}", x.id)))
        .chain(c::SECTIONS.iter().map(|x| x.name.to_owned()))
        .chain(c::MEASUREMENTS.iter().map(|x| x.name.to_owned()))
        .chain(c::CAPABILITIES.iter().flat_map(|x| [x.name.to_owned(), format!("cap.{}", x.cap)]))
        .collect();
    let missing: Vec<&String> = names.iter().filter(|n| evenkeel_report::explain(n).is_none()).collect();
    assert!(missing.is_empty() && names.len() > 2000, "{} names, not explained: {missing:?}", names.len());
}
