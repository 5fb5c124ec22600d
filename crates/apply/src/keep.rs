//! The contract that a host can keep, from what was read back.

use evenkeel_catalog::CHOICES;
use evenkeel_contract::contract::{Promise, absent_of, is_opt_in};
use evenkeel_contract::layout::{index_of, layout};
use evenkeel_contract::{Contract, Coord, View};
use evenkeel_steps::Place;
use evenkeel_surface::Surface;

use crate::applying::Applying;
use crate::cpuid::logical;

impl Applying<'_> {
    /// A contract that this host can keep: what was read back on the first vCPU where that was not what this contract
    /// says, and for facets that are no words a value that the host offers.
    pub fn can_keep(&self, host: &Surface, name: &str) -> Contract {
        let plan = self.plan;
        let mut words: Vec<Promise> = Vec::new();
        for (place, got) in &self.seen.0 {
            let Ok(value) = got else { continue };
            let at = match *place {
                Place::Cpuid(leaf, subleaf, register) => logical(leaf, subleaf, register, plan.hyperv),
                Place::Msr(msr) => Coord::Msr(msr),
                Place::Reg(id) => Coord::Reg(id),
                _ => continue,
            };
            let index = index_of(at);
            // A place that only tells of a choice is no word of facets.
            let known = usize::from(index) < evenkeel_catalog::REGISTERS.len();
            if !known && !matches!(at, Coord::Cpuid { .. }) {
                continue;
            }
            let rules = layout(index);
            // What KVM keeps up to date by itself is nobody's promise.
            let value = value & !rules.runtime & at.mask();
            if value != rules.absent & !rules.runtime {
                words.push(Promise { at, value, open: 0 });
            }
        }
        words.sort_by_key(|w| w.at);
        words.dedup_by_key(|w| w.at);
        let views = View::all(host, "this host");
        let view = views.iter().find(|v| v.shape == plan.contract.shape);
        if let Some(view) = view {
            // A host that forces a value shows it where the table has the leaf, and the guest may see it where it has
            // not; a leaf that the host does not have itself is left out.
            let unnamed: Vec<Coord> =
                view.words.iter().filter(|w| !is_opt_in(w.at, w.layout)).map(|w| w.at).collect();
            for at in unnamed {
                if let Err(i) = words.binary_search_by_key(&at, |p| p.at) {
                    words.insert(i, Promise { at, value: layout(index_of(at)).absent, open: 0 });
                }
            }
            for p in &mut words {
                let word = view.word_or_absent(p.at);
                let forced = word.refuses(p.value).0;
                p.value = p.value & !forced | word.value & forced;
            }
            words.retain(|p| p.value != layout(index_of(p.at)).absent);
        }
        let refused = |facet: &str| {
            let early = plan.refusals.iter().any(|r| r.facet == facet);
            early || self.steps.iter().flat_map(|s| &s.differences).any(|d| d.facet == facet)
        };
        let mut choices: Vec<(u16, u8)> = Vec::new();
        for offer in view.iter().flat_map(|v| &v.choices) {
            let facet = &CHOICES[usize::from(offer.choice)];
            let named = plan.contract.choices.iter().find(|(c, _)| *c == offer.choice).map(|(_, v)| *v);
            let wanted = named.or_else(|| absent_of(facet));
            let value = if refused(facet.name) { offer.default } else { wanted.or(offer.default) };
            if let Some(value) = value.filter(|v| offer.values >> v & 1 == 1) {
                choices.push((offer.choice, value));
            }
        }
        choices.sort_unstable();
        Contract {
            name: name.to_owned(),
            arch: plan.contract.arch,
            shape: plan.contract.shape.clone(),
            words,
            choices,
            open_rest: false,
        }
    }
}
