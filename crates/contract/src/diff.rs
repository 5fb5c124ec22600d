//! What differs between two hosts, facet by facet and item by item.

use evenkeel_surface::{Arch, Capability, Surface};
use schemars::JsonSchema;
use serde::Serialize;

use crate::carries::{known, states};
use crate::cause;
use crate::describe::{axis, coordinate, kernel_or_boot, parts};
use crate::finding::Axis;
use crate::keeps::value_name;
use crate::view::{ItemKey, View, Word};

/// What became of a facet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The default changed, and the old value cannot be selected.
    NotSelectable,
    /// The new host cannot give it any more.
    NoLongerOffered,
    /// The default changed; the old value can be selected.
    Selectable,
    /// The new host offers it, and gives it when nobody asks.
    NewlyOffered,
    /// The new host could give more, but gives the same when nobody asks.
    NewlySelectable,
    /// Not determined on one of the two.
    Undetermined,
    /// Only userspace can tell.
    Interface,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Difference {
    /// What sort.
    pub class: Class,
    /// The facet, item or capability.
    pub subject: String,
    /// In a line; may be empty.
    pub title: String,
    /// The raw coordinate; may be empty.
    pub at: String,
    /// The old host's value.
    pub before: String,
    /// The new host's value.
    pub after: String,
    /// What it comes from.
    pub axis: Axis,
    /// The shapes, where it is a matter of shape.
    pub shape: String,
    /// The ledger entry that explains it.
    pub cause: Option<&'static str>,
}

/// A word that differs: the cheap part of a diff, before anything is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WordDifference {
    /// On the old host.
    pub old: Word,
    /// On the new host.
    pub new: Word,
    /// Bits in which what can be given, or what is given, differs.
    pub bits: u64,
}

/// The words that differ between two views.
pub fn words(o: &View, n: &View) -> Vec<WordDifference> {
    let mut found = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < o.words.len() || j < n.words.len() {
        let (a, b) = (o.words.get(i), n.words.get(j));
        let (old, new) = match (a, b) {
            (Some(a), Some(b)) if a.at == b.at => (*a, *b),
            (Some(a), Some(b)) if a.at < b.at => (*a, Word::absent(a.at, a.layout)),
            (Some(a), None) => (*a, Word::absent(a.at, a.layout)),
            (_, Some(b)) => (Word::absent(b.at, b.layout), *b),
            (None, None) => break,
        };
        i += usize::from(a.is_some_and(|a| a.at == old.at));
        j += usize::from(b.is_some_and(|b| b.at == old.at));
        let runtime = old.rules().runtime;
        let bits = ((old.value ^ new.value) | (old.unknown ^ new.unknown) | (old.writable ^ new.writable))
            & !runtime;
        let bits = bits & old.at.mask();
        if bits != 0 {
            found.push(WordDifference { old, new, bits });
        }
    }
    found
}

/// All differences between two hosts, the views of the same shapes compared with each other.
pub fn diff(o: (&Surface, &[View]), n: (&Surface, &[View])) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut first = true;
    for (old, new) in
        o.1.iter().filter_map(|old| n.1.iter().find(|new| new.shape == old.shape).map(|new| (old, new)))
    {
        // On x86 words and items do not depend on the shape.
        if first || old.arch == Arch::Aarch64 {
            for d in words(old, new) {
                name_word(old, new, &d, &mut found);
            }
            items(old, new, &mut found);
        }
        first = false;
        choices(old, new, &mut found);
    }
    let mut found =
        fold_shapes(found, o.1.iter().filter(|old| n.1.iter().any(|new| new.shape == old.shape)).count());
    documents(o, n, &mut found);
    found.sort_by(|a, b| {
        (a.class, a.cause.is_none(), a.cause, &a.subject).cmp(&(
            b.class,
            b.cause.is_none(),
            b.cause,
            &b.subject,
        ))
    });
    found
}

