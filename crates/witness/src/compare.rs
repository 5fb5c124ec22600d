//! Two observations, facet by facet: what differs, and the ledger's entry for it where there is one.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_catalog as catalog;
use evenkeel_contract::coord::Coord;
use evenkeel_contract::describe::parts;
use evenkeel_contract::layout::UNKNOWN;
use evenkeel_contract::view::ItemKey;
use evenkeel_contract::{Table, cause};
use evenkeel_surface::{Arch, Hex64};
use schemars::JsonSchema;
use serde::Serialize;

use crate::observation::{Observation, Saw, unfold};

/// `observe --against FILE --format json`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Comparison {
    /// `evenkeel.observation-diff/1`.
    pub schema: &'static str,
    /// The shapes of the two guests.
    pub shapes: [String; 2],
    /// The kernels, as the observations name them: a hint.
    pub kernels: [String; 2],
    /// How many things both saw alike.
    pub alike: usize,
    /// What they saw otherwise, ascending by name.
    pub differences: Vec<Difference>,
    /// What only one of them looked at: nothing is known about a difference.
    pub undetermined: Vec<Difference>,
}

/// One thing that two guests saw otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Difference {
    /// The facet, or what was looked at.
    pub name: String,
    /// What it is, in a line; may be empty.
    pub title: String,
    /// What the other observation says.
    pub before: String,
    /// What this one says.
    pub after: String,
    /// The ledger's entry.
    pub cause: Option<String>,
    /// Its title; empty without one.
    pub cause_title: String,
}

/// What is looked at to settle a facet: a difference there has the facet's cause.
const BEHIND: &[(&str, &str)] = &[
    ("x2apic.icr.", "x86.x2apic.icr-reserved-bits"),
    ("x2apic.tpr.high-bits", "x86.x2apic.high-bits"),
    ("x2apic.self-ipi.reserved-bits", "x86.x2apic.high-bits"),
    ("x2apic.eoi.non-zero", "x86.x2apic.high-bits"),
    ("x2apic.8", "x86.x2apic.reserved-register-read"),
    ("apic.suppress-eoi", "x86.x2apic.suppress-eoi-broadcast"),
    ("msr.c0010015.sticks", "x86.amd.hwcr-clear"),
    ("msr.c0010015@", "x86.amd.hwcr-clear"),
    ("msr.c0010015", "x86.amd.hwcr-tsc-freq-sel"),
    ("msr.c0010015", "x86.amd.hwcr-cpuid-user-dis"),
    ("msr.c0010015", "cpuid.80000021.0.eax.gp-on-user-cpuid"),
    ("msr.c0011029", "x86.amd.de-cfg-write"),
    ("msr.1d9", "x86.amd.debugctl-btf"),
    ("msr.1d9", "x86.amd.debugctl-reserved"),
    ("msr.1d9", "x86.intel.debugctl-rtm-debug"),
    ("msr.140", "msr.ce.cpuid-fault"),
    ("msr.1a0", "x86.misc-enable.pmu-bits"),
    ("insn.rdpmc", "x86.amd.rdpmc"),
    ("cpuid.1.0.ecx.osxsave@reboot", "x86.svm.osxsave-after-shutdown"),
    ("msr.175", "x86.amd.sysenter-width"),
    ("msr.176", "x86.amd.sysenter-width"),
    ("msr.c0010130", "x86.amd.ghcb-msr-read"),
    ("msr.c0000303", "x86.amd.perf-global-status-set"),
    ("msr.40000", "x86.hyperv.msr-without-interface"),
    ("insn.invlpga", "x86.svm.invlpga-without-svme"),
    ("insn.avx-mmio", "x86.emulator.avx-mmio"),
    ("xen.tsc-leaf", "x86.xen.tsc-leaf"),
    ("xapic.320", "cpuid.1.0.ecx.tsc-deadline-timer"),
    ("second.again.xss-kept", "x86.init.xss"),
    ("second.edx", "x86.init.edx"),
    ("second.again.edx", "x86.init.edx"),
    ("second.again.cr0", "x86.init.cr0-cd-nw"),
    ("xapic.350", "x86.quirk.lint0-reenabled"),
    ("x2apic.as-memory", "x86.quirk.lapic-mmio-hole"),
    ("msr.1a0.mwait-in-cpuid", "x86.quirk.misc-enable-no-mwait"),
    ("insn.hypercall-", "x86.quirk.fix-hypercall-insn"),
    ("insn.monitor", "x86.quirk.mwait-never-ud-faults"),
    ("insn.mwait", "x86.quirk.mwait-never-ud-faults"),
    ("apic.message-to-256", "x86.x2apic.use-32bit-ids"),
    ("x2apic.message-to-255", "x86.x2apic.disable-broadcast-quirk"),
    ("msr.4b564d", "x86.enforce-pv-feature-cpuid"),
    ("msr.400000", "x86.hyperv.enforce-cpuid"),
    ("msr.4000008", "x86.hyperv.synic"),
    ("apic.timer.ns-per-tick", "x86.apic-bus-cycles-ns"),
    ("hypercall.c", "x86.hypercall.map-gpa-range"),
    ("cpuid.40000001.0.eax", "x86.disable-exits.hlt"),
    ("insn.mwait", "x86.disable-exits.mwait"),
    ("msr.e7", "x86.disable-exits.aperfmperf"),
    ("msr.e8", "x86.disable-exits.aperfmperf"),
    ("msr.3f", "x86.disable-exits.cstate"),
    ("msr.6", "x86.disable-exits.cstate"),
    ("msr.ce", "x86.msr-platform-info"),
    ("msr.10a", "x86.quirk.stuff-feature-msrs"),
    ("msr.179", "x86.mce.banks"),
    ("msr.179", "x86.mce.ctl"),
    ("msr.179", "x86.mce.cmci"),
    ("msr.179", "x86.mce.ser"),
    ("msr.179", "x86.mce.lmce"),
    ("insn.rdpmc", "x86.pmu"),
    ("msr.c1", "x86.pmu"),
    ("msr.186", "x86.pmu"),
    ("msr.38", "x86.pmu"),
    ("msr.c0000300", "x86.pmu"),
    ("msr.c0010000", "x86.pmu"),
    ("msr.c0010004", "x86.pmu"),
    ("msr.c0010200", "x86.pmu"),
];

