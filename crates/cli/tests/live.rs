//! A guest that writes is saved while it runs, and goes on elsewhere from that instant: before its memory is there, where wanted.
#![cfg(all(kvm, target_arch = "x86_64"))]

mod counting;

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

use counting::{PROGRAM, Place, Process, goes_on, whole};
use serde_json::Value;

/// All pages that the guest writes to were written to, by now and once more.
const ROUNDS: usize = 3000;

/// The answer to a snapshot of the machine that has the socket `one`.
fn saved(place: &Place, to: &str, more: &[&str]) -> Value {
    let snapshot = ["snapshot", "--control", "one", "--format", "json", "-o", to];
    let out = place.ask(&[&snapshot, more].concat());
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice::<Value>(&out.stdout).unwrap()["reply"]["saved"].take()
}

/// A guest that goes on from a capsule.
fn restored(place: &Place, name: &str, capsule: &str, disk: &str, more: &[&str]) -> Process {
    let restore = ["restore", "--run", capsule, "--disk", disk, "--limit", "300", "--control", name];
    let process = place.start(name, &[&restore, more].concat());
    place.soon("it has been through its pages", || process.said().len() > ROUNDS);
    assert_eq!(place.phase(name).as_deref(), Some("running"));
    process
}

fn copied(place: &Place, to: &str) {
    std::fs::copy(place.path("disk"), place.path(to)).unwrap();
}

fn need_root() {
    assert_eq!(std::fs::metadata("/proc/self").unwrap().uid(), 0, "run as root: it opens /dev/userfaultfd");
}

#[test]
fn kvm_a_guest_that_writes_goes_on_from_the_instant_at_which_it_was_saved() {
    need_root();
    let place = Place::new();
    let first = place.guest("one");
    place.soon("it has been through its pages", || first.said().len() > ROUNDS);
    // Each is of a later instant, by the same guard.
    for (name, lazy) in [("eager", &[][..]), ("lazy", &["--lazy"][..])] {
        let before = first.said().len();
        let told = saved(&place, &format!("{name}.capsule"), &["--leave-disks"]);
        assert_eq!(told["method"], "copy-before-write", "{told}");
        assert_eq!(told["disks"], serde_json::json!([{"name": "disk0", "how": "left"}]));
        let (all, paused) = (told["seconds"].as_f64().unwrap(), told["paused_seconds"].as_f64().unwrap());
        assert!(paused > 0.0 && paused < all, "{told}");
        assert!(first.said().len() > before, "it went on meanwhile");
        copied(&place, "copy");
        let second = restored(&place, name, &format!("{name}.capsule"), "copy", lazy);
        assert!(place.errors(name).contains("confined: a filter a thread"), "{}", place.errors(name));
        goes_on(&second.said(), ROUNDS);
    }
    assert!(place.ask(&["stop", "one"]).status.success());
    whole(&[&first]);
}

