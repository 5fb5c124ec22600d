//! Everything that can happen to two sides that hand a guest over, on the automata and the journal that are shipped: every order
//! of loss, doubling, delay, crash (with the record that was being written there, torn or lost) and restart.

mod naive;
mod postcopy;
mod world;

use evenkeel_handover::{Destination, Source};
use world::{Found, Limits, Receives, Sends, explore};

fn told(name: &str, limits: Limits, found: &Found) {
    println!(
        "{name}: {limits:?}: {} states, {} steps, {} states in which somebody must be able to run",
        found.states, found.steps, found.live
    );
    if let Some((what, way)) = &found.violation {
        println!("  {what}, after {} steps:", way.len());
        way.iter().for_each(|step| println!("    {step}"));
    }
}

#[test]
fn no_guest_is_lost_or_doubled() {
    let limits = Limits { attempts: 1, crashes: 2, failed_writes: 1, memory_stays: false };
    let found = explore::<Source, Destination>(limits);
    told("shipped", limits, &found);
    assert!(found.violation.is_none());
    assert!(found.states > 1_000 && found.live > 100, "the exploration is too small to say anything");
}

#[test]
fn nor_where_memory_outlives_the_source() {
    let limits = Limits { attempts: 1, crashes: 2, failed_writes: 1, memory_stays: true };
    let found = explore::<Source, Destination>(limits);
    told("shipped", limits, &found);
    assert!(found.violation.is_none());
}

#[test]
fn a_second_attempt_is_not_confused_with_the_first() {
    let limits = Limits { attempts: 2, crashes: 1, failed_writes: 0, memory_stays: false };
    let found = explore::<Source, Destination>(limits);
    told("shipped", limits, &found);
    assert!(found.violation.is_none());
    assert!(found.states > 10_000, "the exploration is too small to say anything");
}

/// What an exploration of a naive rule finds, which has to be something.
fn refuted<S: Sends, D: Receives>(name: &str, expected: &str) {
    let limits = Limits { attempts: 1, crashes: 2, failed_writes: 0, memory_stays: true };
    let found = explore::<S, D>(limits);
    told(name, limits, &found);
    let (what, _) = found.violation.expect("a naive rule has to be refuted");
    assert!(what.contains(expected), "{what}");
}

#[test]
fn naive_rules_are_refuted() {
    refuted::<naive::ResumesOnError, Destination>("resumes on error", "goes on after");
    refuted::<naive::NeverReturns, Destination>("never returns", "nobody can ever run it");
    refuted::<naive::CommitsFirst, Destination>("commits first", "");
    refuted::<Source, naive::RunsWhenPrepared>("runs when prepared", "");
    refuted::<Source, naive::RunsFirst>("runs first", "");
    refuted::<Source, naive::DeniesFirst>("denies first", "");
    refuted::<Source, naive::GivesUp>("gives up", "nobody can ever run it");
}
