//! How much of what is set reading back would notice, were it not set: each ioctl that sets something is altered on
//! its way to the kernel, one facet at a time, while every ioctl that reads stays honest.

use std::sync::Mutex;
use std::sync::PoisonError;

use evenkeel_catalog::{CHOICES, Stage};
use evenkeel_contract::describe::{Part, parts};
use evenkeel_contract::layout::{index_of, layout};
use evenkeel_contract::{Coord, describe};
use evenkeel_steps::{Expect, Facet, Place, Set, Step};
use evenkeel_sys::layout::X86_CPUID_ENTRY;
use evenkeel_sys::{Arg, Backend, Error, FdKind, Handle, Refusal, Request, Source};
use schemars::JsonSchema;
use serde::Serialize;

use crate::plan::Plan;
use crate::scratch::scratch;

/// What became of one alteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Noticed {
    /// The report named the facet.
    Noticed,
    /// The report named something else: the VM would not have been used, but for another reason.
    Elsewhere,
    /// The report said nothing.
    Missed,
    /// The kernel did not let it be altered: what is in force is what was wanted.
    NotAlterable,
}

/// One facet, and what became of altering it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Mutation {
    /// The facet.
    pub facet: String,
    /// The step whose ioctl was altered.
    pub step: String,
    /// What became of it.
    pub noticed: Noticed,
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Score {
    /// `evenkeel.apply-score/1`.
    pub schema: &'static str,
    /// `uname -r` of the host.
    pub release: String,
    /// One a facet that is set.
    pub mutations: Vec<Mutation>,
}

impl Score {
    /// How many came out like this.
    pub fn count(&self, noticed: Noticed) -> usize {
        self.mutations.iter().filter(|m| m.noticed == noticed).count()
    }

    /// Noticed by the facet's name, of those that could be altered.
    pub fn percent(&self) -> f64 {
        let alterable = self.mutations.len() - self.count(Noticed::NotAlterable);
        self.count(Noticed::Noticed) as f64 * 100.0 / alterable.max(1) as f64
    }

    /// For people.
    pub fn text(&self, all: bool) -> String {
        let mut out = String::new();
        for m in &self.mutations {
            if all || matches!(m.noticed, Noticed::Missed | Noticed::Elsewhere) {
                let word = match m.noticed {
                    Noticed::Noticed => "noticed",
                    Noticed::Elsewhere => "noticed under another name",
                    Noticed::Missed => "MISSED",
                    Noticed::NotAlterable => "not alterable here",
                };
                out += &format!("{word}: {} (step {})\n", m.facet, m.step);
            }
        }
        out += &format!(
            "{} facets are set on {}: {} alterations noticed, {} under another name, {} missed, {} not alterable here: {:.1} % of the alterable ones noticed\n",
            self.mutations.len(),
            self.release,
            self.count(Noticed::Noticed),
            self.count(Noticed::Elsewhere),
            self.count(Noticed::Missed),
            self.count(Noticed::NotAlterable),
            self.percent()
        );
        out
    }
}

/// Which bytes of which ioctl are altered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Alteration {
    ioctl: &'static str,
    /// Bytes that the structure must hold at an offset, to be the one that is meant.
    matches: Vec<(usize, Vec<u8>)>,
    /// Where the altered number is: in the structure, or in what it points at.
    at: usize,
    pointed: bool,
    mask: u64,
    width: usize,
}

/// Passes everything on but one number, which it alters on its way to the kernel.
struct Altering {
    inner: Box<dyn Backend>,
    alteration: Alteration,
    made: Mutex<bool>,
}

impl Altering {
    fn apply(&self, bytes: &mut [u8]) {
        let a = &self.alteration;
        if let Some(place) = bytes.get_mut(a.at..a.at + a.width) {
            for (byte, mask) in place.iter_mut().zip(a.mask.to_le_bytes()) {
                *byte ^= mask;
            }
            *self.made.lock().unwrap_or_else(PoisonError::into_inner) = true;
        }
    }

