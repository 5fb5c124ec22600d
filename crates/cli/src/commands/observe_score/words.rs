//! Fields of CPUID and of feature MSRs, altered many at a time: each is told by its own bits.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_apply::{Plan, scratch};
use evenkeel_catalog::REGISTERS;
use evenkeel_contract::Coord;
use evenkeel_contract::coord::Table;
use evenkeel_contract::describe::{Part, parts, whole};
use evenkeel_contract::layout::{index_of, layout};
use evenkeel_sys::layout::CpuidEntry;
use evenkeel_sys::{Alteration, Backend, Vcpu};
use evenkeel_witness::compare::shows;
use evenkeel_witness::programs::x86_64::{Look, cpuid};

use super::runs::{Runs, Seen, differences};
use super::{Outcome, Scored};
use crate::failure::Failure;

/// A named part of a word, and the bits of it that this host lets be turned over.
struct Facet {
    name: String,
    /// What a guest calls the word.
    word: String,
    place: Place,
    flip: u64,
}

/// Where a word is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Cpuid(u32, u32, u8),
    Msr(u32),
}

const REGISTER: [&str; 4] = ["eax", "ebx", "ecx", "edx"];

impl Place {
    fn name(self) -> String {
        match self {
            Place::Cpuid(leaf, subleaf, register) => {
                format!("cpuid.{leaf:x}.{subleaf:x}.{}", REGISTER[usize::from(register & 3)])
            }
            Place::Msr(msr) => format!("msr.{msr:x}"),
        }
    }

    fn alteration(self, flip: u64) -> Alteration {
        match self {
            Place::Cpuid(leaf, subleaf, register) => {
                Alteration::Cpuid { leaf, subleaf, register, flip: flip as u32 }
            }
            Place::Msr(msr) => Alteration::Msr { msr, flip },
        }
    }

    fn call(self, flip: u64) -> String {
        let call = if matches!(self, Place::Msr(_)) { "KVM_SET_MSRS" } else { "KVM_SET_CPUID2" };
        format!("{call}, {} turned over by {flip:#x}", self.name())
    }
}

/// Every word of the catalog that a guest can see, and every one that the plan sets, by place: a place that two tables
/// have (Hyper-V's first leaves and KVM's; what is emulated) counts once.
fn words(table: &[CpuidEntry]) -> BTreeMap<Place, Coord> {
    let mut all = BTreeMap::new();
    let mut put = |at: Coord| {
        let place = match at {
            Coord::Cpuid { leaf, subleaf, register, .. } => Place::Cpuid(leaf, subleaf, register),
            Coord::Msr(msr) => Place::Msr(msr),
            Coord::Reg(_) => return,
        };
        all.entry(place).or_insert(at);
    };
    let supported =
        |leaf, subleaf, register| Coord::Cpuid { table: Table::Supported, leaf, subleaf, register };
    for e in table {
        (0..4).for_each(|register| put(supported(e.function, e.index, register)));
    }
    for hyperv in [false, true] {
        for r in REGISTERS.iter().filter(|r| (r.at.table == "hyperv") == hyperv && r.at.table != "emulated") {
            match (r.at.msr, r.at.leaf, REGISTER.iter().position(|name| *name == r.at.register)) {
                (Some(msr), ..) => put(Coord::Msr(msr)),
                (None, Some(leaf), Some(register)) => {
                    let table = if hyperv { Table::Hyperv } else { Table::Supported };
                    // Of a run of subleaves that the table does not have, the first one stands for all.
                    let subleaf = r.at.subleaf;
                    put(Coord::Cpuid { table, leaf, subleaf, register: register as u8 });
                }
                _ => {}
            }
        }
    }
    all
}

/// The named parts of a word; of one without names, the word.
fn named(at: Coord) -> Vec<Part> {
    let index = index_of(at);
    let mask = at.mask() & !layout(index).runtime;
    if mask == 0 {
        return Vec::new();
    }
    let named: Vec<Part> = parts(at, index, mask).into_iter().filter(|p| !p.name.ends_with(']')).collect();
    if named.is_empty() { vec![Part { mask, ..whole(at) }] } else { named }
}

/// What can be turned over of a part: its lowest bit first, each other, all at once.
fn candidates(mask: u64) -> impl Iterator<Item = u64> {
    let single = (0..64).map(|bit| 1 << bit).filter(move |bit| mask & bit != 0);
    single.chain((mask.count_ones() > 1).then_some(mask))
}

/// A vCPU that never runs, to be asked what it takes.
struct Asked<'v, 'b> {
    vcpu: &'v Vcpu<'b>,
    table: Vec<CpuidEntry>,
    stored: Vec<CpuidEntry>,
}

