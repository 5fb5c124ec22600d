//! The named fields of an item: what the catalog calls the parts of a payload, with their values and with the rule by which
//! they are compared. Any bytes give a view or an error that says where they stop making sense.

use std::collections::BTreeSet;

use evenkeel_catalog::{self as catalog, Compare, Section, StateField};

use crate::Item;

/// A value: a number of up to 8 bytes, or bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number.
    Number(u64),
    /// Bytes, in the order of the payload.
    Bytes(&'a [u8]),
}

impl std::fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Number(n) => write!(f, "{n:#x}"),
            Value::Bytes(bytes) if bytes.len() <= 32 => bytes.iter().try_for_each(|b| write!(f, "{b:02x}")),
            Value::Bytes(bytes) => {
                bytes[..16].iter().try_for_each(|b| write!(f, "{b:02x}"))?;
                write!(f, "… ({} bytes)", bytes.len())
            }
        }
    }
}

impl std::fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// How a field is compared with itself at another time, from the catalog. What no field names is compared as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The sort of comparison.
    pub compare: Compare,
    /// Bits that are not compared.
    pub ignore: u64,
    /// The clock that it runs with; empty where it does not.
    pub clock: &'static str,
    /// It holds the moment of its end.
    pub deadline: bool,
    /// Why it is not compared as it is.
    pub why: &'static str,
}

/// A field of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named<'a> {
    /// The name: `cs.base`, `MSR_IA32_TSC`, `GICR_CTLR@1` (at affinity 1), `7.0.ecx` of CPUID. A hexadecimal number where the
    /// catalog has no name. No two fields of a view have the same one.
    pub name: String,
    /// The catalog knows it.
    pub known: bool,
    /// The raw coordinate: offset in the structure, number of the MSR, id of the register, attribute, `leaf << 32 | subleaf`.
    pub raw: u64,
    /// Where the value begins in the payload, in bytes.
    pub at: usize,
    /// The value.
    pub value: Value<'a>,
    /// How it is compared.
    pub rule: Rule,
}

/// Why a payload has no view.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{section}, byte {at}: {what}")]
pub struct Unreadable {
    /// The item's name.
    pub section: String,
    /// Where in the payload.
    pub at: usize,
    /// What is wrong there.
    pub what: String,
}

/// The named fields of an item, in the order of the payload.
///
/// # Errors
/// When no section of the catalog has the item's name, or the payload is not cut as the section says: too short, something
/// left over, an entry twice, padding that is not 0.
pub fn view(item: &Item) -> Result<Vec<Named<'_>>, Unreadable> {
    let bytes = item.bytes.as_slice();
    let bad = |at: usize, what: &str| Unreadable { section: item.name.clone(), at, what: what.to_owned() };
    let section = catalog::section(&item.name).ok_or_else(|| bad(0, "the catalog has no such section"))?;
    let mut named = match section.cut {
        "" => structure(section, bytes, 0, "").map_err(|(at, what)| bad(at, what)),
        "entries" => entries(section, bytes).map_err(|(at, what)| bad(at, what)),
        "msrs" => msrs(bytes).map_err(|(at, what)| bad(at, what)),
        "registers" => registers(section, bytes).map_err(|(at, what)| bad(at, what)),
        "attributes" => attributes(section, bytes).map_err(|(at, what)| bad(at, what)),
        "cpuid" => cpuid(section, bytes).map_err(|(at, what)| bad(at, what)),
        _ => Ok(vec![Named {
            name: "payload".to_owned(),
            known: true,
            raw: 0,
            at: 0,
            value: Value::Bytes(bytes),
            rule: Rule::default(),
        }]),
    }?;
    let mut seen = BTreeSet::new();
    for field in &mut named {
        if seen.insert(field.name.clone()) {
            continue;
        }
        // A table of CPUID may hold an entry twice, and KVM keeps it so; of anything else there is one.
        if section.cut != "cpuid" {
            return Err(bad(field.at, &format!("`{}` is there twice", field.name)));
        }
        let again = (2usize..).map(|n| format!("{}#{n}", field.name)).find(|name| !seen.contains(name));
        field.name = again.unwrap_or_default();
        seen.insert(field.name.clone());
    }
    Ok(named)
}

/// What went wrong, and where.
type At = (usize, &'static str);

fn rule(field: &StateField) -> Rule {
    Rule {
        compare: field.compare,
        ignore: field.ignore,
        clock: field.clock,
        deadline: field.deadline,
        why: field.why,
    }
}

/// The little-endian number of at most 8 bytes that begins at `at`.
pub(crate) fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let part = bytes.get(at..at.checked_add(size)?)?;
    Some(part.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
}

/// A number where it has the size of one, else bytes. `at` and `size` lie within the payload.
fn value(bytes: &[u8], at: usize, size: usize) -> Value<'_> {
    match (size, bytes.get(at..at + size)) {
        (1 | 2 | 4 | 8, Some(_)) => Value::Number(number(bytes, at, size).unwrap_or_default()),
        (_, part) => Value::Bytes(part.unwrap_or_default()),
    }
}

