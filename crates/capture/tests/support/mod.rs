//! A capture from a log in which one call fails, and whether that shows.

use std::collections::BTreeMap;

use evenkeel_capture::{Error, Options, capture};
use evenkeel_surface::{Surface, Write};
use evenkeel_sys::layout::word;
use evenkeel_sys::{Entry, Errno, Fault, Faulty, Log, Replaying, Rule, When};

/// Fails the calls of `log` that `which` picks, one capture each. Either there is no capture and the error names the
/// call, or what it would have told is accounted for: in `unread`, or where an item says that it was refused. A capture
/// that comes out equal lost nothing. Returns how many failures were accounted for.
pub fn fail_in_turn(whole: &Surface, log: &Log, which: impl Fn(usize, &Entry) -> bool) -> usize {
    let mut shorter = 0;
    let mut silent = Vec::new();
    for (n, entry) in log.entries.iter().enumerate().filter(|(n, entry)| which(*n, entry)) {
        match capture_with_failure(log, n) {
            Err(error) => assert_eq!(error.cause.ioctl, entry.call, "call {n}: {error}"),
            Ok(surface) if same(&surface, whole) => {}
            Ok(surface) if accounts_for(&surface, whole, entry) => shorter += 1,
            Ok(_) => silent.push(format!("{n}: {entry}")),
        }
    }
    assert!(silent.is_empty(), "failures of these calls left no trace: {silent:#?}");
    shorter
}

/// What was asked of the host of this log: the MSRs in it, so that it replays when the catalog has learned of others.
pub fn options(log: &Log) -> Options {
    let vcpu_msrs = log.entries.iter().filter(|entry| entry.call == "KVM_GET_MSRS" && entry.fd != Some(0));
    let numbers = vcpu_msrs.filter_map(|entry| Some(entry.bytes_in.as_ref()?.to_vec()));
    let msrs = numbers.flat_map(|bytes| bytes[8..].chunks_exact(16).map(|e| word(e, 0)).collect::<Vec<_>>());
    Options { msrs: msrs.collect(), ..Options::default() }
}

/// One call in `stride`, and the first five of each name. A test that is built with optimization takes all of them.
pub fn sample(log: &Log, stride: usize) -> impl Fn(usize, &Entry) -> bool {
    let stride = if cfg!(debug_assertions) { stride } else { 1 };
    let mut firsts: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (n, entry) in log.entries.iter().enumerate() {
        firsts.entry(entry.call.clone()).or_default().push(n);
    }
    firsts.values_mut().for_each(|numbers| numbers.truncate(5));
    move |n, entry| n % stride == 0 || firsts[&entry.call].contains(&n)
}

fn capture_with_failure(log: &Log, n: usize) -> Result<Surface, Error> {
    let rule = Rule { when: When::Nth(n), fault: Fault::Lose(Errno::EIO) };
    let faulty = Faulty::new(Replaying::loosely(log.clone()), vec![rule]);
    let captured = capture(&faulty, &options(log));
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

/// The stable and the volatile part are equal.
fn same(a: &Surface, b: &Surface) -> bool {
    (&a.offer, &a.provenance, &a.volatile) == (&b.offer, &b.provenance, &b.volatile)
}