impl Asked<'_, '_> {
    /// Whether this host stores the word with these bits turned over, honestly asked; or why not.
    fn takes(&self, place: Place, flip: u64) -> Result<(), String> {
        match place {
            Place::Cpuid(leaf, subleaf, register) => {
                let mut table = self.table.clone();
                let at = table.iter().position(|e| (e.function, e.index) == (leaf, subleaf));
                let at = at.unwrap_or_else(|| {
                    let indexed =
                        subleaf != 0 || table.iter().any(|e| e.function == leaf && e.flags & 1 != 0);
                    let flags = u32::from(indexed);
                    table.push(CpuidEntry { function: leaf, index: subleaf, flags, output: [0; 4] });
                    table.len() - 1
                });
                table[at].output[usize::from(register & 3)] ^= flip as u32;
                self.vcpu.set_cpuid(&table).map_err(|e| format!("KVM_SET_CPUID2 refuses it: {}", e.why))?;
                let stored = self.vcpu.cpuid().map_err(|e| e.to_string())?;
                let of = |table: &[CpuidEntry]| {
                    let entry = table.iter().find(|e| (e.function, e.index) == (leaf, subleaf));
                    entry.map_or(0, |e| e.output[usize::from(register & 3)])
                };
                match u64::from(of(&stored) ^ of(&self.stored)) & flip {
                    0 => Err("KVM_GET_CPUID2 shows the host's own value after it".to_owned()),
                    _ => Ok(()),
                }
            }
            Place::Msr(msr) => {
                let get = || self.vcpu.msrs().get(&[msr]).remove(0);
                let set = |value| self.vcpu.msrs().set(&[(msr, value)]).remove(0);
                let before = get().map_err(|e| format!("KVM_GET_MSRS refuses it: {}", e.why))?;
                set(before ^ flip).map_err(|e| format!("KVM_SET_MSRS refuses it: {}", e.why))?;
                let after = get().map_err(|e| e.to_string())?;
                let _ = set(before);
                match (before ^ after) & flip {
                    0 => Err("KVM_GET_MSRS shows the host's own value after it".to_owned()),
                    _ => Ok(()),
                }
            }
        }
    }
}

/// Alters every n-th of them.
///
/// # Errors
/// There is no VM, or no guest to compare with.
pub fn score(
    runs: &mut Runs<'_>,
    plan: &Plan,
    live: &dyn Backend,
    every: usize,
) -> Result<Vec<Scored>, Failure> {
    let (facets, mut scored) = alterable(plan, live, every)?;
    let msrs: BTreeSet<u32> =
        facets.iter().filter_map(|f| if let Place::Msr(msr) = f.place { Some(msr) } else { None }).collect();
    let msrs: Vec<u32> = msrs.into_iter().collect();
    let plain = runs.reference(&[], Look::Words(&msrs))?;
    let mut left = Vec::new();
    for group in batches(facets) {
        batch(runs, &msrs, &plain, group, &mut scored, &mut left);
    }
    if left.is_empty() {
        return Ok(scored);
    }
    // What the words alone did not show, one at a time, with all that the witness has.
    let whole = runs.reference(&[], Look::Machine)?;
    let noise = differences(&whole, &runs.reference(&[], Look::Machine)?);
    scored.extend(left.into_iter().map(|facet| alone(runs, &whole, &noise, facet)));
    Ok(scored)
}

/// Those that this host stores otherwise when it is told to; the others are scored.
fn alterable(plan: &Plan, live: &dyn Backend, every: usize) -> Result<(Vec<Facet>, Vec<Scored>), Failure> {
    let cannot = |e: evenkeel_sys::Error| Failure {
        exit: 3,
        ..Failure::bad(format!("no VM to apply the contract to: {e}"), "this needs a usable /dev/kvm")
    };
    let tried = scratch(plan, live).map_err(cannot)?;
    let vcpu = &tried.vcpus[0];
    let table = plan.table(0);
    let asked = Asked { vcpu, stored: vcpu.cpuid().map_err(cannot)?, table };
    let (mut facets, mut scored) = (Vec::new(), Vec::new());
    let mut number = 0;
    for (place, at) in words(&asked.table) {
        for part in named(at) {
            number += 1;
            if number % every != 0 {
                continue;
            }
            let mut why = String::new();
            let flip = candidates(part.mask).find(|flip| match asked.takes(place, *flip) {
                Ok(()) => true,
                Err(e) => {
                    why = e;
                    false
                }
            });
            match flip {
                Some(flip) => facets.push(Facet { name: part.name, word: place.name(), place, flip }),
                None => scored.push(Scored {
                    facet: part.name,
                    altered: place.call(part.mask),
                    noticed: Outcome::NotAlterable,
                    why,
                }),
            }
        }
    }
    Ok((facets, scored))
}

