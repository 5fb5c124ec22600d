//! What is hidden and reached nevertheless: the rule on captures of two real kernels, of which the newer has one more
//! Hyper-V MSR (0x40000118), and on one of them with a KVM MSR taken out.

mod common;

use common::views;
use evenkeel_catalog::{CHOICES, enumerated_by};
use evenkeel_contract::verdict::under;
use evenkeel_contract::{Contract, Coord, Finding, Journey, Outcome, Promise, View};
use evenkeel_surface::{Arch, Hex32, Limits, Surface, Write, canonical, read};

const OLD: &str = include_str!("../../hosts/captures/debian-6.1.json");
const NEW: &str = include_str!("../../hosts/captures/debian-6.12.json");

const GATES: [&str; 2] = ["x86.enforce-pv-feature-cpuid", "x86.hyperv.enforce-cpuid"];
const INVARIANT: u32 = 0x4000_0118;

fn host(text: &str) -> Surface {
    read::surface(text.as_bytes(), &Limits::default()).unwrap()
}

fn at(name: &str) -> Coord {
    Coord::parse(name).unwrap()
}

/// The contract of a guest that is shown what the host offers, but for these words, with both gates at `gate`.
fn contract(view: &View, words: &[(&str, u64)], gate: u8) -> Contract {
    let mut contract = Contract { name: "guest".to_owned(), ..Contract::unpinned(Arch::X86_64, &view.shape) };
    contract.words =
        words.iter().map(|(name, value)| Promise { at: at(name), value: *value, open: 0 }).collect();
    contract.words.sort_by_key(|p| p.at);
    for gate_name in GATES {
        let choice = CHOICES.iter().position(|c| c.name == gate_name).unwrap() as u16;
        contract.choices.push((choice, gate));
    }
    contract.choices.sort_unstable();
    contract
}

fn reached(contract: &Contract, o: &Surface, n: &Surface, journey: Journey) -> Vec<Finding> {
    let verdicts = under(contract, &views(o, "o"), &views(n, "n")).verdicts;
    let findings = verdicts.into_iter().find(|v| v.journey == journey).unwrap().findings;
    findings.into_iter().filter(|f| f.code == "msr-newly-reachable").collect()
}

/// What a guest with Hyper-V's interface is shown that is not told of the invariant TSC's MSR.
fn hyperv(view: &View) -> [(&'static str, u64); 2] {
    let interface = view.field("hv.40000001.0.eax");
    let access = view.field("hv.40000003.0.eax") & !(1 << 15);
    assert!(interface != 0 && access != 0);
    [("hv.40000001.0.eax", interface), ("hv.40000003.0.eax", access)]
}

/// The number of the value `off` of the gates is also its place.
#[test]
fn a_hidden_msr_that_only_the_new_host_has_is_found() {
    let (o, n) = (host(OLD), host(NEW));
    let view = &views(&o, "o")[0];
    let open = contract(view, &hyperv(view), 0);
    for journey in [Journey::RunningUp, Journey::NewGuest] {
        let found = reached(&open, &o, &n, journey);
        let subjects: Vec<&str> = found.iter().map(|f| f.subject.as_str()).collect();
        assert_eq!(subjects, ["msr.40000118"], "{journey:?}");
        assert_eq!(found[0].outcome, Outcome::HoldsWithSelectors);
        assert_eq!(
            (found[0].before.as_str(), found[0].after.as_str()),
            ("not shown, not there", "not shown, reachable")
        );
    }
    // Not on the way back, nor between hosts that both have it, nor on one host.
    assert_eq!(reached(&open, &n, &o, Journey::RunningUp), []);
    assert_eq!(reached(&open, &n, &n, Journey::RunningUp), []);
    // Nor by a guest that is told of it, or is not shown the interface, or was promised enforcement.
    let mut told = hyperv(view);
    told[1].1 |= 1 << 15;
    assert_eq!(reached(&contract(view, &told, 0), &o, &n, Journey::RunningUp), []);
    assert_eq!(reached(&contract(view, &[], 0), &o, &n, Journey::RunningUp), []);
    assert_eq!(reached(&contract(view, &hyperv(view), 1), &o, &n, Journey::RunningUp), []);
}

#[test]
fn whether_a_host_has_it_may_be_unknown() {
    let (mut o, n) = (host(OLD), host(NEW));
    o.offer.msrs_refused.retain(|m| m.0 != INVARIANT);
    canonical::seal(&mut o);
    let view = &views(&o, "o")[0];
    let found = reached(&contract(view, &hyperv(view), 0), &o, &n, Journey::RunningUp);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].outcome, Outcome::Unknown);
}

