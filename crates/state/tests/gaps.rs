//! Each gap that an image can show is found in an image that shows it, and not in one that does not.
#![allow(clippy::print_stdout, reason = "how many were looked for is part of the result")]

use std::collections::BTreeSet;

use evenkeel_catalog::{GAPS, section};
use evenkeel_state::{Image, Item, Manifest, Noted, Owner, Role, gaps, looked_for};
use evenkeel_surface::Arch;

const VCPU: Owner = Owner::Vcpu(0);

/// A structure with these fields set (`name` or `name#index`), the rest 0.
fn item(owner: Owner, name: &str, size: usize, set: &[(&str, u64)]) -> Item {
    let mut bytes = vec![0; size];
    for (field, value) in set {
        let (field, index) = field.split_once('#').unwrap_or((field, "0"));
        let found = section(name).unwrap().fields.iter().find(|f| f.name == field).expect(field);
        let stride = if found.stride == 0 { found.size } else { found.stride };
        let (at, size) = ((found.at + index.parse::<u32>().unwrap() * stride) as usize, found.size as usize);
        bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }
    Item { owner, name: name.to_owned(), bytes }
}

fn msrs(entries: &[(u32, u64)]) -> Item {
    let entry =
        |(number, value): &(u32, u64)| [u64::from(*number).to_le_bytes(), value.to_le_bytes()].concat();
    Item { owner: VCPU, name: "msrs".to_owned(), bytes: entries.iter().flat_map(entry).collect() }
}

/// A table of CPUID with one bit set: leaf, register (0 is EAX), bit.
fn cpuid(leaf: u32, subleaf: u32, register: usize, bit: u32) -> Item {
    let mut words = [0u32; 10];
    (words[0], words[1], words[3 + register]) = (leaf, subleaf, 1 << bit);
    let bytes = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    Item { owner: VCPU, name: "cpuid".to_owned(), bytes }
}

fn registers(entries: &[(u64, u64)]) -> Item {
    let bytes =
        entries.iter().flat_map(|(id, value)| [id.to_le_bytes(), value.to_le_bytes()].concat()).collect();
    Item { owner: VCPU, name: "arm64-registers".to_owned(), bytes }
}

fn attribute(owner: Owner, name: &str, group: u32, attribute: u64, value: u64) -> Item {
    let bytes = [
        [group.to_le_bytes(), 8u32.to_le_bytes()].concat(),
        attribute.to_le_bytes().to_vec(),
        value.to_le_bytes().to_vec(),
    ];
    Item { owner, name: name.to_owned(), bytes: bytes.concat() }
}

