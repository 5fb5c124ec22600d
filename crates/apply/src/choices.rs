//! Facets that are no words: knobs to turn, places to look at, duties, and what nothing shows.

use evenkeel_catalog::{self as catalog, CHOICES, Call, DUTIES, KNOBS, Knob, READINGS, Reading, Stage};
use evenkeel_contract::view::capability;
use evenkeel_contract::{Shown, View};
use evenkeel_steps::{Expect, Facet, Place, Set, Step, Unseen};
use evenkeel_surface::{Arch, Offer};

use crate::plan::{Duty, Unobserved};

/// A choice that applies on this host, with what is wanted of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    index: u16,
    /// The wanted value, as an index into the facet's values.
    value: u8,
    /// The host gives it when nobody asks.
    by_default: bool,
}

impl Wanted {
    fn facet(self) -> &'static catalog::Choice {
        &CHOICES[usize::from(self.index)]
    }

    fn number(self) -> u64 {
        self.facet().values[usize::from(self.value)].value
    }

    fn name(self) -> &'static str {
        self.facet().values[usize::from(self.value)].name
    }
}

/// What is wanted of every choice that this host has, or that the contract names.
pub(crate) fn wanted(shown: &Shown, view: &View) -> Vec<Wanted> {
    let all = shown.choices.iter().filter_map(|(index, value)| {
        let facet = CHOICES.get(usize::from(*index))?;
        let value = (*value)?;
        facet.values.get(usize::from(value))?;
        let absent = evenkeel_contract::contract::absent_of(facet);
        let default = view.choice(*index).map_or(absent, |offer| offer.default);
        Some(Wanted { index: *index, value, by_default: default == Some(value) })
    });
    all.collect()
}

/// The shape that readings and features are asked for.
pub(crate) struct Context<'a> {
    pub shown: &'a Shown,
    pub view: &'a View,
    pub offer: &'a Offer,
    pub shape_index: usize,
    pub all: &'a [Wanted],
}

