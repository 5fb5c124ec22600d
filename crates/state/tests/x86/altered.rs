//! A bit of what the kernel tells is turned over while a guest is saved: how often a save notices, and that two that agree do.

use std::time::{Duration, Instant};

use evenkeel_state::{Elapsed, Image, Noting, compare, x86};

use crate::scenes;
use crate::stage::{Stage, at_the_point};
use crate::trap::{Spoil, Trap};

/// Bits that are turned over of each answer, all over it: `EVENKEEL_ALTERED`.
const BITS: usize = 2;

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_an_altered_bit_does_not_get_past_two_saves() {
    let bits = std::env::var("EVENKEEL_ALTERED").ok().and_then(|n| n.parse().ok()).unwrap_or(BITS);
    let scene = scenes::rich();
    let trap = Trap::default();
    let noting = Noting::new(&trap);
    at_the_point(&scene, &noting, |stage| alter(stage, &trap, &noting, bits));
}

fn alter(stage: &mut Stage<'_, '_, '_>, trap: &Trap, noting: &Noting<'_>, bits: usize) {
    let manifest = noting.manifest(0).unwrap();

    let begin = Instant::now();
    let truth = x86::save(&mut stage.parts(), &manifest).unwrap().image;
    let agrees = |image: &Image| {
        let different = compare(&truth, image, Elapsed::of(begin.elapsed()));
        different.iter().all(|d| d.field == "TMICT")
    };
    trap.arm(usize::MAX, Spoil::Fail);
    let (mut once, mut twice) = (Duration::MAX, Duration::MAX);
    for _ in 0..5 {
        let start = Instant::now();
        x86::save(&mut stage.parts(), &manifest).unwrap();
        once = once.min(start.elapsed());
    }
    trap.disarm();
    trap.arm(usize::MAX, Spoil::Fail);
    x86::save(&mut stage.parts(), &manifest).unwrap();
    let (_, calls) = trap.disarm();
    for _ in 0..5 {
        let start = Instant::now();
        assert!(agrees(&x86::save_verified(&mut stage.parts(), &manifest).unwrap().image));
        twice = twice.min(start.elapsed());
    }

    // Of a bit that makes a difference: refused by one save, or saved wrong.
    let (mut noticed, mut missed, mut harmless) = (0, 0, 0);
    for n in 0..calls {
        for k in 0..bits {
            // An odd step, so that bits of all places in a byte and of all parts of an answer come up.
            let bit = k * 2_741 + n * 13;
            trap.arm(n, Spoil::Alter(bit));
            let saved = x86::save(&mut stage.parts(), &manifest);
            trap.disarm();
            match saved {
                Err(_) => noticed += 1,
                Ok(saved) if agrees(&saved.image) => harmless += 1,
                Ok(_) => {
                    missed += 1;
                    for later in [0, calls] {
                        trap.arm(n + later, Spoil::Alter(bit));
                        let verified = x86::save_verified(&mut stage.parts(), &manifest);
                        let (hit, _) = trap.disarm();
                        if let Ok(saved) = verified {
                            assert!(agrees(&saved.image), "bit {bit} of call {n}, {hit:?}, goes by");
                        }
                    }
                }
            }
        }
    }
    println!(
        "{calls} calls, {bits} bits of each answer: one save notices {noticed}, misses {missed}, {harmless} change nothing that is \
         saved; two that agree miss none. {once:?} once, {twice:?} verified"
    );
    // Whether one save notices any hangs on which bits are drawn; what is told twice has a test of its own.
    assert!(noticed + missed > 0, "nothing that was altered was saved");
}
