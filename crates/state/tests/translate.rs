//! Translators, on captures of real kernels: what is rewritten loses nothing and can be put back, and what would lose
//! something is refused by name.

use evenkeel_contract::view::View;
use evenkeel_state::entries::{self, Entry, Key, put};
use evenkeel_state::translate::{Destination, Refusal, Translated, fates, translate, undo};
use evenkeel_state::{Attribute, Image, Item, Manifest, Owner, pack_attributes};
use evenkeel_surface::{Arch, Surface, Write};

fn capture(name: &str) -> Surface {
    evenkeel_hosts::load(name).expect("bundled").surface
}

fn to(host: &str, shape: &str, image: &Image) -> Result<Translated, Vec<Refusal>> {
    let surface = capture(host);
    let views = View::all(&surface, host);
    let view = views.iter().find(|v| v.shape == shape).expect("the shape");
    translate(image, &Destination { view, offer: &surface.offer })
}

fn item(name: &str, bytes: Vec<u8>) -> Item {
    Item { owner: Owner::Vcpu(0), name: name.to_owned(), bytes }
}

fn image(arch: Arch, items: Vec<Item>) -> Image {
    Image { arch, manifest: Manifest::default(), items }
}

fn msrs(list: &[(u32, u64)]) -> Item {
    let mut it = item("msrs", Vec::new());
    let list: Vec<Entry> =
        list.iter().map(|(m, v)| Entry { key: Key::Msr(*m), value: v.to_le_bytes().to_vec() }).collect();
    put(&mut it, &list);
    it
}

fn registers(list: &[(u64, u64)]) -> Item {
    let mut it = item("arm64-registers", Vec::new());
    let list: Vec<Entry> =
        list.iter().map(|(r, v)| Entry { key: Key::Reg(*r), value: v.to_le_bytes().to_vec() }).collect();
    put(&mut it, &list);
    it
}

/// LBR MSRs, which 7.x lists on AMD and 6.18 refuses: left out while nobody used them.
#[test]
fn msrs_that_the_other_kernel_refuses_are_left_out_at_their_absent_value() {
    let list = [(0xc000_0080, 0x500), (0x1db, 0), (0x1dc, 0), (0x1dd, 0), (0x1de, 0), (0x277, 7)];
    let saved = image(Arch::X86_64, vec![msrs(&list)]);
    let done = to("debian-6.1", "kernel", &saved).expect("nothing is lost");
    let parts: Vec<&str> = done.log.iter().map(|r| r.part.as_str()).collect();
    assert_eq!(parts, ["msr.1db", "msr.1dc", "msr.1dd", "msr.1de"]);
    let left: Vec<Key> = entries::of(&done.image.items[0]).unwrap().iter().map(|e| e.key).collect();
    assert_eq!(left, [Key::Msr(0xc000_0080), Key::Msr(0x277)]);
    assert_eq!(undo(&done.image, &done.log), saved, "it can be put back");
    // The kernel that lists them takes them as they are.
    let same = to("debian-7.3", "kernel", &saved).expect("it takes them");
    assert_eq!((same.image, same.log), (saved, vec![]));
}

#[test]
fn msrs_that_hold_something_are_refused_by_name() {
    let saved = image(Arch::X86_64, vec![msrs(&[(0x1db, 0), (0x1dc, 0x1234)])]);
    let refused = to("debian-6.1", "kernel", &saved).unwrap_err();
    let [only] = refused.as_slice() else { panic!("{refused:?}") };
    assert_eq!(only.part, "msr.1dc");
    assert!(only.because.contains("0x0"), "{only:?}");
}

/// PMMIR_EL1: the break of 7.3 on arm64 with a PMU.
#[test]
fn registers_that_the_other_kernel_has_not_are_left_out_at_their_absent_value() {
    let pmmir = 0x6030_0000_0013_c4f6;
    let saved = image(Arch::Aarch64, vec![registers(&[(pmmir, 0), (0x6030_0000_0010_0000, 5)])]);
    let done = to("debian-6.12-arm64", "pmu", &saved).expect("nothing is lost");
    assert_eq!(done.log.len(), 1);
    assert_eq!(done.log[0].part, "reg.603000000013c4f6");
    assert_eq!(undo(&done.image, &done.log), saved);
    let held = image(Arch::Aarch64, vec![registers(&[(pmmir, 6)])]);
    assert_eq!(to("debian-6.12-arm64", "pmu", &held).unwrap_err()[0].part, "reg.603000000013c4f6");
}

