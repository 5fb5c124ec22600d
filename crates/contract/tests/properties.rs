//! What must hold for all surfaces: the algebra's laws, and that nothing unknown ever counts.

mod common;

use std::sync::Arc;

use common::{finish, views};
use evenkeel_catalog::{CHOICES, MSRS, REGISTERS};
use evenkeel_contract::baseline::{Accumulator, baseline};
use evenkeel_contract::diff::diff;
use evenkeel_contract::keeps::{Question, keeps};
use evenkeel_contract::verdict::{under, unpinned};
use evenkeel_contract::{Coord, Outcome, View, document};
use evenkeel_surface::*;
use proptest::collection::btree_map;
use proptest::prelude::*;
use proptest::strategy::ValueTree;

/// All CPUID places that the catalog describes, and one that it does not.
fn places() -> Vec<(u32, u32)> {
    let mut places: Vec<(u32, u32)> = REGISTERS
        .iter()
        .filter(|r| r.at.leaf.is_some() && r.at.table.is_empty())
        .map(|r| (r.at.leaf.unwrap(), r.at.subleaf))
        .collect();
    places.push((0x8000_00f0, 0));
    places.sort_unstable();
    places.dedup();
    places
}

/// Words near the edges, so that flags, intervals and conflicts all happen.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0u32), Just(u32::MAX), any::<u32>(), (0u32..32).prop_map(|b| 1 << b)]
}

fn surface() -> impl Strategy<Value = Surface> {
    let places = places();
    let cpuid = btree_map(0..places.len(), [word(), word(), word(), word()], 1..8);
    let msrs = btree_map(0..MSRS.len(), (any::<bool>(), 0usize..3), 0..12);
    let features = btree_map(
        prop_oneof![Just(0x10au32), Just(0x345), Just(0x480), Just(0x481), Just(0x485)],
        any::<u64>(),
        0..3,
    );
    let caps = btree_map(
        prop_oneof![Just(213u32), Just(129), Just(190), Just(116), Just(212), Just(299)],
        1..4096i32,
        0..5,
    );
    (cpuid, msrs, features, caps, 0..3u64).prop_map(move |(cpuid, msrs, features, caps, seen)| {
        let mut offer = Offer { capabilities_asked: 300, ..Offer::default() };
        offer.shapes = ["kernel", "split"].map(|n| Shape { name: n.to_owned(), features: vec![] }).into();
        offer.capabilities = caps
            .into_iter()
            .map(|(cap, v)| Capability { cap, all: Some(v), system: None, vm: vec![] })
            .collect();
        offer.cpuid = cpuid
            .into_iter()
            .map(|(i, regs)| {
                let [eax, ebx, ecx, edx] = regs.map(Hex32);
                CpuidEntry {
                    leaf: Hex32(places[i].0),
                    subleaf: Hex32(places[i].1),
                    flags: 0,
                    eax,
                    ebx,
                    ecx,
                    edx,
                }
            })
            .collect();
        offer.feature_msrs =
            features.into_iter().map(|(m, v)| FeatureMsr { msr: Hex32(m), value: Hex64(v) }).collect();
        for (i, (listed, write)) in msrs {
            let write = [Write::Kept, Write::Refused, Write::Unasked][write];
            let msr = Hex32(MSRS[i].msr);
            offer.msrs.push(MsrItem { msr, listed, reset: Some(Hex64(0)), running: false, write });
        }
        if let Some(observed) = CHOICES.iter().find(|c| !c.from.observe.is_empty()).filter(|_| seen > 0) {
            let value = Hex64(observed.values[(seen as usize - 1).min(observed.values.len() - 1)].value);
            offer.measured.push(Measured {
                facet: observed.from.observe.to_owned(),
                shape: None,
                value,
                accepts: vec![],
                refuses: vec![],
            });
        }
        finish(Arch::X86_64, offer, Provenance::default())
    })
}

fn accumulate(surfaces: &[&Surface]) -> Accumulator {
    let mut accumulator = Accumulator::default();
    for s in surfaces {
        accumulator.add(&views(s, "")[0]);
    }
    accumulator
}

