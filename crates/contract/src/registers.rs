//! What becomes of each register of an arm64 vCPU, as it was created on one host, when it is set on another.
//!
//! The same knowledge as in [`keeps`](crate::keeps) (can this host hold the value?) and [`carries`](crate::carries)
//! (does it take the item at all?), register by register: this is what can be measured directly.

use std::collections::BTreeSet;

use evenkeel_catalog::{self as catalog, CHOICES, EDGES};
use evenkeel_surface::Write;

use crate::carries;
use crate::coord::Coord;
use crate::layout::{UNKNOWN, index_of};
use crate::view::{Item, ItemKey, View};

/// Ids of registers that are not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Those that `on` refuses.
    pub refused: BTreeSet<u64>,
    /// Those that `on` takes and holds with another value, at the latest when all are set.
    pub altered: BTreeSet<u64>,
    /// Those that `on` lists and `from` does not save.
    pub unsaved: BTreeSet<u64>,
    /// Those of which the captures do not tell.
    pub unknown: BTreeSet<u64>,
}

/// Judges every register that `from` lists, on arrival at `on`, when they are set as the catalog orders them and
/// otherwise by id. Both are views of one shape.
pub fn expect(from: &View, on: &View) -> Expected {
    let mut expected = Expected::default();
    for item in from.items.iter().filter(|i| i.listed) {
        let ItemKey::Reg(id) = item.key else { continue };
        match fate(from, on, item, id) {
            Write::Kept => {}
            Write::Refused => drop(expected.refused.insert(id)),
            Write::Altered => drop(expected.altered.insert(id)),
            Write::Unasked => drop(expected.unknown.insert(id)),
        }
        if let Some(of) = clears(from, on, item, id) {
            expected.altered.insert(of);
        }
    }
    choices(from, on, &mut expected);
    let listed = |view: &View| -> BTreeSet<u64> {
        let ids = view.items.iter().filter(|i| i.listed).map(|i| i.key);
        ids.filter_map(|key| if let ItemKey::Reg(id) = key { Some(id) } else { None }).collect()
    };
    expected.unsaved = listed(on).difference(&listed(from)).copied().collect();
    expected
}

fn fate(from: &View, on: &View, item: &Item, id: u64) -> Write {
    let there = on.item(item.key);
    if is_early(id) && there.is_some_and(|i| i.listed) {
        // Its value is wider than a capture's; the same CPU has the same.
        let same = from.host.provenance.cpu.id == on.host.provenance.cpu.id;
        return if same { Write::Kept } else { Write::Unasked };
    }
    let known = catalog::reg(id);
    let taken = match carries::taken(on, item.key).unwrap_or(Write::Unasked) {
        Write::Refused => return Write::Refused,
        // The register that it shows once more is set after it, and with that this one is right.
        Write::Altered if known.and_then(|r| r.alias_of).is_some_and(|of| of > id) => Write::Kept,
        taken => taken,
    };
    if let Some(saved) = from.word(Coord::Reg(id)) {
        return of_word(on, id, saved.value, saved.unknown, taken);
    }
    match item.reset {
        Some(saved) => of_state(on, id, saved, taken),
        None => taken,
    }
}

/// What `on` does with a register of a saved guest that holds this value, when all are set by an engine that knows which
/// registers show others once more or are cleared through them, and which bits KVM computes.
pub fn held(on: &View, id: u64, value: u64) -> Write {
    let taken = carries::taken(on, ItemKey::Reg(id)).unwrap_or(Write::Unasked);
    if taken == Write::Refused {
        return taken;
    }
    let choice = CHOICES.iter().zip(0_u16..).find(|(choice, _)| choice.from.reg == Some(id));
    if let Some((choice, index)) = choice {
        let Some(offer) = on.choice(index) else { return Write::Refused };
        let place = choice.values.iter().position(|v| v.value == value);
        return match place {
            Some(place) if offer.values >> place & 1 == 1 => Write::Kept,
            _ if offer.complete => Write::Refused,
            _ => Write::Unasked,
        };
    }
    if is_mended(id) {
        let there = on.item(ItemKey::Reg(id));
        // What a fresh vCPU has tells of the upper half only: which counters there are, a guest may have chosen.
        let host = there.and_then(|i| i.reset).unwrap_or(value) | 0xffff_ffff;
        let masked = catalog::reg(id).map_or(0, |reg| reg.masked);
        let lost = there.and_then(|i| i.holds).map_or(value & !host & masked, |holds| value & !holds);
        return if lost == 0 { Write::Kept } else { Write::Altered };
    }
    let at = Coord::Reg(id);
    if on.word(at).is_some() || index_of(at) != UNKNOWN {
        of_word(on, id, value, 0, taken)
    } else {
        of_state(on, id, value, taken)
    }
}

