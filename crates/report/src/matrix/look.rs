//! One way to look at a matrix: which guest, which journey; the answer of a cell, and what answers rest on.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_contract::{Evidence, Finding, Journey, Outcome};

use super::{MatrixLane, MatrixPair, MatrixReport, MatrixVerdict};

/// Which guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// Its VMM passes on everything and selects nothing.
    Unpinned,
    /// It is under the sealed baseline of the two hosts.
    Pinned,
}

impl Guest {
    /// Both, as a person reads them.
    pub const ALL: [Guest; 2] = [Guest::Pinned, Guest::Unpinned];

    /// The name in documents.
    pub fn name(self) -> &'static str {
        match self {
            Guest::Unpinned => "unpinned",
            Guest::Pinned => "pinned",
        }
    }

    /// What its VMM does.
    pub fn means(self) -> &'static str {
        match self {
            Guest::Unpinned => {
                "the VMM passes on all that KVM offers, selects nothing and saves every listed MSR: the worst case"
            }
            Guest::Pinned => {
                "the VMM applies the sealed baseline of the two kernels, selects what has to be selected and takes on duties"
            }
        }
    }
}

/// Which of the four questions are answered in a cell, by the worst of their answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trip {
    /// The first two: an upgrade of the host under a running guest, and its rollback.
    ThereAndBack,
    /// One of them.
    One(Journey),
    /// All four.
    Worst,
}

impl Trip {
    /// Every one, in the order in which they are offered.
    pub const ALL: [Trip; 6] = [
        Trip::ThereAndBack,
        Trip::One(Journey::RunningUp),
        Trip::One(Journey::RunningBack),
        Trip::One(Journey::NewGuest),
        Trip::One(Journey::NewBack),
        Trip::Worst,
    ];

    /// The name of the option.
    pub fn name(self) -> &'static str {
        match self {
            Trip::ThereAndBack => "there-and-back",
            Trip::One(Journey::RunningUp) => "up",
            Trip::One(Journey::RunningBack) => "back",
            Trip::One(Journey::NewGuest) => "new",
            Trip::One(Journey::NewBack) => "new-back",
            Trip::Worst => "worst",
        }
    }

    /// A heading.
    pub fn title(self) -> &'static str {
        match self {
            Trip::ThereAndBack => "there and back",
            Trip::One(Journey::RunningUp) => "there",
            Trip::One(Journey::RunningBack) => "the way back",
            Trip::One(Journey::NewGuest) => "started there",
            Trip::One(Journey::NewBack) => "started there, moved here",
            Trip::Worst => "the worst of all four",
        }
    }

    /// What a cell says. Row and column are the kernels.
    pub fn means(self) -> &'static str {
        match self {
            Trip::ThereAndBack => {
                "does a guest that runs on the row's kernel survive the move to the column's, and the return?"
            }
            Trip::One(Journey::RunningUp) => {
                "does a guest that runs on the row's kernel survive the move to the column's?"
            }
            Trip::One(Journey::RunningBack) => {
                "does a guest that moved from the row's kernel to the column's survive the return to the row's?"
            }
            Trip::One(Journey::NewGuest) => {
                "does a guest that is started on the column's kernel see what it would see on the row's?"
            }
            Trip::One(Journey::NewBack) => {
                "can a guest that was started on the column's kernel go to the row's?"
            }
            Trip::Worst => {
                "the worst of four: move, return, a new guest on the column's kernel, and that one's way to the row's"
            }
        }
    }

    /// Whether it asks this question.
    pub fn asks(self, journey: Journey) -> bool {
        match self {
            Trip::ThereAndBack => matches!(journey, Journey::RunningUp | Journey::RunningBack),
            Trip::One(one) => one == journey,
            Trip::Worst => true,
        }
    }
}

/// Which cells are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Which guest.
    pub guest: Guest,
    /// Which questions.
    pub trip: Trip,
}

/// What a cell says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answer {
    /// The worst of the answers.
    pub outcome: Outcome,
    /// The same, if everything that is not determined turned out well.
    pub otherwise: Outcome,
}

impl Answer {
    /// Those that can be, from best to worst. What is unknown is told apart by what it would be otherwise.
    pub const ALL: [Answer; 7] = [
        Answer { outcome: Outcome::HoldsByDefault, otherwise: Outcome::HoldsByDefault },
        Answer { outcome: Outcome::HoldsWithSelectors, otherwise: Outcome::HoldsWithSelectors },
        Answer { outcome: Outcome::HoldsWithDuties, otherwise: Outcome::HoldsWithDuties },
        Answer { outcome: Outcome::Unknown, otherwise: Outcome::HoldsByDefault },
        Answer { outcome: Outcome::Unknown, otherwise: Outcome::HoldsWithSelectors },
        Answer { outcome: Outcome::Unknown, otherwise: Outcome::HoldsWithDuties },
        Answer { outcome: Outcome::No, otherwise: Outcome::No },
    ];