impl Context<'_> {
    fn arch(&self) -> catalog::Arch {
        match self.view.arch {
            Arch::X86_64 => catalog::Arch::X86_64,
            Arch::Aarch64 => catalog::Arch::Aarch64,
        }
    }

    fn of(&self, name: &str) -> Option<Wanted> {
        self.all.iter().copied().find(|w| w.facet().name == name)
    }

    /// The argument of a knob, when something has to be selected with it.
    fn bits(&self, knob: &Knob) -> Option<u64> {
        let mut bits = 0;
        let mut turned = false;
        for s in knob.sets {
            if let Some(w) = self.of(s.choice).filter(|w| w.number() == s.value) {
                bits |= s.bits;
                turned |= !w.by_default;
            }
        }
        // A value that stands for no bits is selected by leaving out those of the others.
        turned |= knob.sets.iter().any(|s| {
            self.of(s.choice).is_some_and(|w| {
                !w.by_default && knob.sets.iter().all(|o| o.choice != s.choice || o.value != w.number())
            })
        });
        turned.then_some(bits)
    }

    fn readings(&self, stage: Stage) -> impl Iterator<Item = (&'static Reading, Wanted)> {
        READINGS.iter().filter(move |r| r.stage == stage).filter_map(|r| {
            let w = self.of(r.choice)?;
            let readable = r.needs.is_empty() || self.shown.field(r.needs) != 0;
            readable.then_some((r, w))
        })
    }

    /// What a place must look like under the wanted value; none where that cannot be told.
    fn expectation(&self, reading: &Reading, w: Wanted) -> Option<Expect> {
        let here = |shapes: &[&str]| shapes.is_empty() || shapes.contains(&self.view.shape.as_str());
        let shows = reading.shows.iter().find(|s| s.value == w.number() && here(s.shapes))?;
        let place = match reading.look {
            catalog::Look::Msr => Place::Msr(reading.at as u32),
            catalog::Look::OneReg => Place::Reg(reading.at),
            catalog::Look::Attr => Place::Attr(reading.group, reading.at),
            catalog::Look::Lapic => Place::Lapic(reading.at as u32),
            catalog::Look::EventFlags => Place::EventFlags,
        };
        let facet = Facet::Choice(w.index, w.value);
        Some(Expect { place, mask: shows.mask, wanted: shows.reads, facet, fresh: reading.fresh })
    }

    /// Whether some ioctl shows it, on the vCPU that starts if on no other.
    fn is_readable(&self, w: Wanted) -> bool {
        let mine = READINGS.iter().filter(|r| r.choice == w.facet().name);
        mine.filter(|r| r.needs.is_empty() || self.shown.field(r.needs) != 0)
            .any(|r| self.expectation(r, w).is_some())
    }

    /// The facets that some ioctl shows, by name.
    pub(crate) fn readable(&self) -> Vec<&'static str> {
        self.all.iter().filter(|w| self.is_readable(**w)).map(|w| w.facet().name).collect()
    }

    /// The step of one knob; none when nothing has to be selected with it.
    pub(crate) fn knob(&self, knob: &'static Knob) -> Option<Step> {
        let bits = self.bits(knob)?;
        let mut step = Step::new(knob.name, knob.stage);
        step.may_fail = knob.may_fail;
        step.set.push(match knob.call {
            Call::EnableCap => {
                let answered = capability(self.offer, knob.cap, Some(self.shape_index)) != 0;
                let cap = if answered || knob.instead == 0 { knob.cap } else { knob.instead };
                Set::EnableCap { cap, args: [bits, 0, 0, 0] }
            }
            Call::SetupMce => Set::SetupMce(bits),
            Call::OneReg => Set::OneRegs(vec![(knob.reg, bits)]),
            Call::Attr => {
                let value = (bits as u32).to_ne_bytes().to_vec();
                Set::Attr { group: knob.group, attr: knob.attr, value }
            }
            // These two are arguments of what other steps, or the VMM, do.
            Call::VcpuFeature | Call::VmType => return None,
        });
        if !knob.may_fail {
            step.unseen = self.selected(|name| knob.sets.iter().any(|s| s.choice == name));
        }
        Some(step)
    }

    /// What is selected of these facets and no ioctl shows.
    fn selected(&self, mine: impl Fn(&str) -> bool) -> Vec<Unseen> {
        let all = self.all.iter().filter(|w| !w.by_default && mine(w.facet().name) && !self.is_readable(**w));
        all.map(|w| unseen(*w, true)).collect()
    }

    /// The bits that knobs of this kind come to: features of a vCPU, or the VM's type.
    pub(crate) fn argument(&self, call: Call) -> u64 {
        let knobs = KNOBS.iter().filter(|k| k.call == call && k.arch == self.arch());
        knobs.filter_map(|k| self.bits(k)).fold(0, |all, bits| all | bits)
    }

    /// What is selected by an argument of this kind and no ioctl shows.
    pub(crate) fn by_argument(&self, call: Call) -> Vec<Unseen> {
        self.selected(|name| KNOBS.iter().any(|k| k.call == call && k.sets.iter().any(|s| s.choice == name)))
    }

    /// What can be looked at in a stage; `boot`: on the vCPU that starts.
    pub(crate) fn look(&self, stage: Stage, boot: bool) -> Vec<Expect> {
        let mine = self.readings(stage).filter(|(r, _)| boot || !r.boot_vcpu);
        mine.filter_map(|(r, w)| self.expectation(r, w)).collect()
    }

    /// What the host gives when nobody asks, nobody asks for, and no ioctl shows.
    pub(crate) fn left_alone(&self) -> Vec<Unseen> {
        let mut all: Vec<Unseen> = self
            .all
            .iter()
            .filter(|w| w.by_default && w.facet().from.observe.is_empty() && !self.is_readable(**w))
            .map(|w| unseen(*w, false))
            .collect();
        all.sort();
        all
    }

    /// What only a look from inside a guest tells, and nobody has looked.
    pub(crate) fn unobserved(&self) -> Vec<Unobserved> {
        let unknown = |w: &&Wanted| self.view.choice(w.index).is_some_and(|offer| offer.is_unknown());
        let all = self.all.iter().filter(|w| !w.facet().from.observe.is_empty()).filter(unknown);
        all.map(|w| Unobserved { facet: w.facet().name.to_owned(), wanted: w.name().to_owned() }).collect()
    }

    /// Work for the VMM.
    pub(crate) fn duties(&self) -> Vec<Duty> {
        let due = |d: &&catalog::Duty| {
            let due = |w: Wanted| if d.any { !w.by_default } else { w.number() == d.value };
            self.of(d.choice).is_some_and(due)
        };
        let duty = |d: &catalog::Duty| Duty {
            name: d.name.to_owned(),
            facet: d.choice.to_owned(),
            value: self.of(d.choice).map_or("", Wanted::name).to_owned(),
            work: d.work.to_owned(),
        };
        DUTIES.iter().filter(due).map(duty).collect()
    }
}

fn unseen(w: Wanted, selected: bool) -> Unseen {
    Unseen { facet: w.facet().name.to_owned(), value: w.name().to_owned(), selected }
}
