//! `evenkeel diff` of two capsules: state field by field, surfaces facet by facet, memory chunk by chunk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use evenkeel_capsule::{Kind, names};
use evenkeel_contract::diff::diff;
use evenkeel_report::model::{DiffReport, axes};
use evenkeel_state::{Elapsed, Guest, compare, file, view};
use schemars::JsonSchema;
use serde::Serialize;

use super::{Open, open, refused, rule, text};
use crate::failure::Failure;
use crate::{Format, Global, output};

/// What `diff` of two capsules prints.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct CapsuleDiff {
    /// `evenkeel.capsule-diff/1`.
    pub schema: &'static str,
    /// The first.
    pub old: Side,
    /// The second.
    pub new: Side,
    /// Every field of the state that is not the same in both.
    pub fields: Vec<FieldDiff>,
    /// Documents and sections other than state that are not the same, or there on one side only.
    pub sections: Vec<SectionDiff>,
    /// How the hosts differ that saved them, where both say it and they do.
    pub hosts: Option<DiffReport>,
    /// Memory that is not the same.
    pub memory: MemoryDiff,
}

/// One of two capsules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Side {
    /// The file.
    pub file: String,
    /// Its identity.
    pub root: String,
    /// What was saved.
    pub id: String,
}

/// A field that is not the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct FieldDiff {
    /// The section: `vcpu.0/lapic`; `manifest`.
    pub section: String,
    /// The field; empty where the whole section is there on one side only.
    pub field: String,
    /// In the first; nothing: it is not there.
    pub old: Option<String>,
    /// In the second.
    pub new: Option<String>,
    /// By which rule it is compared; empty: as it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rule: String,
    /// The rule lets it differ so, in the time between the two.
    pub expected: bool,
    /// Why it does not, where the values do not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// A section that is not the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct SectionDiff {
    /// Its name.
    pub name: String,
    /// Its bytes in the first; nothing: it is not there.
    pub old: Option<u64>,
    /// In the second.
    pub new: Option<u64>,
}

/// Memory that is not the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct MemoryDiff {
    /// The regions are the same, so that contents can be compared; or neither has memory.
    pub comparable: bool,
    /// Pages of 4 KiB that are not the same.
    pub pages: u64,
    /// Guest-physical addresses of the first of them, hexadecimal.
    pub first: Vec<String>,
}

/// Compares. Exits with 0 when nothing differs beyond what time explains, otherwise with 1.
pub fn run(old: &Path, new: &Path, global: Global) -> Result<u8, Failure> {
    let report = look(old, new)?;
    match global.format {
        Format::Json => output::json(&report)?,
        Format::Text => output::print(&text::diff(&report, global.all))?,
    }
    let same = report.fields.iter().all(|field| field.expected)
        && report.sections.is_empty()
        && report.memory.comparable
        && report.memory.pages == 0;
    Ok(u8::from(!same))
}

fn look(old: &Path, new: &Path) -> Result<CapsuleDiff, Failure> {
    let (mut o, mut n) = (open(old)?, open(new)?);
    if o.header().arch != n.header().arch {
        let (a, b) = (old.display().to_string(), new.display().to_string());
        return Err(Failure::architectures((&a, o.header().arch.name()), (&b, n.header().arch.name())));
    }
    let first = Guest::read(&mut o).map_err(|e| refused(old, &e))?;
    let second = Guest::read(&mut n).map_err(|e| refused(new, &e))?;
    let side = |path: &Path, reader: &Open| Side {
        file: path.display().to_string(),
        root: reader.header().root.to_string(),
        id: reader.header().id.to_string(),
    };
    Ok(CapsuleDiff {
        schema: "evenkeel.capsule-diff/1",
        old: side(old, &o),
        new: side(new, &n),
        fields: state(&first, &second),
        sections: sections(&o, &n),
        hosts: hosts(&first, &second, old, new)?,
        memory: memory((old, &mut o), (new, &mut n))?,
    })
}

