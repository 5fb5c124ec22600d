//! Every call of a save and of a restore fails, gets lost or lies in turn: what comes of it is refused or named, or was not
//! needed, and the guest that was to be saved goes on.

use std::collections::BTreeSet;

use evenkeel_catalog::Arch;
use evenkeel_state::order::{Order, Phase};
use evenkeel_state::{Elapsed, Image, Noting, Parts, compare, x86};
use std::time::Instant;

use crate::scenes;
use crate::stage::{Stage, at_the_point, copy};
use crate::trap::{Spoil, Trap};

/// The images agree in what does not run.
fn agree(before: &Image, after: &Image, since: Instant) -> Vec<String> {
    let different = compare(before, after, Elapsed::of(since.elapsed()));
    different.iter().filter(|d| d.field != "TMICT").map(ToString::to_string).collect()
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_no_call_that_fails_or_lies_goes_by() {
    let scene = scenes::rich();
    let trap = Trap::default();
    let noting = Noting::new(&trap);
    at_the_point(&scene, &noting, |stage| {
        spoil(stage, &trap, &noting);
        (scene.finish)(stage);
        let seen = stage.observed(1);
        assert!(seen.iter().any(|seen| seen.starts_with("vcpu.0 [01, 00")), "{seen:?}");
    });
}

fn spoil(stage: &mut Stage<'_, '_, '_>, trap: &Trap, noting: &Noting<'_>) {
    let system = stage.system;
    let manifest = noting.manifest(0).unwrap();

    let begin = Instant::now();
    trap.arm(usize::MAX, Spoil::Fail);
    let truth = x86::save(&mut stage.parts(), &manifest).unwrap().image;
    let (_, calls) = trap.disarm();
    let (mut refused, mut harmless) = (0, BTreeSet::new());
    for spoil in [Spoil::Fail, Spoil::Lose, Spoil::Lie] {
        for n in 0..calls {
            trap.arm(n, spoil);
            let saved = x86::save(&mut stage.parts(), &manifest);
            let (hit, _) = trap.disarm();
            let Some(name) = hit else { continue };
            match saved {
                Err(error) => {
                    let told = error.to_string();
                    let named = told.contains(name) || !error.item.is_empty() || told.contains("waiting");
                    assert!(named, "{spoil:?} of call {n}, {name}: {told}");
                    refused += 1;
                }
                Ok(saved) => {
                    let different = agree(&truth, &saved.image, begin);
                    assert!(
                        different.is_empty(),
                        "{spoil:?} of call {n}, {name}, is not noticed: {different:?}"
                    );
                    harmless.insert(name);
                }
            }
        }
        let again = x86::save(&mut stage.parts(), &manifest).unwrap().image;
        assert_eq!(agree(&truth, &again, begin), [""; 0], "the guest is as it was");
    }
    println!("saving: {calls} calls, {refused} refused; not needed or made up for: {harmless:?}");

    let memory = noting.memory(0);
    // What the kernel has is asked in the same way as above: it was spoiled there.
    let host = x86::Host::ask(&stage.parts()).unwrap();
    let order = Order::catalogued(Arch::X86_64, Phase::Restore);
    let set =
        |parts: &mut Parts<'_, '_>| x86::restore_with(parts, &truth, &x86::Options::default(), &host, order);
    let clean = {
        let made = x86::remake(system, &manifest, &copy(&memory)).unwrap();
        trap.arm(usize::MAX, Spoil::Fail);
        let report = set(&mut made.parts(system)).unwrap();
        assert!(report.complete(), "{report}");
        trap.disarm().1
    };
    let (mut refused, mut named, mut harmless) = (0, 0, BTreeSet::new());
    for spoil in [Spoil::Fail, Spoil::Lose, Spoil::Lie] {
        for n in 0..clean {
            let made = x86::remake(system, &manifest, &copy(&memory)).unwrap();
            trap.arm(n, spoil);
            let restored = set(&mut made.parts(system));
            let (hit, _) = trap.disarm();
            let Some(name) = hit else { continue };
            match restored {
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    refused += 1;
                }
                Ok(report) if !report.complete() => {
                    if spoil != Spoil::Lie {
                        let told = report.to_string();
                        assert!(
                            told.contains(name) || told.contains("refused"),
                            "{spoil:?} of {name}: {told}"
                        );
                    }
                    named += 1;
                }
                Ok(_) => {
                    let again = x86::save(&mut made.parts(system), &manifest).unwrap().image;
                    let different = agree(&truth, &again, begin);
                    assert!(
                        different.is_empty(),
                        "{spoil:?} of call {n}, {name}, is not noticed: {different:?}"
                    );
                    harmless.insert(name);
                }
            }
        }
    }
    println!(
        "restoring: {clean} calls, {refused} refused, {named} named; not needed or made up for: {harmless:?}"
    );
}
