//! Is every item of state that one host saves taken by the other, with the same value read back?

use evenkeel_catalog as catalog;
use evenkeel_surface::{Arch, Write};

use crate::cause;
use crate::contract::Shown;
use crate::describe::kernel_or_boot;
use crate::finding::{Axis, Finding, Outcome, Remedy};
use crate::keeps::Question;
use crate::view::{Evidence, Item, ItemKey, View};

/// Judges every item that `q.from` emits for a guest that was shown `shown`, on arrival at `q.on`.
pub fn carries(q: &Question<'_>, shown: &Shown) -> Vec<Finding> {
    if q.from.same_host(q.on) {
        return Vec::new();
    }
    q.from.items.iter().filter(|item| emits(item)).filter_map(|item| judge(q, shown, item)).collect()
}

/// A VMM that works on its own host saves what the host lists and takes back from it.
fn emits(item: &Item) -> bool {
    item.listed && !matches!(item.write, Write::Refused)
}

/// What the destination does with an item; none when nobody knows.
pub fn taken(on: &View, key: ItemKey) -> Option<Write> {
    match on.item(key) {
        // A running item (a clock) was not written back in the capture; being listed is what there is to know.
        Some(item) if item.write == Write::Unasked && item.listed && on.evidence > Evidence::Predicted => {
            Some(Write::Kept)
        }
        Some(item) if item.write == Write::Unasked => None,
        Some(item) => Some(item.write),
        // KVM on arm64 lists all registers that it takes (KVM_GET_REG_LIST): ENOENT for any other.
        None if on.arch == Arch::Aarch64 && matches!(key, ItemKey::Reg(_)) => Some(Write::Refused),
        None if matches!(key, ItemKey::Section(_)) => Some(Write::Refused),
        None => None,
    }
}

/// The words that describe an item on a host, for the ledger's explanations.
pub fn states(item: Option<&Item>) -> Vec<&'static str> {
    match item {
        None => vec!["unlisted"],
        Some(item) => {
            let listed = if item.listed { "listed" } else { "unlisted" };
            let write = match item.write {
                Write::Kept => "kept",
                Write::Refused => "refused",
                Write::Altered => "altered",
                Write::Unasked => "listed",
            };
            vec![listed, write]
        }
    }
}

/// What the catalog says of an item.
pub struct Known {
    /// What people call it.
    pub name: String,
    /// What it holds.
    pub title: &'static str,
    /// The absent value, where dropping it then loses nothing.
    pub droppable_at: Option<u64>,
    /// It shows another item's state once more.
    pub alias_of: Option<ItemKey>,
    /// Facet fields of which a guest must have been shown one to have the item.
    pub any_of: &'static [&'static str],
}

/// What the catalog says of the item `key`.
pub fn known(key: ItemKey) -> Known {
    match key {
        ItemKey::Msr(number) => match catalog::msr(number) {
            Some(m) => Known {
                name: m.name.to_owned(),
                title: m.title,
                droppable_at: m.absent.filter(|_| m.droppable),
                alias_of: None,
                any_of: m.any_of,
            },
            None => Known { name: String::new(), title: "", droppable_at: None, alias_of: None, any_of: &[] },
        },
        ItemKey::Reg(id) => match catalog::reg(id) {
            Some(r) => Known {
                name: r.name.to_owned(),
                title: r.title,
                droppable_at: r.absent.filter(|_| r.droppable),
                alias_of: r.alias_of.map(ItemKey::Reg),
                any_of: &[],
            },
            None => Known { name: String::new(), title: "", droppable_at: None, alias_of: None, any_of: &[] },
        },
        ItemKey::Section(i) => {
            let s = &catalog::SECTIONS[usize::from(i)];
            Known { name: s.get.to_owned(), title: s.title, droppable_at: None, alias_of: None, any_of: &[] }
        }
    }
}

