//! The contract: what one guest was promised, for one shape.
//!
//! A contract names words and choices; what it does not name is at its absent value. Bits may be left **open**: the
//! host decides them. A contract without open bits is *sealed*. The guest of a VMM that passes on everything and
//! selects nothing has a contract too, the one that is open everywhere ([`Contract::unpinned`]): what such a guest
//! was really promised is decided by the host it was started on ([`Contract::resolve`]).

use evenkeel_catalog::{self as catalog, CHOICES, CONSTRAINTS, Choice, Constraint};
use evenkeel_surface::Arch;

use crate::coord::{Coord, Table};
use crate::layout::{field_mask, index_of, layout};
use crate::view::{View, field_of};

/// The schema name of the document.
pub const SCHEMA: &str = "evenkeel.contract/1";

/// What one guest was promised, perhaps with parts left to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contract {
    /// What people call it.
    pub name: String,
    /// The architecture.
    pub arch: Arch,
    /// The shape that it is for.
    pub shape: String,
    /// Words, ascending.
    pub words: Vec<Promise>,
    /// Choices by index into [`CHOICES`] with the index of the value, ascending.
    pub choices: Vec<(u16, u8)>,
    /// Everything that is not named is left to the host, rather than absent.
    pub open_rest: bool,
}

/// A word of a contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// Where.
    pub at: Coord,
    /// The value; bits that are open are 0 here.
    pub value: u64,
    /// Bits that the host decides.
    pub open: u64,
}

/// What a guest that was started under a contract on one host was shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Words, ascending; with the bits whose value is not determined.
    pub words: Vec<ShownWord>,
    /// Choices, ascending by index; none: not determined.
    pub choices: Vec<(u16, Option<u8>)>,
    /// Everything that the contract names was named by value: unnamed facets are absent.
    pub sealed: bool,
}

/// A word as a guest was shown it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShownWord {
    /// Where.
    pub at: Coord,
    /// The rules.
    pub layout: u16,
    /// The value.
    pub value: u64,
    /// Bits that are not determined.
    pub unknown: u64,
}

impl Shown {
    /// The word at a coordinate; absent words have their absent value.
    pub fn word(&self, at: Coord) -> ShownWord {
        match self.words.binary_search_by_key(&at, |w| w.at) {
            Ok(i) => self.words[i],
            Err(_) => {
                let layout_index = index_of(at);
                ShownWord { at, layout: layout_index, value: layout(layout_index).absent, unknown: 0 }
            }
        }
    }

    /// A facet field's value, by name.
    pub fn field(&self, name: &str) -> u64 {
        field_of(name, |at| self.word(at).value)
    }
}

/// A VMM has to ask for this word by name; one that passes on what KVM supports does not show it.
pub fn is_opt_in(at: Coord, layout_index: u16) -> bool {
    matches!(at, Coord::Cpuid { table: Table::Emulated | Table::Hyperv, .. }) || layout(layout_index).opt_in
}

impl Contract {
    /// The contract of a guest whose VMM passes on all that KVM offers and selects nothing.
    pub fn unpinned(arch: Arch, shape: &str) -> Contract {
        Contract {
            name: "unpinned".to_owned(),
            arch,
            shape: shape.to_owned(),
            words: Vec::new(),
            choices: Vec::new(),
            open_rest: true,
        }
    }

    /// Whether the host decides nothing.
    pub fn is_sealed(&self) -> bool {
        !self.open_rest && self.words.iter().all(|w| w.open == 0)
    }

    /// What a guest is shown that is started under this contract on `view`.
    pub fn resolve(&self, view: &View) -> Shown {
        let mut words: Vec<ShownWord> = Vec::with_capacity(view.words.len().max(self.words.len()));
        for p in &self.words {
            let host = view.word_or_absent(p.at);
            words.push(ShownWord {
                at: p.at,
                layout: host.layout,
                value: p.value | (host.value & p.open),
                unknown: host.unknown & p.open,
            });
        }
        if self.open_rest {
            for w in view.words.iter() {
                if !is_opt_in(w.at, w.layout) && self.words.binary_search_by_key(&w.at, |p| p.at).is_err() {
                    words.push(ShownWord { at: w.at, layout: w.layout, value: w.value, unknown: w.unknown });
                }
            }
            words.sort_by_key(|w| w.at);
        }
        let mut choices: Vec<(u16, Option<u8>)> = Vec::with_capacity(view.choices.len());
        for offer in &view.choices {
            let named =
                self.choices.binary_search_by_key(&offer.choice, |c| c.0).ok().map(|i| self.choices[i].1);
            let value = match named {
                Some(value) => Some(value),
                None if self.open_rest => offer.default,
                None => absent_of(offer.facet()),
            };
            choices.push((offer.choice, value));
        }
        for (choice, value) in &self.choices {
            if view.choice(*choice).is_none() {
                choices.push((*choice, Some(*value)));
            }
        }
        choices.sort_by_key(|c| c.0);
        Shown { words, choices, sealed: !self.open_rest }
    }