#[test]
fn kvms_own_msrs_are_reached_whatever_is_shown() {
    let (o, n) = (host(OLD), host(NEW));
    // As a kernel before 5.8: no interrupt for asynchronous page faults, neither the bit nor the MSRs.
    let mut older = o.clone();
    for msr in [0x4b56_4d06, 0x4b56_4d07] {
        older.offer.msrs.retain(|m| m.msr.0 != msr);
        older.offer.msrs_refused.push(Hex32(msr));
    }
    canonical::seal(&mut older);
    let view = &views(&o, "o")[0];
    let bits = view.field("cpuid.40000001.0.eax");
    let hidden = contract(view, &[("cpuid.40000001.0.eax", bits & !(1 << 14))], 0);
    let subjects = |contract: &Contract| -> Vec<String> {
        reached(contract, &older, &n, Journey::RunningUp).into_iter().map(|f| f.subject).collect()
    };
    assert_eq!(subjects(&hidden), ["msr.4b564d06", "msr.4b564d07"]);
    assert_eq!(subjects(&contract(view, &[("cpuid.40000001.0.eax", bits)], 0)), [""; 0]);
    let mut shut = hidden.clone();
    shut.choices.iter_mut().for_each(|c| c.1 = 1);
    assert_eq!(subjects(&shut), [""; 0]);
}

/// Every MSR of KVM's own interface that a kernel has, rather than a VMM, has a bit that tells of it, and the captures have
/// all of them.
#[test]
fn every_paravirtual_msr_is_enumerated_by_a_bit() {
    let n = host(NEW);
    let pv = evenkeel_catalog::MSRS
        .iter()
        .filter(|m| m.class == evenkeel_catalog::MsrClass::Pv && m.unsaved.is_empty());
    let mut seen = 0;
    for m in pv {
        assert_eq!(enumerated_by(&format!("msr.{:x}", m.msr)).count(), 1, "{}", m.name);
        assert!(n.offer.msrs.iter().any(|i| i.msr.0 == m.msr && i.write == Write::Kept), "{}", m.name);
        seen += 1;
    }
    assert_eq!(seen, 10);
    let number = |m: &evenkeel_catalog::Msr| (m.msr..=m.last.unwrap_or(m.msr)).map(|n| format!("msr.{n:x}"));
    let hyperv = evenkeel_catalog::MSRS.iter().filter(|m| m.class == evenkeel_catalog::MsrClass::Hyperv);
    for name in hyperv.flat_map(number) {
        assert_ne!(enumerated_by(&name).count(), 0, "{name}");
    }
}

/// 5.10 has no list of its quirks (capability 213), and takes those that it has through 116.
#[test]
fn a_kernel_without_the_list_of_quirks_offers_those_that_it_has() {
    let o = host(include_str!("../../hosts/captures/debian-5.10.json"));
    let offer = |surface: &Surface, name: &str| {
        let index = CHOICES.iter().position(|c| c.name == name).unwrap() as u16;
        *views(surface, "o")[0].choice(index).unwrap()
    };
    for quirk in
        ["lint0-reenabled", "cd-nw-cleared", "lapic-mmio-hole", "out-7e-inc-rip", "misc-enable-no-mwait"]
    {
        let offered = offer(&o, &format!("x86.quirk.{quirk}"));
        assert_eq!((offered.default, offered.values, offered.complete), (Some(0), 0b11, true), "{quirk}");
    }
    // The call takes this bit too, and does nothing.
    let later = offer(&o, "x86.quirk.fix-hypercall-insn");
    assert_eq!((later.default, later.values, later.complete), (Some(0), 0b1, true));
    // Of a kernel before 5.10 nothing tells which it has.
    let mut older = o.clone();
    older.offer.capabilities.retain(|c| c.cap != 189);
    canonical::seal(&mut older);
    let unsure = offer(&older, "x86.quirk.lint0-reenabled");
    assert_eq!((unsure.default, unsure.values, unsure.complete), (Some(0), 0b1, false));
    // A kernel that lists its quirks has no others.
    let n = host(NEW);
    let listed = offer(&n, "x86.quirk.nested-svm-shared-pat");
    assert_eq!((listed.values, listed.complete), (0b1, true));
}