/// Every field that differs, with what the rules say of it.
fn state(first: &Guest, second: &Guest) -> Vec<FieldDiff> {
    // The hosts' clocks say when: to the second, so one more may have gone by.
    let at = |guest: &Guest| guest.provenance.as_ref().map_or(0, |p| p.saved_at);
    let elapsed = Elapsed::of(Duration::from_secs(at(second).saturating_sub(at(first)).saturating_add(1)));
    let mut all: BTreeMap<(String, String), FieldDiff> = BTreeMap::new();
    for found in compare(&first.image, &second.image, elapsed) {
        let section = match found.section.as_str() {
            names::MANIFEST => found.section.clone(),
            item => format!("{}/{item}", found.owner),
        };
        let key = (section.clone(), found.field.clone());
        let (rule, expected) = (rule(found.rule).to_owned(), false);
        all.entry(key).or_insert(FieldDiff {
            section,
            field: found.field,
            old: found.before,
            new: found.after,
            rule,
            expected,
            why: found.why,
        });
    }
    // What the rules let differ is told, too.
    for item in &first.image.items {
        let Some(other) = second.image.item(item.owner, &item.name) else { continue };
        let (Ok(left), Ok(right)) = (view(item), view(other)) else { continue };
        let right: BTreeMap<&str, String> =
            right.iter().map(|f| (f.name.as_str(), f.value.to_string())).collect();
        let section = format!("{}/{}", item.owner, item.name);
        for field in &left {
            let Some(new) = right.get(field.name.as_str()) else { continue };
            let old = field.value.to_string();
            if old != *new {
                all.entry((section.clone(), field.name.clone())).or_insert(FieldDiff {
                    section: section.clone(),
                    field: field.name.clone(),
                    old: Some(old),
                    new: Some(new.clone()),
                    rule: rule(field.rule.compare).to_owned(),
                    expected: true,
                    why: String::new(),
                });
            }
        }
    }
    all.into_values().collect()
}

/// What else differs. Who saved it and when is expected to; memory is compared for itself.
fn sections(o: &Open, n: &Open) -> Vec<SectionDiff> {
    let state = |name: &str| file::split(name).is_some();
    let apart = [names::MANIFEST, names::PROVENANCE, names::INDEX, names::MEMORY];
    let names: BTreeSet<&str> = o
        .entries()
        .iter()
        .chain(n.entries())
        .map(|entry| entry.name.as_str())
        .filter(|name| !state(name) && !apart.contains(name))
        .collect();
    names
        .into_iter()
        .filter(|name| o.entry(name).map(|e| e.digest) != n.entry(name).map(|e| e.digest))
        .map(|name| SectionDiff {
            name: name.to_owned(),
            old: o.entry(name).map(|e| e.length),
            new: n.entry(name).map(|e| e.length),
        })
        .collect()
}

fn hosts(first: &Guest, second: &Guest, old: &Path, new: &Path) -> Result<Option<DiffReport>, Failure> {
    let (Some(a), Some(b)) = (&first.surface, &second.surface) else { return Ok(None) };
    if a == b {
        return Ok(None);
    }
    let host = |path: &Path, bytes: &[u8]| evenkeel_hosts::of_capture(&path.display().to_string(), bytes);
    let (o, n) = (host(old, a)?, host(new, b)?);
    Ok(Some(DiffReport {
        schema: "evenkeel.diff/1",
        old: super::super::info(&o)?,
        new: super::super::info(&n)?,
        axes: axes(&o.views[0], &n.views[0]),
        differences: diff((&o.surface, &o.views), (&n.surface, &n.views)),
    }))
}

fn memory(old: (&Path, &mut Open), new: (&Path, &mut Open)) -> Result<MemoryDiff, Failure> {
    let ((old, o), (new, n)) = (old, new);
    let (left, right) = match (o.index().cloned(), n.index().cloned()) {
        (None, None) => return Ok(MemoryDiff { comparable: true, ..MemoryDiff::default() }),
        (Some(left), Some(right)) if left.regions == right.regions && left.chunk == right.chunk => {
            (left, right)
        }
        _ => return Ok(MemoryDiff::default()),
    };
    let mut found = MemoryDiff { comparable: true, ..MemoryDiff::default() };
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for (i, (one, other)) in left.chunks.iter().zip(&right.chunks).enumerate() {
        // Stored alike, and the same is stored: it is the same.
        if one.kind == other.kind && (one.kind == Kind::Zero || one.digest == other.digest) {
            continue;
        }
        o.chunk(i, &mut a).map_err(|e| refused(old, &e))?;
        n.chunk(i, &mut b).map_err(|e| refused(new, &e))?;
        for (page, (x, y)) in a.chunks(4096).zip(b.chunks(4096)).enumerate() {
            if x != y {
                found.pages += 1;
                if found.first.len() < 16 {
                    found.first.push(format!("{:#x}", one.address + page as u64 * 4096));
                }
            }
        }
    }
    Ok(found)
}
