//! A host as the algebra sees it: the words, choices and items of one shape, sorted, with rules attached.
//!
//! A view is made from a capture once and compared often. Words that do not depend on the shape are shared between
//! the views of one host.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use evenkeel_catalog::{self as catalog, CHOICES, Choice, Condition};
use evenkeel_surface::{Arch, CpuidEntry, Digests, Offer, Provenance, Surface, Write};

use crate::coord::{Coord, Table};
use crate::layout::{Layout, UNKNOWN, index_of, layout};

/// How well something is known; the weakest of what a verdict rests on is the verdict's.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// From tables, for a host that was not asked.
    Predicted,
    /// An ioctl said it.
    Declared,
    /// A witness saw it from inside a guest.
    Observed,
}

/// A word of facets and what a host can give of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Where it is.
    pub at: Coord,
    /// The rules, for [`layout`].
    pub layout: u16,
    /// What the host gives when nobody asks.
    pub value: u64,
    /// Bits that userspace may choose. All of a CPUID word; what the writable mask says of an arm64 ID register.
    pub writable: u64,
    /// Bits that are not determined.
    pub unknown: u64,
}

impl Word {
    /// A known word that userspace chooses freely within the rules.
    pub fn new(at: Coord, value: u64) -> Word {
        Word { at, layout: index_of(at), value, writable: u64::MAX, unknown: 0 }
    }

    /// The word as a host shows it that never heard of it.
    pub fn absent(at: Coord, layout_index: u16) -> Word {
        let value = layout(layout_index).absent;
        // What is not there cannot be set either, except in CPUID, where a VMM may write any leaf: the rules decide.
        let writable = if matches!(at, Coord::Reg(_)) { 0 } else { u64::MAX };
        Word { at, layout: layout_index, value, writable, unknown: 0 }
    }

    /// The rules.
    pub fn rules(&self) -> &'static Layout {
        layout(self.layout)
    }

    /// Bits that can be shown as 0, and bits that can be shown as 1, for the rules that speak of bits. Undetermined
    /// bits count as possible here; [`Word::unknown`] tells them.
    pub fn can(&self) -> (u64, u64) {
        let rules = self.rules();
        let either = rules.free | rules.runtime | rules.number_bits();
        let fixed = !self.writable & !rules.runtime;
        let can0 = (rules.flag | either | !self.value) & !(fixed & self.value);
        let can1 = (rules.accumulate | either | self.value) & !(fixed & !self.value);
        (can0 | self.unknown, can1 | self.unknown)
    }

    /// The bits of `wanted` that this host cannot give, and those of which it is not known whether it can.
    pub fn refuses(&self, wanted: u64) -> (u64, u64) {
        let rules = self.rules();
        let (can0, can1) = self.can();
        let mut bad = (wanted & !can1) | (!wanted & !can0);
        // Of an undetermined bit, the value that every host can give is no question.
        let always = (rules.flag & !wanted) | (rules.accumulate & wanted) | rules.free | rules.runtime;
        let mut unsure = self.unknown & !(always & self.writable) & !rules.runtime;
        for n in &rules.numbers {
            if self.unknown & n.mask != 0 {
                unsure |= n.mask;
                bad &= !n.mask;
                continue;
            }
            let fixed = self.writable & n.mask != n.mask;
            if n.interval(n.get(self.value), fixed).contains(n, n.get(wanted)) {
                bad &= !n.mask;
            } else {
                bad |= n.mask;
            }
        }
        let mask = self.at.mask();
        (bad & mask, unsure & mask)
    }
}

/// A facet that is not a word, and what a host can give of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChoiceOffer {
    /// Index into [`CHOICES`].
    pub choice: u16,
    /// The value given when nobody asks, as an index into the facet's values; none when not determined.
    pub default: Option<u8>,
    /// The values that can be selected, a bit an index; the default among them.
    pub values: u64,
    /// No further value can be given. When false, the values not listed are undetermined.
    pub complete: bool,
}

impl ChoiceOffer {
    /// The catalog's entry.
    pub fn facet(&self) -> &'static Choice {
        &CHOICES[usize::from(self.choice)]
    }

    /// Nothing is determined.
    pub fn is_unknown(&self) -> bool {
        self.default.is_none()
    }
}

