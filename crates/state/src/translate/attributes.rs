//! What becomes of attributes of the interrupt controllers on another host: those that hold a facet, and those of which the
//! host shows some bits as it does, whatever is set.

use evenkeel_catalog::{self as catalog, CHOICES, StateField};
use evenkeel_surface::Write;

use super::{Destination, Refusal, Rewrite};
use crate::pack::{Attribute, pack_attributes, unpack_attributes};
use crate::{Image, Item, Owner};

/// An attribute of which captures foretell what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fate {
    /// What it belongs to.
    pub owner: Owner,
    /// Its section.
    pub section: String,
    /// What it is called in a report: `GICR_TYPER`.
    pub name: String,
    /// What becomes of it.
    pub write: Write,
    /// The value that the host has instead, where bits are altered.
    instead: Option<Instead>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Instead {
    group: u32,
    attr: u64,
    value: u64,
    /// Why nothing is lost by it; empty where something is.
    unseen: &'static str,
}

/// What becomes of the attributes of an image whose fate the catalog says how to foretell.
pub fn fates(image: &Image, to: &Destination<'_>) -> Vec<Fate> {
    image.items.iter().flat_map(|item| of_item(image, item, to)).collect()
}

fn of_item(image: &Image, item: &Item, to: &Destination<'_>) -> Vec<Fate> {
    let fate = |found: (&'static StateField, Attribute<'_>)| {
        let (field, attribute) = found;
        let held = number(attribute.value);
        let (write, instead) = match (field.facet, field.shown) {
            ("", _) => shown(image, item.owner, field, held, to),
            (facet, _) => (gives(facet, held, to), None),
        };
        let (group, attr) = (attribute.group, attribute.attr);
        Fate {
            owner: item.owner,
            section: item.name.clone(),
            name: field.name.to_owned(),
            write,
            instead: instead.map(|value| Instead { group, attr, value, unseen: field.unseen }),
        }
    };
    foretold(item).into_iter().map(fate).collect()
}

/// The attributes of an item that are foretold; of several in a row, the first.
fn foretold(item: &Item) -> Vec<(&'static StateField, Attribute<'_>)> {
    let fields = catalog::section(&item.name).map(|s| s.fields).unwrap_or_default();
    if fields.iter().all(|f| f.facet.is_empty() && f.shown == 0) {
        return Vec::new();
    }
    let field = |a: &Attribute<'_>| {
        let mine = |f: &&StateField| {
            f.group == Some(a.group)
                && u64::from(f.at) == a.attr & 0xffff_ffff
                && !(f.facet.is_empty() && f.shown == 0)
        };
        fields.iter().find(mine)
    };
    let attributes = unpack_attributes(&item.bytes).unwrap_or_default();
    attributes.into_iter().filter_map(|a| Some((field(&a)?, a))).collect()
}

/// Whether the host gives this value of a choice.
fn gives(facet: &str, value: u64, to: &Destination<'_>) -> Write {
    let found = CHOICES.iter().zip(0_u16..).find(|(choice, _)| choice.name == facet);
    let Some((choice, offer)) = found.and_then(|(c, index)| Some((c, to.view.choice(index)?))) else {
        return Write::Unasked;
    };
    match choice.values.iter().position(|v| v.value == value) {
        Some(place) if offer.values >> place & 1 == 1 => Write::Kept,
        _ if offer.complete => Write::Altered,
        _ => Write::Unasked,
    }
}

/// Whether the host shows the bits as they were saved, and the value that it has if not.
fn shown(
    image: &Image,
    owner: Owner,
    field: &StateField,
    held: u64,
    to: &Destination<'_>,
) -> (Write, Option<u64>) {
    if !field.follows.is_empty() {
        let guest = image.items.iter().flat_map(foretold).find(|(f, _)| f.facet == field.follows);
        // The guest's value is in force there, and the bits with it.
        match guest.map(|(_, a)| gives(field.follows, number(a.value), to)) {
            Some(Write::Kept) => return (Write::Kept, None),
            Some(Write::Refused | Write::Altered) => {}
            Some(Write::Unasked) | None => return (Write::Unasked, None),
        }
    }
    let Some(host) = captured(field, to) else { return (Write::Unasked, None) };
    let last = image.items.iter().map(|i| i.owner).max();
    let there = if field.of_last && Some(owner) != last { 0 } else { host & field.shown };
    if held & field.shown == there {
        (Write::Kept, None)
    } else {
        (Write::Altered, Some(held & !field.shown | there))
    }
}

/// What a capture of the host has of the attribute in this shape.
fn captured(field: &StateField, to: &Destination<'_>) -> Option<u64> {
    let shape = to.offer.shapes.iter().position(|s| s.name == to.view.shape)?;
    let here = |shapes: &[u8]| shapes.is_empty() || shapes.iter().any(|s| usize::from(*s) == shape);
    let group = field.group?;
    let mine = to.offer.attributes.iter().find(|a| {
        a.fd == "vgic-v3" && a.group == group && a.attr.0 == u64::from(field.at) && here(&a.shapes)
    });
    mine?.value.map(|value| value.0)
}

/// Shows what no guest sees as the host shows it; what a guest would see otherwise is refused.
pub(super) fn apply(
    to: &Destination<'_>,
    image: &mut Image,
    at: usize,
    log: &mut Vec<Rewrite>,
    refused: &mut Vec<Refusal>,
) {
    for fate in of_item(image, &image.items[at], to) {
        if !matches!(fate.write, Write::Refused | Write::Altered) {
            continue;
        }
        let item = &mut image.items[at];
        match fate.instead {
            Some(Instead { group, attr, value, unseen }) if !unseen.is_empty() => {
                let before = item.bytes.clone();
                let attributes = unpack_attributes(&before).unwrap_or_default();
                let low = value.to_le_bytes();
                item.bytes = pack_attributes(attributes.into_iter().map(|a| {
                    let mine = a.group == group && a.attr == attr && a.value.len() <= low.len();
                    if mine { Attribute { value: &low[..a.value.len()], ..a } } else { a }
                }));
                log.push(Rewrite {
                    owner: fate.owner,
                    section: fate.section,
                    part: fate.name,
                    place: 0,
                    translator: "as-shown".to_owned(),
                    before,
                    after: Some(item.bytes.clone()),
                    because: unseen.to_owned(),
                });
            }
            instead => {
                let because = match instead {
                    Some(Instead { value, .. }) => format!("the host shows {value:#x}, whatever is set"),
                    None => "the host does not take this value".to_owned(),
                };
                let value = foretold(item).into_iter().find(|(f, _)| f.name == fate.name);
                refused.push(Refusal {
                    owner: fate.owner,
                    title: fate.name.clone(),
                    value: value.map(|(_, a)| a.value.to_vec()).unwrap_or_default(),
                    part: format!("{}/{}", fate.section, fate.name),
                    because,
                });
            }
        }
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}
