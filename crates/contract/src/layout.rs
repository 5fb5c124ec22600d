//! A word's rules, as masks: what one host can give of it, and how two hosts meet.
//!
//! Every bit of a word falls under a rule. For the rules that speak of bits, what a host can give is two masks: the
//! bits that it can show as 0 and those that it can show as 1. A flag that is not supported can only be 0; a
//! defeature bit that is set can only be 1; an exact bit is what it is; an identity bit is free. Meeting is *and* on
//! both masks, and an empty meet is a bit in neither. Fields that are numbers keep an interval each.

use std::collections::HashMap;
use std::sync::OnceLock;

use evenkeel_catalog::{Field, REGISTERS, Rule};

use crate::coord::Coord;

/// A field that is a number.
#[derive(Clone, Copy, Debug)]
pub struct Number {
    /// Lowest bit.
    pub lo: u8,
    /// Bits of the field, in place.
    pub mask: u64,
    /// [`Rule::Lower`], [`Rule::Higher`], [`Rule::HigherOrZero`] or [`Rule::ExactOrSafe`].
    pub rule: Rule,
    /// Two's complement.
    pub signed: bool,
    /// The safe value, ordered as [`Number::get`] orders.
    pub safe: i64,
}

impl Number {
    /// The field of `word`, so that a larger result means more (signed fields count from below zero).
    pub fn get(&self, word: u64) -> i64 {
        self.order((word & self.mask) >> self.lo)
    }

    fn order(&self, raw: u64) -> i64 {
        let width = self.mask.count_ones();
        if self.signed && width < 64 && raw >> (width - 1) & 1 == 1 {
            raw as i64 - (1i64 << width)
        } else {
            i64::try_from(raw).unwrap_or(i64::MAX)
        }
    }

    /// The bits, in place, of an ordered value.
    pub fn put(&self, ordered: i64) -> u64 {
        ((ordered as u64) << self.lo) & self.mask
    }

    /// The lowest value that the field can say.
    fn lowest(&self) -> i64 {
        if self.signed { -(1i64 << (self.mask.count_ones() - 1).min(62)) } else { 0 }
    }

    /// What a host can give whose own value is `value`.
    pub fn interval(&self, value: i64, fixed: bool) -> Interval {
        let (lo, hi, safe) = match self.rule {
            _ if fixed => (value, value, false),
            Rule::Lower => (self.lowest().min(value), value, false),
            Rule::Higher => (value, i64::MAX, false),
            Rule::HigherOrZero if value == self.safe => (value, value, true),
            Rule::HigherOrZero => (value, i64::MAX, true),
            _ => (value, value, true),
        };
        Interval { lo, hi, safe: safe && !(lo..=hi).contains(&self.safe) }
    }
}

/// The values of a number that can be given: `lo..=hi`, and the safe value besides where `safe`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// The lowest.
    pub lo: i64,
    /// The highest; below `lo` when there is none but perhaps the safe one.
    pub hi: i64,
    /// The safe value, which lies outside, can be given as well.
    pub safe: bool,
}

impl Interval {
    /// Whether `value` is in it.
    pub fn contains(&self, number: &Number, value: i64) -> bool {
        (self.lo..=self.hi).contains(&value) || (self.safe && value == number.safe)
    }

    /// What both can give. Commutative, associative and idempotent.
    pub fn meet(&self, other: &Interval, number: &Number) -> Interval {
        let safe = self.contains(number, number.safe) && other.contains(number, number.safe);
        let (lo, hi) = (self.lo.max(other.lo), self.hi.min(other.hi));
        // One empty interval, so that meets that are equal compare equal.
        let (lo, hi) = if lo > hi { (1, 0) } else { (lo, hi) };
        Interval { lo, hi, safe: safe && !(lo..=hi).contains(&number.safe) }
    }

    /// The best value, or none when nothing can be given.
    pub fn best(&self, number: &Number) -> Option<i64> {
        if self.lo > self.hi {
            return self.safe.then_some(number.safe);
        }
        Some(match number.rule {
            Rule::Lower => self.hi,
            _ => self.lo,
        })
    }
}