    /// A facet field's promised value, by name; open bits count as 0.
    pub fn field(&self, name: &str) -> u64 {
        field_of(name, |at| match self.words.binary_search_by_key(&at, |p| p.at) {
            Ok(i) => self.words[i].value,
            Err(_) => layout(index_of(at)).absent,
        })
    }

    /// The constraints of the catalog that this contract breaks, and the dependencies between its CPUID bits.
    pub fn broken(&self) -> Vec<Broken> {
        let arch = if self.arch == Arch::X86_64 { catalog::Arch::X86_64 } else { catalog::Arch::Aarch64 };
        let mut broken = Vec::new();
        for c in CONSTRAINTS.iter().filter(|c| c.arch == arch) {
            let value = match catalog::choice(c.facet) {
                Some(facet) => self.choice_value(facet).unwrap_or(facet.absent),
                None => self.field(c.facet),
            };
            let applies = c.equals.map_or(value != 0, |v| value == v);
            let kept = if c.needs.is_empty() { c.shape == self.shape } else { self.field(c.needs) != 0 };
            if applies && !kept {
                broken.push(Broken::of(c));
            }
        }
        for p in self.words.iter().filter(|p| p.value != 0) {
            let Some(register) = catalog::REGISTERS.get(usize::from(index_of(p.at))) else { continue };
            for f in register.fields.iter().filter(|f| !f.needs.is_empty() && p.value & field_mask(f) != 0) {
                for needs in f.needs.iter().filter(|n| self.field(n) == 0 && !self.is_open(n)) {
                    broken.push(Broken {
                        facet: format!("{}.{}", p.at, f.name),
                        needs: (*needs).to_owned(),
                        why: "the one makes no sense without the other".to_owned(),
                        at: Some((p.at, field_mask(f))),
                    });
                }
            }
        }
        broken
    }

    fn is_open(&self, name: &str) -> bool {
        let open = |at: Coord| match self.words.binary_search_by_key(&at, |p| p.at) {
            Ok(i) => self.words[i].open,
            Err(_) if self.open_rest => u64::MAX,
            Err(_) => 0,
        };
        field_of(name, open) != 0
    }

    fn choice_value(&self, facet: &Choice) -> Option<u64> {
        let index = CHOICES.iter().position(|c| std::ptr::eq(c, facet) || c.name == facet.name)?;
        let at = self.choices.binary_search_by_key(&(index as u16), |c| c.0).ok()?;
        facet.values.get(usize::from(self.choices[at].1)).map(|v| v.value)
    }
}

/// A constraint or dependency that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The facet that needs something.
    pub facet: String,
    /// What it needs: a facet, or `shape NAME`.
    pub needs: String,
    /// Why.
    pub why: String,
    /// The bits that would have to be cleared, where the facet is in a word.
    pub at: Option<(Coord, u64)>,
}

impl Broken {
    fn of(c: &Constraint) -> Broken {
        let at = catalog::register(c.facet).and_then(|(register, field)| {
            let at = Coord::parse(register.name)?;
            Some((at, field.map_or(u64::MAX, field_mask)))
        });
        let needs = if c.needs.is_empty() { format!("shape {}", c.shape) } else { c.needs.to_owned() };
        Broken { facet: c.facet.to_owned(), needs, why: c.why.to_owned(), at }
    }
}

/// The CPUID field without which a guest does not have the word at `at` at all (`msr.10a` without
/// `cpuid.7.0.edx.arch-capabilities`): a word that is not there may be absent, whatever the host could show in it.
pub fn guard_of(at: Coord) -> Option<&'static str> {
    static GUARDS: std::sync::OnceLock<Vec<(Coord, &'static str)>> = std::sync::OnceLock::new();
    let guards = GUARDS.get_or_init(|| {
        let whole = CONSTRAINTS.iter().filter(|c| c.equals.is_none() && !c.needs.is_empty());
        whole.filter_map(|c| Coord::parse(c.facet).map(|at| (at, c.needs))).collect()
    });
    guards.iter().find(|(guarded, _)| *guarded == at).map(|(_, needs)| *needs)
}

/// The index of a facet's absent value.
pub fn absent_of(facet: &Choice) -> Option<u8> {
    facet.values.iter().position(|v| v.value == facet.absent).map(|i| i as u8)
}
