//! A capture of this host, recorded, replayed, and with every one of its calls failing in turn.
//!
//! Without /dev/kvm these say so and return; with `EVENKEEL_REQUIRE_KVM` set they fail instead.
#![allow(clippy::print_stdout)]

use std::path::Path;

use evenkeel_capture::{Options, capture, capture_timed};
use evenkeel_surface::{Surface, Write};
use evenkeel_sys::{Entry, Errno, Fault, Faulty, Live, Log, Recording, Replaying, Rule, When};

fn kvm() -> bool {
    let there = Path::new("/dev/kvm").exists()
        && std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    if !there {
        assert!(
            std::env::var_os("EVENKEEL_REQUIRE_KVM").is_none(),
            "/dev/kvm cannot be opened, and is required"
        );
        println!("skipped: /dev/kvm cannot be opened");
    }
    there
}

fn record() -> (Surface, Log) {
    let recording = Recording::new(Live::new());
    let surface = capture(&recording, &Options::default()).expect("this host can be captured");
    (surface, recording.into_log())
}

#[test]
fn needs_kvm_a_recorded_capture_replays_to_the_same_document() {
    if !kvm() {
        return;
    }
    let (surface, log) = record();
    let log = Log::from_json_lines(&log.to_json_lines()).unwrap();
    let replaying = Replaying::new(log);
    let again = capture(&replaying, &Options::default()).unwrap();
    assert_eq!(again, surface);
    assert_eq!(replaying.left(), 0);
}

#[test]
fn needs_kvm_two_captures_of_one_host_have_one_offer() {
    if !kvm() {
        return;
    }
    let live = Live::new();
    let (first, timings) = capture_timed(&live, &Options::default()).unwrap();
    let second = capture(&live, &Options::default()).unwrap();
    assert_eq!(first.offer, second.offer);
    assert_eq!(first.digests, second.digests);
    assert_eq!(first.provenance, second.provenance);
    assert!(!first.offer.capabilities.is_empty() && !first.offer.shapes.is_empty());
    let text = evenkeel_surface::canonical::print(&first);
    assert!(text.len() <= 64 << 10, "{} bytes", text.len());
    for (phase, time) in &timings.phases {
        println!("{phase:16} {time:?}");
    }
    println!("{:16} {:?}", "whole", timings.whole());
}

/// Each call of a replayed capture fails in turn. Either there is no capture and the error names the call, or what it
/// would have told is accounted for: in `unread`, or where an item says that it was refused. A capture that comes out
/// equal lost nothing. The volatile part and the provenance count too.
#[test]
fn needs_kvm_no_failing_call_makes_a_capture_silently_shorter() {
    if !kvm() {
        return;
    }
    let (whole, log) = record();
    let mut shorter = 0;
    let mut silent = Vec::new();
    for n in 0..log.entries.len() {
        let outcome = capture_with_failure(&log, n);
        let entry = &log.entries[n];
        match outcome {
            Err(error) => assert_eq!(error.cause.ioctl, entry.call, "call {n}: {error}"),
            Ok(surface) if same(&surface, &whole) => {}
            Ok(surface) if accounts_for(&surface, &whole, entry) => shorter += 1,
            Ok(_) => silent.push(format!("{n}: {entry}")),
        }
    }
    assert!(
        silent.is_empty(),
        "{} of {} failures left no trace: {silent:#?}",
        silent.len(),
        log.entries.len()
    );
    assert!(shorter > 100, "only {shorter} failures were seen");
}

fn capture_with_failure(log: &Log, n: usize) -> Result<Surface, evenkeel_capture::Error> {
    let rule = Rule { when: When::Nth(n), fault: Fault::Lose(Errno::EIO) };
    let faulty = Faulty::new(Replaying::loosely(log.clone()), vec![rule]);
    let captured = capture(&faulty, &Options::default());
    assert_eq!(faulty.spoiled().len(), 1, "call {n} was never made");
    captured
}

/// The failed call shows: a note that names it, or an item that it was to set is refused now and was not.
fn accounts_for(surface: &Surface, whole: &Surface, entry: &Entry) -> bool {
    let noted = surface.offer.unread.iter().filter(|note| !whole.offer.unread.contains(note));
    let mut named = noted.filter(|note| note.call.starts_with(&entry.call) && !note.what.is_empty());
    let refused = |surface: &Surface| {
        let items =
            surface.offer.sections.iter().map(|s| s.write).chain(surface.offer.msrs.iter().map(|m| m.write));
        items.chain(surface.offer.registers.iter().map(|r| r.write)).filter(|w| *w == Write::Refused).count()
    };
    named.any(|note| note.why == "EIO") || (entry.call.contains("_SET_") && refused(surface) > refused(whole))
}

fn same(a: &Surface, b: &Surface) -> bool {
    (&a.offer, &a.provenance, &a.volatile) == (&b.offer, &b.provenance, &b.volatile)
}
