//! A machine is operated and confined: its whole life, as a user without rights, and what ends it.
#![cfg(all(kvm, target_arch = "x86_64"))]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_evenkeel");

/// An ELF file for 1 MiB: writes `up`, then so many dots to the serial port, then asks for a reset.
fn kernel(into: &Path, dots: u32) -> PathBuf {
    const ENTRY: u64 = 0x10_0000;
    let mut code = Vec::new();
    let out = |code: &mut Vec<u8>, port: u32, byte: u8| {
        code.push(0xba);
        code.extend(port.to_le_bytes());
        code.extend([0xb0, byte, 0xee]);
    };
    b"up\n".iter().for_each(|byte| out(&mut code, 0x3f8, *byte));
    code.push(0xb9);
    code.extend(dots.to_le_bytes());
    let begin = code.len();
    out(&mut code, 0x3f8, b'.');
    code.extend([0xff, 0xc9, 0x75]);
    let back = begin as i64 - (code.len() as i64 + 1);
    code.push(back as i8 as u8);
    out(&mut code, 0x64, 0xfe);
    code.extend([0xf4, 0xeb, 0xfd]);
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2_u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes());
    for long in [ENTRY, 64, 0] {
        file.extend(long.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [1_u32, 7] {
        file.extend(word.to_le_bytes());
    }
    let length = code.len() as u64;
    for long in [0x1000, ENTRY, ENTRY, length, length, 0x1000] {
        file.extend(long.to_le_bytes());
    }
    file.resize(0x1000, 0);
    file.extend(code);
    let path = into.join("kernel");
    std::fs::write(&path, file).unwrap();
    path
}

struct Running {
    dir: tempfile::TempDir,
    child: Child,
}

impl Running {
    /// A machine that runs for long enough.
    fn new(confine: &str) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let kernel = kernel(dir.path(), 2_000_000_000);
        let child = Command::new(PROGRAM)
            .args([
                "run",
                "--memory",
                "32",
                "--limit",
                "120",
                "--most-vcpus",
                "2",
                "--confine",
                confine,
                "--kernel",
            ])
            .arg(kernel)
            .arg("--control")
            .arg(dir.path().join("socket"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let running = Running { dir, child };
        let begin = Instant::now();
        while !running.ask("status").status.success() {
            assert!(begin.elapsed() < Duration::from_secs(60), "it does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        running
    }

    fn ask(&self, what: &str) -> Output {
        let socket = self.dir.path().join("socket");
        Command::new(PROGRAM).arg(what).arg(socket).args(["--format", "json"]).output().unwrap()
    }

    fn reply(&self, what: &str) -> Value {
        let out = self.ask(what);
        assert!(out.status.success(), "{what}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice::<Value>(&out.stdout).unwrap()["reply"].take()
    }

    /// Gives its guest vCPUs: the exit code, and what was said.
    fn plug(&self, vcpus: &str) -> (Option<i32>, String) {
        let socket = self.dir.path().join("socket");
        let out = Command::new(PROGRAM).arg("plug").arg(socket).arg(vcpus).output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    }

    /// Paused, resumed, given a vCPU, saved, measured, stopped; what it said on standard error.
    fn live(mut self) -> String {
        assert_eq!(self.reply("status")["status"]["phase"], "running");
        assert!(self.reply("pause")["paused"]["seconds"].as_f64().unwrap() < 5.0);
        assert_eq!(self.reply("status")["status"]["phase"], "paused");
        self.reply("resume");
        let vcpus =
            |reply: Value| (reply["status"]["vcpus"].as_u64(), reply["status"]["most_vcpus"].as_u64());
        assert_eq!(vcpus(self.reply("status")), (Some(1), Some(2)));
        assert_eq!(self.plug("2").0, Some(0));
        assert_eq!(vcpus(self.reply("status")), (Some(2), Some(2)));
        assert!(self.plug("3").1.contains("made for 2 vCPUs at most"));
        assert!(self.plug("1").1.contains("none is unplugged"));
        let capsule = self.dir.path().join("c.capsule");
        let saved = Command::new(PROGRAM)
            .args(["snapshot", "--format", "json", "--control"])
            .arg(self.dir.path().join("socket"))
            .arg("-o")
            .arg(&capsule)
            .output()
            .unwrap();
        assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
        let saved: Value = serde_json::from_slice(&saved.stdout).unwrap();
        let length = std::fs::metadata(&capsule).unwrap().len();
        assert_eq!(saved["reply"]["saved"]["bytes"], length);
        let seen =
            Command::new(PROGRAM).args(["inspect", "--verify", "--format", "json"]).arg(&capsule).output();
        let seen = seen.unwrap();
        assert!(seen.status.success(), "{}", String::from_utf8_lossy(&seen.stderr));
        let seen: Value = serde_json::from_slice(&seen.stdout).unwrap();
        let sections = seen["sections"].as_array().unwrap();
        let serial = sections.iter().find(|section| section["name"] == "device.serial").unwrap();
        assert!(serial["fields"].as_array().unwrap().iter().any(|field| field["name"] == "kind"), "{serial}");
        assert_eq!(self.reply("status")["status"]["phase"], "running", "it goes on");
        let metrics = self.reply("metrics");
        let text = metrics["metrics"]["text"].as_str().unwrap();
        assert!(text.lines().any(|line| line == "evenkeel_pause_seconds_count 1"), "{text}");
        assert!(text.lines().any(|line| line == "evenkeel_snapshot_seconds_count 1"), "{text}");
        self.reply("stop");
        assert!(self.child.wait().unwrap().success());
        assert!(!self.ask("status").status.success());
        std::io::read_to_string(self.child.stderr.take().unwrap()).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn kvm_a_confined_machine_lives_through_all_of_it() {
    let said = Running::new("enforce").live();
    assert!(said.contains("confined: a filter a thread"), "{said}");
}

#[test]
fn kvm_every_rule_is_used_or_says_why_not_and_nothing_else_is_called() {
    let said = Running::new("audit").live();
    let line = said.lines().find(|line| line.starts_with("{\"used\"")).unwrap_or_else(|| panic!("{said}"));
    let audited: Value = serde_json::from_str(line).unwrap();
    assert_eq!(audited["refused"], serde_json::json!({}), "calls that the filters do not have");
    // Who deals with faults is there where there is a userfaultfd to hear of them.
    let kinds = if said.contains("--pass userfaultfd=FD") { 5 } else { 6 };
    assert_eq!(audited["used"].as_object().unwrap().len(), kinds, "a kind of thread was not there: {line}");
    for (thread, rules) in audited["unused"].as_object().unwrap() {
        for (rule, why) in rules.as_object().unwrap() {
            assert!(why.is_string(), "{thread} never needs {rule}");
        }
    }
    assert!(audited["used"]["vcpu"]["ioctl KVM_RUN"].as_u64().unwrap() > 10);
}

#[test]
fn each_kind_of_thread_is_ended_for_what_it_may_not_do() {
    let out = Command::new(PROGRAM).args(["confinement", "--format", "json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    let attempts = report["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 42);
    for attempt in attempts {
        assert_eq!(attempt["ended"], true, "{attempt}");
    }
    for thread in ["vcpu", "io", "control", "snapshot", "memory", "main"] {
        let told = format!("the thread `{thread}` made the system call openat");
        assert!(attempts.iter().any(|a| a["said"].as_str().unwrap().contains(&told)), "{thread}");
    }
    assert_eq!(out.status.code(), Some(0));
}

/// Needs root, to give it up: /dev/kvm is root's here and in CI.
#[test]
fn kvm_a_user_without_rights_runs_a_machine_with_a_passed_descriptor() {
    if std::fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m)).unwrap_or(1) != 0 {
        panic!("run as root");
    }
    let dir = tempfile::tempdir().unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::copy(PROGRAM, dir.path().join("evenkeel")).unwrap();
    kernel(dir.path(), 20);
    let run = |more: &str| {
        let script = format!(
            "cd {} && exec setpriv --reuid 65534 --regid 65534 --clear-groups ./evenkeel run --kernel kernel --memory 32 --limit 60 {more}",
            dir.path().display()
        );
        Command::new("sh").arg("-c").arg(script).output().unwrap()
    };
    let with = run("--pass kvm=9 9<>/dev/kvm");
    assert!(with.status.success(), "{}", String::from_utf8_lossy(&with.stderr));
    assert!(String::from_utf8_lossy(&with.stdout).starts_with("up"));
    let without = run("");
    let said = String::from_utf8_lossy(&without.stderr).into_owned();
    assert_eq!(without.status.code(), Some(3), "{said}");
    assert!(said.contains("--pass kvm=FD"), "{said}");
    let unknown = run("--pass kvm=9 --pass wings=8 9<>/dev/kvm 8</dev/null");
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("nothing here takes wings"));
    assert_eq!(unknown.status.code(), Some(2));
}