/// What differs in the same way in several shapes is said once; in all of the `shapes` that were compared, without them.
fn fold_shapes(found: Vec<Difference>, shapes: usize) -> Vec<Difference> {
    let mut folded: Vec<(Difference, usize)> = Vec::with_capacity(found.len());
    let mut index: std::collections::HashMap<(String, String, String), usize> =
        std::collections::HashMap::new();
    for d in found {
        match index.entry((d.subject.clone(), d.before.clone(), d.after.clone())) {
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(folded.len());
                folded.push((d, 1));
            }
            std::collections::hash_map::Entry::Occupied(place) => {
                let (first, count) = &mut folded[*place.get()];
                first.shape = format!("{}, {}", first.shape, d.shape);
                *count += 1;
            }
        }
    }
    let whole = |(mut d, count): (Difference, usize)| {
        if count == shapes {
            d.shape.clear();
        }
        d
    };
    folded.into_iter().map(whole).collect()
}

fn name_word(o: &View, n: &View, d: &WordDifference, found: &mut Vec<Difference>) {
    let (bad, unsure) = d.new.refuses(d.old.value);
    let values = (d.old.value ^ d.new.value) | (d.old.unknown ^ d.new.unknown);
    let values = values & d.bits;
    if values != d.bits {
        // What userspace may choose changed, and nothing else: that is one thing about the whole word.
        let subject = d.old.at.to_string();
        let show = |w: &Word| format!("writable {:#x}", w.writable & w.at.mask());
        let (before, after) = (show(&d.old), show(&d.new));
        let fewer = d.old.writable & !d.new.writable & d.bits != 0;
        found.push(Difference {
            class: if fewer { Class::Selectable } else { Class::NewlySelectable },
            at: coordinate(d.old.at, &crate::describe::whole(d.old.at)),
            axis: axis(o, n, d.old.at, d.old.layout, d.bits),
            title: "the bits that userspace may choose".to_owned(),
            cause: cause::of_facet(o.arch, &format!("{subject}.writable"), &before, &after).map(|c| c.id),
            subject,
            before,
            after,
            shape: if o.arch == Arch::Aarch64 { o.shape.clone() } else { String::new() },
        });
    }
    for part in parts(d.old.at, d.old.layout, values) {
        let (before, after) = (part.show(d.old.value), part.show(d.new.value));
        let cause = cause::of_facet(o.arch, &part.name, &before, &after).map(|c| c.id);
        let more = (d.new.value & part.mask) > (d.old.value & part.mask);
        let class = if (unsure | d.old.unknown) & part.mask != 0 {
            Class::Undetermined
        } else if bad & part.mask != 0 {
            if more { Class::NotSelectable } else { Class::NoLongerOffered }
        } else if more {
            Class::NewlyOffered
        } else {
            Class::Selectable
        };
        found.push(Difference {
            class,
            at: coordinate(d.old.at, &part),
            axis: axis(o, n, d.old.at, d.old.layout, part.mask),
            subject: part.name,
            title: part.title.to_owned(),
            before,
            after,
            shape: if o.arch == Arch::Aarch64 { o.shape.clone() } else { String::new() },
            cause,
        });
    }
}

fn choices(o: &View, n: &View, found: &mut Vec<Difference>) {
    let mut indices: Vec<u16> = o.choices.iter().chain(&n.choices).map(|c| c.choice).collect();
    indices.sort_unstable();
    indices.dedup();
    for index in indices {
        let (a, b) = (o.choice(index), n.choice(index));
        let state = |c: Option<&crate::view::ChoiceOffer>| c.map(|c| (c.default, c.values, c.complete));
        if state(a) == state(b) {
            continue;
        }
        let facet = &evenkeel_catalog::CHOICES[usize::from(index)];
        // What was measured is compared as such.
        if !facet.from.bits.is_empty() {
            continue;
        }
        let absent = crate::contract::absent_of(facet);
        let show = |c: Option<&crate::view::ChoiceOffer>| match c {
            None => value_name(index, absent),
            Some(c) => {
                let others: Vec<String> = (0..64u8)
                    .filter(|v| c.values >> v & 1 == 1 && Some(*v) != c.default)
                    .map(|v| value_name(index, Some(v)))
                    .collect();
                let default = value_name(index, c.default);
                if others.is_empty() { default } else { format!("{default} (or {})", others.join(", ")) }
            }
        };
        let (old, new) = (a.map_or(absent, |c| c.default), b.map_or(absent, |c| c.default));
        let cause = cause::of_facet(o.arch, facet.name, &value_name(index, old), &value_name(index, new));
        let class = match (old, new) {
            (None, _) | (_, None) => Class::Undetermined,
            (x, y) if x == y => Class::NewlySelectable,
            (Some(x), _) if b.is_some_and(|b| b.values >> x & 1 == 1) => Class::Selectable,
            _ => Class::NotSelectable,
        };
        found.push(Difference {
            class,
            subject: facet.name.to_owned(),
            title: facet.title.to_owned(),
            at: String::new(),
            before: show(a),
            after: show(b),
            axis: kernel_or_boot(o, n),
            shape: o.shape.clone(),
            cause: cause.map(|c| c.id),
        });
    }
}