#[test]
fn sregs2_becomes_sregs_where_there_are_no_pdptrs() {
    let mut bytes: Vec<u8> = (0..320_u32).map(|n| n as u8).collect();
    bytes[280..288].fill(0);
    let saved = image(Arch::X86_64, vec![item("sregs2", bytes.clone())]);
    let done = to("debian-5.10", "kernel", &saved).expect("nothing is lost");
    let sregs = &done.image.items[0];
    assert_eq!((sregs.name.as_str(), sregs.bytes.len()), ("sregs", 312));
    assert_eq!((&sregs.bytes[..280], &sregs.bytes[280..]), (&bytes[..280], &[0; 32][..]));
    assert_eq!(undo(&done.image, &done.log), saved);
    bytes[280] = 1;
    let saved = image(Arch::X86_64, vec![item("sregs2", bytes)]);
    let refused = to("debian-5.10", "kernel", &saved).unwrap_err();
    assert!(refused.iter().any(|r| r.part == "sregs2" && r.because.contains("flags & 0x1")), "{refused:?}");
}

#[test]
fn xsave2_becomes_xsave_where_nothing_lies_beyond() {
    let mut bytes = vec![7; 4096];
    bytes[512..520].fill(0);
    bytes.resize(11_008, 0);
    let saved = image(Arch::X86_64, vec![item("xsave2", bytes.clone())]);
    let done = to("debian-5.10", "kernel", &saved).expect("nothing is lost");
    assert_eq!((done.image.items[0].name.as_str(), done.image.items[0].bytes.len()), ("xsave", 4096));
    assert_eq!(undo(&done.image, &done.log), saved);
    bytes[11_000] = 1;
    let saved = image(Arch::X86_64, vec![item("xsave2", bytes)]);
    assert!(to("debian-5.10", "kernel", &saved).is_err());
}

/// 5.10 saves PKRU (component 9) of guests that were never shown protection keys.
#[test]
fn components_that_the_guest_cannot_reach_are_marked_as_unused() {
    let cpuid = |components: u32| {
        let mut bytes = vec![0; 8];
        bytes[0] = 1;
        bytes.extend([0xd, 0, 1, components, 0x240, 0x240, 0, 0, 0, 0].map(u32::to_le_bytes).concat());
        item("cpuid", bytes)
    };
    let xsave = |bv: u64| {
        let mut bytes = vec![0; 4096];
        bytes[512..520].copy_from_slice(&bv.to_le_bytes());
        item("xsave", bytes)
    };
    let bv = |image: &Image| image.items[1].bytes[512..520].to_vec();
    let saved = image(Arch::X86_64, vec![cpuid(7), xsave(0x207)]);
    let done = to("debian-7.3", "kernel", &saved).expect("nothing is lost");
    assert_eq!(bv(&done.image), 7_u64.to_le_bytes());
    assert_eq!(done.log[0].translator, "xsave-unreachable-components");
    assert_eq!(undo(&done.image, &done.log), saved);
    // A guest with protection keys keeps them.
    let saved = image(Arch::X86_64, vec![cpuid(0x207), xsave(0x207)]);
    assert_eq!(bv(&to("debian-7.3", "kernel", &saved).unwrap().image), 0x207_u64.to_le_bytes());
}

#[test]
fn nested_state_with_a_pat_of_its_own_goes_where_the_kernel_knows_it_or_nowhere() {
    let nested = |gpat: u64| {
        let mut bytes = vec![0; 128];
        bytes[16..24].copy_from_slice(&gpat.to_le_bytes());
        item("nested-state", bytes)
    };
    let pat = 0x0007_0406_0007_0406;
    let with = |gpat| image(Arch::X86_64, vec![msrs(&[(0x277, pat)]), nested(gpat)]);
    for same in [0, pat] {
        let done = to("debian-6.1", "kernel", &with(same)).expect("nothing is lost");
        assert_eq!(done.image.items[1].bytes[16..24], [0; 8]);
    }
    let refused = to("debian-6.1", "kernel", &with(6)).unwrap_err();
    assert!(refused[0].because.contains("svm.gpat"), "{refused:?}");
    assert_eq!(to("debian-7.3", "kernel", &with(6)).expect("it knows").log, vec![]);
}