/// One facet of each word at a time; MSRs apart, because bits of CPUID decide which of them there are.
fn batches(facets: Vec<Facet>) -> Vec<Vec<Facet>> {
    let mut groups: BTreeMap<(bool, usize), Vec<Facet>> = BTreeMap::new();
    let mut so_far: BTreeMap<Place, usize> = BTreeMap::new();
    for facet in facets {
        let turn = so_far.entry(facet.place).or_default();
        groups.entry((matches!(facet.place, Place::Msr(_)), *turn)).or_default().push(facet);
        *turn += 1;
    }
    groups.into_values().collect()
}

/// Alters all of these at once; in halves, where no guest runs like that.
fn batch(
    runs: &mut Runs<'_>,
    msrs: &[u32],
    plain: &Seen,
    mut group: Vec<Facet>,
    scored: &mut Vec<Scored>,
    left: &mut Vec<Facet>,
) {
    let alterations: Vec<Alteration> = group.iter().map(|f| f.place.alteration(f.flip)).collect();
    match runs.altered(&alterations, Look::Words(msrs), plain) {
        Ok(seen) => {
            for facet in group {
                match sees(plain, &seen, &facet) {
                    true => scored.push(noticed(&facet, facet.word.clone())),
                    false => left.push(facet),
                }
            }
        }
        Err(_) if group.len() > 1 => {
            let rest = group.split_off(group.len() / 2);
            batch(runs, msrs, plain, group, scored, left);
            batch(runs, msrs, plain, rest, scored, left);
        }
        Err(_) => left.append(&mut group),
    }
}

fn sees(plain: &Seen, seen: &Seen, facet: &Facet) -> bool {
    match (plain.value(&facet.word), seen.value(&facet.word)) {
        (Some(x), Some(y)) => (x ^ y) & facet.flip != 0,
        _ => false,
    }
}

fn noticed(facet: &Facet, at: String) -> Scored {
    let altered = facet.place.call(facet.flip);
    Scored { facet: facet.name.clone(), altered, noticed: Outcome::Noticed, why: at }
}

/// One, with everything that the witness has.
fn alone(runs: &mut Runs<'_>, plain: &Seen, noise: &BTreeSet<String>, facet: Facet) -> Scored {
    let altered = facet.place.call(facet.flip);
    let result = |noticed, why: String| Scored { facet: facet.name.clone(), altered, noticed, why };
    let seen = match runs.altered(&[facet.place.alteration(facet.flip)], Look::Machine, plain) {
        Ok(seen) => seen,
        Err(why) => return result(Outcome::Missed, why),
    };
    if sees(plain, &seen, &facet) {
        return noticed(&facet, facet.word.clone());
    }
    let found = differences(plain, &seen);
    let mut found = found.difference(noise);
    if let Some(name) = found.clone().find(|name| shows(name, &facet.name)) {
        return result(Outcome::Noticed, name.clone());
    }
    if let Some(other) = found.next() {
        return result(Outcome::Missed, format!("seen under another name only: {other}"));
    }
    // Here the host stores another value, and nothing at all is otherwise.
    let read = match facet.place {
        Place::Cpuid(leaf, subleaf, _) => cpuid::known().contains(&(leaf, subleaf)),
        Place::Msr(_) => plain.saw.contains_key(&facet.word),
    };
    let (noticed, why) = match (read, plain.value(&facet.word)) {
        (false, _) => (Outcome::Missed, "the guest does not look there"),
        (true, Some(_)) => {
            (Outcome::NotAlterable, "stored, and a guest that reads the word is given the host's own value")
        }
        (true, None) => {
            (Outcome::NotAlterable, "stored, and a guest under this contract cannot read the word")
        }
    };
    result(noticed, why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_counts_once_and_every_catalogued_word_is_among_them() {
        let table = [CpuidEntry { function: 7, index: 1, flags: 1, output: [1; 4] }];
        let all = words(&table);
        assert!(all.contains_key(&Place::Cpuid(7, 1, 3)));
        assert!(all.contains_key(&Place::Msr(0x10a)));
        let hyperv = all[&Place::Cpuid(0x4000_0003, 0, 1)];
        assert!(hyperv.to_string().starts_with("hv."), "{hyperv}");
        assert!(all[&Place::Cpuid(0x4000_0001, 0, 0)].to_string().starts_with("cpuid."));
        let count: usize = all.values().map(|at| named(*at).len()).sum();
        assert!(count > 1000, "{count} facets");
    }

    #[test]
    fn a_batch_has_one_facet_of_a_word() {
        let facet = |place: Place, flip| Facet { name: String::new(), word: String::new(), place, flip };
        let (a, b) = (Place::Cpuid(7, 0, 1), Place::Cpuid(7, 0, 2));
        let groups = batches(vec![facet(a, 1), facet(a, 2), facet(b, 1), facet(Place::Msr(0x10a), 1)]);
        let sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 1, 1]);
        assert_eq!(candidates(0b1010).collect::<Vec<u64>>(), [2, 8, 10]);
    }
}