/// The name of the n-th of several, or of the only one.
fn nth(field: &StateField, index: u32) -> String {
    if field.count > 1 { format!("{}.{index}", field.name) } else { field.name.to_owned() }
}

/// The fields of a structure that begins at `base`. With a size of 0, parts at the end may be missing as a whole.
fn structure<'a>(
    section: &Section,
    bytes: &'a [u8],
    base: usize,
    prefix: &str,
) -> Result<Vec<Named<'a>>, At> {
    let len = bytes.len();
    if section.size != 0 && len != section.size as usize {
        return Err((len.min(section.size as usize), "the structure has another size"));
    }
    let tag = match section.tag_size as usize {
        0 => None,
        size => Some(
            number(bytes, section.tag_at as usize, size)
                .ok_or((len, "it ends before the tag that says what it is"))?,
        ),
    };
    let here = |f: &&StateField| f.group.is_none_or(|g| tag == Some(u64::from(g)));
    if tag.is_some_and(|t| !section.fields.iter().any(|f| f.group.map(u64::from) == Some(t))) {
        return Err((base + section.tag_at as usize, "the tag is none that the catalog knows"));
    }
    let mut out = Vec::new();
    let mut end = 0;
    for field in section.fields.iter().filter(here) {
        let stride = if field.stride == 0 { field.size } else { field.stride };
        for index in 0..field.count.max(1) {
            let at = (field.at + index * stride) as usize;
            let size = if field.size == 0 { len.saturating_sub(at) } else { field.size as usize };
            // A part that is optional is there or not; half of it is an error.
            if at >= len {
                continue;
            }
            if at + size > len {
                return Err((base + len, "it ends within a field"));
            }
            end = end.max(at + size);
            out.push(Named {
                name: format!("{prefix}{}", nth(field, index)),
                known: true,
                raw: at as u64,
                at: base + at,
                value: value(bytes, at, size),
                rule: rule(field),
            });
        }
    }
    if end != len {
        return Err((base + end, "bytes are left over"));
    }
    out.sort_by_key(|f| f.at);
    Ok(out)
}

fn entries<'a>(section: &Section, bytes: &'a [u8]) -> Result<Vec<Named<'a>>, At> {
    let size = (section.entry as usize).max(1);
    let mut out = Vec::new();
    for (index, entry) in bytes.chunks(size).enumerate() {
        let base = index * size;
        if entry.len() != size {
            return Err((base, "it ends within an entry"));
        }
        let tag = number(entry, section.tag_at as usize, section.tag_size as usize).unwrap_or_default();
        // What all entries have is told apart by the tag.
        let mut fields = structure(section, entry, base, "")?;
        let own: Vec<&str> = section.fields.iter().filter(|f| f.group.is_some()).map(|f| f.name).collect();
        for field in fields.iter_mut().filter(|f| !own.contains(&f.name.as_str())) {
            field.name = format!("{tag}.{}", field.name);
        }
        out.append(&mut fields);
    }
    Ok(out)
}

fn msrs(bytes: &[u8]) -> Result<Vec<Named<'_>>, At> {
    let mut out = Vec::new();
    for (index, entry) in bytes.chunks(16).enumerate() {
        let base = index * 16;
        let (Some(msr), Some(pad), Some(value)) =
            (number(entry, 0, 4), number(entry, 4, 4), number(entry, 8, 8))
        else {
            return Err((base, "it ends within an entry"));
        };
        if pad != 0 {
            return Err((base + 4, "padding is not 0"));
        }
        let known = catalog::msr(msr as u32);
        out.push(Named {
            name: match known {
                Some(m) if m.last.is_some() => format!("{}[{msr:#x}]", m.name),
                Some(m) => m.name.to_owned(),
                None => format!("{msr:#x}"),
            },
            known: known.is_some(),
            raw: msr,
            at: base + 8,
            value: Value::Number(value),
            rule: known.map_or_else(Rule::default, |m| Rule {
                compare: m.compare,
                ignore: m.ignore,
                clock: m.clock,
                deadline: m.deadline,
                why: m.why,
            }),
        });
    }
    Ok(out)
}

/// Bytes of a register's value, as its id says (KVM_REG_SIZE).
pub(crate) fn register_size(id: u64) -> usize {
    1 << (id >> 52 & 0xf)
}

fn registers<'a>(section: &Section, bytes: &'a [u8]) -> Result<Vec<Named<'a>>, At> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let id = number(bytes, at, 8).ok_or((at, "it ends within an id"))?;
        let (begin, size) = (at + 8, register_size(id));
        let end = begin + size.next_multiple_of(8);
        padding(bytes, begin + size, end)?;
        let field = section
            .fields
            .iter()
            .find(|f| f.group == Some((id >> 32 & 0xff) as u32) && u64::from(f.at) == id & 0xffff_ffff);
        let (name, rule) = match (field, catalog::reg(id)) {
            (Some(field), _) => (Some(field.name.to_owned()), rule(field)),
            (None, Some(reg)) => (
                Some(register_name(id, reg)),
                Rule {
                    compare: reg.compare,
                    ignore: reg.computed,
                    clock: reg.clock,
                    deadline: reg.deadline,
                    why: reg.why,
                },
            ),
            // ID registers are facets, and stand among those.
            (None, None) => {
                let word = catalog::REGISTERS.iter().find(|r| r.at.reg == Some(id));
                (word.map(|r| r.name.to_owned()), Rule::default())
            }
        };
        out.push(Named {
            known: name.is_some(),
            name: name.unwrap_or_else(|| format!("{id:#x}")),
            raw: id,
            at: begin,
            value: value(bytes, begin, size),
            rule,
        });
        at = end;
    }
    Ok(out)
}

