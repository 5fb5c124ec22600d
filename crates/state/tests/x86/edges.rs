//! Each edge of the order is turned round: what goes wrong then shows what it is for. The catalog names the scene for each edge
//! that shows; the others are known from their sources.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use evenkeel_catalog::{Arch, Edge};
use evenkeel_state::order::{Order, Phase, edges};

use evenkeel_sys::{Live, System};

use crate::check;
use crate::in_use;
use crate::scenes;
use crate::stage::{Orders, Scene};

/// The scenes that can tell: with something in every group, timers, a vCPU that waits, an exception under way.
fn all() -> Vec<Scene<'static>> {
    const TELLING: &[&str] = &[
        "in-flight memory read",
        "in-flight memory write",
        "pending interrupt",
        "pending NMI",
        "injected exception",
        "interrupt shadow",
        "one-shot timer armed",
        "split irqchip, pending interrupt",
        "no irqchip, interrupt injected",
        "deadline timer armed",
        "one-shot timer fired and ended, x2APIC",
        "waiting for SIPI, which is on its way",
        "pending exception with a payload",
        "halted",
        "level interrupt of the IOAPIC, masked and pending",
    ];
    let mut all = vec![scenes::rich()];
    all.extend(scenes::all().into_iter().filter(|scene| TELLING.contains(&scene.name)));
    all.extend(in_use::all());
    let live = Live::new();
    let system = System::open(&live).unwrap();
    all.retain(|scene| (scene.needs)(&system).is_none());
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
    let file = std::fs::read_to_string("edges.all");
    let search = std::env::var_os("EVENKEEL_EDGES").is_some() || file.is_ok();
    // The file may name the scenes that are tried, one a line.
    let named: Vec<&str> = file.as_deref().unwrap_or_default().lines().collect();
    for edge in edges(Arch::X86_64, Phase::Save).chain(edges(Arch::X86_64, Phase::Restore)) {
        let Some(order) = Order::turned(edge) else {
            *counts.entry("implied by others").or_default() += 1;
            assert!(edge.shown_by.is_empty(), "{}: it is implied by others", name(edge));
            continue;
        };
        let mut found = None;
        let tried = |scene: &&Scene<'_>| search && (named.is_empty() || named.contains(&scene.name));
        for scene in scenes.iter().filter(|scene| tried(scene) || scene.name == edge.shown_by) {
            if let Some(why) = shows(edge, &order, scene) {
                println!("{}: {}: {}", name(edge), scene.name, why.chars().take(160).collect::<String>());
                found = Some(scene.name);
                break;
            }
        }
        match (found, edge.shown_by) {
            (Some(_), _) => *counts.entry("shown here").or_default() += 1,
            (None, by) if !by.is_empty() && !scenes.iter().any(|scene| scene.name == by) => {
                assert!(in_use::all().iter().any(|scene| scene.name == by), "{}: no scene {by}", name(edge));
                *counts.entry("shown on other hosts").or_default() += 1;
            }
            (None, "") => *counts.entry("documented").or_default() += 1,
            // A search is a survey of this host; the catalog's scenes show the edge on those that the test runs on.
            (None, _) if search => *counts.entry("shown on other hosts").or_default() += 1,
            (None, by) => failed.push(format!("{}: {by} does not show it", name(edge))),
        }
    }
    println!("{counts:?}");
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(search || counts.get("shown here").copied().unwrap_or(0) >= 6, "{counts:?}");
}