/// A register of arm64 may be listed and not take the value: it is refused by name before anything is set.
#[test]
fn registers_that_do_not_take_a_value_are_refused_and_computed_bits_are_no_value() {
    let id = |name: &str, list: &[(u64, u64)]| Item { name: name.to_owned(), ..registers(list) };
    // PSCI 1.3, which 6.12 has not, and 1.1, which both have.
    let psci = 0x6030_0000_0014_0000;
    let saved = image(Arch::Aarch64, vec![id("arm64-firmware-registers", &[(psci, 0x1_0003)])]);
    let refused = to("debian-6.12-arm64", "full", &saved).unwrap_err();
    assert_eq!(refused[0].part, "reg.6030000000140000");
    assert_eq!(refused[0].because, "the host does not take this value");
    assert!(to("debian-7.3-arm64", "full", &saved).is_ok());
    let saved = image(Arch::Aarch64, vec![id("arm64-firmware-registers", &[(psci, 0x1_0001)])]);
    assert!(to("debian-6.12-arm64", "full", &saved).is_ok());
    // PMCR_EL0 with codes of an implementer, which 6.12 takes and does not hold.
    let saved = image(Arch::Aarch64, vec![registers(&[(0x6030_0000_0013_dce0, 0x4101_30a8)])]);
    let refused = to("debian-6.12-arm64", "full", &saved).unwrap_err();
    assert!(refused[0].because.contains("another value"), "{refused:?}");
    // KVM's poison in PMU registers that nobody touched, which 6.12 would take and mask.
    let poison = 0x1de7_ec7e_dbad_c0de;
    let list = [(0x6030_0000_0013_df40, poison), (0x6030_0000_0013_dce1, poison)];
    let saved = image(Arch::Aarch64, vec![registers(&list)]);
    let done = to("debian-6.12-arm64", "full", &saved).expect("nothing is lost");
    assert_eq!(done.log.len(), 2);
    assert_eq!(undo(&done.image, &done.log), saved);
    // CNTP_CTL_EL0 with ISTATUS, which KVM computes: nobody touched the timer.
    let saved = image(Arch::Aarch64, vec![registers(&[(0x6030_0000_0013_df11, 4)])]);
    let done = to("debian-6.1-arm64", "full", &saved).expect("nothing is lost");
    assert_eq!(done.log[0].part, "reg.603000000013df11");
    let saved = image(Arch::Aarch64, vec![registers(&[(0x6030_0000_0013_df11, 1)])]);
    assert!(to("debian-6.1-arm64", "full", &saved).is_err());
}

/// The interrupt controller of a guest with two vCPUs: GICD_IIDR; GICR_CTLR and GICR_TYPER of each.
fn interrupt_controller(iidr: u32, ctlr: u32, typer: [u32; 2]) -> Image {
    let entry = |group, attr, value: &[u8; 4]| pack_attributes([Attribute { group, attr, value }]);
    let mut items = vec![Item {
        owner: Owner::Vm,
        name: "vgic-v3-iidr".to_owned(),
        bytes: entry(1, 8, &iidr.to_le_bytes()),
    }];
    for (cpu, typer) in (0..).zip(typer) {
        let at = u64::from(cpu) << 32;
        let registers = [(at | 8, typer), (at | 0xc, cpu), (at, ctlr)];
        let bytes =
            registers.iter().flat_map(|(attr, value)| entry(5, *attr, &value.to_le_bytes())).collect();
        items.push(Item { owner: Owner::Vcpu(cpu), name: "vgic-v3-redist".to_owned(), bytes });
    }
    image(Arch::Aarch64, items)
}

/// What 5.10 shows of its interrupt controller and what later kernels show: the revision decides GICR_CTLR, and Last of
/// GICR_TYPER is hidden from userspace alone.
#[test]
fn the_interrupt_controllers_revision_is_kept_or_refused_and_last_is_as_the_host_shows_it() {
    let old = interrupt_controller(0x4b00_243b, 0, [1, 0x101]);
    let new = interrupt_controller(0x4b00_343b, 6, [1, 0x111]);
    for (image, own, other) in
        [(&old, "debian-5.10-arm64", "debian-6.1-arm64"), (&new, "debian-7.3-arm64", "debian-6.12-arm64")]
    {
        let done = to(own, "full", image).expect("its own kernel takes it");
        assert_eq!((&done.image, done.log.len()), (image, 0));
        let done = to(other, "full", image).expect("this kernel keeps both revisions");
        assert_eq!(undo(&done.image, &done.log), *image);
        // Only Last of the last vCPU, and only where the kernels differ in it.
        let parts: Vec<(Owner, &str)> = done.log.iter().map(|r| (r.owner, r.part.as_str())).collect();
        let last = if own.contains("5.10") { vec![(Owner::Vcpu(1), "GICR_TYPER")] } else { vec![] };
        assert_eq!(parts, last);
    }
    let forward = to("debian-6.1-arm64", "full", &old).expect("it is rewritten").image;
    assert_eq!(forward, interrupt_controller(0x4b00_243b, 0, [1, 0x111]));
    // A kernel that says yes to revision 2 and keeps 3, and one that has none but 2.
    for (image, host, shows) in [(&old, "debian-6.18-arm64", "0x6"), (&new, "debian-5.10-arm64", "0x0")] {
        let refused = to(host, "full", image).unwrap_err();
        let told: Vec<String> = refused.iter().map(|r| format!("{}/{}", r.owner, r.part)).collect();
        let parts = [
            "vm/vgic-v3-iidr/GICD_IIDR",
            "vcpu.0/vgic-v3-redist/GICR_CTLR",
            "vcpu.1/vgic-v3-redist/GICR_CTLR",
        ];
        assert_eq!(told, parts);
        assert!(refused[1].because.contains(shows), "{}", refused[1].because);
    }
    // What was never asked is not known, and nothing is said of it.
    let mut asked = capture("debian-5.10-arm64");
    asked.offer.attributes.retain(|a| a.group != 5);
    let views = View::all(&asked, "unasked");
    let view = views.iter().find(|v| v.shape == "full").expect("the shape");
    let fates = fates(&new, &Destination { view, offer: &asked.offer });
    let of = |name: &str| fates.iter().filter(|f| f.name == name).map(|f| f.write).collect::<Vec<_>>();
    assert_eq!(of("GICD_IIDR"), [Write::Altered]);
    assert_eq!([of("GICR_CTLR"), of("GICR_TYPER")], [[Write::Unasked; 2], [Write::Unasked; 2]]);
}