fn items(o: &View, n: &View, found: &mut Vec<Difference>) {
    let mut keys: Vec<ItemKey> = o.items.iter().chain(n.items.iter()).map(|i| i.key).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let (a, b) = (o.item(key), n.item(key));
        if a.map(|i| (i.listed, i.write, i.reset)) == b.map(|i| (i.listed, i.write, i.reset)) {
            continue;
        }
        // A register that is a word was compared as one, unless only one host lists it and it holds nothing there.
        let word = |v: &View| match key {
            ItemKey::Reg(id) => v.word(crate::coord::Coord::Reg(id)).copied(),
            _ => None,
        };
        if word(o).or(word(n)).is_some_and(|w| w.value != w.rules().absent || w.writable != 0) {
            continue;
        }
        let known = known(key);
        let cause = cause::of_item(o.arch, key, &states(a), &states(b)).map(|c| c.id);
        let show = |i: Option<&crate::view::Item>| match i {
            None => "never asked, or not there".to_owned(),
            Some(i) => {
                let reset = i.reset.map_or(String::new(), |v| match key {
                    ItemKey::Section(_) => format!(", {v} bytes"),
                    _ => format!(", {v:#x} in a fresh guest"),
                });
                format!("{}{reset}", states(Some(i)).join(", "))
            }
        };
        found.push(Difference {
            class: Class::Interface,
            subject: key.to_string(),
            title: if known.name.is_empty() { known.title.to_owned() } else { known.name },
            at: String::new(),
            before: show(a),
            after: show(b),
            axis: kernel_or_boot(o, n),
            shape: if o.arch == Arch::Aarch64 { o.shape.clone() } else { String::new() },
            cause,
        });
    }
}

