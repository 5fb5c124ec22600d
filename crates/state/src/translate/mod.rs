//! **Translators**: saved state, rewritten for a host that does not take it as it is. Each rewrite is declared in the catalog
//! with the condition under which it loses nothing; where that does not hold, going there is refused. What was rewritten is
//! logged, and can be put back.
//!
//! Nothing here asks a kernel: what the other host takes is what its capture says.

mod attributes;
mod counters;
mod destination;
mod rules;

use evenkeel_catalog::{self as catalog, TRANSLATORS};
use evenkeel_contract::view::ItemKey;
use evenkeel_surface::{Arch, Write};

use crate::entries::{self, Entry};
use crate::{Image, Item, Owner};

pub use attributes::{Fate, fates};
pub use destination::Destination;

/// One thing that was rewritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// What it belongs to.
    pub owner: Owner,
    /// The section as it was saved.
    pub section: String,
    /// What of it: an MSR, a register, a field; the section itself where the whole was replaced.
    pub part: String,
    /// Of an entry of the section's list: how many lie before it.
    pub place: u32,
    /// The catalog's translator; `left-out` for an item that holds its absent value, `as-shown` for bits that the host shows
    /// in its own way and no guest sees, `counters-that-are` for bits of counters that the guest does not have.
    pub translator: String,
    /// What was saved.
    pub before: Vec<u8>,
    /// What is set instead; none for what is left out.
    pub after: Option<Vec<u8>>,
    /// Why nothing is lost.
    pub because: String,
}

/// Something that the other host does not take, and that cannot be rewritten without a loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What it belongs to.
    pub owner: Owner,
    /// The MSR, register, field or section.
    pub part: String,
    /// What it is called.
    pub title: String,
    /// What was saved.
    pub value: Vec<u8>,
    /// Why it cannot be left out or rewritten.
    pub because: String,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translated {
    /// The state for the other host.
    pub image: Image,
    /// What was rewritten, in the order in which it was done.
    pub log: Vec<Rewrite>,
}

/// Rewrites what the host does not take.
///
/// # Errors
/// Everything that it does not take and that cannot be rewritten without a loss.
pub fn translate(image: &Image, to: &Destination<'_>) -> Result<Translated, Vec<Refusal>> {
    let mut out = image.clone();
    let mut log = Vec::new();
    let mut refused = Vec::new();
    for at in 0..out.items.len() {
        for rule in TRANSLATORS.iter().filter(|t| t.arch == catalog_arch(image.arch)) {
            if out.items[at].name == rule.section && to.lacks(rule) {
                rules::apply(rule, &mut out, at, &mut log, &mut refused);
            }
        }
        counters::apply(to, &mut out, at, &mut log);
        leave_out(to, &mut out.items[at], &mut log, &mut refused);
        attributes::apply(to, &mut out, at, &mut log, &mut refused);
        whole(to, &out.items[at], &mut refused);
    }
    if refused.is_empty() { Ok(Translated { image: out, log }) } else { Err(refused) }
}

/// Puts back what was rewritten: the state as it was saved.
pub fn undo(image: &Image, log: &[Rewrite]) -> Image {
    let mut out = image.clone();
    for rewrite in log.iter().rev() {
        rules::put_back(&mut out, rewrite);
    }
    out
}

fn catalog_arch(arch: Arch) -> catalog::Arch {
    match arch {
        Arch::X86_64 => catalog::Arch::X86_64,
        Arch::Aarch64 => catalog::Arch::Aarch64,
    }
}

/// MSRs and registers that the host refuses.
fn leave_out(to: &Destination<'_>, item: &mut Item, log: &mut Vec<Rewrite>, refused: &mut Vec<Refusal>) {
    let Some(entries) = entries::of(item) else { return };
    let mut kept = Vec::with_capacity(entries.len());
    for entry in entries {
        let key = entry.key();
        let held = number(&entry.value);
        let taken = to.takes_value(key, held);
        // Of arm64 it is known that nothing is altered unless it is lost.
        let lost = taken == Some(Write::Refused)
            || taken == Some(Write::Altered)
                && to.view.arch == Arch::Aarch64
                && matches!(key, ItemKey::Reg(_));
        if !lost {
            kept.push(entry);
            continue;
        }
        let known = evenkeel_contract::carries::known(key);
        let alias = known.alias_of.is_some();
        // Bits that KVM computes say nothing of whether the guest touched it.
        let computed = match key {
            ItemKey::Reg(id) => catalog::reg(id).map_or(0, |reg| reg.computed),
            _ => 0,
        };
        let untouched = |absent: u64| held.is_some_and(|held| held & !computed == absent & !computed);
        if alias || known.droppable_at.is_some_and(untouched) {
            let because = match known.alias_of {
                Some(of) => format!("{of} holds the same, and is there"),
                None => "it holds what a guest finds that never touched it".to_owned(),
            };
            log.push(Rewrite {
                owner: item.owner,
                section: item.name.clone(),
                part: key.to_string(),
                place: kept.len() as u32,
                translator: "left-out".to_owned(),
                before: entry.value.clone(),
                after: None,
                because,
            });
        } else if taken == Some(Write::Altered) {
            refused.push(Refusal {
                owner: item.owner,
                part: key.to_string(),
                title: [known.name.as_str(), known.title].join(": "),
                value: entry.value.clone(),
                because: "the host takes it, and holds it with another value".to_owned(),
            });
            kept.push(entry);
        } else if held.is_some() && to.shows(key) == held {
            // What the host shows by itself need not be taken: reading back decides.
            kept.push(entry);
        } else {
            let because = match known.droppable_at {
                Some(absent) => format!("the host refuses it, and it holds something else than {absent:#x}"),
                None if listed(to, key) => "the host does not take this value".to_owned(),
                None => "the host refuses it, and nothing says that it can be left out".to_owned(),
            };
            refused.push(Refusal {
                owner: item.owner,
                part: key.to_string(),
                title: [known.name.as_str(), known.title].join(": "),
                value: entry.value.clone(),
                because,
            });
            kept.push(entry);
        }
    }
    entries::put(item, &kept);
}

/// The host has it: what it refuses is the value.
fn listed(to: &Destination<'_>, key: ItemKey) -> bool {
    to.takes(key) != Some(Write::Refused)
}

/// A section that the host has not, after all rules.
fn whole(to: &Destination<'_>, item: &Item, refused: &mut Vec<Refusal>) {
    let Some(section) = catalog::SECTIONS.iter().find(|s| s.name == item.name) else { return };
    if to.lacks_section(section.name) {
        let because = if section.instead.is_empty() {
            format!("the host has no {}", section.set)
        } else {
            format!("the host has no {}, and `{}` holds less", section.set, section.instead)
        };
        let (owner, value) = (item.owner, item.bytes.clone());
        refused.push(Refusal {
            owner,
            part: item.name.clone(),
            title: section.title.to_owned(),
            value,
            because,
        });
    }
}

fn number(bytes: &[u8]) -> Option<u64> {
    let (low, high) = bytes.split_at(bytes.len().min(8));
    let mut word = [0; 8];
    word[..low.len()].copy_from_slice(low);
    high.iter().all(|b| *b == 0).then(|| u64::from_le_bytes(word))
}

impl Entry {
    fn key(&self) -> ItemKey {
        match self.key {
            entries::Key::Msr(msr) => ItemKey::Msr(msr),
            entries::Key::Reg(id) => ItemKey::Reg(id),
        }
    }
}