    fn meant(&self, request: &Request, bytes: &[u8]) -> bool {
        let a = &self.alteration;
        let same = |(at, wanted): &(usize, Vec<u8>)| bytes.get(*at..*at + wanted.len()) == Some(wanted);
        request.name == a.ioctl && a.matches.iter().all(same)
    }
}

impl Backend for Altering {
    fn open(&self, path: &str, kind: FdKind) -> Result<Handle, Refusal> {
        self.inner.open(path, kind)
    }

    fn call(&self, fd: Handle, request: &Request, arg: Arg<'_>) -> Result<i32, Refusal> {
        match arg {
            Arg::In(bytes) if self.meant(request, bytes) => {
                let mut bytes = bytes.to_vec();
                self.apply(&mut bytes);
                self.inner.call(fd, request, Arg::In(&bytes))
            }
            Arg::Pointing { head, payload } if self.alteration.pointed && self.meant(request, head) => {
                self.apply(payload);
                self.inner.call(fd, request, Arg::Pointing { head, payload })
            }
            arg => self.inner.call(fd, request, arg),
        }
    }

    fn read(&self, source: Source<'_>) -> Result<Vec<u8>, Refusal> {
        self.inner.read(source)
    }

    fn close(&self, fd: Handle) {
        self.inner.close(fd);
    }
}

/// Alters every facet that the plan sets, one at a time, each on a VM of its own made by `backend`.
///
/// # Errors
/// A VM could not be made.
pub fn score(plan: &Plan, backend: &dyn Fn() -> Box<dyn Backend>) -> Result<Score, Error> {
    let plain = backend();
    let before: Vec<String> = {
        let tried = scratch(plan, &*plain)?;
        tried.applying.report().differences().map(|d| d.facet.clone()).collect()
    };
    let mut mutations = Vec::new();
    for (facet, step, alteration) in alterations(plan) {
        let altering = Altering { inner: backend(), alteration: alteration.clone(), made: Mutex::new(false) };
        let report = scratch(plan, &altering)?.applying.report();
        let made = *altering.made.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = report.differences().filter(|d| !before.contains(&d.facet)).peekable();
        let noticed = match (made, new.peek().is_some()) {
            (false, _) => continue,
            (true, true) if new.any(|d| d.facet == facet || names_whole(&d.facet, &facet)) => {
                Noticed::Noticed
            }
            (true, true) => Noticed::Elsewhere,
            // Everything that is read is honest and as wanted: the kernel put it right, or nothing shows it.
            (true, false) if before.contains(&facet) || is_word(&facet) => Noticed::NotAlterable,
            (true, false) => Noticed::Missed,
        };
        mutations.push(Mutation { facet, step: step.to_owned(), noticed });
    }
    Ok(Score { schema: "evenkeel.apply-score/1", release: plan.host.0.clone(), mutations })
}

/// A word's facets are all read; a choice may be write-only.
fn is_word(facet: &str) -> bool {
    CHOICES.iter().all(|c| c.name != facet)
}

/// A refusal of the word that the facet is in names it too, and so does a bit of a word without fields.
fn names_whole(named: &str, facet: &str) -> bool {
    let part = |whole: &str, part: &str, by: &[char]| {
        part.strip_prefix(whole).is_some_and(|rest| rest.starts_with(by))
    };
    part(named, facet, &['.', '[']) || part(facet, named, &['['])
}

/// Every facet that is set on the first vCPU or its VM, with the alteration of one bit of it.
fn alterations(plan: &Plan) -> Vec<(String, &'static str, Alteration)> {
    let mut all = Vec::new();
    for stage in [Stage::Vm, Stage::Vcpu, Stage::Gic] {
        for step in plan.steps(stage, 0, 5) {
            for e in &step.expect {
                if let Facet::Word(at) = e.facet {
                    for part in word_parts(at) {
                        let alteration = word_alteration(&step, e, &part);
                        all.extend(alteration.map(|a| (part.name.clone(), step.name, a)));
                    }
                }
            }
            all.extend(knob_alterations(&step));
        }
    }
    all
}