fn judge(q: &Question<'_>, shown: &Shown, item: &Item) -> Option<Finding> {
    let known = known(item.key);
    let there = q.on.item(item.key);
    let taken = taken(q.on, item.key);
    let (code, outcome, remedy) = match taken {
        Some(Write::Kept) => match (item.key, item.reset, there.and_then(|i| i.reset)) {
            (ItemKey::Section(_), Some(size), Some(room)) if size > room => {
                let because = format!("{size} bytes are saved, and there is room for {room}");
                ("section-shorter", Outcome::No, Remedy::Refuse { because })
            }
            _ => return None,
        },
        None | Some(Write::Unasked) => {
            ("item-unknown", Outcome::Unknown, Remedy::Observe { name: format!("write {} there", item.key) })
        }
        Some(Write::Altered | Write::Refused)
            if let Some(of) = known.alias_of.filter(|of| q.from.item(*of).is_some()) =>
        {
            let work = format!("leave it out of the saved state: {of} holds the same, and is saved");
            let code = if taken == Some(Write::Refused) { "item-refused" } else { "item-altered" };
            (code, if q.pinned { Outcome::HoldsWithDuties } else { Outcome::No }, Remedy::Duty { work })
        }
        Some(Write::Altered) => {
            let because = "the host accepts the value and stores another".to_owned();
            ("item-altered", Outcome::No, Remedy::Refuse { because })
        }
        Some(Write::Refused) => refused(q, shown, item.key, &known),
    };
    let cause = cause::of_item(q.on.arch, item.key, &states(Some(item)), &states(there));
    let at = match item.key {
        ItemKey::Msr(msr) => format!("MSR {msr:#x}"),
        ItemKey::Reg(id) => format!("ONE_REG {id:#x}"),
        ItemKey::Section(_) => String::new(),
    };
    Some(Finding {
        code,
        subject: item.key.to_string(),
        title: if known.title.is_empty() { known.name } else { format!("{}: {}", known.name, known.title) },
        at,
        outcome,
        axis: if q.from.shape == q.on.shape { kernel_or_boot(q.from, q.on) } else { Axis::Shape },
        before: "saved".to_owned(),
        after: match taken {
            None | Some(Write::Unasked) => "never asked".to_owned(),
            Some(Write::Altered) => "stored otherwise".to_owned(),
            Some(Write::Kept) => "too short".to_owned(),
            Some(Write::Refused) => "refused".to_owned(),
        },
        shapes: vec![q.on.shape.clone()],
        cause: cause.map(|c| c.id),
        remedy,
        evidence: q.from.evidence.min(q.on.evidence),
    })
}

fn refused(q: &Question<'_>, shown: &Shown, key: ItemKey, known: &Known) -> (&'static str, Outcome, Remedy) {
    if let ItemKey::Section(i) = key {
        let s = &catalog::SECTIONS[usize::from(i)];
        if s.instead.is_empty() {
            let because = format!("the other host has no {}", s.set);
            return ("section-missing", Outcome::No, Remedy::Refuse { because });
        }
        let work = format!("save `{}` in its place; nothing is lost when {}", s.instead, s.instead_when);
        return (
            "section-missing",
            if q.pinned { Outcome::HoldsWithDuties } else { Outcome::No },
            Remedy::Duty { work },
        );
    }
    match known.droppable_at {
        Some(absent) => {
            let never = !known.any_of.is_empty() && known.any_of.iter().all(|name| shown.field(name) == 0);
            let condition = if never {
                "it always does, the guest is not shown the feature".to_owned()
            } else {
                "the saved value tells".to_owned()
            };
            let work = format!(
                "leave it out of the saved state where it holds its absent value {absent:#x}: {condition}"
            );
            (
                "item-refused",
                if q.pinned { Outcome::HoldsWithDuties } else { Outcome::No },
                Remedy::Duty { work },
            )
        }
        None => {
            let because =
                "the other host refuses the value, and nothing says that it can be left out".to_owned();
            ("item-refused", Outcome::No, Remedy::Refuse { because })
        }
    }
}
