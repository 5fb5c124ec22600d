//! A single number of an item by its name, for those who stand in the guest's way while they ask.

use evenkeel_catalog::{self as catalog, Section};

use crate::Item;
use crate::view::{Value, number, view};

/// The number that [`view`](crate::view::view) would give this name, without naming everything else. `None` where there is no such field, where it is no
/// number, and where the payload does not reach so far; whether the rest of the payload makes sense is not asked.
pub(crate) fn number_of(item: &Item, name: &str) -> Option<u64> {
    let section = catalog::section(&item.name)?;
    let bytes = item.bytes.as_slice();
    match section.cut {
        "" => number_in(section, bytes, name),
        "entries" => {
            bytes.chunks_exact((section.entry as usize).max(1)).find_map(|e| number_in(section, e, name))
        }
        "cpuid" => {
            let mut parts = name.split('.');
            let mut hex = || u64::from_str_radix(parts.next()?, 16).ok();
            let (leaf, subleaf) = (hex()?, hex()?);
            let at = 12 + 4 * ["eax", "ebx", "ecx", "edx"].iter().position(|r| parts.clone().eq([*r]))?;
            let here = |e: &&[u8]| number(e, 0, 4) == Some(leaf) && number(e, 4, 4) == Some(subleaf);
            number(bytes.chunks_exact(40).find(here)?, at, 4)
        }
        _ => view(item).ok()?.into_iter().find(|f| f.name == name).and_then(|f| match f.value {
            Value::Number(number) => Some(number),
            Value::Bytes(_) => None,
        }),
    }
}

/// All numbers of a field that a structure has several of, in their order, as far as the payload reaches. Empty where there is no
/// such field, or where it holds no numbers.
pub(crate) fn numbers_of(item: &Item, name: &str) -> Vec<u64> {
    let plain = catalog::section(&item.name).filter(|s| s.cut.is_empty() && s.tag_size == 0);
    let Some(field) = plain.and_then(|s| s.fields.iter().find(|f| f.name == name)) else { return Vec::new() };
    let stride = if field.stride == 0 { field.size } else { field.stride };
    let at = |index| (field.at + index * stride) as usize;
    (0..field.count.max(1)).map_while(|index| number(&item.bytes, at(index), field.size as usize)).collect()
}

/// The number of this name in a structure, if that has it: where there is a tag, the field belongs to it, and what all have is told
/// apart by it.
fn number_in(section: &Section, bytes: &[u8], name: &str) -> Option<u64> {
    let tag = match section.tag_size as usize {
        0 => None,
        size => Some(number(bytes, section.tag_at as usize, size)?),
    };
    let common = match tag.filter(|_| section.cut == "entries") {
        Some(tag) => name.strip_prefix(tag.to_string().as_str()).and_then(|rest| rest.strip_prefix('.')),
        None => Some(name),
    };
    section.fields.iter().find_map(|field| {
        let name = match field.group {
            Some(group) if tag == Some(u64::from(group)) => name,
            Some(_) => return None,
            None => common?,
        };
        let rest = name.strip_prefix(field.name)?;
        let index = match field.count {
            0 | 1 => rest.is_empty().then_some(0)?,
            count => rest.strip_prefix('.')?.parse().ok().filter(|index| *index < count)?,
        };
        let stride = if field.stride == 0 { field.size } else { field.stride };
        let at = (field.at + index * stride) as usize;
        let size = if field.size == 0 { bytes.len().saturating_sub(at) } else { field.size as usize };
        matches!(size, 1 | 2 | 4 | 8).then(|| number(bytes, at, size))?
    })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use evenkeel_capsule::Reader;

    use super::*;
    use crate::file::{Guest, known};

    /// Of every item of the fixtures, every number by its name.
    #[test]
    fn a_single_number_is_what_the_view_says() {
        let mut asked = std::collections::BTreeMap::new();
        for kind in ["x86-eager", "x86-lazy", "x86-zstd", "arm64-lab-eager", "arm64-eager"] {
            let path = format!("{}/../../tests/compat/v1/{kind}.capsule", env!("CARGO_MANIFEST_DIR"));
            let bytes = std::fs::read(path).unwrap();
            let guest = Guest::read(&mut Reader::open(Cursor::new(bytes), &known).unwrap()).unwrap();
            for item in &guest.image.items {
                for field in view(item).unwrap() {
                    // The further entries of CPUID that are there twice have names of the view alone.
                    let Value::Number(value) = field.value else { continue };
                    if !field.name.contains('#') && !field.name.ends_with(".flags") {
                        assert_eq!(
                            number_of(item, &field.name),
                            Some(value),
                            "{kind} {item:?} {}",
                            field.name
                        );
                        *asked.entry(catalog::section(&item.name).unwrap().cut).or_insert(0) += 1;
                    }
                }
                assert_eq!(number_of(item, "no such field"), None);
                if item.name == "irqchip" {
                    let all = numbers_of(item, "ioapic.redirtbl");
                    let each = |n| number_of(item, &format!("ioapic.redirtbl.{n}")).unwrap();
                    assert_eq!(all, (0..24).map(each).collect::<Vec<_>>());
                }
            }
        }
        for cut in ["", "cpuid", "attributes"] {
            assert!(asked.get(cut).is_some_and(|n| *n > 100), "{cut}: {asked:?}");
        }
    }

    /// An entry says what it is, and has the fields of that.
    #[test]
    fn an_entry_is_asked_by_its_tag() {
        let section = catalog::SECTIONS.iter().find(|s| s.name == "xen-vm").unwrap();
        let own: Vec<_> = section.fields.iter().filter(|f| f.group.is_some() && f.size == 8).collect();
        assert!(!own.is_empty());
        for field in own {
            let mut bytes = vec![0; section.entry as usize];
            bytes[section.tag_at as usize] = field.group.unwrap() as u8;
            bytes[field.at as usize..][..8].copy_from_slice(&77_u64.to_le_bytes());
            let mut item = Item { owner: crate::Owner::Vm, name: "xen-vm".to_owned(), bytes };
            assert_eq!(number_of(&item, field.name), Some(77), "{}", field.name);
            item.bytes[section.tag_at as usize] = 0xee;
            assert_eq!(number_of(&item, field.name), None, "{}", field.name);
        }
    }
}
