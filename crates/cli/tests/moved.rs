//! A guest moves between processes, and says itself whether anything is missing.
#![cfg(all(kvm, target_arch = "x86_64"))]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_evenkeel");
const ENTRY: u64 = 0x10_0000;

/// Writes `a` to `p` to the serial port, over and over; before each next one it writes how many there were into the next of 1024
/// pages, and says `!` if what it wrote there 1024 times ago is not there any more.
const COUNTS: &[u8] = &[
    0x48, 0xc7, 0xc3, 0x00, 0x00, 0x20, 0x00, // mov rbx, 0x200000
    0x31, 0xc9, // xor ecx, ecx
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0x89, 0xc8, // again: mov eax, ecx
    0x83, 0xe0, 0x0f, // and eax, 15
    0x04, b'a', // add al, 'a'
    0xee, // out dx, al
    0xff, 0xc1, // inc ecx
    0x89, 0xc8, // mov eax, ecx
    0x25, 0xff, 0x03, 0x00, 0x00, // and eax, 0x3ff
    0xc1, 0xe0, 0x0c, // shl eax, 12
    0x89, 0xc7, // mov edi, eax
    0x8b, 0x34, 0x3b, // mov esi, [rbx + rdi]
    0x8d, 0x81, 0x00, 0xfc, 0xff, 0xff, // lea eax, [rcx - 0x400]
    0x81, 0xf9, 0x00, 0x04, 0x00, 0x00, // cmp ecx, 0x400
    0x77, 0x02, // ja over
    0x31, 0xc0, // xor eax, eax
    0x39, 0xc6, // over: cmp esi, eax
    0x74, 0x03, // je right
    0xb0, b'!', // mov al, '!'
    0xee, // out dx, al
    0x89, 0x0c, 0x3b, // right: mov [rbx + rdi], ecx
    0xeb, 0xc6, // jmp again
];

fn kernel(into: &Path) -> PathBuf {
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
    let length = COUNTS.len() as u64;
    for long in [0x1000, ENTRY, ENTRY, length, length, 0x1000] {
        file.extend(long.to_le_bytes());
    }
    file.resize(0x1000, 0);
    file.extend(COUNTS);
    let path = into.join("kernel");
    std::fs::write(&path, file).unwrap();
    path
}

/// A process whose standard output goes into a file.
struct Process {
    child: Child,
    out: PathBuf,
}