/// What an item of state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ItemKey {
    /// An MSR.
    Msr(u32),
    /// A ONE_REG register.
    Reg(u64),
    /// A group of state, by index into [`catalog::SECTIONS`].
    Section(u16),
}

impl std::fmt::Display for ItemKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ItemKey::Msr(msr) => write!(f, "msr.{msr:x}"),
            ItemKey::Reg(id) => write!(f, "reg.{id:x}"),
            ItemKey::Section(i) => f.write_str(catalog::SECTIONS[usize::from(*i)].name),
        }
    }
}

/// An item of state as one host treats it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Which.
    pub key: ItemKey,
    /// A VMM that saves all that the host lists saves it.
    pub listed: bool,
    /// What became of writing its own value back.
    pub write: Write,
    /// The value in a fresh vCPU, or the size of a group.
    pub reset: Option<u64>,
    /// The bits that stay when all are set, where that was tried.
    pub holds: Option<u64>,
}

/// Which host a view is of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// What the user calls it.
    pub label: String,
    /// The digests of the capture; empty for a prediction.
    pub digests: Digests,
    /// What it is made of.
    pub provenance: Provenance,
    /// KVM_GET_TSC_KHZ.
    pub tsc_khz: Option<u32>,
    /// KVM_CAP_TSC_CONTROL: another TSC rate can be given.
    pub tsc_scaling: bool,
}

/// One host in one shape.
#[derive(Clone, Debug)]
pub struct View {
    /// The host.
    pub host: Arc<Host>,
    /// The architecture.
    pub arch: Arch,
    /// The shape's name.
    pub shape: String,
    /// Ascending by coordinate.
    pub words: Arc<Vec<Word>>,
    /// What the CPUID instruction answers on the host itself; ascending. Empty when not captured.
    pub raw: Arc<Vec<Word>>,
    /// Ascending by index of the facet; those that apply to this host and shape.
    pub choices: Vec<ChoiceOffer>,
    /// Ascending by key.
    pub items: Arc<Vec<Item>>,
    /// How well all of it is known.
    pub evidence: Evidence,
}

impl View {
    /// The views of a capture, one a shape.
    pub fn all(surface: &Surface, label: &str) -> Vec<View> {
        let host = Arc::new(Host {
            label: label.to_owned(),
            digests: surface.digests.clone(),
            provenance: surface.provenance.clone(),
            tsc_khz: surface.volatile.tsc_khz,
            tsc_scaling: capability(&surface.offer, 60, None) != 0,
        });
        View::of_offer(surface.arch, &surface.offer, host)
    }

    /// The views of an offer whose host is described apart.
    pub fn of_offer(arch: Arch, offer: &Offer, host: Arc<Host>) -> Vec<View> {
        let raw = Arc::new(cpuid_words(Table::Supported, &host.provenance.cpu.raw));
        let shared = (arch == Arch::X86_64).then(|| (Arc::new(x86_words(offer)), Arc::new(x86_items(offer))));
        let mut views = Vec::with_capacity(offer.shapes.len());
        for (i, shape) in offer.shapes.iter().enumerate() {
            let (words, items) = match &shared {
                Some((words, items)) => (Arc::clone(words), Arc::clone(items)),
                None => {
                    let (words, items) = arm64_registers(offer, i);
                    (Arc::new(words), Arc::new(items))
                }
            };
            let mut view = View {
                host: Arc::clone(&host),
                arch,
                shape: shape.name.clone(),
                words,
                raw: Arc::clone(&raw),
                choices: Vec::new(),
                items,
                evidence: Evidence::Declared,
            };
            view.choices = choices(&view, offer, i);
            views.push(view);
        }
        views
    }

    /// The word at a coordinate, if the host shows it.
    pub fn word(&self, at: Coord) -> Option<&Word> {
        self.words.binary_search_by_key(&at, |w| w.at).ok().map(|i| &self.words[i])
    }

    /// The word at a coordinate, or the absent one.
    pub fn word_or_absent(&self, at: Coord) -> Word {
        self.word(at).copied().unwrap_or_else(|| Word::absent(at, index_of(at)))
    }

    /// The offer of a choice, by index, if it applies here.
    pub fn choice(&self, index: u16) -> Option<&ChoiceOffer> {
        self.choices.binary_search_by_key(&index, |c| c.choice).ok().map(|i| &self.choices[i])
    }

