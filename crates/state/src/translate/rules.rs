//! The interpreter of the catalog's translators.

use evenkeel_catalog::{Act, Holds, SECTIONS, StateField, Translator};

use super::{Refusal, Rewrite};
use crate::entries::{self, Entry, Key};
use crate::{Image, Item, Owner};

/// XSAVE components that every CPU has: x87 and SSE.
const ALWAYS: u64 = 3;

/// Carries one rule out on the item at this place, where there is something to do.
pub(super) fn apply(
    rule: &Translator,
    image: &mut Image,
    at: usize,
    log: &mut Vec<Rewrite>,
    refused: &mut Vec<Refusal>,
) {
    let item = &image.items[at];
    let after = match rule.act {
        Act::Replace => {
            let mut bytes = item.bytes.clone();
            bytes.truncate(rule.common as usize);
            bytes.resize(rule.length as usize, 0);
            Item { name: rule.into.to_owned(), owner: item.owner, bytes }
        }
        Act::Clear => match cleared(item, rule.field, rule.bits) {
            Some(item) => item,
            None => return,
        },
        Act::UnreachableComponents => {
            let Some(reachable) = components(image, item.owner) else { return };
            match cleared(item, rule.field, !(reachable | ALWAYS)) {
                Some(item) => item,
                None => return,
            }
        }
    };
    if after == *item {
        return;
    }
    if let Some(fails) = rule.lossless_when.iter().find(|holds| !true_of(holds, item, image)) {
        refused.push(Refusal {
            owner: item.owner,
            part: item.name.clone(),
            title: rule.title.to_owned(),
            value: item.bytes.clone(),
            because: format!("{} would lose something: {}", rule.id, condition(fails)),
        });
        return;
    }
    let part = if rule.act == Act::Replace { rule.into } else { rule.field };
    log.push(Rewrite {
        owner: item.owner,
        section: item.name.clone(),
        part: part.to_owned(),
        place: 0,
        translator: rule.id.to_owned(),
        before: item.bytes.clone(),
        after: Some(after.bytes.clone()),
        because: rule.because.to_owned(),
    });
    image.items[at] = after;
}

/// Undoes one rewrite.
pub(super) fn put_back(image: &mut Image, rewrite: &Rewrite) {
    let mine = |item: &&mut Item, name: &str| item.owner == rewrite.owner && item.name == name;
    let key = Key::parse(&rewrite.part);
    if rewrite.after.is_some() && key.is_none() {
        let replaced = [rewrite.part.as_str(), rewrite.section.as_str()];
        let item = image.items.iter_mut().find(|item| replaced.iter().any(|name| mine(item, name)));
        if let Some(item) = item {
            item.name.clone_from(&rewrite.section);
            item.bytes.clone_from(&rewrite.before);
        }
        return;
    }
    let Some(item) = image.items.iter_mut().find(|item| mine(item, &rewrite.section)) else { return };
    let (Some(mut entries), Some(key)) = (entries::of(item), key) else { return };
    if rewrite.after.is_some() {
        if let Some(entry) = entries.iter_mut().find(|entry| entry.key == key) {
            entry.value.clone_from(&rewrite.before);
        }
    } else {
        let place = (rewrite.place as usize).min(entries.len());
        entries.insert(place, Entry { key, value: rewrite.before.clone() });
    }
    entries::put(item, &entries);
}

/// The catalog's field of a section.
fn field(section: &str, name: &str) -> Option<&'static StateField> {
    SECTIONS.iter().find(|s| s.name == section)?.fields.iter().find(|f| f.name == name)
}

/// The number in a field; none when the payload is too short for it.
fn value(item: &Item, name: &str) -> Option<u64> {
    let field = field(&item.name, name)?;
    let at = field.at as usize;
    let bytes = item.bytes.get(at..at + (field.size as usize).min(8))?;
    Some(bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
}

/// The item with bits of a field cleared; none where it has no such field.
fn cleared(item: &Item, name: &str, bits: u64) -> Option<Item> {
    let now = value(item, name)? & !bits;
    let field = field(&item.name, name)?;
    let mut item = item.clone();
    let size = (field.size as usize).min(8);
    item.bytes[field.at as usize..field.at as usize + size].copy_from_slice(&now.to_le_bytes()[..size]);
    Some(item)
}

/// The XSAVE components that the guest's CPUID gives it: EDX:EAX of leaf 0xd, subleaf 0.
fn components(image: &Image, owner: Owner) -> Option<u64> {
    let item = image.item(owner, "cpuid")?;
    let word = |entry: &[u8], n: usize| evenkeel_sys::layout::word(entry, 4 * n);
    let entries = item.bytes.get(8..)?.chunks_exact(40);
    let [low, high] =
        entries.filter(|e| word(e, 0) == 0xd && word(e, 1) == 0).map(|e| [word(e, 3), word(e, 6)]).next()?;
    Some(u64::from(high) << 32 | u64::from(low))
}

fn true_of(holds: &Holds, item: &Item, image: &Image) -> bool {
    if let Some(from) = holds.zero_from {
        return item.bytes.get(from as usize..).is_none_or(|rest| rest.iter().all(|b| *b == 0));
    }
    let Some(value) = value(item, holds.field) else { return false };
    let value = if holds.mask == 0 { value } else { value & holds.mask };
    let msr = || {
        let entries = entries::of(image.item(item.owner, "msrs")?)?;
        let found = entries.iter().find(|e| Some(e.key) == holds.or_msr.map(Key::Msr))?;
        super::number(&found.value)
    };
    value == holds.equals || holds.or_msr.is_some() && msr() == Some(value)
}

fn condition(holds: &Holds) -> String {
    if let Some(from) = holds.zero_from {
        return format!("there is something beyond byte {from}");
    }
    let mask = if holds.mask == 0 { String::new() } else { format!(" & {:#x}", holds.mask) };
    let msr = holds.or_msr.map_or(String::new(), |msr| format!(" or that of MSR {msr:#x}"));
    format!("{}{mask} is not {:#x}{msr}", holds.field, holds.equals)
}