#[test]
fn kvm_without_a_userfaultfd_memory_is_copied_before_the_pause_and_nothing_is_restored_lazily() {
    need_root();
    let place = Place::new();
    place.for_all();
    counting::kernel(&place.path(""));
    let script = |more: &str| {
        format!(
            "exec setpriv --reuid 65534 --regid 65534 --clear-groups ./evenkeel {more} --pass kvm=9 9<>/dev/kvm"
        )
    };
    let run = script("run --memory 32 --limit 300 --kernel kernel --control one");
    let first = place.start_program("first", "sh", &["-c", &run]);
    place.soon("it runs", || place.phase("one").as_deref() == Some("running"));
    place.soon("it has been through its pages", || first.said().len() > ROUNDS);
    assert!(place.errors("first").contains("--pass userfaultfd=FD"), "{}", place.errors("first"));
    let told = saved(&place, "c.capsule", &[]);
    assert_eq!(told["method"], "live-pre-copy", "{told}");
    assert!(told["because"].as_str().unwrap().contains("userfaultfd"), "{told}");
    std::fs::set_permissions(place.path("c.capsule"), std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .unwrap();
    let restore = script("restore --run c.capsule --limit 300 --lazy");
    let refused = place.ask_program("sh", &["-c", &restore]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(3), "{why}");
    assert!(why.contains("--lazy: ") && why.contains("--pass userfaultfd=FD"), "{why}");
    assert!(refused.stdout.is_empty(), "nothing of the guest ran");
    // It was not restored: here it can be.
    let second = place.start("two", &["restore", "--run", "c.capsule", "--limit", "300", "--control", "two"]);
    place.soon("it goes on", || second.said().len() > ROUNDS);
    goes_on(&second.said(), ROUNDS);
    assert!(place.ask(&["stop", "one"]).status.success());
    whole(&[&first]);
}

#[test]
fn kvm_a_file_system_that_is_full_leaves_the_guest_running_and_no_file() {
    need_root();
    let place = Place::new();
    let first = place.guest("one");
    place.soon("it has been through its pages", || first.said().len() > ROUNDS);
    let full = "mkdir full && mount -t tmpfs -o size=1m none full && \
                { ./evenkeel snapshot --control one -o full/c.capsule --leave-disks; code=$?; ls -A full; exit $code; }";
    std::os::unix::fs::symlink(PROGRAM, place.path("evenkeel")).unwrap();
    let out = place.ask_program("unshare", &["--mount", "sh", "-c", full]);
    let why = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(3), "{why}");
    assert!(why.contains("No space left on device"), "{why}");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "", "nothing is left of the file");
    // What the process itself may write is bounded too: that ends the snapshot, and not the machine.
    let pid = first.child.id().to_string();
    let limit = |bytes: &str| {
        let set = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={bytes}")]).status();
        assert!(set.unwrap().success());
    };
    // Its output is no longer than what it said already: it is a file too.
    limit("1048576:");
    let out = place.ask(&["snapshot", "--control", "one", "-o", "c.capsule", "--leave-disks"]);
    let why = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(3), "{why}");
    assert!(why.contains("File too large"), "{why}");
    limit("unlimited");
    let names = std::fs::read_dir(place.path("")).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = names.filter(|name| name.to_string_lossy().contains("capsule")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(place.phase("one").as_deref(), Some("running"));
    let before = first.said().len();
    place.soon("it goes on", || first.said().len() > before + ROUNDS);
    // And can be saved, when there is room.
    assert_eq!(saved(&place, "c.capsule", &["--leave-disks"])["method"], "copy-before-write");
    whole(&[&first]);
}

#[test]
fn kvm_disks_are_of_that_instant_or_somebody_said_that_they_need_not_be() {
    need_root();
    let place = Place::new();
    let first = place.guest("one");
    let disk = File::options().write(true).open(place.path("disk")).unwrap();
    disk.set_len(16 << 20).unwrap();
    let snapshot = ["snapshot", "--control", "one", "-o", "c.capsule"];
    let refused = place.ask(&snapshot);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(3), "{why}");
    for part in ["disk0", "--disk-copy FILE", "--leave-disks"] {
        assert!(why.contains(part), "{why}");
    }
    assert!(!place.path("c.capsule").exists());
    disk.write_all_at(b"written before", 700_000).unwrap();
    let two = place.ask(&[&snapshot[..], &["--disk-copy", "copy", "--disk-copy", "other"]].concat());
    let why = String::from_utf8_lossy(&two.stderr).into_owned();
    assert!(!two.status.success() && why.contains("2 files for copies of 1 disks"), "{why}");
    for name in ["c.capsule", "copy", "other"] {
        assert!(!place.path(name).exists(), "{name}");
    }
    let told = saved(&place, "c.capsule", &["--disk-copy", "copy"]);
    let how = told["disks"][0]["how"].as_str().unwrap();
    assert!(["copied", "reflinked"].contains(&how), "{told}");
    disk.write_all_at(b"written after!", 700_000).unwrap();
    let copy = std::fs::read(place.path("copy")).unwrap();
    // As long as the disk was when the machine was made.
    assert_eq!(copy.len(), 1 << 20);
    assert_eq!(&copy[700_000..700_014], b"written before");
    let second = restored(&place, "two", "c.capsule", "copy", &[]);
    goes_on(&second.said(), ROUNDS);
    // One that stands writes to nothing: nobody has to say anything.
    assert!(place.ask(&["pause", "one"]).status.success());
    let told = saved(&place, "still.capsule", &[]);
    assert_eq!((told["method"].as_str(), told["paused_seconds"].as_f64()), (Some("stood-still"), Some(0.0)));
    assert_eq!(place.phase("one").as_deref(), Some("paused"));
    whole(&[&first]);
}