/// Altered when a register alone is set, and not when a guest is restored: registers that show others once more are not
/// set, those which only set bits are cleared through their counterparts first, and bits that KVM computes do not count.
pub fn is_mended(id: u64) -> bool {
    let of = |reg: &catalog::Reg| reg.alias_of.is_some() || reg.computed != 0;
    catalog::reg(id).is_some_and(of) || catalog::REGS.iter().any(|reg| reg.alias_of == Some(id))
}

/// Registers that `on` lists and that are not among these; vector lengths, which are set before all others, apart.
pub fn unsaved(on: &View, saved: &BTreeSet<u64>) -> BTreeSet<u64> {
    let listed = on.items.iter().filter(|i| i.listed);
    let ids = listed.filter_map(|i| if let ItemKey::Reg(id) = i.key { Some(id) } else { None });
    ids.filter(|id| !saved.contains(id) && !is_early(*id)).collect()
}

/// A word of features: the host can show it or not.
fn of_word(on: &View, id: u64, value: u64, unknown: u64, taken: Write) -> Write {
    let host = on.word_or_absent(Coord::Reg(id));
    if unknown | host.unknown == 0 && catalog::reg(id).is_some_and(|r| r.checked) {
        return match value.cmp(&host.value) {
            std::cmp::Ordering::Less => Write::Altered,
            std::cmp::Ordering::Equal => Write::Kept,
            std::cmp::Ordering::Greater => Write::Refused,
        };
    }
    match host.refuses(value) {
        (0, unsure) if unsure | unknown == 0 => taken,
        (0, _) => Write::Unasked,
        _ => Write::Refused,
    }
}

/// A register that holds what a guest puts there.
fn of_state(on: &View, id: u64, value: u64, taken: Write) -> Write {
    let there = on.item(ItemKey::Reg(id)).and_then(|i| i.reset);
    let (Some(known), Some(host)) = (catalog::reg(id), there) else { return taken };
    // What shows another register once more holds what that one holds.
    let holds = on.item(ItemKey::Reg(known.alias_of.unwrap_or(id))).and_then(|i| i.holds);
    let lost = holds.map_or(value & !host & known.masked, |holds| value & !holds);
    if (value ^ host) & known.computed | lost != 0 { Write::Altered } else { taken }
}

/// It can be set only before the vCPU is complete, so that what a capture says of writing it back tells nothing.
fn is_early(id: u64) -> bool {
    let name = format!("reg.{id:x}");
    EDGES.iter().any(|e| e.phase == "restore" && e.before == name && e.after == "arm64-sve-finalized")
}

/// The register whose bits are cleared by setting this one, which shows them once more, after it.
fn clears(from: &View, on: &View, item: &Item, id: u64) -> Option<u64> {
    let of = catalog::reg(id)?.alias_of.filter(|of| *of < id)?;
    let there = on.item(item.key)?;
    // The capture wrote the alias its own value, and read another: so a write clears rather than stores.
    let clears = there.write == Write::Altered && item.reset != Some(0);
    (clears && from.item(ItemKey::Reg(of)).is_some() && on.item(ItemKey::Reg(of)).is_some()).then_some(of)
}

/// Registers that are choices (the PSCI version).
fn choices(from: &View, on: &View, expected: &mut Expected) {
    for saved in &from.choices {
        let Some(id) = CHOICES[usize::from(saved.choice)].from.reg else { continue };
        match (saved.default, on.choice(saved.choice)) {
            (Some(value), Some(offer)) if offer.values >> value & 1 == 1 => {}
            (Some(_), Some(offer)) if offer.complete => drop(expected.refused.insert(id)),
            (_, None) => drop(expected.refused.insert(id)),
            _ => drop(expected.unknown.insert(id)),
        }
    }
}
