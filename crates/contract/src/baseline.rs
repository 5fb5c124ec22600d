//! The richest contract that all of several hosts can keep: the meet of what they offer, then the best of it.
//!
//! The meet is commutative, associative and idempotent; the choice of the best and the constraints come after it, so
//! the order in which hosts are named never matters.

use evenkeel_catalog::{self as catalog, CHOICES};
use evenkeel_surface::Arch;

use crate::contract::{Contract, Promise};
use crate::coord::{Coord, Table};
use crate::describe::parts;
use crate::finding::Axis;
use crate::layout::{Interval, Number, layout};
use crate::view::{View, Word};

/// What several hosts can all give of one word.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Meet {
    at: Coord,
    layout: u16,
    /// Bits that all can show as 0.
    can0: u64,
    /// Bits that all can show as 1.
    can1: u64,
    /// Bits that are undetermined on one of them: the value that is always possible is taken.
    unknown: u64,
    /// The least value of the free bits: compared, never intersected.
    free: u64,
    /// The hosts do not agree over the free bits.
    free_differs: bool,
    numbers: Vec<Interval>,
    /// The word that was met last: in a fleet most hosts show the same, and meeting it again changes nothing.
    last: (u64, u64, u64),
}

fn state(word: &Word) -> (u64, u64, u64) {
    (word.value, word.writable, word.unknown)
}

impl Meet {
    fn of(word: &Word) -> Meet {
        let rules = word.rules();
        let (can0, can1) = word.can();
        let numbers = rules.numbers.iter().map(|n| number(word, n)).collect();
        Meet {
            at: word.at,
            layout: word.layout,
            can0,
            can1,
            unknown: word.unknown,
            free: word.value & rules.free,
            free_differs: false,
            numbers,
            last: state(word),
        }
    }

    fn meet(&mut self, word: &Word) {
        if self.last == state(word) {
            return;
        }
        self.last = state(word);
        let rules = layout(self.layout);
        let (can0, can1) = word.can();
        self.can0 &= can0;
        self.can1 &= can1;
        self.unknown |= word.unknown;
        let free = word.value & rules.free;
        self.free_differs |= free != self.free;
        self.free = self.free.min(free);
        for (mine, n) in self.numbers.iter_mut().zip(&rules.numbers) {
            *mine = mine.meet(&number(word, n), n);
        }
    }

    fn merge(&mut self, other: &Meet) {
        self.can0 &= other.can0;
        self.can1 &= other.can1;
        self.unknown |= other.unknown;
        self.free_differs |= other.free_differs || other.free != self.free;
        self.free = self.free.min(other.free);
        for ((mine, theirs), n) in
            self.numbers.iter_mut().zip(&other.numbers).zip(&layout(self.layout).numbers)
        {
            *mine = mine.meet(theirs, n);
        }
    }

    /// The best common value, and the bits for which there is none.
    fn best(&self) -> (u64, u64) {
        let rules = layout(self.layout);
        let numbers = rules.number_bits();
        let none = !(self.can0 | self.can1) & !rules.free & !rules.runtime & !numbers & self.at.mask();
        // Where nothing is known for sure, the value that every host can give.
        let certain = !self.unknown;
        let flags = rules.flag & self.can1 & (certain | !self.can0);
        let accumulated = rules.accumulate & self.can1 & !(self.can0 & certain);
        let exact = rules.exact & self.can1 & !self.can0;
        // Free bits are free, but for a host that was seen to store its own.
        let free = (self.free | rules.free & !self.can0) & self.can1;
        let mut value = flags | accumulated | exact | free;
        let mut conflict = none;
        for (interval, n) in self.numbers.iter().zip(&rules.numbers) {
            match interval.best(n) {
                Some(best) => value |= n.put(best),
                None => conflict |= n.mask,
            }
        }
        (value & self.at.mask() & !conflict, conflict)
    }
}

/// What a host can give of a number.
fn number(word: &Word, n: &Number) -> Interval {
    match word.unknown & n.mask {
        0 => n.interval(n.get(word.value), word.writable & n.mask != n.mask),
        // What is not known cannot be promised; the safe value is left.
        _ => Interval { lo: n.safe, hi: n.safe, safe: false },
    }
}