/// The named parts of a word; of one without names, the word.
fn word_parts(at: Coord) -> Vec<Part> {
    let index = index_of(at);
    let mask = at.mask() & !layout(index).runtime;
    let named: Vec<Part> = parts(at, index, mask).into_iter().filter(|p| !p.name.ends_with(']')).collect();
    if named.is_empty() { vec![describe::whole(at)] } else { named }
}

fn word_alteration(step: &Step, e: &Expect, part: &Part) -> Option<Alteration> {
    let bit = 1u64 << (part.mask & e.mask).trailing_zeros().min(63);
    if part.mask & e.mask == 0 {
        return None;
    }
    step.set.iter().find_map(|set| match (set, e.place) {
        (Set::Cpuid(table), Place::Cpuid(leaf, subleaf, register)) => {
            let i = table.iter().position(|t| (t.function, t.index) == (leaf, subleaf))?;
            let at = 8 + i * X86_CPUID_ENTRY + 12 + usize::from(register) * 4;
            let matches = vec![(0, (table.len() as u32).to_le_bytes().to_vec())];
            Some(Alteration { ioctl: "KVM_SET_CPUID2", matches, at, pointed: false, mask: bit, width: 4 })
        }
        (Set::Msrs(msrs), Place::Msr(msr)) => {
            let i = msrs.iter().position(|(m, _)| *m == msr)?;
            let matches = vec![(8 + i * 16, msr.to_le_bytes().to_vec())];
            let at = 8 + i * 16 + 8;
            Some(Alteration { ioctl: "KVM_SET_MSRS", matches, at, pointed: false, mask: bit, width: 8 })
        }
        (Set::OneRegs(_), Place::Reg(id)) => {
            let matches = vec![(0, id.to_le_bytes().to_vec())];
            let width = 1usize << (id >> 52 & 0xf).min(3);
            Some(Alteration { ioctl: "KVM_SET_ONE_REG", matches, at: 0, pointed: true, mask: bit, width })
        }
        _ => None,
    })
}

/// The choices that a step selects: the bits of each are turned over in the argument.
fn knob_alterations(step: &Step) -> Vec<(String, &'static str, Alteration)> {
    let Some(knob) = evenkeel_catalog::KNOBS.iter().find(|k| k.name == step.name) else { return Vec::new() };
    let mut all: Vec<(String, &'static str, Alteration)> = Vec::new();
    for set in &step.set {
        for s in knob.sets {
            let bits = if s.bits == 0 { 1 } else { s.bits & s.bits.wrapping_neg() };
            let alteration = match set {
                Set::EnableCap { cap, args } if args[0] & s.bits == s.bits => {
                    let matches = vec![(0, cap.to_le_bytes().to_vec())];
                    let ioctl = "KVM_ENABLE_CAP";
                    Alteration { ioctl, matches, at: 8, pointed: false, mask: bits, width: 8 }
                }
                Set::SetupMce(value) if value & s.bits == s.bits => {
                    let ioctl = "KVM_X86_SETUP_MCE";
                    Alteration { ioctl, matches: Vec::new(), at: 0, pointed: false, mask: bits, width: 8 }
                }
                Set::OneRegs(regs) if regs.contains(&(knob.reg, s.bits)) => {
                    let matches = vec![(0, knob.reg.to_le_bytes().to_vec())];
                    let ioctl = "KVM_SET_ONE_REG";
                    Alteration { ioctl, matches, at: 0, pointed: true, mask: bits, width: 8 }
                }
                Set::Attr { group, attr, value } if *value == (s.bits as u32).to_le_bytes() => {
                    let head = [group.to_le_bytes().to_vec(), attr.to_le_bytes().to_vec()].concat();
                    let (ioctl, matches) = ("KVM_SET_DEVICE_ATTR", vec![(4, head)]);
                    Alteration { ioctl, matches, at: 0, pointed: true, mask: 0x1000, width: 4 }
                }
                _ => continue,
            };
            if !all.iter().any(|(facet, ..)| facet == s.choice) {
                all.push((s.choice.to_owned(), step.name, alteration));
            }
        }
    }
    all
}