    /// The item of state with this key, if the capture says anything of it.
    pub fn item(&self, key: ItemKey) -> Option<&Item> {
        self.items.binary_search_by_key(&key, |i| i.key).ok().map(|i| &self.items[i])
    }

    /// The value of a facet field by name (`cpuid.7.0.ecx.shstk`), as the host gives it when nobody asks.
    pub fn field(&self, name: &str) -> u64 {
        field_of(name, |at| self.word(at).map_or(0, |w| w.value))
    }

    /// Both views are of one and the same host: what is unknown is unknown in the same way.
    pub fn same_host(&self, other: &View) -> bool {
        !self.host.digests.offer.is_empty()
            && self.host.digests == other.host.digests
            && self.shape == other.shape
    }
}

/// The value of a facet field by name, in words that `value` tells.
pub fn field_of(name: &str, value: impl Fn(Coord) -> u64) -> u64 {
    fields().get(name).map_or(0, |(at, mask)| (value(*at) & mask) >> mask.trailing_zeros())
}

/// Every named word and field of the catalog that is in one place: where it is, and its bits.
fn fields() -> &'static HashMap<String, (Coord, u64)> {
    static FIELDS: OnceLock<HashMap<String, (Coord, u64)>> = OnceLock::new();
    FIELDS.get_or_init(|| {
        let mut fields = HashMap::with_capacity(2048);
        for r in catalog::REGISTERS {
            let at = match (r.at.leaf, r.at.msr, r.at.reg) {
                (Some(_), ..) => Coord::parse(r.name),
                (_, Some(msr), _) => Some(Coord::Msr(msr)),
                (_, _, reg) => reg.map(Coord::Reg),
            };
            // A run of subleaves is in many places: its fields are no conditions for anything.
            let Some(at) = at else { continue };
            fields.insert(r.name.to_owned(), (at, at.mask()));
            for f in r.fields {
                fields.insert(format!("{}.{}", r.name, f.name), (at, crate::layout::field_mask(f)));
            }
        }
        fields
    })
}

fn cpuid_words(table: Table, entries: &[CpuidEntry]) -> Vec<Word> {
    let mut words = Vec::with_capacity(entries.len() * 4);
    for e in entries {
        for (register, value) in [e.eax, e.ebx, e.ecx, e.edx].into_iter().enumerate() {
            let at = Coord::Cpuid { table, leaf: e.leaf.0, subleaf: e.subleaf.0, register: register as u8 };
            words.push(Word::new(at, u64::from(value.0)));
        }
    }
    words
}

fn x86_words(offer: &Offer) -> Vec<Word> {
    let mut words = cpuid_words(Table::Supported, &offer.cpuid);
    // A host that stores another table than it was given shows the stored one, whatever it says it supports.
    for stored in cpuid_words(Table::Supported, &offer.cpuid_stored) {
        match words.binary_search_by_key(&stored.at, |w| w.at) {
            Ok(i) => {
                let changed = words[i].value ^ stored.value;
                words[i].value = stored.value;
                words[i].writable &= !changed;
            }
            Err(i) => words.insert(i, Word { writable: 0, ..stored }),
        }
    }
    words.extend(cpuid_words(Table::Emulated, &offer.cpuid_emulated));
    words.extend(cpuid_words(Table::Hyperv, &offer.cpuid_hyperv));
    words.extend(offer.feature_msrs.iter().map(|m| Word::new(Coord::Msr(m.msr.0), m.value.0)));
    for unread in &offer.unread {
        if let Some(at @ Coord::Msr(_)) = Coord::parse(&unread.what)
            && !words.iter().any(|w| w.at == at)
            && offer.msrs.iter().all(|m| Coord::Msr(m.msr.0) != at)
        {
            words.push(Word { unknown: u64::MAX, ..Word::new(at, 0) });
        }
    }
    words.sort_by_key(|w| w.at);
    words
}

fn x86_items(offer: &Offer) -> Vec<Item> {
    let mut items: Vec<Item> =
        Vec::with_capacity(offer.msrs.len() + offer.msrs_refused.len() + offer.sections.len());
    items.extend(offer.msrs.iter().map(|m| Item {
        key: ItemKey::Msr(m.msr.0),
        listed: m.listed,
        write: m.write,
        reset: m.reset.map(|v| v.0),
        holds: None,
    }));
    items.extend(offer.msrs_refused.iter().map(|m| Item {
        key: ItemKey::Msr(m.0),
        listed: false,
        write: Write::Refused,
        reset: None,
        holds: None,
    }));
    items.sort_by_key(|i| i.key);
    items.extend(sections(offer));
    items
}