/// 5.10 saves its pattern in the registers that have a bit for each counter; of the guest's six counters and the cycle
/// counter, bits 1 to 4 and 31 are on.
#[test]
fn bits_of_counters_that_the_guest_does_not_have_go_nowhere() {
    const SET: [u64; 3] = [0x6030_0000_0013_c4f1, 0x6030_0000_0013_dce1, 0x6030_0000_0013_dcf3];
    const PMCR: u64 = 0x6030_0000_0013_dce0;
    let control = 6 << 11;
    let with = |control: u64, value: u64| {
        let [interrupts, on, overflown] = SET.map(|id| (id, value));
        image(Arch::Aarch64, vec![registers(&[interrupts, (PMCR, control), on, overflown])])
    };
    // Whether a guest has touched the pattern, or not.
    for pattern in [0x1de7_ec7e_dbad_c0de, 0x1de7_ec7e_dbad_c0c1] {
        let saved = with(control, pattern);
        for host in ["debian-6.1-arm64", "debian-6.12-arm64", "debian-7.3-arm64"] {
            let done = to(host, "full", &saved).expect("nothing is lost");
            assert_eq!(done.image, with(control, pattern & 0x8000_003f), "{host}");
            assert!(done.log.iter().all(|r| r.translator == "counters-that-are"), "{:?}", done.log);
            assert_eq!((done.log.len(), undo(&done.image, &done.log)), (3, saved.clone()));
        }
        // A kernel that has the pattern itself shows no guest the bits.
        assert_eq!(to("debian-5.10-arm64", "full", &with(control, 0x1de7_ec7e_dbad_c0de)).unwrap().log, []);
    }
    // A guest with more counters has more bits, and what the host has no counters for is refused.
    let more = with(8 << 11, 0x8000_00c0);
    assert_eq!(to("debian-6.1-arm64", "full", &more).map(|done| done.log), Ok(Vec::new()));
    let refused = to("debian-6.12-arm64", "full", &more).unwrap_err();
    assert!(SET.iter().all(|id| refused.iter().any(|r| r.part == format!("reg.{id:x}"))), "{refused:?}");
}

/// 6.1 stores what it is given, its successors what there are counters for: captures tried it.
#[test]
fn what_a_host_holds_of_counters_that_there_are_not_is_what_its_capture_tried() {
    for (host, kept) in [("5.10", true), ("6.1", true), ("6.12", false), ("6.16", false), ("7.3", false)] {
        let name = format!("debian-{host}-arm64");
        let surface = capture(&name);
        let views = View::all(&surface, &name);
        let view = views.iter().find(|v| v.shape == "full").expect("the shape");
        for id in [0x6030_0000_0013_c4f1, 0x6030_0000_0013_dce1, 0x6030_0000_0013_dcf3] {
            let held = |value| evenkeel_contract::registers::held(view, id, value);
            assert_eq!(held(0x8000_003f), Write::Kept, "{host}");
            // A bit of the lower half, which what a fresh vCPU has does not tell.
            assert_eq!(held(0x40) == Write::Kept, kept, "{host}");
            assert_eq!(held(0x1de7_ec7e_dbad_c0de) == Write::Kept, kept, "{host}");
        }
    }
}
