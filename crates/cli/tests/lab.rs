//! `evenkeel lab` as a user runs it, and as a user kills it.
//! Boots kernels: ignored unless `EVENKEEL_REQUIRE_LAB` is set; then whatever is missing is a failure.
#![cfg_attr(not(lab), allow(dead_code))]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// A lab of a test's own: its cache, with the user's kernels in it, its temporary folder and its working folder.
struct Lab {
    folder: TempDir,
    host: String,
}

impl Lab {
    fn new() -> Lab {
        let folder = tempfile::tempdir().unwrap();
        for name in ["cache", "tmp", "out"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let kernels = cache().join("kernels");
        assert!(kernels.is_dir(), "no kernels in {}: evenkeel lab fetch", kernels.display());
        symlink(kernels, folder.path().join("cache/kernels")).unwrap();
        let host = std::env::var("EVENKEEL_LAB_KERNEL").unwrap_or_else(|_| "debian-6.12".to_owned());
        Lab { folder, host }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
        command.arg("lab").args(args).current_dir(self.path("out"));
        command
            .env("EVENKEEL_CACHE", self.path("cache"))
            .env("TMPDIR", self.path("tmp"))
            .stdin(Stdio::null());
        command
    }

    /// Processes whose command line names this lab's folder.
    fn processes(&self) -> Vec<String> {
        let own = self.folder.path().to_str().unwrap();
        let line = |entry: fs::DirEntry| {
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(own).then_some(line)
        };
        fs::read_dir("/proc").unwrap().flatten().filter_map(line).collect()
    }

    /// Everything in the lab's folders but the kernels.
    fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut pending = vec![self.folder.path().to_owned()];
        while let Some(folder) = pending.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                match entry.file_type().unwrap() {
                    kind if kind.is_dir() => pending.push(entry.path()),
                    kind if kind.is_symlink() => {}
                    _ => found.push(entry.path()),
                }
            }
        }
        found
    }
}

fn cache() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("EVENKEEL_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("evenkeel")))
        .or_else(|| set("HOME").map(|folder| folder.join(".cache/evenkeel")))
        .expect("HOME is set")
}

fn is_whole_capture(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| serde_json::from_slice::<Value>(&bytes).is_ok())
}

#[cfg_attr(not(lab), ignore = "boots kernels: set EVENKEEL_REQUIRE_LAB")]
#[test]
fn a_killed_lab_leaves_nothing_behind() {
    let lab = Lab::new();
    let host = lab.host.clone();
    let mut moments: Vec<u64> = vec![5, 30, 80, 150, 300, 700, 1500, 3000];
    // From the second round on the host is resumed, and all happens within a second.
    moments.extend([40, 90, 140, 200, 300, 400, 500, 600, 700, 800, 900]);
    let mut running = 0;
    for (round, wait) in moments.into_iter().enumerate() {
        if round == 8 {
            let done = lab.command(&["run", &host, "--", "evenkeel", "--version"]).output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        let verb = if round < 8 { vec!["capture", &host] } else { vec!["run", &host, "--bring", "c.json"] };
        let mut args = verb;
        if round >= 8 {
            args.extend(["--", "evenkeel", "capture", "-o", "c.json"]);
        }
        let mut child = lab.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_millis(wait));
        running += usize::from(lab.processes().iter().any(|line| line.contains("qemu")));
        child.kill().unwrap();
        child.wait().unwrap();
        // The kernel kills the emulator when its parent is gone; that takes a moment.
        let start = Instant::now();
        while !lab.processes().is_empty() && start.elapsed() < Duration::from_secs(5) {
            sleep(Duration::from_millis(10));
        }
        assert_eq!(lab.processes(), Vec::<String>::new(), "after {wait} ms");
        for file in lab.files() {
            let idle = file.starts_with(lab.path("cache/idle"));
            // The cache's books: an empty file a kernel, whose date says when it was used.
            let used =
                file.starts_with(lab.path("cache/used")) && fs::metadata(&file).is_ok_and(|m| m.len() == 0);
            assert!(idle || used || is_whole_capture(&file), "after {wait} ms: {} is left", file.display());
        }
    }
    assert!(running >= 8, "the emulator was up in only {running} of the rounds: nothing was tested");
    // And what is kept is whole: it can be resumed.
    let done =
        lab.command(&["run", &host, "--format", "json", "--", "evenkeel", "--version"]).output().unwrap();
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(
        (&report["runs"][0]["exit"], &report["runs"][0]["resumed"]),
        (&0.into(), &true.into()),
        "{report}"
    );
}

#[cfg_attr(not(lab), ignore = "boots kernels: set EVENKEEL_REQUIRE_LAB")]
#[test]
fn a_kernel_that_dies_is_told_and_the_others_go_on() {
    let lab = Lab::new();
    // Panics under its program, which is the lab's own.
    let init = std::env::var_os("EVENKEEL_STATIC").map(PathBuf::from);
    let init = init.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/static"));
    let init = init.join("x86_64/evenkeel-lab-init");
    let args = ["run", &lab.host, &lab.host, "--timeout", "60", "--format", "json", "--"];
    let done = lab.command(&args).arg(&init).arg("panic").output().unwrap();
    assert_eq!(done.status.code(), Some(3), "{}", String::from_utf8_lossy(&done.stderr));
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    for run in report["runs"].as_array().unwrap() {
        assert!(run["error"].as_str().unwrap().contains("Kernel panic"), "{run}");
    }
    assert!(String::from_utf8_lossy(&done.stderr).contains("2 hosts: 0 with results, 2 without"));
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schema/lab-run.json");
    let schema: Value = serde_json::from_slice(&fs::read(schema).unwrap()).unwrap();
    assert!(jsonschema::is_valid(&schema, &report), "{report}");
}

#[cfg_attr(not(lab), ignore = "boots kernels: set EVENKEEL_REQUIRE_LAB")]
#[test]
fn arm64_guests_on_two_kernels_differ_as_the_ledger_says() {
    let lab = Lab::new();
    let hosts = ["debian-6.1-arm64-nvhe", "debian-7.3-arm64-nvhe"];
    for host in hosts {
        let observe = ["run", host, "--bring", "o.json", "--", "evenkeel", "observe", "-o", "o.json"];
        let done = lab.command(&observe).output().unwrap();
        assert!(done.status.success(), "{host}: {}", String::from_utf8_lossy(&done.stderr));
    }
    let [old, new] = hosts.map(|host| {
        let brought = [lab.path("out").join(host).join("o.json"), lab.path("out/o.json")];
        let bytes = brought.iter().find_map(|path| fs::read(path).ok()).expect("an observation");
        fs::remove_file(lab.path("out/o.json")).ok();
        let path = lab.path(&format!("{host}.json"));
        fs::write(&path, bytes).unwrap();
        path
    });
    let done = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .args(["observe", "--format", "json", "--against"])
        .arg(&old)
        .arg("--from")
        .arg(&new)
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(1), "{}", String::from_utf8_lossy(&done.stderr));
    let compared: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert!(compared["alike"].as_u64().unwrap() > 500, "{compared}");
    assert_eq!(compared["undetermined"], Value::Array(vec![]));
    let found = compared["differences"].as_array().unwrap();
    let cause = |name: &str| found.iter().find(|d| d["name"] == name).map(|d| d["cause"].as_str().unwrap());
    assert_eq!(cause("arm64.guest.pmcr-imp"), Some("ARM-020"));
    assert_eq!(cause("arm64.psci.version"), Some("ARM-009"));
    assert_eq!(cause("arm64.guest.smc-conduit"), Some("ARM-120"));
}
