//! What a guest saw, against what it was promised.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_apply::{Plan, PromisedChoice, Report};
use evenkeel_catalog::REGISTERS;
use evenkeel_contract::describe::parts;
use evenkeel_contract::layout::{field_mask, index_of, layout};
use evenkeel_contract::{Coord, cause};
use evenkeel_steps::{Expect, Facet, Place};
use evenkeel_surface::{Arch, Hex64};
use evenkeel_witness::observation::{Observation, Saw, unfold};

use super::{Kind, Leak, Look, NotSeen, When};

/// What came of comparing.
#[derive(Clone, Debug, Default)]
pub struct Compared {
    pub leaks: Vec<Leak>,
    pub implied: Vec<Leak>,
    pub kinds: Vec<Kind>,
    pub looks: Vec<Look>,
    pub not_seen: Vec<NotSeen>,
}

/// Compares everything that the plan promises.
pub fn compare(plan: &Plan, observation: &Observation, report: &Report) -> Compared {
    let seen = Seen::new(observation);
    let mut out = Compared::default();
    let registers = plan.promised_registers();
    let words = |vcpu: u32| [plan.shown_cpuid(vcpu), registers.clone()].concat();
    let differs: BTreeSet<&str> = report.findings().into_iter().collect();
    for e in words(0) {
        let Some((at, kind)) = word(&e) else { continue };
        let result = seen.word(&e, at, "", plan.hidden_by(at).is_some());
        out.count(kind, &result);
        match result {
            Result::AsPromised => {}
            Result::Otherwise(saw) => out.leaks.extend(leaks(observation.arch, &e, at, &saw, When::Start)),
            Result::Not(why) => {
                let facet = at.to_string();
                // A difference is named by its field or bit.
                let mine = |d: &&str| {
                    d.strip_prefix(&facet).is_some_and(|d| d.is_empty() || d.starts_with(['.', '[']))
                };
                let read_back = !differs.iter().any(mine);
                // Where nothing was to be there, nothing is lost.
                let lost = why.is_none();
                let why = why.unwrap_or_else(|| NOTHING.to_owned());
                out.not_seen.push(NotSeen {
                    promised: format!("{:#x}", e.wanted),
                    facet,
                    why,
                    read_back,
                    lost,
                });
            }
        }
    }
    for c in plan.promised_choices() {
        out.choice(&seen, &c, observation.arch, &differs);
    }
    for (when, vcpu, suffix, why_not) in seen.others() {
        let mut look = Look { when, as_promised: 0, otherwise: 0, why_not };
        for e in words(vcpu).iter().filter(|_| look.why_not.is_none()) {
            let Some((at, _)) = word(e) else { continue };
            match seen.word(e, at, suffix, plan.hidden_by(at).is_some()) {
                Result::AsPromised => look.as_promised += 1,
                Result::Otherwise(saw) => {
                    look.otherwise += 1;
                    let new = leaks(observation.arch, e, at, &saw, when);
                    // What the first vCPU saw from the start is told.
                    let told = |l: &Leak| out.leaks.iter().any(|o| o.facet == l.facet && o.saw == l.saw);
                    let new: Vec<Leak> = new.into_iter().filter(|l| !told(l)).collect();
                    out.leaks.extend(new);
                }
                Result::Not(_) => {}
            }
        }
        out.looks.push(look);
    }
    out
}

const NOTHING: &str = "its look gave nothing";

/// The word that an expectation is about, and its kind.
fn word(e: &Expect) -> Option<(Coord, &'static str)> {
    let Facet::Word(at) = e.facet else { return None };
    let kind = match e.place {
        Place::Cpuid(..) => "CPUID words",
        Place::Msr(_) => "feature MSRs",
        Place::Reg(id) if is_firmware(id) => "firmware registers",
        Place::Reg(_) => "ID registers",
        _ => return None,
    };
    Some((at, kind))
}

/// A ONE_REG id of KVM's own registers: firmware (0x14) and its bitmaps (0x16).
fn is_firmware(id: u64) -> bool {
    matches!(id >> 16 & 0xfff, 0x14 | 0x16)
}

/// What became of a word.
enum Result {
    AsPromised,
    Otherwise(Saw),
    /// Why; none where there is a look that gave nothing.
    Not(Option<String>),
}

