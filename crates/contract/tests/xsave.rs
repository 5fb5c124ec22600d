//! The size of the XSAVE area that a baseline has is that of its own components, not the least of its hosts' sizes.

mod common;

use common::{finish, views};
use evenkeel_contract::baseline::baseline;
use evenkeel_contract::keeps::{Question, keeps};
use evenkeel_contract::{Contract, Coord, Outcome, View};
use evenkeel_surface::*;

/// Components, each with its size and its place (as Intel's CPUs have them).
const AVX: (u32, u32, u32) = (2, 0x100, 0x240);
const OPMASK: (u32, u32, u32) = (5, 0x40, 0x440);
const ZMM: (u32, u32, u32) = (6, 0x200, 0x480);
const HIGH_ZMM: (u32, u32, u32) = (7, 0x400, 0x680);
const PKRU: (u32, u32, u32) = (9, 8, 0xa80);

fn host(components: &[(u32, u32, u32)]) -> View {
    let entry = |subleaf: u32, [eax, ebx, ecx, edx]: [u32; 4]| CpuidEntry {
        leaf: Hex32(0xd),
        subleaf: Hex32(subleaf),
        flags: 1,
        eax: Hex32(eax),
        ebx: Hex32(ebx),
        ecx: Hex32(ecx),
        edx: Hex32(edx),
    };
    let all = components.iter().fold(3, |all, (n, ..)| all | 1 << n);
    let end = components.iter().map(|(_, size, at)| size + at).max().unwrap_or(576);
    let mut cpuid = vec![entry(0, [all, end, end, 0]), entry(1, [0xf, 0, 0, 0])];
    cpuid.extend(components.iter().map(|(n, size, at)| entry(*n, [*size, *at, 0, 0])));
    let shapes = vec![Shape { name: "kernel".to_owned(), features: vec![] }];
    let offer = Offer { shapes, cpuid, ..Offer::default() };
    views(&finish(Arch::X86_64, offer, Provenance::default()), "host").remove(0)
}

/// What the contract says in leaf 0xd, subleaf 0: components, and the area's size.
fn area(contract: &Contract) -> (u64, u64) {
    let word = |name: &str| {
        let at = Coord::parse(name).unwrap();
        contract.words.iter().find(|p| p.at == at).map_or(0, |p| p.value)
    };
    (word("cpuid.d.0.eax"), word("cpuid.d.0.ecx"))
}

#[test]
fn the_area_is_that_of_the_components_that_are_left() {
    let keys = host(&[AVX, PKRU]);
    let wide = host(&[AVX, OPMASK, ZMM, HIGH_ZMM]);
    let both = baseline(&[&keys, &wide], "both").contract;
    // The least of 0xa88 and 0xa80 is neither of them.
    assert_eq!(area(&both), (7, 0x340));
    for view in [&keys, &wide] {
        let findings =
            keeps(&Question { from: view, on: view, pinned: true, running: false }, &both.resolve(view));
        assert!(findings.iter().all(|f| f.outcome == Outcome::HoldsWithSelectors), "{findings:#?}");
    }
    assert_eq!(area(&baseline(&[&wide, &keys], "both").contract), (7, 0x340));
    // One host's own is as it says.
    assert_eq!(area(&baseline(&[&keys], "one").contract), (0x207, 0xa88));
    assert_eq!(area(&baseline(&[&wide], "one").contract), (0xe7, 0xa80));
    let bare = host(&[]);
    assert_eq!(area(&baseline(&[&bare, &wide], "none").contract), (3, 576));
    // Where a component's place is another one (AMD's PKRU), it is as the hosts say.
    let amd = host(&[AVX, (9, 8, 0x340)]);
    let (components, size) = area(&baseline(&[&keys, &amd], "makers").contract);
    assert!(components == 0x207 && size <= 0x348, "{components:#x} {size:#x}");
}