/// The rules of one word.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Bits where 0 can always be given.
    pub flag: u64,
    /// Bits where 1 can always be given.
    pub accumulate: u64,
    /// Bits that are what they are.
    pub exact: u64,
    /// Those of `exact` that the CPU decides, not the kernel.
    pub hardware: u64,
    /// Bits that a VMM sets freely: identity and topology.
    pub free: u64,
    /// Bits that KVM toggles: ignored.
    pub runtime: u64,
    /// Fields that are numbers.
    pub numbers: Vec<Number>,
    /// What a kernel or host shows that never heard of the word.
    pub absent: u64,
    /// A VMM must ask for it by name.
    pub opt_in: bool,
}

impl Layout {
    fn add(&mut self, rule: Rule, mask: u64, field: Option<&Field>) {
        match rule {
            Rule::Flag => self.flag |= mask,
            Rule::Accumulate => self.accumulate |= mask,
            Rule::Exact => self.exact |= mask,
            Rule::HardwareExact => {
                self.exact |= mask;
                self.hardware |= mask;
            }
            Rule::Identity | Rule::Template => self.free |= mask,
            Rule::Runtime => self.runtime |= mask,
            Rule::VmxControl => {
                // SDM volume 3, appendix A.3: the low half names the settings that must be 1, the high half those that may be 1.
                self.accumulate |= mask & 0xffff_ffff;
                self.flag |= mask & !0xffff_ffff;
            }
            Rule::Lower | Rule::Higher | Rule::HigherOrZero | Rule::ExactOrSafe => {
                let signed = field.is_some_and(|f| f.signed);
                let lo = mask.trailing_zeros() as u8;
                let mut number = Number { lo, mask, rule, signed, safe: 0 };
                number.safe = number.order(field.map_or(0, |f| f.safe));
                self.numbers.push(number);
            }
        }
    }

    /// Bits under a number's rule.
    pub fn number_bits(&self) -> u64 {
        self.numbers.iter().fold(0, |m, n| m | n.mask)
    }
}

/// The mask of a field, in place.
pub fn field_mask(field: &Field) -> u64 {
    let width = u32::from(field.hi - field.lo) + 1;
    (u64::MAX >> (64 - width)) << field.lo
}

/// The layouts of all registers of the catalog, and of the unknown word at the end.
fn layouts() -> &'static [Layout] {
    static LAYOUTS: OnceLock<Vec<Layout>> = OnceLock::new();
    LAYOUTS.get_or_init(|| {
        let mut all: Vec<Layout> = REGISTERS
            .iter()
            .map(|r| {
                let mut layout = Layout { absent: r.absent, opt_in: r.opt_in, ..Layout::default() };
                let mut rest = if r.at.leaf.is_some() { u64::from(u32::MAX) } else { u64::MAX };
                for f in r.fields {
                    layout.add(f.rule, field_mask(f), Some(f));
                    rest &= !field_mask(f);
                }
                if rest != 0 {
                    layout.add(r.rest, rest, None);
                }
                layout
            })
            .collect();
        // A word that nobody described is what it is: any difference is one that we cannot explain away.
        all.push(Layout { exact: u64::MAX, ..Layout::default() });
        all
    })
}

/// The rules of the word at this index of the catalog; [`UNKNOWN`] for one that the catalog does not describe.
pub fn layout(index: u16) -> &'static Layout {
    let all = layouts();
    &all[usize::from(index).min(all.len() - 1)]
}

/// The index of a word that the catalog does not describe.
pub const UNKNOWN: u16 = u16::MAX;

/// The index of the rules for a coordinate.
pub fn index_of(coord: Coord) -> u16 {
    static PLACES: OnceLock<HashMap<Coord, u16>> = OnceLock::new();
    let places = PLACES.get_or_init(|| {
        let single = REGISTERS.iter().filter(|r| r.at.subleaf_last.is_none());
        single
            .filter_map(|r| {
                let at =
                    r.at.reg.map(Coord::Reg).or(r.at.msr.map(Coord::Msr)).or_else(|| Coord::parse(r.name))?;
                Some((at, u16::try_from(at.layout()?).ok()?))
            })
            .collect()
    });
    let searched = || coord.layout().and_then(|i| u16::try_from(i).ok()).unwrap_or(UNKNOWN);
    places.get(&coord).copied().unwrap_or_else(searched)
}