fn sections(offer: &Offer) -> Vec<Item> {
    let mut items: Vec<Item> = offer
        .sections
        .iter()
        .filter_map(|s| {
            let index = catalog::SECTIONS.iter().position(|known| known.name == s.item)?;
            let key = ItemKey::Section(u16::try_from(index).ok()?);
            Some(Item { key, listed: true, write: s.write, reset: s.size.map(u64::from), holds: None })
        })
        .collect();
    items.sort_by_key(|i| i.key);
    items.dedup_by_key(|i| i.key);
    items
}

/// The cache levels of an arm64 CPU.
const CLIDR_EL1: u64 = 0x6030_0000_0013_c801;

fn arm64_registers(offer: &Offer, shape: usize) -> (Vec<Word>, Vec<Item>) {
    let mut words = Vec::new();
    let mut items = Vec::new();
    let here = |shapes: &[u8]| shapes.is_empty() || shapes.iter().any(|s| usize::from(*s) == shape);
    let cache_levels =
        offer.registers.iter().any(|r| r.id.0 == CLIDR_EL1 && r.mask.is_some_and(|mask| mask.0 != 0));
    for r in offer.registers.iter().filter(|r| here(&r.shapes)) {
        let at = Coord::Reg(r.id.0);
        let layout_index = index_of(at);
        match (layout_index, r.reset) {
            (UNKNOWN, _) => {}
            (_, Some(value)) => {
                // Kernels before 6.7 do not tell what is writable. The masks do not cover firmware registers, nor cache
                // sizes, which became writable together with the description of the levels.
                let otherwise = match r.id.0 >> 16 & 0xfff {
                    0x14 | 0x16 => u64::MAX,
                    0x11 if cache_levels => u64::MAX,
                    _ => 0,
                };
                let writable = r.mask.map_or(otherwise, |m| m.0);
                words.push(Word { at, layout: layout_index, value: value.0, writable, unknown: 0 });
                // Its value is judged as a facet; that it is saved, and that another host may not list it, as an item.
                let key = ItemKey::Reg(r.id.0);
                items.push(Item { key, listed: true, write: Write::Kept, reset: None, holds: None });
                continue;
            }
            (_, None) => {
                words.push(Word { at, layout: layout_index, value: 0, writable: 0, unknown: u64::MAX });
                continue;
            }
        }
        items.push(Item {
            key: ItemKey::Reg(r.id.0),
            listed: true,
            write: r.write,
            reset: r.reset.map(|v| v.0),
            // What KVM_ARM_GET_REG_WRITABLE_MASKS says of others is about features.
            holds: r.mask.filter(|_| catalog::reg(r.id.0).is_some_and(|reg| reg.counters)).map(|v| v.0),
        });
    }
    words.sort_by_key(|w| w.at);
    items.extend(sections(offer));
    (words, items)
}

/// A capability's answer: on the VM of a shape, or on the system fd.
pub fn capability(offer: &Offer, cap: u32, shape: Option<usize>) -> i32 {
    offer
        .capabilities
        .binary_search_by_key(&cap, |c| c.cap)
        .ok()
        .map(|i| &offer.capabilities[i])
        .and_then(|c| shape.map_or_else(|| c.on_system(), |s| c.on_vm(s)))
        .unwrap_or(0)
}

fn holds(condition: &Condition, offer: &Offer, shape: usize) -> bool {
    let Some(cap) = condition.cap else { return false };
    let answer = capability(offer, cap, condition.on_vm.then_some(shape)) as u32 as u64;
    let set = match (condition.at_least, condition.bits) {
        (Some(least), _) => answer >= least,
        (None, 0) => answer != 0,
        (None, bits) => answer & bits == bits,
    };
    set != condition.not
}

