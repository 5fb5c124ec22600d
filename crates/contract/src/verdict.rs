//! The four verdicts for a change from host O to host N.
//!
//! | | question | is |
//! |---|---|---|
//! | up | a guest that runs on O moves to N | keeps(N) ∧ carries(O → N) |
//! | back | that guest returns from N to O | keeps(O) ∧ carries(N → O), judged on what it could have seen on N |
//! | new | a guest started on N sees what one started on O sees | a contract with O's values exists on N |
//! | new back | a guest started on N moves to O | keeps(O) ∧ carries(N → O), for what it was shown on N |
//!
//! Each is asked for a guest whose VMM pins nothing (the worst case: all that KVM offers is passed on, nothing is
//! selected, all that is listed is saved) and for one under a contract.

use schemars::JsonSchema;
use serde::Serialize;

use crate::carries::carries;
use crate::contract::{Contract, Shown};
use crate::finding::{Finding, Outcome, fold};
use crate::keeps::{Question, keeps};
use crate::view::{Evidence, View};

/// One of the four questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Journey {
    /// A running guest, O to N.
    RunningUp,
    /// The same guest, N to O.
    RunningBack,
    /// A guest started on N instead of O.
    NewGuest,
    /// That guest, N to O.
    NewBack,
}

impl Journey {
    /// All four, in the order in which they are told.
    pub const ALL: [Journey; 4] =
        [Journey::RunningUp, Journey::RunningBack, Journey::NewGuest, Journey::NewBack];
}

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Verdict {
    /// The question.
    pub journey: Journey,
    /// The answer: the worst of what was found.
    pub outcome: Outcome,
    /// What the answer would be if everything that is not determined turned out well; differs from `outcome` only
    /// when that is `unknown`.
    pub otherwise: Outcome,
    /// The weakest evidence that it rests on.
    pub evidence: Evidence,
    /// What was found, most severe first.
    pub findings: Vec<Finding>,
}

/// The four answers for one guest.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Verdicts {
    /// The contract's name: `unpinned` for the guest whose VMM pins nothing.
    pub guest: String,
    /// The shapes that were looked at.
    pub shapes: Vec<String>,
    /// The four answers, in the order of [`Journey::ALL`].
    pub verdicts: Vec<Verdict>,
}

impl Verdicts {
    /// The worst of the four.
    pub fn outcome(&self) -> Outcome {
        self.verdicts.iter().map(|v| v.outcome).max().unwrap_or(Outcome::Unknown)
    }
}

/// What one guest could have seen since its last reset: the join of what it was shown wherever it ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposure {
    /// Hosts that it ran on, in order.
    pub hosts: Vec<String>,
    /// What it was started with: its saved state carries it everywhere.
    pub shown: Shown,
    /// Choices that it has seen, a mask of values each, ascending; none: not determined somewhere.
    pub seen: Vec<(u16, Option<u64>)>,
}

impl Exposure {
    /// A guest that was started under `contract` on `view`.
    pub fn started(contract: &Contract, view: &View) -> Exposure {
        let shown = contract.resolve(view);
        let seen = shown.choices.iter().map(|(c, v)| (*c, v.map(|v| 1 << v))).collect();
        Exposure { hosts: vec![view.host.label.clone()], shown, seen }
    }

    /// It moved to `view`, where the VMM selected nothing: it sees that host's defaults of what is not carried.
    pub fn moved_unpinned(&mut self, view: &View) {
        self.hosts.push(view.host.label.clone());
        for offer in view.choices.iter().filter(|o| !o.facet().carried) {
            match self.seen.binary_search_by_key(&offer.choice, |c| c.0) {
                Ok(i) => self.seen[i].1 = self.seen[i].1.zip(offer.default).map(|(mask, v)| mask | 1 << v),
                Err(i) => self.seen.insert(i, (offer.choice, offer.default.map(|v| 1 << v))),
            }
        }
    }
}

/// Looks at all shapes that both hosts have, and folds what is the same in each.
fn in_every_shape(
    o: &[View],
    n: &[View],
    mut ask: impl FnMut(&View, &View) -> Vec<Finding>,
) -> (Vec<Finding>, Evidence) {
    let mut findings = Vec::new();
    let mut asked = 0;
    let mut evidence = Evidence::Observed;
    for (old, new) in
        o.iter().filter_map(|old| n.iter().find(|new| new.shape == old.shape).map(|new| (old, new)))
    {
        asked += 1;
        evidence = evidence.min(old.evidence).min(new.evidence);
        findings.extend(ask(old, new));
    }
    (fold(findings, asked), evidence)
}

fn conclude(journey: Journey, (findings, evidence): (Vec<Finding>, Evidence)) -> Verdict {
    let worst = |skip_unknown: bool| {
        let outcomes =
            findings.iter().map(|f| f.outcome).filter(|o| !(skip_unknown && *o == Outcome::Unknown));
        outcomes.max().unwrap_or(Outcome::HoldsByDefault)
    };
    Verdict { journey, outcome: worst(false), otherwise: worst(true), evidence, findings }
}