/// What nobody touches, and takes a while to load: into this file.
fn noise(path: &Path) -> Vec<u8> {
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let next = |_| {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word
    };
    let noise: Vec<u8> = (0..4 << 20).map(next).flat_map(u64::to_le_bytes).collect();
    std::fs::write(path, &noise).unwrap();
    noise
}

#[test]
fn kvm_a_guest_that_was_restored_lazily_is_saved_and_moved_with_all_of_its_memory() {
    need_root();
    let place = Place::new();
    let noise = noise(&place.path("noise"));
    let first = place.guest_with("zero", "--memory 64 --initramfs noise");
    place.soon("it has been through its pages", || first.said().len() > ROUNDS);
    for name in ["a.capsule", "b.capsule"] {
        let out = place.ask(&["snapshot", "--control", "zero", "-o", name, "--leave-disks"]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    drop(first);
    copied(&place, "copy");
    let last = &noise[noise.len() - 4096..];
    let all_there = |name: &str| {
        let capsule = std::fs::read(place.path(name)).unwrap();
        assert!(capsule.windows(last.len()).any(|part| part == last), "{name}: memory is missing");
    };
    let lazily = |name: &str, capsule: &str| {
        let restore = ["restore", "--run", capsule, "--disk", "copy", "--limit", "300"];
        let process = place.start(name, &[&restore[..], &["--lazy", "--control", name]].concat());
        place.soon("it runs", || place.phase(name).as_deref() == Some("running"));
        process
    };
    // As soon as it answers: most of its memory is not there.
    let second = lazily("one", "a.capsule");
    assert_eq!(saved(&place, "again.capsule", &["--leave-disks"])["method"], "copy-before-write");
    all_there("again.capsule");
    place.soon("it goes on", || second.said().len() > ROUNDS);
    goes_on(&second.said(), ROUNDS);
    drop(second);

    let arguments =
        ["receive", "--from", "unix:here", "--", "--control", "one", "--limit", "300", "--disk", "copy"];
    let third = place.start("second", &arguments);
    place.soon("it listens", || place.path("here").exists());
    let mut moved = lazily("mover", "b.capsule");
    let out = place.ask(&["migrate", "--control", "mover", "--to", "unix:here"]);
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stderr), place.errors("mover"));
    place.soon("the process that it left ends", || moved.ended().is_some());
    place.soon("it goes on there", || third.said().len() > ROUNDS);
    goes_on(&[moved.said(), third.said()].concat(), ROUNDS);
    saved(&place, "moved.capsule", &["--leave-disks"]);
    all_there("moved.capsule");
}

#[test]
fn kvm_damaged_memory_is_seen_by_nobody_and_ends_the_machine() {
    need_root();
    let place = Place::new();
    let first = place.guest("one");
    place.soon("it has been through its pages", || first.said().len() > ROUNDS);
    saved(&place, "c.capsule", &["--leave-disks"]);
    copied(&place, "copy");
    // Pages of the guest's are the last thing in it that is not zero: one of the words that it wrote there.
    let capsule = File::options().read(true).write(true).open(place.path("c.capsule")).unwrap();
    let length = capsule.metadata().unwrap().len();
    let mut bytes = vec![0; length as usize];
    capsule.read_exact_at(&mut bytes, 0).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    capsule.write_all_at(&[bytes[last] ^ 0x10], last as u64).unwrap();
    let restore = ["restore", "--run", "c.capsule", "--disk", "copy", "--limit", "60", "--lazy"];
    let mut second = place.start("second", &restore);
    place.soon("it ends", || second.ended().is_some());
    let why = place.errors("second");
    assert_eq!(second.ended().unwrap().code(), Some(3), "{why}");
    assert!(why.contains("memory: ") && !why.contains("the time is over"), "{why}");
    let said = second.said();
    if !said.is_empty() {
        goes_on(&said, 1);
    }
}