fn choices(view: &View, offer: &Offer, shape: usize) -> Vec<ChoiceOffer> {
    let arch = match view.arch {
        Arch::X86_64 => catalog::Arch::X86_64,
        Arch::Aarch64 => catalog::Arch::Aarch64,
    };
    let mut choices = Vec::new();
    for (index, facet) in CHOICES.iter().enumerate() {
        if facet.arch != arch || !applies(&facet.applies, view) {
            continue;
        }
        choices.push(offer_of(index as u16, facet, offer, shape));
    }
    choices
}

fn applies(guard: &catalog::Applies, view: &View) -> bool {
    let vendor = view.host.provenance.cpu.vendor.as_str();
    (guard.vendors.is_empty() || vendor.is_empty() || guard.vendors.contains(&vendor))
        && (guard.shapes.is_empty() || guard.shapes.contains(&view.shape.as_str()))
        && (guard.any_of.is_empty() || guard.any_of.iter().any(|name| view.field(name) != 0))
}

fn offer_of(index: u16, facet: &'static Choice, offer: &Offer, shape: usize) -> ChoiceOffer {
    let place = |value: u64| facet.values.iter().position(|v| v.value == value).map(|i| i as u8);
    let unknown = ChoiceOffer { choice: index, default: None, values: 0, complete: false };
    if !facet.from.bits.is_empty() {
        let measured = offer.measured.iter().find(|m| m.facet == facet.from.bits);
        let mask = measured.map_or(0, |m| m.value.0);
        let within = facet.values.iter().enumerate().filter(|(_, v)| v.value & !mask == 0);
        let values = within.fold(0u64, |all, (i, _)| all | 1 << i);
        // Where nobody measured, asking for nothing is still given.
        return ChoiceOffer { choice: index, default: place(0), values, complete: measured.is_some() };
    }
    if !facet.from.observe.is_empty() {
        // A capture that a witness was run for holds what it saw; without one, nobody knows.
        let seen = offer
            .measured
            .iter()
            .find(|m| m.facet == facet.from.observe && m.shape.is_none_or(|s| usize::from(s) == shape));
        return match seen.and_then(|m| place(m.value.0)) {
            Some(value) => {
                ChoiceOffer { choice: index, default: Some(value), values: 1 << value, complete: true }
            }
            None => unknown,
        };
    }
    let name = if facet.from.measured.is_empty() { facet.name } else { facet.from.measured };
    if !facet.from.measured.is_empty() || facet.from.reg.is_some() {
        let measured = offer
            .measured
            .iter()
            .find(|m| m.facet == name && m.shape.is_none_or(|s| usize::from(s) == shape));
        let Some(measured) = measured else {
            // Never measured: the register tells at least the default.
            let here = |s: &[u8]| s.is_empty() || s.iter().any(|s| usize::from(*s) == shape);
            let register = offer.registers.iter().find(|r| Some(r.id.0) == facet.from.reg && here(&r.shapes));
            let default = register.and_then(|r| r.reset).and_then(|v| place(v.0));
            return default.map_or(unknown, |d| ChoiceOffer { default, values: 1 << d, ..unknown });
        };
        let Some(default) = place(measured.value.0) else { return unknown };
        let accepted =
            measured.accepts.iter().filter_map(|v| place(v.0)).fold(1u64 << default, |m, i| m | 1 << i);
        let refused = measured.refuses.iter().filter_map(|v| place(v.0)).fold(0u64, |m, i| m | 1 << i);
        let all = u64::MAX >> (64 - facet.values.len().clamp(1, 64));
        return ChoiceOffer {
            choice: index,
            default: Some(default),
            values: accepted,
            complete: (accepted | refused) & all == all,
        };
    }
    let all = |conditions: &[Condition]| conditions.iter().all(|c| holds(c, offer, shape));
    let some = |conditions: &[Condition]| !conditions.is_empty() && all(conditions);
    let values = facet.values.iter().enumerate().filter(|(_, v)| all(v.when) || some(v.or_when));
    let values = values.fold(0u64, |m, (i, _)| m | 1 << i);
    let offered = |i: usize| values >> i & 1 == 1;
    let complete = !facet.values.iter().enumerate().any(|(i, v)| !offered(i) && some(v.unsure_when));
    // The default may itself have a condition (a quirk that hardware switches off); then the other value is it.
    let default = place(facet.default)
        .filter(|d| values >> d & 1 == 1)
        .or_else(|| (values != 0).then(|| values.trailing_zeros() as u8));
    ChoiceOffer { choice: index, default, values, complete }
}