/// What a capture holds beyond words, choices and items: capabilities, attributes, measurements and what was unread.
fn documents(o: (&Surface, &[View]), n: (&Surface, &[View]), found: &mut Vec<Difference>) {
    let axis = match (o.1.first(), n.1.first()) {
        (Some(a), Some(b)) => kernel_or_boot(a, b),
        _ => Axis::Shape,
    };
    let mut add = |subject: String, title: &str, before: String, after: String| {
        if before != after {
            let cause = cause::of_facet(o.0.arch, &subject, &before, &after).map(|c| c.id);
            found.push(Difference {
                class: Class::Interface,
                subject,
                title: title.to_owned(),
                at: String::new(),
                before,
                after,
                axis,
                shape: String::new(),
                cause,
            });
        }
    };
    let (a, b) = (&o.0.offer, &n.0.offer);
    // Both lists in the order of their keys, walked side by side.
    fn pair<'a, T, K: Ord>(
        a: &'a [T],
        b: &'a [T],
        key: impl Fn(&T) -> K,
    ) -> Vec<(Option<&'a T>, Option<&'a T>)> {
        let sorted = |list: &'a [T]| {
            let mut keyed: Vec<(K, &'a T)> = list.iter().map(|t| (key(t), t)).collect();
            keyed.sort_by(|x, y| x.0.cmp(&y.0));
            keyed
        };
        let (a, b) = (sorted(a), sorted(b));
        let (mut i, mut j) = (0, 0);
        let mut pairs = Vec::with_capacity(a.len().max(b.len()));
        while i < a.len() || j < b.len() {
            let order = match (a.get(i), b.get(j)) {
                (Some(x), Some(y)) => x.0.cmp(&y.0),
                (Some(_), None) => std::cmp::Ordering::Less,
                _ => std::cmp::Ordering::Greater,
            };
            let mine = (order.is_le()).then(|| a[i].1);
            let theirs = (order.is_ge()).then(|| b[j].1);
            i += usize::from(mine.is_some());
            j += usize::from(theirs.is_some());
            pairs.push((mine, theirs));
        }
        pairs
    }
    let json = |t: Option<String>| t.unwrap_or_else(|| "none".to_owned());
    let text = |v: serde_json::Result<String>| v.unwrap_or_default();
    for (x, y) in pair(&a.capabilities, &b.capabilities, |c| c.cap) {
        let Some(cap) = x.or(y).map(|c| c.cap).filter(|_| x != y) else { continue };
        let known = evenkeel_catalog::capability(cap, o.0.arch.name());
        let asked = |offer: &evenkeel_surface::Offer, c: Option<&Capability>| match c {
            Some(c) => show_capability(c),
            None if cap < offer.capabilities_asked => "0".to_owned(),
            None => "not asked".to_owned(),
        };
        add(format!("cap.{cap}"), known.map_or("", |k| k.name), asked(a, x), asked(b, y));
    }
    // A leaf of zeroes and a leaf that is not listed look the same to a guest, but not to a VMM.
    for (table, x, y) in [
        ("cpuid", &a.cpuid, &b.cpuid),
        ("cpuid-emulated", &a.cpuid_emulated, &b.cpuid_emulated),
        ("hv", &a.cpuid_hyperv, &b.cpuid_hyperv),
        ("cpuid-stored", &a.cpuid_stored, &b.cpuid_stored),
    ] {
        for (x, y) in pair(x, y, |e| (e.leaf, e.subleaf)) {
            let empty =
                |e: &evenkeel_surface::CpuidEntry| [e.eax, e.ebx, e.ecx, e.edx].iter().all(|r| r.0 == 0);
            let Some(e) =
                x.or(y).filter(|e| x.is_none() != y.is_none() && (empty(e) || table == "cpuid-stored"))
            else {
                continue;
            };
            let show =
                |e: Option<&evenkeel_surface::CpuidEntry>| if e.is_some() { "listed" } else { "not listed" };
            let subject = format!("{table}.{:x}.{:x}", e.leaf.0, e.subleaf.0);
            add(subject, "an entry of a CPUID table", show(x).to_owned(), show(y).to_owned());
        }
    }
    // The same of a feature MSR that holds what a vCPU has without it.
    for (x, y) in pair(&a.feature_msrs, &b.feature_msrs, |m| m.msr) {
        let absent = |m: &evenkeel_surface::FeatureMsr| {
            m.value.0
                == crate::layout::layout(crate::layout::index_of(crate::coord::Coord::Msr(m.msr.0))).absent
        };
        if let Some(m) = x.or(y).filter(|m| x.is_none() != y.is_none() && absent(m)) {
            let show =
                |m: Option<&evenkeel_surface::FeatureMsr>| if m.is_some() { "listed" } else { "not listed" };
            add(format!("msr.{:x}", m.msr.0), "a feature MSR", show(x).to_owned(), show(y).to_owned());
        }
    }
    for (x, y) in pair(&a.attributes, &b.attributes, |t| (t.fd.clone(), t.group, t.attr, t.shapes.clone())) {
        let Some(t) = x.or(y).filter(|_| x != y) else { continue };
        let show = |t: Option<&evenkeel_surface::Attribute>| {
            json(t.map(|t| t.value.map_or("there".into(), |v| v.to_string())))
        };
        add(format!("attribute.{}.{}.{}", t.fd, t.group, t.attr), "a device attribute", show(x), show(y));
    }
    for (x, y) in pair(&a.measured, &b.measured, |m| (m.facet.clone(), m.shape)) {
        // Measurements that are choices were compared as such.
        let choice = |m: &evenkeel_surface::Measured| {
            let offers = o.1.iter().chain(n.1).flat_map(|v| &v.choices).map(|c| c.facet());
            offers.into_iter().any(|c| c.from.measured == m.facet || c.from.observe == m.facet)
        };
        let Some(m) = x.or(y).filter(|m| x != y && !choice(m)) else { continue };
        // The value alone where it differs: that is what the ledger explains.
        let alike = x.map(|m| m.value) == y.map(|m| m.value);
        let show = |m: Option<&evenkeel_surface::Measured>| match m {
            None => "none".to_owned(),
            Some(m) if alike => text(serde_json::to_string(m)),
            Some(m) => m.value.to_string(),
        };
        let title = evenkeel_catalog::measurement(&m.facet).map_or("measured on a scratch VM", |k| k.title);
        add(m.facet.clone(), title, show(x), show(y));
    }
    for (x, y) in pair(&a.unread, &b.unread, |u| (u.what.clone(), u.call.clone())) {
        let Some(u) = x.or(y).filter(|_| x != y) else { continue };
        let show = |u: Option<&evenkeel_surface::Unread>| {
            u.map_or("read".to_owned(), |u| format!("not read: {}", u.why))
        };
        add(u.what.clone(), "could not be read", show(x), show(y));
    }
    for (x, y) in pair(&a.sections, &b.sections, |s| (s.item.clone(), s.shapes.clone())) {
        let Some(s) = x.or(y).filter(|_| x != y) else { continue };
        // Whether a group is there, its size and whether it is taken back were compared as items of state.
        let flags = x.zip(y).is_none_or(|(x, y)| x.flags == y.flags);
        if !(flags && s.shapes.is_empty() && evenkeel_catalog::section(&s.item).is_some()) {
            add(s.item.clone(), "a group of state", show_section(a, x), show_section(b, y));
        }
    }
    for (x, y) in pair(&a.shapes, &b.shapes, |s| s.name.clone()) {
        let Some(s) = x.or(y) else { continue };
        let show = |s: Option<&evenkeel_surface::Shape>| json(s.map(|s| s.features.join(" ")));
        add(format!("shape.{}", s.name), "a shape that a VM can be made in", show(x), show(y));
    }
    add(
        "capabilities.asked".to_owned(),
        "how many capabilities were asked for",
        a.capabilities_asked.to_string(),
        b.capabilities_asked.to_string(),
    );
}

