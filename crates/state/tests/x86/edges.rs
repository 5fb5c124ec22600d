//! Each edge of the order is turned round: what goes wrong then shows what it is for. The catalog names the scene for each edge
//! that shows; the others are known from their sources.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use evenkeel_catalog::{Arch, Edge};
use evenkeel_state::order::{Order, Phase, edges};

use crate::check;
use crate::scenes;
use crate::stage::{Orders, Scene};

/// The scenes that can tell: with something in every group, timers, a vCPU that waits, an exception under way.
fn all() -> Vec<Scene<'static>> {
    const TELLING: &[&str] = &[
        "deadline timer armed",
        "one-shot timer fired and ended, x2APIC",
        "waiting for SIPI, which is on its way",
        "pending exception with a payload",
        "halted",
        "level interrupt of the IOAPIC, masked and pending",
    ];
    let mut all = vec![scenes::rich()];
    all.extend(scenes::all().into_iter().filter(|scene| TELLING.contains(&scene.name)));
    all
}

/// What goes wrong in this scene with the edge turned round. None: nothing.
fn shows(edge: &Edge, order: &Order, scene: &Scene<'_>) -> Option<String> {
    let mut orders = Orders::default();
    if edge.phase == "save" {
        orders.save = order;
    } else {
        orders.restore = order;
    }
    // A guest that went wild shows it as well.
    let played = catch_unwind(AssertUnwindSafe(|| check(scene, &orders)));
    played.unwrap_or_else(|_| Err("the guest went wild".to_owned())).err()
}

fn name(edge: &Edge) -> String {
    format!("{} {} -> {}", edge.phase, edge.before, edge.after)
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_edges_that_are_turned_round_show() {
    let scenes = all();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut failed = Vec::new();
    // EVENKEEL_EDGES=all looks for a scene for every edge, for minutes.
    let search = std::env::var_os("EVENKEEL_EDGES").is_some();
    for edge in edges(Arch::X86_64, Phase::Save).chain(edges(Arch::X86_64, Phase::Restore)) {
        let Some(order) = Order::turned(edge) else {
            *counts.entry("implied by others").or_default() += 1;
            assert!(edge.shown_by.is_empty(), "{}: it is implied by others", name(edge));
            continue;
        };
        let mut found = None;
        for scene in scenes.iter().filter(|scene| search || scene.name == edge.shown_by) {
            if let Some(why) = shows(edge, &order, scene) {
                println!("{}: {}: {}", name(edge), scene.name, why.chars().take(160).collect::<String>());
                found = Some(scene.name);
                break;
            }
        }
        match (found, edge.shown_by) {
            (Some(_), _) => *counts.entry("shown here").or_default() += 1,
            (None, "") => *counts.entry("documented").or_default() += 1,
            (None, by) => failed.push(format!("{}: {by} does not show it", name(edge))),
        }
    }
    println!("{counts:?}");
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(search || counts.get("shown here").copied().unwrap_or(0) >= 6, "{counts:?}");
}
