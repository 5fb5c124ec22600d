//! What becomes of each register of an arm64 vCPU, as it was created on one host, when it is set on another.
//!
//! The same knowledge as in [`keeps`](crate::keeps) (can this host hold the value?) and [`carries`](crate::carries)
//! (does it take the item at all?), register by register: this is what can be measured directly.

use std::collections::BTreeSet;

use evenkeel_surface::Write;

use crate::carries;
use crate::coord::Coord;
use crate::view::{Item, ItemKey, View};

/// Ids of registers that are not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Those that `on` refuses.
    pub refused: BTreeSet<u64>,
    /// Those that `on` takes and holds with another value.
    pub altered: BTreeSet<u64>,
    /// Those that `on` lists and `from` does not save.
    pub unsaved: BTreeSet<u64>,
    /// Those of which the captures do not tell.
    pub unknown: BTreeSet<u64>,
}

/// Judges every register that `from` lists, on arrival at `on`. Both are views of one shape.
pub fn expect(from: &View, on: &View) -> Expected {
    let mut expected = Expected::default();
    for item in from.items.iter().filter(|i| i.listed) {
        let ItemKey::Reg(id) = item.key else { continue };
        let set = match fate(from, on, item, id) {
            Write::Kept => continue,
            Write::Refused => &mut expected.refused,
            Write::Altered => &mut expected.altered,
            Write::Unasked => &mut expected.unknown,
        };
        set.insert(id);
    }
    let listed = |view: &View| -> BTreeSet<u64> {
        let ids = view.items.iter().filter(|i| i.listed).map(|i| i.key);
        ids.filter_map(|key| if let ItemKey::Reg(id) = key { Some(id) } else { None }).collect()
    };
    expected.unsaved = listed(on).difference(&listed(from)).copied().collect();
    expected
}

fn fate(from: &View, on: &View, item: &Item, id: u64) -> Write {
    let taken = carries::taken(on, item).unwrap_or(Write::Unasked);
    if taken == Write::Refused {
        return taken;
    }
    let at = Coord::Reg(id);
    let Some(saved) = from.word(at) else { return taken };
    let (bad, unsure) = on.word_or_absent(at).refuses(saved.value);
    match (bad, unsure | saved.unknown) {
        (0, 0) => taken,
        (0, _) => Write::Unasked,
        _ => Write::Refused,
    }
}
