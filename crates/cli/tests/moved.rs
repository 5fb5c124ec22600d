//! A guest moves between processes, and says itself whether anything is missing.
#![cfg(all(kvm, target_arch = "x86_64"))]

mod counting;

use std::fs::File;
use std::process::Command;

use counting::{PROGRAM, Place, whole};
use serde_json::Value;

#[test]
fn kvm_a_guest_moves_to_another_process_and_is_handed_on_and_nothing_is_missing() {
    let place = Place::new();
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
    let place = Place::new();
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
    let older = std::env::var("EVENKEEL_OLDER").expect("EVENKEEL_OLDER, a program of an older build");
    let (older, ours) = (older.as_str(), PROGRAM);
    let place = Place::new();
    let mut parts = vec![place.guest("at0")];
    let hops = [(ours, older), (ours, ours), (ours, older), (older, ours), (older, older), (older, ours)];
    for (hop, (mover, program)) in (1..).zip(hops) {
        let (from, to, name) = (format!("at{}", hop - 1), format!("at{hop}"), format!("hop{hop}"));
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
        let next = place.start_program(&name, mover, &update);
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
    let place = Place::new();
    let first = place.guest("one");
    let later = place.path("later");
    // Another process writes it: one that this one has open cannot be executed, and its other tests start processes that may have it.
    let says = r#"echo '#!/bin/sh
[ "$*" = "arrive --formats" ] && echo "{\"oldest\":1000,\"newest\":1001}"' > later && chmod +x later"#;
    assert!(Command::new("sh").args(["-c", says]).current_dir(place.path("")).status().unwrap().success());
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