/// The four verdicts for a guest whose VMM pins nothing, in every shape that both hosts have.
pub fn unpinned(o: &[View], n: &[View]) -> Verdicts {
    let verdicts = Journey::ALL.map(|journey| {
        let found = in_every_shape(o, n, |old, new| {
            ask(&Contract::unpinned(old.arch, &old.shape), journey, old, new, false)
        });
        conclude(journey, found)
    });
    let common = o.iter().filter(|old| n.iter().any(|new| new.shape == old.shape));
    let shapes = common.map(|v| v.shape.clone()).collect();
    Verdicts { guest: "unpinned".to_owned(), shapes, verdicts: verdicts.into() }
}

/// The four verdicts for a guest under a contract; the VMM selects and takes on duties.
pub fn under(contract: &Contract, o: &[View], n: &[View]) -> Verdicts {
    let only = |views: &[View]| -> Vec<View> {
        views.iter().filter(|v| v.shape == contract.shape).cloned().collect()
    };
    let (o, n) = (only(o), only(n));
    let verdicts = Journey::ALL.map(|journey| {
        conclude(journey, in_every_shape(&o, &n, |old, new| ask(contract, journey, old, new, true)))
    });
    Verdicts { guest: contract.name.clone(), shapes: vec![contract.shape.clone()], verdicts: verdicts.into() }
}

/// Folds the verdicts of one kind of guest in several shapes into one.
pub fn fold_guests(each: Vec<Verdicts>) -> Verdicts {
    let asked = each.len();
    let guest = each.first().map_or_else(String::new, |v| v.guest.clone());
    let verdicts = Journey::ALL.map(|journey| {
        let of = each.iter().flat_map(|v| &v.verdicts).filter(|v| v.journey == journey);
        let evidence = of.clone().map(|v| v.evidence).min().unwrap_or(Evidence::Predicted);
        let shape = |v: &Verdicts| -> Vec<Finding> {
            v.verdicts.iter().filter(|v| v.journey == journey).flat_map(|v| v.findings.clone()).collect()
        };
        // A guest under a contract has one shape, so its findings name none: they are put back before folding.
        let findings = each.iter().flat_map(|v| {
            let mut findings = shape(v);
            for f in findings.iter_mut().filter(|f| f.shapes.is_empty()) {
                f.shapes.clone_from(&v.shapes);
            }
            findings
        });
        conclude(journey, (fold(findings.collect(), asked), evidence))
    });
    let shapes = each.iter().flat_map(|v| v.shapes.clone()).collect();
    Verdicts { guest, shapes, verdicts: verdicts.into() }
}

/// One question in one shape. `pinned`: the VMM selects values and takes on duties.
pub fn ask(contract: &Contract, journey: Journey, old: &View, new: &View, pinned: bool) -> Vec<Finding> {
    match journey {
        Journey::RunningUp => {
            let q = Question { from: old, on: new, running: true, pinned };
            let shown = contract.resolve(old);
            let mut findings = keeps(&q, &shown);
            findings.extend(carries(&q, &shown));
            findings
        }
        Journey::RunningBack => {
            let mut exposure = Exposure::started(contract, old);
            if !pinned {
                exposure.moved_unpinned(new);
            }
            back(&Question { from: new, on: old, running: true, pinned }, &exposure)
        }
        Journey::NewGuest => {
            keeps(&Question { from: old, on: new, running: false, pinned }, &contract.resolve(old))
        }
        Journey::NewBack => {
            let exposure = Exposure::started(contract, new);
            let mut findings = Vec::new();
            if pinned {
                // It has to be started there under the contract first.
                findings
                    .extend(keeps(&Question { from: new, on: new, running: false, pinned }, &exposure.shown));
            }
            findings.extend(back(&Question { from: new, on: old, running: true, pinned }, &exposure));
            findings
        }
    }
}

/// Keeps and carries for a guest that goes to `q.on`, judged on what it could have seen.
fn back(q: &Question<'_>, exposure: &Exposure) -> Vec<Finding> {
    let mut findings = keeps(q, &exposure.shown);
    findings.extend(carries(q, &exposure.shown));
    // What it saw on the way, besides what it was started with.
    for (choice, seen) in &exposure.seen {
        let started = exposure
            .shown
            .choices
            .binary_search_by_key(choice, |c| c.0)
            .ok()
            .and_then(|i| exposure.shown.choices[i].1);
        let Some(offer) = q.on.choice(*choice) else { continue };
        let others = seen.unwrap_or(0) & !started.map_or(0, |v| 1 << v);
        for value in (0..64u8).filter(|v| others >> v & 1 == 1) {
            crate::keeps::judge_choice(q, offer, Some(value), &mut findings);
        }
    }
    findings
}