/// Whether a difference under `name` is one of the facet (x86): it is its own name, or one that is looked at for it.
pub fn shows(name: &str, facet: &str) -> bool {
    let own = name.strip_prefix(facet).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    own || BEHIND.iter().any(|(prefix, behind)| *behind == facet && name.starts_with(prefix))
}

/// Compares; `before` is the other observation. Both must be of one architecture.
pub fn compare(before: &Observation, after: &Observation) -> Comparison {
    let (a, b) = (Looked::of(before), Looked::of(after));
    let names: BTreeSet<&String> = a.seen.keys().chain(b.seen.keys()).collect();
    let mut out = Comparison {
        schema: "evenkeel.observation-diff/1",
        shapes: [before.shape.clone(), after.shape.clone()],
        kernels: [before.volatile.kernel.clone(), after.volatile.kernel.clone()],
        alike: 0,
        differences: Vec::new(),
        undetermined: Vec::new(),
    };
    for name in names {
        match (a.at(name), b.at(name)) {
            (Some(x), Some(y)) if x == y => out.alike += 1,
            (Some(x), Some(y)) => out.differences.extend(differ(before.arch, name, x, y)),
            // One of them runs by itself there: what the other saw is no value.
            _ if a.running.contains_key(name) || b.running.contains_key(name) => {}
            (x, y) => {
                let cause = asking(before.arch, name);
                let (x, y) = (a.told(name, x), b.told(name, y));
                out.undetermined.push(difference(name.clone(), title(name), x, y, cause));
            }
        }
    }
    // Clocks and counters: that there is a value, not which.
    let running: BTreeSet<&String> = a.running.keys().chain(b.running.keys()).collect();
    for name in running {
        let either = |looked: &Looked<'_>| looked.running.get(name).or(looked.seen.get(name)).cloned();
        let (Some(x), Some(y)) = (either(&a), either(&b)) else { continue };
        if std::mem::discriminant(&x) != std::mem::discriminant(&y) {
            out.differences.extend(differ(before.arch, name, &x, &y));
        }
    }
    out.differences.sort_by(|x, y| x.name.cmp(&y.name));
    behind(before.arch, &mut out.differences);
    implied(&out.differences, &mut out.undetermined);
    out
}

