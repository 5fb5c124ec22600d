//! View and compare hold over every section of the catalog: nothing differs from itself, whatever changes is found under its
//! name, ignored bits and what KVM works out are left alone, clocks go forward and no further than time, and any bytes at
//! all give a view or an error.
#![allow(clippy::print_stdout, reason = "how much was looked at is part of the result")]

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use evenkeel_catalog::{Compare, MSRS, REGS, SECTIONS, Section};
use evenkeel_state::view::{Named, Value};
use evenkeel_state::{Elapsed, Image, Item, Manifest, Noted, Owner, Role, compare, compare_items, view};
use evenkeel_surface::Arch;
use proptest::prelude::*;

/// Bytes that look random, and are the same each time.
fn noise(seed: &mut u64) -> u8 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as u8
}

fn filled(len: usize, seed: &mut u64) -> Vec<u8> {
    (0..len).map(|_| noise(seed)).collect()
}

/// A structure with every field that its tag allows.
fn structure(section: &Section, tag: Option<u32>, seed: &mut u64) -> Vec<u8> {
    let fields = section.fields.iter().filter(|f| f.group.is_none() || f.group == tag);
    let end = |f: &evenkeel_catalog::StateField| {
        let stride = if f.stride == 0 { f.size } else { f.stride };
        f.at + stride * (f.count.max(1) - 1) + if f.size == 0 { 64 } else { f.size }
    };
    let mut bytes = filled(fields.map(end).max().unwrap_or(0) as usize, seed);
    if let Some(tag) = tag {
        let (at, size) = (section.tag_at as usize, section.tag_size as usize);
        bytes[at..at + size].copy_from_slice(&tag.to_le_bytes()[..size]);
    }
    bytes
}

fn tags(section: &Section) -> Vec<u32> {
    let mut tags: Vec<u32> = section.fields.iter().filter_map(|f| f.group).collect();
    tags.dedup();
    tags
}

/// Payloads that a section can have, with everything in them that the catalog knows.
fn payloads(section: &Section) -> Vec<Vec<u8>> {
    let mut seed = section.name.bytes().map(u64::from).sum();
    let seed = &mut seed;
    let padded = |mut bytes: Vec<u8>| {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    };
    match section.cut {
        "" if section.tag_size == 0 => vec![structure(section, None, seed)],
        "" => tags(section).into_iter().map(|tag| structure(section, Some(tag), seed)).collect(),
        "entries" => vec![
            tags(section)
                .into_iter()
                .flat_map(|tag| {
                    let mut entry = structure(section, Some(tag), seed);
                    entry.resize(section.entry as usize, 0);
                    entry
                })
                .collect(),
        ],
        "msrs" => {
            let numbers = MSRS.iter().flat_map(|m| m.msr..=m.last.unwrap_or(m.msr)).chain([0x1234_5678]);
            vec![
                numbers
                    .flat_map(|msr| [u64::from(msr).to_le_bytes().to_vec(), filled(8, seed)].concat())
                    .collect(),
            ]
        }
        "registers" => {
            let known = REGS.iter().flat_map(|r| [Some(r.id), r.last]).flatten();
            let mut ids: Vec<u64> = known.chain([0x6030_0000_00ff_0000, 0x2030_0003_0000_0000]).collect();
            ids.dedup();
            let entry = |id: u64| {
                [id.to_le_bytes().to_vec(), padded(filled(1 << (id >> 52 & 15), &mut (id ^ 7)))].concat()
            };
            vec![ids.into_iter().flat_map(entry).collect()]
        }
        "attributes" => {
            let entry = |f: &evenkeel_catalog::StateField, low: u32, whose: u64| {
                let head = [f.group.unwrap().to_le_bytes(), f.size.to_le_bytes()].concat();
                let attribute = (whose << 32 | u64::from(low)).to_le_bytes().to_vec();
                [head, attribute, padded(filled(f.size as usize, &mut u64::from(low)))].concat()
            };
            let each = |f: &'static evenkeel_catalog::StateField| {
                let stride = if f.stride == 0 { f.size } else { f.stride };
                BTreeSet::from([0, f.count.max(1) - 1])
                    .into_iter()
                    .flat_map(move |i| [(f, f.at + i * stride, 0), (f, f.at + i * stride, 1)])
            };
            vec![
                section
                    .fields
                    .iter()
                    .flat_map(each)
                    .flat_map(|(f, low, whose)| entry(f, low, whose))
                    .collect(),
            ]
        }
        "cpuid" => {
            let leaves =
                [(0, 0), (1, 0), (7, 0), (7, 1), (0xd, 0), (0xd, 1), (0x4000_0001, 0), (2, 0), (2, 0)];
            let entry = |(leaf, subleaf): (u32, u32)| {
                let mut bytes = filled(40, seed);
                bytes[..4].copy_from_slice(&leaf.to_le_bytes());
                bytes[4..8].copy_from_slice(&subleaf.to_le_bytes());
                bytes
            };
            vec![leaves.into_iter().flat_map(entry).collect()]
        }
        _ => Vec::new(),
    }
}