/// The parts of a word that differ.
fn leaks(arch: Arch, e: &Expect, at: Coord, saw: &Saw, when: When) -> Vec<Leak> {
    let leak = |facet: String, title: &str, promised: String, saw: String| {
        let cause = cause::of_facet(arch, &facet, &promised, &saw);
        let cause_title = cause.map_or("", |c| c.title).to_owned();
        let cause = cause.map(|c| c.id.to_owned());
        Leak { facet, title: title.to_owned(), promised, saw, when, cause, cause_title }
    };
    let Saw::Value(value) = saw else {
        let title = REGISTERS.get(usize::from(index_of(at))).map_or("", |r| r.title);
        return vec![leak(at.to_string(), title, format!("{:#x}", e.wanted), saw.to_string())];
    };
    let differs = (value.0 ^ e.wanted) & e.mask;
    let parts = parts(at, index_of(at), differs).into_iter();
    parts.map(|p| leak(p.name.clone(), p.title, p.show(e.wanted), p.show(value.0))).collect()
}

/// An observation, for looking things up.
struct Seen<'o> {
    seen: BTreeMap<String, Saw>,
    unasked: BTreeMap<&'o str, &'o str>,
    arch: Arch,
}

impl<'o> Seen<'o> {
    fn new(observation: &'o Observation) -> Self {
        let unasked = observation.unasked.iter().map(|u| (u.name.as_str(), u.why.as_str())).collect();
        Seen { seen: unfold(&observation.seen), unasked, arch: observation.arch }
    }

    /// The other looks: when, on which vCPU, under which names, and why there was none.
    fn others(&self) -> Vec<(When, u32, &'static str, Option<String>)> {
        let started = |name: &str| match (self.seen.get(name), self.unasked.get(name)) {
            (Some(Saw::Executes), _) => None,
            (Some(saw), _) => Some(saw.to_string()),
            (None, why) => Some(why.map_or("there is none in this machine".to_owned(), |w| (*w).to_owned())),
        };
        let refused = |name: &str| self.unasked.get(name).map(|why| (*why).to_owned());
        match self.arch {
            Arch::X86_64 => vec![
                (When::Second, 1, "@second", started("second.start")),
                (When::Later, 2, "@late", started("late.start")),
                (When::Reset, 0, "@reboot", None),
            ],
            Arch::Aarch64 => vec![
                (When::Second, 1, "@vcpu1", refused("@vcpu1")),
                (When::Later, 2, "@late", refused("@late")),
                (When::Reset, 0, "@reset", None),
            ],
        }
    }

    /// What is not otherwise than before is not told twice.
    fn get(&self, name: &str, suffix: &str) -> Option<&Saw> {
        self.seen.get(&format!("{name}{suffix}")).or_else(|| self.seen.get(name))
    }

    fn word(&self, e: &Expect, at: Coord, suffix: &str, hidden: bool) -> Result {
        let name = match (e.place, at) {
            (Place::Cpuid(leaf, subleaf, register), _) => {
                let register = ["eax", "ebx", "ecx", "edx"][usize::from(register & 3)];
                format!("cpuid.{leaf:x}.{subleaf:x}.{register}")
            }
            (Place::Reg(id), _) if id >> 16 & 0xfff == 0x16 => return self.bitmap(e, at, suffix),
            // The guest selects a cache, and reads one register.
            (Place::Reg(_), _) => match at.to_string().strip_prefix("arm64.ccsidr-") {
                Some(cache) if cache.parse::<u32>().is_ok() => format!("arm64.ccsidr-el1.{cache}"),
                _ => at.to_string(),
            },
            _ => at.to_string(),
        };
        let absent = e.wanted & e.mask == layout(index_of(at)).absent & e.mask;
        match self.get(&name, suffix) {
            Some(Saw::Value(value)) if (value.0 ^ e.wanted) & e.mask == 0 => Result::AsPromised,
            Some(Saw::Value(Hex64(0))) if hidden => Result::AsPromised,
            // A register that is not there shows what a host shows that never heard of it.
            Some(Saw::Fault { .. } | Saw::Exception { .. }) if absent || hidden => Result::AsPromised,
            Some(saw @ (Saw::Value(_) | Saw::Fault { .. } | Saw::Exception { .. })) => {
                Result::Otherwise(saw.clone())
            }
            Some(saw) => Result::Not(Some(saw.to_string())),
            // Words of CPUID that are 0 are not in an observation.
            None if matches!(e.place, Place::Cpuid(..)) && e.wanted & e.mask == 0 => Result::AsPromised,
            None => Result::Not(self.unasked.get(name.as_str()).map(|why| (*why).to_owned())),
        }
    }