/// What one observation says, by name.
struct Looked<'o> {
    seen: BTreeMap<String, Saw>,
    running: BTreeMap<String, Saw>,
    unasked: BTreeMap<&'o str, &'o str>,
}

/// What is not in an observation because it is nothing out of the ordinary.
const ZERO: Saw = Saw::Value(Hex64(0));

impl Looked<'_> {
    fn of(observation: &Observation) -> Looked<'_> {
        Looked {
            seen: unfold(&observation.seen),
            running: unfold(&observation.running),
            unasked: observation.unasked.iter().map(|u| (u.name.as_str(), u.why.as_str())).collect(),
        }
    }

    fn at(&self, name: &str) -> Option<&Saw> {
        let Some((plain, suffix)) = name.split_once('@') else {
            // Words of CPUID that are 0 are not in the document, nor are bits that do nothing odd.
            let tried = || name.strip_suffix(".sticks").or(name.strip_suffix(".ends"));
            let zero = || match tried() {
                Some(word) => matches!(self.seen.get(&format!("{word}.writable")), Some(Saw::Value(_))),
                None => name.starts_with("cpuid."),
            };
            return self.seen.get(name).or_else(|| zero().then_some(&ZERO));
        };
        // From later vCPUs and after a reboot only what is otherwise than before is kept.
        let kept = || match self.at(plain) {
            Some(saw @ Saw::Value(_)) if LATER.contains(&suffix) && self.looked(suffix) => Some(saw),
            _ => None,
        };
        self.seen.get(name).or_else(kept)
    }

    /// Whether there was such a vCPU; a reboot there is always.
    fn looked(&self, suffix: &str) -> bool {
        suffix == "reboot" || matches!(self.seen.get(&format!("{suffix}.start")), Some(Saw::Executes))
    }

    fn told(&self, name: &str, saw: Option<&Saw>) -> String {
        if let Some(saw) = saw {
            return show(name, saw);
        }
        if let Some(why) = self.unasked.get(name) {
            return format!("not asked: {why}");
        }
        match name.split_once('@').and_then(|(plain, _)| self.seen.get(plain)) {
            Some(before) => format!("not asked: {before} before"),
            None => "not seen".to_owned(),
        }
    }
}

/// Looks at the same things elsewhere or later.
const LATER: [&str; 3] = ["second", "late", "reboot"];

/// Why a kernel cannot be asked for something: the entry for the capability that it takes, by prefixes of names.
fn asking(arch: Arch, name: &str) -> Option<&'static catalog::Change> {
    if arch != Arch::X86_64 {
        return None;
    }
    match name {
        _ if name.ends_with("@suppress-eoi-enabled") || name.ends_with("@suppress-eoi-disabled") => {
            cause::of_facet(arch, "x86.x2apic.suppress-eoi-broadcast", "legacy", "enabled")
        }
        "x86.xen.tsc-leaf" | "xen.tsc-leaf.filled" => cause::of_facet(arch, "cap.38", "0", "511"),
        _ => None,
    }
}

/// What only one could look at because of what differs otherwise has that difference's cause: what is there after a
/// reboot, of an MSR that only one has.
fn implied(differences: &[Difference], undetermined: &mut [Difference]) {
    for d in undetermined.iter_mut().filter(|d| d.cause.is_none()) {
        let plain = d.name.split('@').next().unwrap_or_default();
        let word =
            plain.rsplit_once('.').filter(|(_, part)| BITS.contains(part)).map_or(plain, |(word, _)| word);
        let first = differences.iter().find(|other| {
            other.cause.is_some()
                && other.name.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        });
        if let Some(first) = first {
            d.cause.clone_from(&first.cause);
            d.cause_title.clone_from(&first.cause_title);
        }
    }
}

/// What is told of the bits of a word, and of writing it.
const BITS: [&str; 5] = ["writable", "faults", "sticks", "ends", "write"];

fn show(name: &str, saw: &Saw) -> String {
    let plain = name.split_once('@').map_or(name, |(plain, _)| plain);
    let named = |number: u64| catalog::choice(plain)?.values.iter().find(|v| v.value == number);
    match saw {
        Saw::Value(number) => named(number.0).map_or(saw.to_string(), |v| v.name.to_owned()),
        _ => saw.to_string(),
    }
}

