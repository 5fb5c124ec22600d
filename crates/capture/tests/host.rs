//! A capture of this host, recorded, replayed, and with every one of its calls failing in turn.
//!
//! Without /dev/kvm these are ignored (build.rs); with `EVENKEEL_REQUIRE_KVM` set they run all the same, and fail.

mod support;

use evenkeel_capture::{Options, capture, capture_timed};
use evenkeel_surface::Surface;
use evenkeel_sys::{Live, Log, Recording, Replaying};

fn record() -> (Surface, Log) {
    let recording = Recording::new(Live::new());
    let surface = capture(&recording, &Options::default()).expect("this host can be captured");
    (surface, recording.into_log())
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_a_recorded_capture_replays_to_the_same_document() {
    let (surface, log) = record();
    let log = Log::from_json_lines(&log.to_json_lines()).unwrap();
    let replaying = Replaying::new(log);
    let again = capture(&replaying, &Options::default()).unwrap();
    assert_eq!(again, surface);
    assert_eq!(replaying.left(), 0);
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_two_captures_of_one_host_have_one_offer() {
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

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_no_failing_call_makes_a_capture_silently_shorter() {
    let (whole, log) = record();
    let seen = support::fail_in_turn(&whole, &log, support::sample(&log, 5));
    assert!(seen > 50, "only {seen} failures were seen");
}
