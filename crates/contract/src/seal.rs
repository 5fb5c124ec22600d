//! What a host would add that nobody named.

use crate::cause;
use crate::contract::{Contract, Promise, is_opt_in};
use crate::describe::{axis, coordinate, parts};
use crate::finding::{Finding, Outcome, Remedy, fold};
use crate::keeps::value_name;
use crate::view::View;

/// The leaks of a contract (or of a foreign template read as one) on a host: everything that is left to the host and
/// that the host shows. With `reference`, only what `reference` does not show: what a newer host adds.
pub fn leaks(contract: &Contract, host: &View, reference: Option<&View>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for w in host.words.iter().filter(|w| !is_opt_in(w.at, w.layout)) {
        let open = match contract.words.binary_search_by_key(&w.at, |p| p.at) {
            Ok(i) => contract.words[i].open,
            Err(_) if contract.open_rest => u64::MAX,
            Err(_) => continue,
        };
        let rules = w.rules();
        let old = reference.map(|r| r.word_or_absent(w.at).value);
        let shown =
            (w.value ^ old.unwrap_or(rules.absent)) & open & !rules.free & !rules.runtime & w.at.mask();
        for part in parts(w.at, w.layout, shown) {
            let before = part.show(old.unwrap_or(rules.absent));
            let after = part.show(w.value);
            let cause = cause::of_facet(host.arch, &part.name, &before, &after);
            findings.push(Finding {
                code: "leak",
                title: part.title.to_owned(),
                at: coordinate(w.at, &part),
                outcome: Outcome::No,
                axis: axis(reference.unwrap_or(host), host, w.at, w.layout, part.mask),
                before,
                after,
                shapes: Vec::new(),
                cause: cause.map(|c| c.id),
                remedy: Remedy::Selector {
                    steps: vec![format!("name a value for `{}` in the contract", part.name)],
                },
                evidence: host.evidence,
                subject: part.name,
            });
        }
    }
    if contract.open_rest {
        for offer in &host.choices {
            let named = contract.choices.binary_search_by_key(&offer.choice, |c| c.0).is_ok();
            let absent = crate::contract::absent_of(offer.facet());
            let old = reference.map_or(absent, |r| r.choice(offer.choice).map_or(absent, |o| o.default));
            if named || offer.default == old || offer.default.is_none() {
                continue;
            }
            let facet = offer.facet();
            findings.push(Finding {
                code: "leak",
                subject: facet.name.to_owned(),
                title: facet.title.to_owned(),
                at: String::new(),
                outcome: Outcome::No,
                axis: crate::finding::Axis::Kernel,
                before: value_name(offer.choice, old),
                after: value_name(offer.choice, offer.default),
                shapes: Vec::new(),
                cause: None,
                remedy: Remedy::Selector {
                    steps: vec![format!("name a value for `{}` in the contract", facet.name)],
                },
                evidence: host.evidence,
            });
        }
    }
    fold(findings, usize::MAX)
}

/// The contract with every open bit closed at what `host` gives: what a guest started there today is promised.
pub fn sealed(contract: &Contract, host: &View) -> Contract {
    let shown = contract.resolve(host);
    let words = shown
        .words
        .iter()
        .map(|w| Promise { at: w.at, value: w.value & !w.unknown, open: 0 })
        .filter(|p| p.value != crate::layout::layout(crate::layout::index_of(p.at)).absent)
        .collect();
    let choices = shown.choices.iter().filter_map(|(c, v)| v.map(|v| (*c, v))).collect();
    Contract { words, choices, open_rest: false, ..contract.clone() }
}