fn title(name: &str) -> String {
    if let Some(choice) = catalog::choice(name) {
        return choice.title.to_owned();
    }
    let msr = || {
        let digits = name.strip_prefix("msr.").or(name.strip_prefix("x2apic."))?;
        let end = digits.find(['.', '@', '-']).unwrap_or(digits.len());
        let msr = catalog::msr(u32::from_str_radix(&digits[..end], 16).ok()?)?;
        Some(format!("{}: {}", msr.name, msr.title))
    };
    msr().or_else(|| catalog::register(name).map(|(r, _)| r.title.to_owned())).unwrap_or_default()
}

/// One name that differs: a difference for each field, where it is a word of fields.
fn differ(arch: Arch, name: &str, x: &Saw, y: &Saw) -> Vec<Difference> {
    let (plain, suffix) = name.split_once('@').map_or((name, ""), |(plain, suffix)| (plain, suffix));
    if let (Some(at), Saw::Value(x), Saw::Value(y)) = (Coord::parse(plain), x, y) {
        let layout = at.layout().and_then(|i| u16::try_from(i).ok()).unwrap_or(UNKNOWN);
        // An MSR that holds state is one number, not a set of features.
        if layout != UNKNOWN || matches!(at, Coord::Cpuid { table: Table::Supported, .. }) {
            let made = parts(at, layout, x.0 ^ y.0).into_iter().map(|part| {
                let (before, after) = (part.show(x.0), part.show(y.0));
                let cause = cause::of_facet(arch, &part.name, &before, &after);
                let suffix = if suffix.is_empty() { String::new() } else { format!("@{suffix}") };
                let name = format!("{}{suffix}", part.name);
                difference(name, part.title.to_owned(), before, after, cause)
            });
            return made.collect();
        }
    }
    let (before, after) = (show(name, x), show(name, y));
    let cause = cause::of_facet(arch, plain, &before, &after).or_else(|| item(arch, plain, x, y));
    vec![difference(name.to_owned(), title(name), before, after, cause)]
}

/// An MSR that one guest can read and the other cannot: an item of state that came or went. A register of arm64 that shows
/// another value: an entry about that item.
fn item(arch: Arch, name: &str, x: &Saw, y: &Saw) -> Option<&'static catalog::Change> {
    if arch == Arch::Aarch64 {
        let look = name.strip_prefix("arm64.")?;
        let known = catalog::REGS.iter().find(|reg| reg.name.to_lowercase().replace('_', "-") == look)?;
        return cause::of_item(arch, ItemKey::Reg(known.id), &["kept"], &["kept"]);
    }
    let digits = name.strip_prefix("msr.")?.split('.').next()?;
    let key = ItemKey::Msr(u32::from_str_radix(digits, 16).ok()?);
    let states = |saw: &Saw| match saw {
        Saw::Value(_) | Saw::Executes => ["listed", "readable"],
        _ => ["unlisted", "refused"],
    };
    let there = |saw: &Saw| matches!(saw, Saw::Value(_) | Saw::Executes);
    if there(x) == there(y) { None } else { cause::of_item(arch, key, &states(x), &states(y)) }
}

fn difference(
    name: String,
    title: String,
    before: String,
    after: String,
    cause: Option<&'static catalog::Change>,
) -> Difference {
    Difference {
        name,
        title,
        before,
        after,
        cause: cause.map(|c| c.id.to_owned()),
        cause_title: cause.map_or("", |c| c.title).to_owned(),
    }
}

/// What was looked at to settle a facet that differs has its cause.
fn behind(arch: Arch, differences: &mut [Difference]) {
    let table = match arch {
        Arch::X86_64 => BEHIND,
        Arch::Aarch64 => crate::aarch64::names::BEHIND,
    };
    let causes: BTreeMap<String, (String, String)> = differences
        .iter()
        .filter_map(|d| Some((d.name.clone(), (d.cause.clone()?, d.cause_title.clone()))))
        .collect();
    for d in differences.iter_mut().filter(|d| d.cause.is_none()) {
        let mine = table.iter().filter(|(prefix, _)| d.name.starts_with(prefix));
        if let Some((id, title)) = mine.filter_map(|(_, facet)| causes.get(*facet)).next() {
            d.cause = Some(id.clone());
            d.cause_title.clone_from(title);
        }
    }
}