struct Place(tempfile::TempDir);

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn start(&self, name: &str, arguments: &[&str]) -> Process {
        self.start_of(Path::new(PROGRAM), name, arguments)
    }

    /// A process of this program.
    fn start_of(&self, program: &Path, name: &str, arguments: &[&str]) -> Process {
        let out = self.path(&format!("{name}.out"));
        let err = std::fs::File::create(self.path(&format!("{name}.err"))).unwrap();
        let child = Command::new(program)
            .args(arguments)
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&out).unwrap())
            .stderr(err)
            .spawn()
            .unwrap();
        Process { child, out }
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        Command::new(PROGRAM)
            .args(arguments)
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn errors(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.err"))).unwrap_or_default()
    }

    /// A guest that runs, with this control socket.
    fn guest(&self, socket: &str) -> Process {
        kernel(self.0.path());
        std::fs::write(self.path("disk"), vec![0; 1 << 20]).unwrap();
        let run = "run --memory 32 --limit 300 --kernel kernel --disk disk --control";
        let arguments: Vec<&str> = run.split(' ').chain([socket]).collect();
        let process = self.start("first", &arguments);
        self.soon("it runs", || self.phase(socket).as_deref() == Some("running"));
        process
    }

    fn phase(&self, socket: &str) -> Option<String> {
        let told = self.ask(&["status", socket, "--format", "json"]);
        let told: Value = serde_json::from_slice(&told.stdout).ok()?;
        Some(told["reply"]["status"]["phase"].as_str()?.to_owned())
    }

    fn soon(&self, what: &str, mut is: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !is() {
            if begin.elapsed() > Duration::from_secs(90) {
                for name in ["first", "second", "third"] {
                    eprintln!("{name}: {}", self.errors(name));
                }
                panic!("not so: {what}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Process {
    fn said(&self) -> Vec<u8> {
        std::fs::read(&self.out).unwrap()
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the guest said in one process after the other is what it would have said in one.
fn whole(parts: &[&Process]) {
    let said: Vec<u8> = parts.iter().flat_map(|part| part.said()).collect();
    for (index, byte) in said.iter().enumerate() {
        let around = String::from_utf8_lossy(&said[index.saturating_sub(20)..(index + 20).min(said.len())]);
        assert_eq!(*byte, b'a' + (index % 16) as u8, "at {index}: {around}");
    }
}

#[test]
fn kvm_a_guest_moves_to_another_process_and_is_handed_on_and_nothing_is_missing() {
    let place = Place(tempfile::tempdir().unwrap());
    let mut first = place.guest("one");
    place.soon("it has been through its pages", || first.said().len() > 3000);

    let mut second = place.start(
        "second",
        &["receive", "--from", "unix:here", "--", "--control", "two", "--limit", "300", "--disk", "disk"],
    );
    place.soon("it listens", || place.path("here").exists());
    let moved = place.ask(&[
        "migrate",
        "--control",
        "one",
        "--to",
        "unix:here",
        "--streams",
        "2",
        "--verify",
        "memory",
        "--format",
        "json",
    ]);
    let told = String::from_utf8_lossy(&moved.stdout).into_owned();
    assert!(
        moved.status.success(),
        "{told}{}{}",
        String::from_utf8_lossy(&moved.stderr),
        place.errors("first") + &place.errors("second")
    );
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["runs"], "there");
    place.soon("the first process ends", || first.ended().is_some());
    assert!(first.ended().unwrap().success(), "{:?} {}", first.ended(), place.errors("first"));
    place.soon("it goes on there", || second.said().len() > 3000);
    assert_eq!(place.phase("two").as_deref(), Some("running"));

    let mut third = place.start(
        "third",
        &["update", "--control", "two", "--", "--control", "three", "--limit", "300", "--disk", "disk"],
    );
    place.soon("it is handed over", || place.phase("three").as_deref() == Some("running"));
    place.soon("the second process ends", || second.ended().is_some());
    assert!(second.ended().unwrap().success(), "{:?} {}", second.ended(), place.errors("second"));
    place.soon("it goes on there", || third.said().len() > 3000);
    let stopped = place.ask(&["stop", "three"]);
    assert!(stopped.status.success());
    place.soon("it ends", || third.ended().is_some());
    assert!(place.errors("third").contains("moved: paused for"), "{}", place.errors("third"));
    whole(&[&first, &second, &third]);
}

#[test]
fn kvm_a_disk_that_is_used_there_keeps_its_guest_here() {
    let place = Place(tempfile::tempdir().unwrap());
    let first = place.guest("one");
    // The disk of a guest that runs is nobody else's.
    let other = place.ask(&["run", "--memory", "32", "--kernel", "kernel", "--disk", "disk"]);
    let why = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(!other.status.success() && why.contains("disk0: another process uses its file"), "{why}");

    let held = File::create_new(place.path("copy")).unwrap();
    held.set_len(1 << 20).unwrap();
    held.lock().unwrap();
    let second = place.start(
        "second",
        &["receive", "--from", "unix:here", "--", "--control", "two", "--limit", "300", "--disk", "copy"],
    );
    place.soon("it listens", || place.path("here").exists());
    let moved = place.ask(&["migrate", "--control", "one", "--to", "unix:here"]);
    let why = String::from_utf8_lossy(&moved.stderr).into_owned();
    assert_eq!(moved.status.code(), Some(1), "{why}");
    assert!(why.contains("disk0: another process uses its file"), "{why}");
    // It goes on, with its disk.
    assert_eq!(place.phase("one").as_deref(), Some("running"));
    assert!(File::open(place.path("disk")).unwrap().try_lock().is_err());
    let before = first.said().len();
    place.soon("it goes on here", || first.said().len() > before);

    drop(held);
    let moved = place.ask(&["migrate", "--control", "one", "--to", "unix:here"]);
    assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
    place.soon("it goes on there", || second.said().len() > 3000);
    assert!(place.ask(&["stop", "two"]).status.success());
    whole(&[&first, &second]);
}

/// A guest goes on in another build and comes back, whoever's `update` does it. That build is a program made from another commit,
/// which a test cannot make for itself.
#[test]
#[cfg_attr(not(older), ignore = "EVENKEEL_OLDER names no program of an older build")]
fn kvm_a_guest_goes_on_in_an_older_build_and_comes_back() {
    let older = PathBuf::from(
        std::env::var_os("EVENKEEL_OLDER").expect("EVENKEEL_OLDER, a program of an older build"),
    );
    let ours = Path::new(PROGRAM);
    let place = Place(tempfile::tempdir().unwrap());
    let mut parts = vec![place.guest("at0")];
    let hops = [
        (ours, older.as_path()),
        (ours, ours),
        (ours, &older),
        (older.as_path(), ours),
        (&older, &older),
        (&older, ours),
    ];
    for (hop, (mover, program)) in (1..).zip(hops) {
        let (from, to, name) = (format!("at{}", hop - 1), format!("at{hop}"), format!("hop{hop}"));
        let program = program.to_str().unwrap();
        let update = [
            "update",
            "--control",
            &from,
            "--program",
            program,
            "--",
            "--control",
            &to,
            "--limit",
            "300",
            "--disk",
            "disk",
        ];
        let next = place.start_of(mover, &name, &update);
        let last = parts.last_mut().unwrap();
        let what = format!("hop {hop}: {}", place.errors(&name));
        place.soon(&what, || place.phase(&to).as_deref() == Some("running"));
        place.soon(&what, || last.ended().is_some());
        assert!(last.ended().unwrap().success(), "{what} {:?}", last.ended());
        place.soon("it says more", || next.said().len() > 3000);
        parts.push(next);
    }
    assert!(place.ask(&["stop", "at6"]).status.success());
    let last = parts.last_mut().unwrap();
    place.soon("it ends", || last.ended().is_some());
    whole(&parts.iter().collect::<Vec<_>>());
}

#[test]
fn kvm_a_build_that_speaks_nothing_that_this_one_speaks_gets_no_guest() {
    let place = Place(tempfile::tempdir().unwrap());
    let first = place.guest("one");
    let later = place.path("later");
    // Another process writes it: one that this one has open cannot be executed, and its other tests start processes that may have it.
    let says = r#"echo '#!/bin/sh
[ "$*" = "arrive --formats" ] && echo "{\"oldest\":1000,\"newest\":1001}"' > later && chmod +x later"#;
    assert!(Command::new("sh").args(["-c", says]).current_dir(place.0.path()).status().unwrap().success());
    let moved = place.ask(&[
        "update",
        "--control",
        "one",
        "--program",
        later.to_str().unwrap(),
        "--",
        "--disk",
        "disk",
    ]);
    let why = String::from_utf8_lossy(&moved.stderr).into_owned();
    assert!(!moved.status.success() && why.contains("it speaks the formats 1000 to 1001"), "{why}");
    assert_eq!(place.phase("one").as_deref(), Some("running"));
    let before = first.said().len();
    place.soon("it goes on here", || first.said().len() > before);
    whole(&[&first]);
}