/// A run's name has its first and last number in it: `X0-X30`, `PMEVCNTR0-30_EL0`. The name of one of them has its own.
fn register_name(id: u64, reg: &catalog::Reg) -> String {
    let exact = || match reg.last {
        Some(_) => format!("{}[{id:#x}]", reg.name),
        None => reg.name.to_owned(),
    };
    let numbered = || {
        let (left, right) = reg.name.split_once('-')?;
        let start = left.rfind(|c: char| !c.is_ascii_digit())? + 1;
        let begin = right.find(|c: char| c.is_ascii_digit())?;
        let end = right[begin..].find(|c: char| !c.is_ascii_digit()).map_or(right.len(), |n| begin + n);
        let first: u64 = left[start..].parse().ok()?;
        let last: u64 = right[begin..end].parse().ok()?;
        let span = reg.last? - reg.id + 1;
        let step = span.div_ceil(last.checked_sub(first)? + 1);
        let (index, slice) = ((id - reg.id) / step, (id - reg.id) % step);
        let name = format!("{}{}{}", &left[..start], first + index, &right[end..]);
        Some(if slice == 0 { name } else { format!("{name}+{slice}") })
    };
    numbered().filter(|_| reg.last.is_some()).unwrap_or_else(exact)
}

fn attributes<'a>(section: &Section, bytes: &'a [u8]) -> Result<Vec<Named<'a>>, At> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let head = (number(bytes, at, 4), number(bytes, at + 4, 4), number(bytes, at + 8, 8));
        let (Some(group), Some(size), Some(attribute)) = head else {
            return Err((at, "it ends within the head of an entry"));
        };
        let (begin, size) = (at + 16, size as usize);
        let end = begin + size.next_multiple_of(8);
        if size > bytes.len() {
            return Err((at + 4, "the length is greater than what is there"));
        }
        padding(bytes, begin + size, end)?;
        let (whose, low) = (attribute >> 32, attribute & 0xffff_ffff);
        let found = section.fields.iter().find_map(|field| {
            let stride = u64::from(if field.stride == 0 { field.size } else { field.stride }).max(1);
            let past = low.checked_sub(u64::from(field.at))?;
            let index = u32::try_from(past / stride).ok()?;
            let mine = past % stride == 0 && index < field.count.max(1);
            (mine && field.group.map(u64::from) == Some(group) && field.size as usize == size)
                .then(|| (nth(field, index), rule(field)))
        });
        let known = found.is_some();
        let (name, rule) = found.unwrap_or_else(|| (format!("{group}.{low:#x}"), Rule::default()));
        out.push(Named {
            name: if whose == 0 { name } else { format!("{name}@{whose:x}") },
            known,
            raw: attribute,
            at: begin,
            value: value(bytes, begin, size),
            rule,
        });
        at = end;
    }
    Ok(out)
}

/// What fills up a value is there, and is 0.
fn padding(bytes: &[u8], from: usize, to: usize) -> Result<(), At> {
    match bytes.get(from..to) {
        Some(pad) if pad.iter().all(|b| *b == 0) => Ok(()),
        Some(_) => Err((from, "padding is not 0")),
        None => Err((bytes.len(), "it ends within a value")),
    }
}

fn cpuid<'a>(section: &Section, bytes: &'a [u8]) -> Result<Vec<Named<'a>>, At> {
    let mut out = Vec::new();
    for (index, entry) in bytes.chunks(40).enumerate() {
        let base = index * 40;
        if entry.len() != 40 {
            return Err((base, "it ends within an entry"));
        }
        let word = |at: usize| number(entry, at, 4).unwrap_or_default();
        let (leaf, subleaf) = (word(0), word(4));
        let mut push = |what: &str, at: usize, size: usize, rule: Rule| {
            let absolute = base + at;
            out.push(Named {
                name: format!("{leaf:x}.{subleaf:x}.{what}"),
                known: true,
                raw: leaf << 32 | subleaf,
                at: absolute,
                value: value(bytes, absolute, size),
                rule,
            });
        };
        push("flags", 8, 4, Rule::default());
        for (number, register) in ["eax", "ebx", "ecx", "edx"].into_iter().enumerate() {
            let place = subleaf * 16 + number as u64 * 4;
            let field = section
                .fields
                .iter()
                .find(|f| f.group.map(u64::from) == Some(leaf) && u64::from(f.at) == place);
            push(register, 12 + number * 4, 4, field.map(rule).unwrap_or_default());
        }
        push("padding", 28, 12, Rule::default());
    }
    Ok(out)
}