/// An item of every section, for structures that come in several shapes one of each.
static ITEMS: LazyLock<Vec<Item>> = LazyLock::new(make);

fn items() -> Vec<Item> {
    ITEMS.clone()
}

fn make() -> Vec<Item> {
    let owner = |s: &Section| {
        let vm = ["irqchip", "pit2", "clock", "xen-vm"].contains(&s.name) || s.name.starts_with("its-");
        if vm { Owner::Vm } else { Owner::Vcpu(0) }
    };
    let item = |s: &'static Section, bytes| Item { owner: owner(s), name: s.name.to_owned(), bytes };
    SECTIONS.iter().flat_map(|s| payloads(s).into_iter().map(move |bytes| item(s, bytes))).collect()
}

fn image(items: Vec<Item>) -> Image {
    Image { arch: Arch::X86_64, manifest: Manifest::default(), items }
}

/// The field with other bytes.
fn changed(item: &Item, field: &Named<'_>, change: impl Fn(u64) -> u64) -> Item {
    let mut other = item.clone();
    match field.value {
        Value::Number(n) => {
            // As many bytes as are the number's: those that are the same in both are left.
            let (old, new) = (n.to_le_bytes(), change(n).to_le_bytes());
            for (i, (a, b)) in old.iter().zip(new).enumerate().filter(|(_, (a, b))| **a != *b) {
                assert_eq!(other.bytes[field.at + i], *a);
                other.bytes[field.at + i] = b;
            }
        }
        Value::Bytes(bytes) => other.bytes[field.at + bytes.len() / 2] ^= 0x10,
    }
    other
}