/// What a host cost the others: a part of a facet that all but it (or all but a few) could give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    /// The host's label.
    pub host: String,
    /// Facets that are not in the baseline because of it alone.
    pub facets: Vec<String>,
}

/// Something over which the hosts cannot agree at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The facet.
    pub facet: String,
    /// Where the disagreement comes from.
    pub axis: Axis,
    /// Label and value of each host.
    pub values: Vec<(String, String)>,
}

/// A baseline: the contract, if there is one, and what it cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Baseline {
    /// The richest common contract. Facets in `conflicts` are left out of it.
    pub contract: Contract,
    /// Facets without a common value: no contract with them can be kept by all.
    pub conflicts: Vec<Conflict>,
    /// Identity and topology words that differ: a VMM sets them freely, but they tell CPUs apart.
    pub identities: Vec<String>,
}

/// The absent value of a choice, as a mask.
fn absent_mask(choice: u16) -> u64 {
    crate::contract::absent_of(&CHOICES[usize::from(choice)]).map_or(0, |v| 1u64 << v)
}

/// The meet of the words of many views, as it is accumulated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accumulator {
    words: Vec<Meet>,
    choices: Vec<(u16, u64, bool)>,
    hosts: usize,
}

impl Accumulator {
    /// Takes one more host into account.
    pub fn add(&mut self, view: &View) {
        if self.hosts == 0 {
            self.words = view
                .words
                .iter()
                .filter(|w| !crate::contract::is_opt_in(w.at, w.layout))
                .map(Meet::of)
                .collect();
            self.choices = view.choices.iter().map(|c| (c.choice, c.values, c.default.is_some())).collect();
        } else {
            self.meet_words(view);
            self.meet_choices(view);
        }
        self.hosts += 1;
    }

    fn meet_words(&mut self, view: &View) {
        let mut i = 0;
        let mut strangers: Vec<Word> = Vec::new();
        for word in view.words.iter() {
            // Usually both lists name the same words: then this is one step each.
            while i < self.words.len() && self.words[i].at < word.at {
                let absent = Word::absent(self.words[i].at, self.words[i].layout);
                self.words[i].meet(&absent);
                i += 1;
            }
            if i < self.words.len() && self.words[i].at == word.at {
                self.words[i].meet(word);
                i += 1;
            } else if !crate::contract::is_opt_in(word.at, word.layout) {
                strangers.push(*word);
            }
        }
        while i < self.words.len() {
            let absent = Word::absent(self.words[i].at, self.words[i].layout);
            self.words[i].meet(&absent);
            i += 1;
        }
        if strangers.is_empty() {
            return;
        }
        for word in strangers {
            let mut meet = Meet::of(&Word::absent(word.at, word.layout));
            meet.meet(&word);
            self.words.push(meet);
        }
        self.words.sort_by_key(|m| m.at);
    }

    fn meet_choices(&mut self, view: &View) {
        for (choice, values, known) in &mut self.choices {
            match view.choice(*choice) {
                Some(theirs) => {
                    *values &= theirs.values;
                    *known &= theirs.default.is_some();
                }
                None => *values &= absent_mask(*choice),
            }
        }
        for theirs in &view.choices {
            if let Err(i) = self.choices.binary_search_by_key(&theirs.choice, |c| c.0) {
                let entry =
                    (theirs.choice, theirs.values & absent_mask(theirs.choice), theirs.default.is_some());
                self.choices.insert(i, entry);
            }
        }
    }

    /// Takes all hosts of another accumulator into account. Commutative, associative, idempotent.
    #[must_use]
    pub fn merge(mut self, other: &Accumulator) -> Accumulator {
        if other.hosts == 0 || self.hosts == 0 {
            return if self.hosts == 0 { other.clone() } else { self };
        }
        let absent = |at: Coord, layout_index: u16| Meet::of(&Word::absent(at, layout_index));
        for mine in &mut self.words {
            match other.words.binary_search_by_key(&mine.at, |m| m.at) {
                Ok(i) => mine.merge(&other.words[i]),
                Err(_) => mine.merge(&absent(mine.at, mine.layout)),
            }
        }
        for theirs in &other.words {
            if let Err(i) = self.words.binary_search_by_key(&theirs.at, |m| m.at) {
                let mut word = absent(theirs.at, theirs.layout);
                word.merge(theirs);
                self.words.insert(i, word);
            }
        }
        for mine in &mut self.choices {
            match other.choices.binary_search_by_key(&mine.0, |c| c.0) {
                Ok(i) => *mine = (mine.0, mine.1 & other.choices[i].1, mine.2 && other.choices[i].2),
                Err(_) => mine.1 &= absent_mask(mine.0),
            }
        }
        for theirs in &other.choices {
            if let Err(i) = self.choices.binary_search_by_key(&theirs.0, |c| c.0) {
                self.choices.insert(i, (theirs.0, theirs.1 & absent_mask(theirs.0), theirs.2));
            }
        }
        self.hosts += other.hosts;
        self
    }

