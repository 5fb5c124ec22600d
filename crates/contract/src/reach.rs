//! Enumerated and reachable are two things: what a CPUID bit of a paravirtual interface tells of works for a guest that
//! is not shown the bit, as long as the bit's *gate* (KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_CAP_HYPERV_ENFORCE_CPUID) is
//! open. So a host that has such an MSR gives it to a guest which came from a host without, though its contract hides it.
//!
//! Hypercalls are not judged: no ioctl tells which of them a kernel has.

use evenkeel_catalog::{self as catalog, CHOICES, Field, REGISTERS, Register};
use evenkeel_surface::{Arch, Write};

use crate::contract::Shown;
use crate::describe::kernel_or_boot;
use crate::finding::{Finding, Outcome, Remedy};
use crate::keeps::Question;
use crate::layout::field_mask;
use crate::view::{ItemKey, View};

/// Whether a host has an MSR; none: nothing that was asked of it tells.
fn has(view: &View, msr: u32) -> Option<bool> {
    let item = view.item(ItemKey::Msr(msr))?;
    if item.listed || item.reset.is_some() || matches!(item.write, Write::Kept | Write::Altered) {
        return Some(true);
    }
    (item.write == Write::Refused).then_some(false)
}

/// The MSRs that a field enumerates behind its register's gate.
pub fn msrs(field: &Field) -> impl Iterator<Item = u32> + use<> {
    let hex = |t: &str| u32::from_str_radix(t, 16).ok();
    field
        .reaches
        .iter()
        .filter_map(move |what| {
            let run = what.strip_prefix("msr.")?;
            let (first, last) = run.split_once('-').unwrap_or((run, run));
            Some(hex(first)?..=hex(last)?)
        })
        .flatten()
}

/// Judges the MSRs that the guest is not shown, and reaches on `q.on` nevertheless.
pub(crate) fn reach(q: &Question<'_>, shown: &Shown, findings: &mut Vec<Finding>) {
    if q.on.arch != Arch::X86_64 || q.from.same_host(q.on) {
        return;
    }
    for register in REGISTERS.iter().filter(|r| !r.gate.is_empty()) {
        let within = register.within.is_empty() || shown.field(register.within) != 0;
        if !within || shut(register, shown) {
            continue;
        }
        let Some(at) = crate::coord::Coord::parse(register.name) else { continue };
        let word = shown.word(at);
        for field in register.fields.iter().filter(|f| (word.value | word.unknown) & field_mask(f) == 0) {
            for msr in msrs(field) {
                // One that neither host was asked for is no difference that anybody knows of.
                let outcome = match (has(q.from, msr), has(q.on, msr)) {
                    (Some(false), Some(true)) if q.pinned => Outcome::HoldsWithSelectors,
                    (Some(false), Some(true)) => Outcome::No,
                    (Some(false), None) | (None, Some(true)) => Outcome::Unknown,
                    _ => continue,
                };
                findings.push(finding(q, register, field, msr, outcome));
            }
        }
    }
}

/// The guest was promised that the gate is shut: KVM heeds the bits.
fn shut(register: &Register, shown: &Shown) -> bool {
    shown.choices.iter().any(|(choice, value)| {
        let facet = &CHOICES[usize::from(*choice)];
        let value = value.and_then(|v| facet.values.get(usize::from(v)));
        facet.name == register.gate && value.is_some_and(|v| v.value != 0)
    })
}

fn finding(q: &Question<'_>, register: &Register, field: &Field, msr: u32, outcome: Outcome) -> Finding {
    let known = catalog::msr(msr);
    let (before, after) = (has(q.from, msr), has(q.on, msr));
    let show = |there: Option<bool>| match there {
        Some(true) => "not shown, reachable",
        Some(false) => "not shown, not there",
        None => "not shown, never asked",
    };
    let remedy = if outcome == Outcome::Unknown {
        Remedy::Observe { name: format!("read msr.{msr:x} there") }
    } else {
        Remedy::Selector { steps: vec![steps(register, msr)] }
    };
    Finding {
        code: "msr-newly-reachable",
        subject: format!("msr.{msr:x}"),
        title: format!("{}, which {}.{} tells of", known.map_or("", |m| m.name), register.name, field.name),
        at: format!("MSR {msr:#x}"),
        outcome,
        axis: kernel_or_boot(q.from, q.on),
        before: show(before).to_owned(),
        after: show(after).to_owned(),
        shapes: vec![q.on.shape.clone()],
        cause: crate::cause::of_item(q.on.arch, ItemKey::Msr(msr), &["unlisted"], &["listed"]).map(|c| c.id),
        remedy,
        evidence: q.from.evidence.min(q.on.evidence),
    }
}

/// The filter keeps this MSR away and nothing else; the gate is for contracts that are made anew.
fn steps(register: &Register, msr: u32) -> String {
    format!(
        "KVM_X86_SET_MSR_FILTER (capability 189): deny reads and writes of {msr:#x}; a new contract can have `{}` on",
        register.gate
    )
}