    /// A register of the firmware that a guest sees only in what it is answered: field by field.
    fn bitmap(&self, e: &Expect, at: Coord, suffix: &str) -> Result {
        let fields = REGISTERS.get(usize::from(index_of(at))).map_or(&[][..], |r| r.fields);
        let (mut value, mut known) = (0, 0);
        for f in fields {
            if let Some(Saw::Value(Hex64(saw))) = self.get(&format!("{at}.{}", f.name), suffix) {
                value |= saw << f.lo & field_mask(f);
                known |= field_mask(f);
            }
        }
        let all = fields.iter().fold(0, |mask, f| mask | field_mask(f));
        if (value ^ e.wanted) & e.mask & known != 0 {
            return Result::Otherwise(Saw::Value(Hex64(value | e.wanted & !known)));
        }
        match (known == all, e.wanted & e.mask & !all) {
            (true, 0) => Result::AsPromised,
            (true, _) => Result::Not(Some("the guest knows no call for some of its services".to_owned())),
            (false, _) => Result::Not(None),
        }
    }
}

impl Compared {
    fn count(&mut self, kind: &'static str, result: &Result) {
        let at = self.kinds.iter().position(|k| k.kind == kind).unwrap_or_else(|| {
            self.kinds.push(Kind { kind, as_promised: 0, otherwise: 0, not_seen: 0 });
            self.kinds.len() - 1
        });
        let kind = &mut self.kinds[at];
        *match result {
            Result::AsPromised => &mut kind.as_promised,
            Result::Otherwise(_) => &mut kind.otherwise,
            Result::Not(_) => &mut kind.not_seen,
        } += 1;
    }

    fn choice(&mut self, seen: &Seen<'_>, c: &PromisedChoice, arch: Arch, differs: &BTreeSet<&str>) {
        let PromisedChoice { facet, named, is_readable, .. } = *c;
        let promised = &facet.values[usize::from(c.value)];
        let name_of = |number: u64| facet.values.iter().find(|v| v.value == number);
        let result = match seen.seen.get(facet.name) {
            Some(Saw::Value(number)) if number.0 == promised.value => Result::AsPromised,
            Some(saw @ Saw::Value(_)) => Result::Otherwise(saw.clone()),
            Some(saw) => Result::Not(Some(saw.to_string())),
            None => {
                let why = seen.unasked.get(facet.name).copied().unwrap_or("no look from inside tells it");
                Result::Not(Some(why.to_owned()))
            }
        };
        self.count("choices", &result);
        match result {
            Result::AsPromised => {}
            Result::Otherwise(Saw::Value(Hex64(number))) => {
                let saw = name_of(number).map_or(format!("{number:#x}"), |v| v.name.to_owned());
                let cause = cause::of_facet(arch, facet.name, promised.name, &saw);
                let leak = Leak {
                    facet: facet.name.to_owned(),
                    title: facet.title.to_owned(),
                    promised: promised.name.to_owned(),
                    saw,
                    when: When::Start,
                    cause: cause.map(|c| c.id.to_owned()),
                    cause_title: cause.map_or("", |c| c.title).to_owned(),
                };
                // Nothing selects a behaviour, and only who has observed one names it.
                let implied = !named && !facet.from.observe.is_empty();
                if implied { &mut self.implied } else { &mut self.leaks }.push(leak);
            }
            Result::Otherwise(_) => {}
            Result::Not(why) => self.not_seen.push(NotSeen {
                facet: facet.name.to_owned(),
                promised: promised.name.to_owned(),
                why: why.unwrap_or_else(|| NOTHING.to_owned()),
                read_back: is_readable && !differs.contains(facet.name),
                lost: false,
            }),
        }
    }
}