/// One attribute of Xen: its tag and the first 8 bytes of its value, the second at `second`.
fn xen(owner: Owner, name: &str, tag: u16, values: &[(usize, u64)]) -> Item {
    let mut bytes = vec![0; 72];
    bytes[..2].copy_from_slice(&tag.to_le_bytes());
    for (at, value) in values {
        bytes[*at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    Item { owner, name: name.to_owned(), bytes }
}

fn call(name: &str, words: &[u32]) -> Noted {
    let argument = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    Noted { on: Role::Vm, call: name.to_owned(), argument, payload: Vec::new() }
}

fn found(arch: Arch, items: &[Item], calls: &[Noted]) -> BTreeSet<&'static str> {
    let manifest = Manifest { calls: calls.to_vec() };
    gaps(&Image { arch, manifest, items: items.to_vec() }).into_iter().map(|g| g.gap.id).collect()
}

/// What shows a gap, and what is like it and does not.
struct Case {
    id: &'static str,
    shows: (Vec<Item>, Vec<Noted>),
    does_not: (Vec<Item>, Vec<Noted>),
}

fn items(id: &'static str, shows: Vec<Item>, does_not: Vec<Item>) -> Case {
    Case { id, shows: (shows, Vec::new()), does_not: (does_not, Vec::new()) }
}

fn calls(id: &'static str, shows: Vec<Noted>, does_not: Vec<Noted>) -> Case {
    Case { id, shows: (Vec::new(), shows), does_not: (Vec::new(), does_not) }
}

fn nested(flags: u64, gpat: u64) -> Item {
    let mut item =
        item(VCPU, "nested-state", 128 + 4096, &[("flags", flags), ("format", 1), ("svm.gpat", gpat)]);
    item.bytes[128 + 0x90] = 1;
    item
}

fn x86() -> Vec<Case> {
    let events = |set: &[(&str, u64)]| item(VCPU, "vcpu-events", 64, set);
    let lapic = |lvtt, left| item(VCPU, "lapic", 1024, &[("LVTT", lvtt), ("TMICT", 100), ("TMCCT", left)]);
    let ioapic = |entry| item(Owner::Vm, "irqchip", 1560, &[("ioapic.redirtbl#9", entry)]);
    let pit = |mode| item(Owner::Vm, "pit2", 112, &[("channels.0.mode", mode)]);
    let state = |state| item(VCPU, "mp-state", 4, &[("mp_state", state)]);
    let (on, off) = (|msr| vec![msrs(&[(msr, 1)])], |msr| vec![msrs(&[(msr, 0x1000)])]);
    vec![
        items("G03", vec![events(&[("exception.nr", 3)])], vec![events(&[("exception.nr", 13)])]),
        items("G04", vec![state(4)], vec![state(3)]),
        items("G06", vec![lapic(0x20, 0)], vec![lapic(0x20, 5)]),
        items("G06", vec![lapic(0x20, 0)], vec![lapic(0x20 | 1 << 16, 0)]),
        items("G06", vec![lapic(0x20, 0)], vec![lapic(0x20 | 1 << 17, 0)]),
        items("G07", vec![pit(2)], vec![pit(0xff)]),
        items("G08", vec![ioapic(0xc031)], vec![ioapic(0x4031)]),
        items("G08", vec![ioapic(0xc031)], vec![ioapic(0x8031)]),
        items("G09", on(0x4b56_4d01), off(0x4b56_4d01)),
        items("G10", on(0x4b56_4d02), off(0x4b56_4d02)),
        items("G11", vec![msrs(&[(0x4000_00b4, 3)])], vec![msrs(&[(0x4000_00b4, 1)])]),
        items("G12", vec![cpuid(1, 0, 3, 12), msrs(&[])], vec![cpuid(1, 0, 3, 12), msrs(&[(0x2ff, 0)])]),
        items("G12", vec![cpuid(1, 0, 3, 14), msrs(&[])], vec![cpuid(1, 0, 3, 14), msrs(&[(0x400, 0)])]),
        items("G13", vec![cpuid(0xd, 1, 0, 3), msrs(&[])], vec![cpuid(0xd, 1, 0, 3), msrs(&[(0xda0, 0)])]),
        items("G13", vec![msrs(&[(0x1d9, 1)])], vec![msrs(&[(0x1d9, 1), (0x1db, 7)])]),
        items(
            "G14",
            vec![cpuid(7, 0, 2, 7)],
            vec![cpuid(7, 0, 2, 7), {
                let mut ssp = registers(&[(0x2030_0003_0000_0000, 0x1000)]);
                ssp.name = "ssp".to_owned();
                ssp
            }],
        ),
        items("G15", vec![nested(1, 0)], vec![nested(1, 0x0007_0406)]),
        items("G15", vec![nested(1, 0)], vec![nested(0, 0)]),
        items("G16", vec![msrs(&[(0x570, 1)])], vec![msrs(&[(0x570, 0)])]),
        items("G16", vec![cpuid(7, 0, 1, 2)], vec![cpuid(7, 0, 1, 3)]),
        Case {
            id: "G17",
            shows: (vec![xen(Owner::Vm, "xen-vm", 2, &[(8, 0x20)])], Vec::new()),
            does_not: (
                vec![xen(Owner::Vm, "xen-vm", 2, &[(8, 0x20)])],
                vec![call("KVM_XEN_HVM_CONFIG", &[0; 14])],
            ),
        },
        items(
            "G17",
            vec![xen(Owner::Vm, "xen-vm", 4, &[(8, 0x4_0011)])],
            vec![xen(Owner::Vm, "xen-vm", 4, &[])],
        ),
        calls("G18", vec![call("KVM_ENABLE_CAP", &[1; 26])], vec![call("KVM_CREATE_VM", &[0, 0])]),
        items("G20", on(0x4b56_4d03), off(0x4b56_4d03)),
        items("G20", vec![xen(VCPU, "xen-vcpu", 4, &[(8, 1), (16, 5)])], vec![xen(VCPU, "xen-vcpu", 4, &[])]),
        calls("G21", vec![call("KVM_CREATE_VM", &[5, 0])], vec![call("KVM_CREATE_VM", &[1, 0])]),
        calls("G21", vec![call("KVM_MEMORY_ENCRYPT_OP", &[0, 0])], vec![call("KVM_CREATE_VM", &[0, 0])]),
        items("G24", vec![cpuid(7, 0, 3, 29), msrs(&[])], vec![cpuid(7, 0, 3, 29), msrs(&[(0x10a, 0)])]),
        items(
            "G26",
            vec![events(&[("exception.injected", 1), ("exception.nr", 14), ("flags", 0xd)])],
            vec![events(&[("exception.injected", 1), ("exception.nr", 14), ("flags", 0x1d)])],
        ),
    ]
}

fn arm64() -> Vec<Case> {
    const PMCR: u64 = 0x6030_0000_0013_dce0;
    const COUNTERS_ON: u64 = 0x6030_0000_0013_dce1;
    const POISON: u64 = 0x1de7_ec7e_dbad_c0de;
    let its = || attribute(Owner::Vm, "its-ctlr", 8, 0, 1);
    let page = |ipa| vec![attribute(VCPU, "arm64-pvtime", 2, 0, ipa)];
    let (vm, init) = (call("KVM_CREATE_VM", &[40, 0]), call("KVM_ARM_VCPU_INIT", &[5, 0]));
    let mte = || call("KVM_ENABLE_CAP", &[205, 0]);
    let tags = Item { owner: Owner::Vm, name: "arm64-mte-tags".to_owned(), bytes: vec![0] };
    vec![
        calls(
            "A01",
            vec![call("KVM_CREATE_DEVICE", &[16, 3, 0])],
            vec![call("KVM_CREATE_DEVICE", &[7, 3, 0])],
        ),
        calls("A01", vec![call("KVM_CREATE_VM", &[1 << 31 | 40, 0])], vec![vm.clone()]),
        Case {
            id: "A02",
            shows: (vec![registers(&[])], vec![vm.clone()]),
            does_not: (vec![registers(&[])], vec![vm, init]),
        },
        items(
            "A04",
            vec![registers(&[(PMCR, 1), (COUNTERS_ON, 1)])],
            vec![registers(&[(PMCR, POISON), (COUNTERS_ON, POISON)])],
        ),
        items(
            "A04",
            vec![registers(&[(PMCR, 1), (COUNTERS_ON, 1)])],
            vec![registers(&[(PMCR, 1), (COUNTERS_ON, 0)])],
        ),
        items("A05", page(0x4000_0000), page(u64::MAX)),
        Case {
            id: "A07",
            shows: (vec![its()], Vec::new()),
            does_not: (vec![its()], vec![call("KVM_SET_GSI_ROUTING", &[0, 0])]),
        },
        calls(
            "A08",
            vec![call("KVM_CREATE_DEVICE", &[4, 3, 0])],
            vec![call("KVM_CREATE_DEVICE", &[8, 3, 0])],
        ),
        Case { id: "A11", shows: (Vec::new(), vec![mte()]), does_not: (vec![tags], vec![mte()]) },
    ]
}

#[test]
fn each_gap_is_found_where_it_is_and_not_where_it_is_not() {
    let mut shown = BTreeSet::new();
    let cases =
        x86().into_iter().map(|c| (Arch::X86_64, c)).chain(arm64().into_iter().map(|c| (Arch::Aarch64, c)));
    for (arch, case) in cases {
        let (there, not) = (&case.shows, &case.does_not);
        assert!(found(arch, &there.0, &there.1).contains(case.id), "{} is not found", case.id);
        assert!(!found(arch, &not.0, &not.1).contains(case.id), "{} is found where it is not", case.id);
        shown.insert(case.id);
    }
    let looked: BTreeSet<&str> = looked_for().into_iter().collect();
    assert_eq!(shown, looked, "every look has a case");
    let claimed: BTreeSet<&str> = GAPS.iter().filter(|g| g.in_image).map(|g| g.id).collect();
    assert_eq!(looked, claimed, "what the catalog says that images show is looked for");
    let (x86, arm64): (Vec<&evenkeel_catalog::Gap>, Vec<_>) =
        GAPS.iter().partition(|g| g.arch == evenkeel_catalog::Arch::X86_64);
    println!(
        "{} gaps of x86, {} of arm64; {} are looked for in an image",
        x86.len(),
        arm64.len(),
        looked.len()
    );
    assert!(x86.len() >= 25 && arm64.len() >= 10);
}

#[test]
fn a_refusal_is_the_catalogs() {
    let image = Image {
        arch: Arch::X86_64,
        manifest: Manifest { calls: vec![call("KVM_CREATE_VM", &[4, 0])] },
        items: Vec::new(),
    };
    let found = gaps(&image);
    assert!(found.iter().any(|g| g.gap.id == "G21" && g.refuses()), "{found:?}");
    let plain = Image { manifest: Manifest { calls: vec![call("KVM_CREATE_VM", &[0, 0])] }, ..image };
    assert!(gaps(&plain).is_empty());
}

#[test]
fn broken_items_show_nothing() {
    let broken = Item { owner: VCPU, name: "lapic".to_owned(), bytes: vec![0xff; 7] };
    let unknown = Item { owner: VCPU, name: "no-such-section".to_owned(), bytes: vec![1] };
    assert_eq!(found(Arch::X86_64, &[broken, unknown], &[call("KVM_CREATE_VM", &[0, 0])]), BTreeSet::new());
}