/// The accumulated meet without the number of hosts, which idempotence does not speak of.
fn contract_of(a: &Accumulator) -> impl PartialEq + std::fmt::Debug + use<> {
    a.finish("x", Arch::X86_64, "kernel")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn baseline_is_commutative_associative_and_idempotent(a in surface(), b in surface(), c in surface()) {
        prop_assert_eq!(contract_of(&accumulate(&[&a, &b, &c])), contract_of(&accumulate(&[&c, &a, &b])));
        let left = accumulate(&[&a, &b]).merge(&accumulate(&[&c]));
        let right = accumulate(&[&a]).merge(&accumulate(&[&b, &c]));
        prop_assert_eq!(contract_of(&left), contract_of(&right));
        prop_assert_eq!(contract_of(&left), contract_of(&accumulate(&[&a, &b, &c])));
        prop_assert_eq!(contract_of(&accumulate(&[&a, &a, &b])), contract_of(&accumulate(&[&a, &b])));
    }

    #[test]
    fn baseline_is_kept_by_each_of_its_hosts(a in surface(), b in surface()) {
        let (a, b) = (views(&a, "a"), views(&b, "b"));
        let meet = baseline(&[&a[0], &b[0]], "both");
        prop_assume!(meet.conflicts.is_empty());
        for host in [&a[0], &b[0]] {
            let q = Question { from: host, on: host, running: false, pinned: true };
            let no: Vec<_> = keeps(&q, &meet.contract.resolve(host)).into_iter().filter(|f| f.outcome == Outcome::No).collect();
            prop_assert_eq!(no, vec![]);
        }
    }

    #[test]
    fn a_host_differs_in_nothing_from_itself_and_survives_itself(a in surface()) {
        let v = views(&a, "a");
        prop_assert_eq!(diff((&a, &v), (&a, &v)), vec![]);
        prop_assert!(unpinned(&v, &v).outcome().holds());
        let meet = baseline(&[&v[0]], "self");
        prop_assume!(meet.conflicts.is_empty());
        let verdicts = under(&meet.contract, &v, &v);
        prop_assert!(verdicts.outcome().holds(), "{:?}", verdicts.verdicts.iter().map(|v| &v.findings).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_printed_is_read_back(a in surface()) {
        let text = canonical::print(&a);
        prop_assert_eq!(read::surface(text.as_bytes(), &Limits::default()).unwrap(), a.clone());
        let contract = baseline(&[&views(&a, "a")[0]], "a \"name\"\nwith a line").contract;
        prop_assert_eq!(document::read(document::print(&contract).as_bytes()).unwrap(), contract);
    }

    #[test]
    fn the_unknown_never_makes_a_verdict_hold(a in surface(), b in surface(), old in any::<bool>(), pick in any::<prop::sample::Index>()) {
        let (o, n) = (views(&a, "o"), views(&b, "n"));
        let before = unpinned(&o, &n);
        let meet = baseline(&[&o[0], &n[0]], "both").contract;
        let pinned = under(&meet, &o, &n);
        let (mut o2, mut n2) = (o.clone(), n.clone());
        forget(if old { &mut o2 } else { &mut n2 }, &pick);
        for (before, after) in [(&before, unpinned(&o2, &n2)), (&pinned, under(&meet, &o2, &n2))] {
            for (x, y) in before.verdicts.iter().zip(&after.verdicts) {
                prop_assert!(x.outcome.holds() || !y.outcome.holds(), "{:?}: {:?} became {:?}", x.journey, x.findings, y.findings);
            }
        }
    }
}

/// Replaces one facet or item by "not determined".
fn forget(views: &mut [View], pick: &prop::sample::Index) {
    let (words, choices, items) = (views[0].words.len(), views[0].choices.len(), views[0].items.len());
    let total = words + choices + items;
    let at = pick.index(total.max(1));
    for view in views {
        let host = Arc::make_mut(&mut view.host);
        host.digests = Digests::default();
        if at < words {
            Arc::make_mut(&mut view.words)[at].unknown = u64::MAX;
        } else if at < words + choices {
            let choice = &mut view.choices[at - words];
            (choice.default, choice.values, choice.complete) = (None, 0, false);
        } else if at < total {
            // An item of which nothing is known: not whether it is listed, nor what becomes of it.
            let items = Arc::make_mut(&mut view.items);
            items[at - words - choices].write = Write::Unasked;
        }
    }
}

#[test]
fn hiding_anything_changes_the_diff() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..24 {
        let surface = surface().new_tree(&mut runner).unwrap().current();
        let hidden = common_hide::all(&surface);
        assert!(!hidden.is_empty());
        for (what, other) in hidden {
            let differences = diff((&surface, &views(&surface, "o")), (&other, &views(&other, "n")));
            assert!(!differences.is_empty(), "{what} was hidden and nothing differs");
        }
    }
}

#[path = "common/hide.rs"]
mod common_hide;

#[test]
fn a_word_that_nobody_described_is_exact() {
    let at = Coord::parse("cpuid.800000f0.0.eax").unwrap();
    let word = evenkeel_contract::Word::new(at, 5);
    assert_eq!(word.refuses(5), (0, 0));
    assert_ne!(word.refuses(4).0, 0);
}