    /// The best contract in the meet. Constraints are applied until all hold.
    pub fn finish(&self, name: &str, arch: Arch, shape: &str) -> (Contract, Vec<(Coord, u16, u64)>) {
        let mut conflicts = Vec::new();
        let mut words = Vec::with_capacity(self.words.len());
        for meet in &self.words {
            let (value, conflict) = meet.best();
            if conflict != 0 {
                conflicts.push((meet.at, meet.layout, conflict));
            }
            // A word that is at its absent value need not be named.
            if value != layout(meet.layout).absent || conflict != 0 {
                words.push(Promise { at: meet.at, value, open: 0 });
            }
        }
        let mut choices = Vec::with_capacity(self.choices.len());
        for (choice, values, known) in &self.choices {
            let facet = &CHOICES[usize::from(*choice)];
            // What nobody has determined cannot be promised.
            if !known || *values == 0 {
                continue;
            }
            let index = |value: u64| facet.values.iter().position(|v| v.value == value);
            let order = facet
                .prefer
                .iter()
                .copied()
                .chain([facet.default])
                .chain(facet.values.iter().map(|v| v.value));
            let best = order.filter_map(index).find(|i| values >> i & 1 == 1);
            // What a VMM has to ask for is left away unless it is asked for here too: see `most`.
            let unasked =
                !facet.from.bits.is_empty() && best.is_some_and(|i| facet.values[i].value == facet.absent);
            if let Some(best) = best.filter(|_| !unasked) {
                choices.push((*choice, best as u8));
            }
        }
        let mut contract = Contract {
            name: name.to_owned(),
            arch,
            shape: shape.to_owned(),
            words,
            choices,
            open_rest: false,
        };
        // Clearing one facet can take the ground from under another: until nothing changes.
        loop {
            let mut changed = false;
            for broken in contract.broken() {
                let Some((at, mask)) = broken.at else { continue };
                // A bit that some host cannot show as 0 stays, whatever it needs.
                let can0 =
                    self.words.binary_search_by_key(&at, |m| m.at).map_or(u64::MAX, |i| self.words[i].can0);
                let guarded = crate::contract::guard_of(at).is_some();
                let mask = if guarded { mask } else { mask & can0 };
                if let Ok(i) = contract.words.binary_search_by_key(&at, |p| p.at)
                    && contract.words[i].value & mask != 0
                {
                    contract.words[i].value &= !mask;
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
        fit_xsave_area(&mut contract);
        (contract, conflicts)
    }
}

/// The XSAVE area ends where the last of its components does (SDM volume 1, 13.4): leaf 0xd says so of the components that the
/// contract has, and the least of what hosts say, each of its own components, can be more. It is never made larger here: hosts that
/// place a component differently agree on nothing about it.
fn fit_xsave_area(contract: &mut Contract) {
    let at = |subleaf, register| Coord::Cpuid { table: Table::Supported, leaf: 0xd, subleaf, register };
    let get = |at| {
        contract.words.binary_search_by_key(&at, |p: &Promise| p.at).map_or(0, |i| contract.words[i].value)
    };
    let components = get(at(0, 0)) | get(at(0, 3)) << 32;
    let mut ends = (2..63).filter(|n| components >> n & 1 == 1).map(|n| (get(at(n, 0)), get(at(n, 1))));
    // x87 and SSE have the first 512 bytes, the header 64.
    let end = ends
        .try_fold(576_u64, |end, (size, offset)| (size != 0 && offset != 0).then(|| end.max(offset + size)));
    if let (Some(end), Ok(i)) = (end, contract.words.binary_search_by_key(&at(0, 2), |p| p.at)) {
        contract.words[i].value = contract.words[i].value.min(end);
    }
}

/// The baseline of several hosts, one view each, all in one shape.
pub fn baseline(views: &[&View], name: &str) -> Baseline {
    let mut accumulator = Accumulator::default();
    for view in views {
        accumulator.add(view);
    }
    let Some(first) = views.first() else {
        let contract = Contract { open_rest: false, ..Contract::unpinned(Arch::X86_64, "") };
        return Baseline { contract, conflicts: Vec::new(), identities: Vec::new() };
    };
    let (contract, raw) = accumulator.finish(name, first.arch, &first.shape);
    let mut conflicts = Vec::new();
    for (at, layout_index, bits) in raw {
        for part in parts(at, layout_index, bits) {
            let values = views.iter().map(|v| (v.host.label.clone(), part.show(v.word_or_absent(at).value)));
            let axis = views[1..]
                .iter()
                .map(|v| crate::describe::axis(views[0], v, at, layout_index, part.mask))
                .max_by_key(|a| *a == Axis::Cpu)
                .unwrap_or(Axis::Kernel);
            let mut values: Vec<(String, String)> = values.collect();
            values.sort();
            conflicts.push(Conflict { facet: part.name, axis, values });
        }
    }
    let identities = accumulator.words.iter().filter(|m| m.free_differs).map(|m| m.at.to_string()).collect();
    Baseline { contract, conflicts, identities }
}

/// Promises the most that all of these hosts can give of a facet that a VMM asks for ([`catalog::Source::bits`]). Returns its value's
/// name; none: there is no such facet.
pub fn most(views: &[&View], contract: &mut Contract, facet: &str) -> Option<&'static str> {
    let index = CHOICES.iter().position(|c| c.name == facet && !c.from.bits.is_empty())? as u16;
    let offers = views.iter().map(|view| view.choice(index).map_or(0, |offer| offer.values));
    let common = offers.reduce(|all, values| all & values)?;
    let values = CHOICES[usize::from(index)].values.iter().enumerate();
    let (best, value) =
        values.filter(|(i, _)| common >> i & 1 == 1).max_by_key(|(_, v)| v.value.count_ones())?;
    contract.choices.retain(|(choice, _)| *choice != index);
    contract.choices.push((index, best as u8));
    contract.choices.sort_unstable();
    Some(value.name)
}

/// What each host cost: facets that every other host could have given.
pub fn costs(views: &[&View], contract: &Contract) -> Vec<Cost> {
    let mut costs: Vec<Cost> = Vec::new();
    if views.len() < 2 {
        return costs;
    }
    // The meet of all hosts but one is that of those before it and that of those after it.
    let mut after = vec![Accumulator::default()];
    for view in views.iter().skip(1).rev() {
        let mut one = Accumulator::default();
        one.add(view);
        let rest = one.merge(&after[after.len() - 1]);
        after.push(rest);
    }
    let mut before = Accumulator::default();
    for view in views {
        let others = after.pop().unwrap_or_default().merge(&before);
        before.add(view);
        let (without, _) = others.finish(&contract.name, contract.arch, &contract.shape);
        let mut facets = Vec::new();
        for p in &without.words {
            let mine = contract
                .words
                .binary_search_by_key(&p.at, |q| q.at)
                .map_or(layout_absent(p.at), |k| contract.words[k].value);
            let rules = layout(crate::layout::index_of(p.at));
            let lost = (p.value ^ mine) & !rules.free & !rules.runtime;
            facets.extend(parts(p.at, crate::layout::index_of(p.at), lost).into_iter().map(|part| part.name));
        }
        for (choice, value) in &without.choices {
            if contract.choices.binary_search(&(*choice, *value)).is_err() {
                facets.push(catalog::CHOICES[usize::from(*choice)].name.to_owned());
            }
        }
        if !facets.is_empty() {
            costs.push(Cost { host: view.host.label.clone(), facets });
        }
    }
    costs.sort_by(|a, b| a.host.cmp(&b.host));
    costs
}

fn layout_absent(at: Coord) -> u64 {
    layout(crate::layout::index_of(at)).absent
}
