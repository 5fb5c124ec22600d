//! Feature MSRs, ID registers and firmware registers.

use evenkeel_catalog::Stage;
use evenkeel_contract::layout::layout;
use evenkeel_contract::{Coord, Shown, View};
use evenkeel_steps::{Expect, Facet, Place, Set, Step};

/// Every word of this sort that the guest was promised or the host has, with the value that it is to have.
fn wanted<'a>(
    shown: &'a Shown,
    view: &'a View,
    sort: impl Fn(Coord) -> bool + 'a,
) -> impl Iterator<Item = (Coord, u64, u64)> + 'a {
    // What the host has and the contract does not name goes to its absent value. What only the contract names and is
    // absent there needs nothing; what is not absent is a refusal of the plan, or shows when it is set.
    let host = view.words.iter().map(|w| w.at);
    let named = shown.words.iter().filter(|w| w.value != layout(w.layout).absent).map(|w| w.at);
    let mut all: Vec<Coord> = host.chain(named).filter(move |at| sort(*at)).collect();
    all.sort_unstable();
    all.dedup();
    all.into_iter().map(|at| {
        let word = shown.word(at);
        let rules = layout(word.layout);
        (at, word.value, at.mask() & !rules.runtime & !word.unknown)
    })
}

fn expectation(at: Coord, place: Place, wanted: u64, mask: u64) -> Expect {
    Expect { place, mask, wanted, facet: Facet::Word(at), fresh: false }
}

/// The feature MSRs of a vCPU (x86).
pub(crate) fn msrs(shown: &Shown, view: &View) -> Step {
    let mut step = Step::new("feature-msrs", Stage::Vcpu);
    let mut set = Vec::new();
    for (at, value, mask) in wanted(shown, view, |at| matches!(at, Coord::Msr(_))) {
        let Coord::Msr(msr) = at else { continue };
        set.push((msr, value));
        step.expect.push(expectation(at, Place::Msr(msr), value, mask));
    }
    if !set.is_empty() {
        step.set.push(Set::Msrs(set));
    }
    step
}

/// A ONE_REG id of KVM's own registers: firmware (0x14) and its bitmaps (0x16).
fn is_firmware(id: u64) -> bool {
    matches!(id >> 16 & 0xfff, 0x14 | 0x16)
}

/// ID registers or firmware registers (arm64). After the ID registers the list is read again: a feature that was not
/// taken away brings registers with it.
pub(crate) fn one_regs(shown: &Shown, view: &View, firmware: bool) -> Step {
    let name = if firmware { "firmware-registers" } else { "id-registers" };
    let mut step = Step::new(name, Stage::Vcpu);
    let sort = move |at| matches!(at, Coord::Reg(id) if is_firmware(id) == firmware);
    let mut set = Vec::new();
    for (at, value, mask) in wanted(shown, view, sort) {
        let Coord::Reg(id) = at else { continue };
        set.push((id, value));
        step.expect.push(expectation(at, Place::Reg(id), value, mask));
    }
    if !set.is_empty() {
        step.set.push(Set::OneRegs(set));
    }
    if firmware {
        // Once is enough, and firmware registers come last.
        let all = wanted(shown, view, |at| matches!(at, Coord::Reg(_)));
        let id = |at| if let Coord::Reg(id) = at { Some(id) } else { None };
        step.relist = Some(all.filter_map(|(at, ..)| id(at)).collect());
    }
    step
}