fn field<'a>(item: &'a Item, name: &str) -> Named<'a> {
    view(item).unwrap().into_iter().find(|n| n.name == name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn an_image_differs_in_nothing_from_itself() {
    let all = image(items());
    assert_eq!(compare(&all, &all, Elapsed::none()), []);
}

#[test]
fn whatever_changes_is_found_under_its_name_and_what_is_ignored_is_not() {
    let (mut identical, mut masked, mut free, mut fields) = (0, 0, 0, 0);
    for item in items() {
        let base = image(vec![item.clone()]);
        let found = |other: &Item| compare_items(&base, &item, other, Elapsed::none());
        let section = evenkeel_catalog::section(&item.name).unwrap();
        let named = view(&item).unwrap_or_else(|e| panic!("{e}"));
        assert!(!named.is_empty(), "{} has no fields", item.name);
        for (index, field) in named.iter().enumerate() {
            fields += 1;
            let bits = match field.value {
                // Of a long list a bit of each, so that this ends.
                Value::Number(_) if named.len() > 200 => index % 8..index % 8 + 1,
                Value::Number(_) => 0..8,
                Value::Bytes(_) => 0..1,
            };
            for bit in bits {
                let other = changed(&item, field, |n| n ^ 1 << bit);
                let names: Vec<String> = found(&other).into_iter().map(|d| d.field).collect();
                let ignored = field.rule.ignore >> bit & 1 != 0;
                let expected = match field.rule.compare {
                    Compare::Identical => true,
                    Compare::Masked => !ignored,
                    _ => false,
                };
                // The tag says what there is; with another one all is another, or nothing makes sense.
                let tag = section.tag_size != 0 && ["format", "type"].iter().any(|t| field.name.ends_with(t));
                match (expected, field.rule.compare) {
                    (true, _) if tag => assert!(!names.is_empty(), "{}/{}", item.name, field.name),
                    (true, _) => {
                        identical += 1;
                        assert_eq!(names, std::slice::from_ref(&field.name), "{}", item.name);
                    }
                    (false, Compare::Masked) => {
                        masked += 1;
                        assert!(names.is_empty(), "{}/{}: {names:?}", item.name, field.name);
                    }
                    (false, Compare::Computed | Compare::Lost) => {
                        free += 1;
                        assert!(names.is_empty(), "{}/{}: {names:?}", item.name, field.name);
                    }
                    (false, _) => {}
                }
            }
        }
    }
    println!(
        "{fields} fields: {identical} changes found, {masked} ignored bits and {free} computed values left alone"
    );
    assert!(fields > 2_500 && identical > 9_000 && masked > 5 && free > 50);
}

#[test]
fn clocks_go_forward_and_no_further_than_time() {
    let elapsed = Elapsed {
        most: Duration::from_millis(10),
        slack: Duration::from_micros(1),
        counter_hz: 1_000_000_000,
    };
    let khz = Item {
        owner: Owner::Vcpu(0),
        name: "tsc-khz".to_owned(),
        bytes: 2_000_000u32.to_le_bytes().to_vec(),
    };
    let mut clocks = 0;
    for item in items() {
        let base = image(vec![item.clone(), khz.clone()]);
        for field in view(&item).unwrap().iter().filter(|f| f.rule.compare == Compare::Monotonic) {
            clocks += 1;
            let differs = |change: &dyn Fn(u64) -> u64| {
                !compare_items(&base, &item, &changed(&item, field, change), elapsed).is_empty()
            };
            // The slowest of the clocks ticks every 100 ns.
            assert!(!differs(&|n| n.wrapping_add(50_000)), "{} stands still", field.name);
            assert!(differs(&|n| n.wrapping_sub(1)), "{} may go back", field.name);
            assert!(differs(&|n| n.wrapping_add(21_000_000)), "{} may run away", field.name);
        }
    }
    println!("{clocks} clocks");
    assert!(clocks >= 10);
}

/// A local APIC with a timer.
fn timer(lvtt: u32, initial: u32, current: u32) -> Item {
    let mut bytes = vec![0; 1024];
    for (at, value) in [(0x320, lvtt), (0x380, initial), (0x390, current), (0x3e0, 0b1011u32)] {
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    Item { owner: Owner::Vcpu(0), name: "lapic".to_owned(), bytes }
}

#[test]
fn a_timer_that_is_armed_again_has_the_same_end() {
    let elapsed =
        Elapsed { most: Duration::from_micros(10), slack: Duration::ZERO, counter_hz: 1_000_000_000 };
    let differs = |before: Item, after: Item| {
        let base = image(vec![before.clone()]);
        compare_items(&base, &before, &after, elapsed).iter().any(|d| d.field == "TMCCT")
    };
    // One-shot, the bus undivided: a tick is a nanosecond.
    let once = |left| timer(0x20, 1_000_000, left);
    assert!(!differs(once(500_000), once(490_000)));
    assert!(differs(once(500_000), once(489_999)));
    assert!(differs(once(500_000), once(500_001)));
    assert!(!differs(once(10_000), once(0)));
    assert!(differs(once(10_001), once(0)));
    assert!(differs(once(0), once(5)));
    // Periodic: 4000 before its end, and 6000 into the next period.
    let periodic = |left| timer(0x20 | 1 << 17, 1_000_000, left);
    assert!(!differs(periodic(4_000), periodic(994_000)));
    assert!(differs(periodic(4_000), periodic(993_999)));
    assert!(differs(periodic(4_000), periodic(1_000_001)));
    // Divided by 128.
    let mut slow = (once(500_000), once(500_000 - 79));
    for item in [&mut slow.0, &mut slow.1] {
        item.bytes[0x3e0] = 0b1010;
    }
    assert!(!differs(slow.0.clone(), slow.1));
    let mut late = once(500_000 - 80);
    late.bytes[0x3e0] = 0b1010;
    assert!(differs(slow.0, late));
}

#[test]
fn a_timer_that_can_have_ended_leaves_its_interrupt_and_no_other() {
    let elapsed =
        Elapsed { most: Duration::from_micros(10), slack: Duration::ZERO, counter_hz: 1_000_000_000 };
    let raised = |mut item: Item, vector: usize| {
        item.bytes[0x200 + vector / 32 * 16 + vector % 32 / 8] |= 1 << (vector % 8);
        item
    };
    let irr = |left: u32, lvtt: u32, vector: usize| {
        let before = timer(lvtt, 1_000_000, left);
        let after = raised(timer(lvtt, 1_000_000, 0), vector);
        let base = image(vec![before.clone()]);
        compare_items(&base, &before, &after, elapsed).iter().any(|d| d.field.starts_with("IRR"))
    };
    assert!(!irr(5_000, 0x61, 0x61));
    assert!(irr(5_000, 0x61, 0x62), "another interrupt");
    assert!(irr(50_000, 0x61, 0x61), "not yet");
    assert!(irr(0, 0x61, 0x61), "it had fired before");
    assert!(irr(5_000, 0x61 | 1 << 16, 0x61), "masked");
    // By a moment of the TSC, which ticks once in a nanosecond.
    let khz = Item {
        owner: Owner::Vcpu(0),
        name: "tsc-khz".to_owned(),
        bytes: 1_000_000u32.to_le_bytes().to_vec(),
    };
    let by_tsc = |end: u64| {
        let entries = [(0x10u64, 5_000u64), (0x6e0, end)];
        let bytes = entries.iter().flat_map(|(n, v)| [n.to_le_bytes(), v.to_le_bytes()].concat()).collect();
        let before = timer(0x61 | 2 << 17, 0, 0);
        let msrs = Item { owner: Owner::Vcpu(0), name: "msrs".to_owned(), bytes };
        let base = image(vec![before.clone(), msrs, khz.clone()]);
        !compare_items(&base, &before, &raised(before.clone(), 0x61), elapsed).is_empty()
    };
    assert!(!by_tsc(15_000));
    assert!(by_tsc(15_001), "not yet");
    assert!(by_tsc(0), "not armed");
}

#[test]
fn a_deadline_stays_or_has_been_reached() {
    let elapsed = Elapsed { most: Duration::from_millis(1), slack: Duration::ZERO, counter_hz: 1 };
    let msrs = |entries: &[(u32, u64)]| Item {
        owner: Owner::Vcpu(0),
        name: "msrs".to_owned(),
        bytes: entries
            .iter()
            .flat_map(|(n, v)| [u64::from(*n).to_le_bytes(), v.to_le_bytes()].concat())
            .collect(),
    };
    let khz =
        Item { owner: Owner::Vcpu(0), name: "tsc-khz".to_owned(), bytes: 1_000u32.to_le_bytes().to_vec() };
    let differs = |before: &[(u32, u64)], after: &[(u32, u64)]| {
        let (before, after) = (msrs(before), msrs(after));
        let base = image(vec![before.clone(), khz.clone()]);
        !compare_items(&base, &before, &after, elapsed).is_empty()
    };
    // A thousand ticks in a millisecond.
    assert!(!differs(&[(0x10, 5_000), (0x6e0, 9_000)], &[(0x10, 5_500), (0x6e0, 9_000)]));
    assert!(differs(&[(0x10, 5_000), (0x6e0, 9_000)], &[(0x10, 5_500), (0x6e0, 9_001)]));
    assert!(differs(&[(0x10, 5_000), (0x6e0, 9_000)], &[(0x10, 5_500), (0x6e0, 0)]), "not yet");
    assert!(!differs(&[(0x10, 5_000), (0x6e0, 5_400)], &[(0x10, 5_500), (0x6e0, 0)]), "fired");
    assert!(differs(&[(0x10, 5_000), (0x6e0, 0)], &[(0x10, 5_500), (0x6e0, 9_000)]), "armed by nobody");
    assert!(differs(&[(0x6e0, 5_400)], &[(0x6e0, 0)]), "without a clock nobody can tell");
    assert!(differs(&[(0x10, 5_000), (0x1b, 1)], &[(0x10, 5_000)]), "an MSR that is gone");
}

#[test]
fn what_is_on_one_side_only_is_a_difference() {
    let all = items();
    let whole = image(all.clone());
    for index in 0..all.len() {
        let mut fewer = all.clone();
        let gone = fewer.remove(index);
        let fewer = image(fewer);
        for found in [compare(&whole, &fewer, Elapsed::none()), compare(&fewer, &whole, Elapsed::none())] {
            assert!(found.iter().any(|d| d.section == gone.name), "{}", gone.name);
        }
    }
    let mut selected = whole.clone();
    let call = "KVM_ENABLE_CAP".to_owned();
    selected.manifest.calls.push(Noted { on: Role::Vm, call, argument: vec![1; 104], payload: Vec::new() });
    assert_eq!(compare(&whole, &selected, Elapsed::none())[0].section, "manifest");
    let other = Image { arch: Arch::Aarch64, ..whole.clone() };
    assert_eq!(compare(&whole, &other, Elapsed::none())[0].section, "arch");
}

#[test]
fn names_are_those_of_the_kernel() {
    let all = items();
    let of = |section: &str| all.iter().find(|i| i.name == section).unwrap();
    assert_eq!(field(of("sregs2"), "ldt.padding").at, 168 + 23);
    assert_eq!(field(of("irqchip"), "ioapic.redirtbl.23").at, 1040 + 32 + 23 * 8);
    assert_eq!(field(of("lapic"), "IRR.7").at, 0x270);
    assert_eq!(field(of("msrs"), "MSR_IA32_TSC").raw, 0x10);
    assert_eq!(field(of("arm64-registers"), "X0").raw, 0x6030_0000_0010_0000);
    assert_eq!(field(of("arm64-registers"), "X30").raw, 0x6030_0000_0010_003c);
    assert_eq!(field(of("arm64-registers"), "V31").raw, 0x6040_0000_0010_00d0);
    assert_eq!(field(of("arm64-registers"), "PMEVCNTR30_EL0").raw, 0x6030_0000_0013_df5e);
    assert_eq!(field(of("vgic-v3-redist"), "GICR_TYPER.1@1").raw, 1 << 32 | 0xc);
    assert_eq!(field(of("ssp"), "ssp").raw, 0x2030_0003_0000_0000);
    assert!(!field(of("msrs"), "0x12345678").known);
    assert_eq!(field(of("cpuid"), "2.0.eax#2").raw, 2 << 32);
}

/// Every section's name, and one that is none.
fn names() -> Vec<&'static str> {
    SECTIONS.iter().map(|s| s.name).chain(["no-such-section"]).collect()
}

proptest! {
    #[test]
    fn any_bytes_give_a_view_or_an_error(
        name in prop::sample::select(names()),
        bytes in prop::collection::vec(any::<u8>(), 0..1700),
        flip in any::<(prop::sample::Index, u8)>(),
    ) {
        let item = Item { owner: Owner::Vm, name: name.to_owned(), bytes };
        match view(&item) {
            Ok(named) => prop_assert!(named.iter().all(|n| n.at <= item.bytes.len())),
            Err(e) => prop_assert!(e.at <= item.bytes.len() && e.to_string().len() < 200),
        }
        let base = image(vec![item.clone()]);
        prop_assert_eq!(compare(&base, &base, Elapsed::none()), vec![]);
        let mut other = item;
        if !other.bytes.is_empty() {
            let at = flip.0.index(other.bytes.len());
            other.bytes[at] ^= flip.1;
        }
        compare(&base, &image(vec![other]), Elapsed::of(Duration::from_secs(1)));
    }

    #[test]
    fn a_payload_with_a_byte_changed_or_cut_off_gives_a_view_or_an_error(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        with in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let all = items();
        let item = &all[which.index(all.len())];
        let mut other = item.clone();
        let at = at.index(other.bytes.len());
        if cut {
            other.bytes.truncate(at);
        } else {
            other.bytes[at] = with;
        }
        let base = image(vec![item.clone()]);
        let found = compare(&base, &image(vec![other.clone()]), Elapsed::of(Duration::from_secs(1)));
        // What is shorter is never the same.
        prop_assert!(!cut || !found.is_empty());
        if let Err(e) = view(&other) {
            prop_assert!(e.at <= other.bytes.len());
        }
    }
}