    /// The letters: `H`, `S`, `D`, `N`; `?` and the small letter of what it would be otherwise.
    pub fn letters(self) -> &'static str {
        match (self.outcome, self.otherwise) {
            (Outcome::HoldsByDefault, _) => "H",
            (Outcome::HoldsWithSelectors, _) => "S",
            (Outcome::HoldsWithDuties, _) => "D",
            (Outcome::No, _) => "N",
            (Outcome::Unknown, Outcome::HoldsByDefault) => "?h",
            (Outcome::Unknown, Outcome::HoldsWithSelectors) => "?s",
            (Outcome::Unknown, Outcome::HoldsWithDuties) => "?d",
            (Outcome::Unknown, _) => "?",
        }
    }

    /// In words.
    pub fn words(self) -> String {
        match self.outcome {
            Outcome::Unknown => format!("unknown, else {}", self.otherwise.words()),
            outcome => outcome.words().to_owned(),
        }
    }
}

/// Something that cells rest on, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// What it does to the verdict.
    pub outcome: Outcome,
    /// The ledger entry; none: the cause is not known.
    pub cause: Option<&'static str>,
    /// The code of the first finding.
    pub code: &'static str,
    /// What it is, in a line.
    pub title: String,
    /// How many cells have it.
    pub cells: usize,
    /// The facets and items that it is about.
    pub subjects: BTreeSet<String>,
}

impl Look {
    fn verdicts(self, pair: &MatrixPair) -> impl Iterator<Item = &MatrixVerdict> {
        let guest = pair.guests.iter().filter(move |g| g.guest == self.guest.name());
        guest.flat_map(|g| &g.verdicts).filter(move |v| self.trip.asks(v.journey))
    }

    /// What a pair's cell says.
    pub fn answer(self, pair: &MatrixPair) -> Answer {
        let worst = |of: fn(&MatrixVerdict) -> Outcome| self.verdicts(pair).map(of).max();
        Answer {
            outcome: worst(|v| v.outcome).unwrap_or(Outcome::Unknown),
            otherwise: worst(|v| v.otherwise).unwrap_or(Outcome::Unknown),
        }
    }

    /// The weakest evidence that a pair's cell rests on.
    pub fn evidence(self, pair: &MatrixPair) -> Evidence {
        self.verdicts(pair).map(|v| v.evidence).min().unwrap_or(Evidence::Predicted)
    }

    /// How many cells of a lane say what, in the order of [`Answer::ALL`].
    pub fn counts(self, report: &MatrixReport, lane: &MatrixLane) -> [usize; 7] {
        let mut counts = [0; 7];
        for pair in report.pairs_of(lane) {
            let answer = self.answer(pair);
            if let Some(i) = Answer::ALL.iter().position(|a| *a == answer) {
                counts[i] += 1;
            }
        }
        counts
    }

    /// What the cells of a lane rest on: the most severe first, then what most cells have. What needs nothing is left
    /// out.
    pub fn tallies(self, report: &MatrixReport, lane: &MatrixLane) -> Vec<Tally> {
        type Key = (Outcome, Option<&'static str>, &'static str);
        let mut found: BTreeMap<Key, Tally> = BTreeMap::new();
        for pair in report.pairs_of(lane) {
            let mut here: BTreeSet<Key> = BTreeSet::new();
            for f in self.verdicts(pair).flat_map(|v| report.expand(v)) {
                if f.outcome == Outcome::HoldsByDefault {
                    continue;
                }
                // Without a cause the code is all that tells findings apart; with one it says nothing more.
                let key = (f.outcome, f.cause, if f.cause.is_some() { "" } else { f.code });
                let tally = found.entry(key).or_insert_with(|| tally(f));
                tally.cells += usize::from(here.insert(key));
                tally.subjects.insert(f.subject.clone());
            }
        }
        let mut all: Vec<Tally> = found.into_values().collect();
        let rank = |o: Outcome| match o {
            Outcome::No => 0,
            Outcome::HoldsWithDuties => 1,
            Outcome::HoldsWithSelectors => 2,
            Outcome::Unknown => 3,
            Outcome::HoldsByDefault => 4,
        };
        all.sort_by_key(|t| (rank(t.outcome), std::cmp::Reverse(t.cells), t.cause, t.code));
        all
    }
}

fn tally(f: &Finding) -> Tally {
    let title = match f.change() {
        Some(c) => c.title.to_owned(),
        None => {
            format!("cause unknown: {}", evenkeel_catalog::code(f.code).map_or(f.code, |c| c.title))
        }
    };
    Tally { outcome: f.outcome, cause: f.cause, code: f.code, title, cells: 0, subjects: BTreeSet::new() }
}

impl MatrixReport {
    /// The pairs of a lane, row by row.
    pub fn pairs_of<'a>(&'a self, lane: &'a MatrixLane) -> impl Iterator<Item = &'a MatrixPair> {
        self.pairs.iter().filter(|p| lane.hosts.contains(&p.from))
    }
}