/// `listed`, and what of a group differs between hosts: `listed, 4096 bytes, flags 0xd, in kernel, split`.
fn show_section(offer: &evenkeel_surface::Offer, s: Option<&evenkeel_surface::Section>) -> String {
    let Some(s) = s else { return "unlisted".to_owned() };
    let mut parts = vec!["listed".to_owned()];
    parts.extend(s.size.map(|n| format!("{n} bytes")));
    parts.extend(s.flags.map(|f| format!("flags {f}")));
    parts.extend(match s.write {
        evenkeel_surface::Write::Kept => None,
        evenkeel_surface::Write::Refused => Some("refused".to_owned()),
        evenkeel_surface::Write::Altered => Some("altered".to_owned()),
        evenkeel_surface::Write::Unasked => Some("never set".to_owned()),
    });
    let name = |i: &u8| Some(offer.shapes.get(usize::from(*i))?.name.as_str());
    let shapes: Vec<&str> = s.shapes.iter().filter_map(name).collect();
    parts.extend((!shapes.is_empty()).then(|| format!("in {}", shapes.join(" and "))));
    parts.join(", ")
}

fn show_capability(c: &Capability) -> String {
    match (c.all, c.system) {
        (Some(all), _) => all.to_string(),
        (None, system) => {
            let vm: Vec<String> = c.vm.iter().map(i32::to_string).collect();
            format!("{} on the system, {} on VMs", system.unwrap_or(0), vm.join("/"))
        }
    }
}
