//! The algebra on data that somebody else measured: Firecracker's fingerprints of one CPU under three host kernels
//! each, its guests' readable MSRs, and its CPU templates. What must be found is known (`data/README.md` beside them).

mod common;

use std::collections::BTreeSet;

use common::{fingerprint, observe_msrs, template, views};
use evenkeel_contract::diff::{Class, diff};
use evenkeel_contract::verdict::unpinned;
use evenkeel_contract::{Axis, Journey, Outcome, Verdicts, seal};
use evenkeel_surface::Surface;

fn judge(o: &Surface, n: &Surface) -> Verdicts {
    unpinned(&views(o, "O"), &views(n, "N"))
}

/// Subjects of the findings of one verdict that say no.
fn against(v: &Verdicts, journey: Journey) -> BTreeSet<String> {
    let verdict = v.verdicts.iter().find(|v| v.journey == journey).unwrap();
    verdict.findings.iter().filter(|f| f.outcome == Outcome::No).map(|f| f.subject.clone()).collect()
}

fn has(set: &BTreeSet<String>, part: &str) -> bool {
    set.iter().any(|s| s.starts_with(part))
}

#[cfg_attr(
    not(shared),
    ignore = "needs the folder with Firecracker's data: EVENKEEL_SHARED, or ../shared beside the checkout"
)]
#[test]
fn milan_loses_the_sev_leaf_at_6_1() {
    let (o, n) = (fingerprint("AMD_MILAN", "5.10"), fingerprint("AMD_MILAN", "6.1"));
    let found = diff((&o, &views(&o, "O")), (&n, &views(&n, "N")));
    let sev: Vec<_> = found.iter().filter(|d| d.subject.starts_with("cpuid.8000001f.0.")).collect();
    assert!(!sev.is_empty() && sev.iter().all(|d| d.axis == Axis::Kernel), "{sev:?}");
    assert!(sev.iter().any(|d| d.cause.is_some()), "the ledger explains it: {sev:?}");
    let v = judge(&o, &n);
    assert!(has(&against(&v, Journey::RunningUp), "cpuid.8000001f.0."), "a running guest loses it");
    // The other way, nothing in the leaf stands against a guest that never had it.
    assert!(!has(&against(&judge(&n, &o), Journey::RunningUp), "cpuid.8000001f.0."));
}

#[cfg_attr(
    not(shared),
    ignore = "needs the folder with Firecracker's data: EVENKEEL_SHARED, or ../shared beside the checkout"
)]
#[test]
fn milan_at_6_18_loses_spec_ctrl_and_gains_cet() {
    let (o, n) = (fingerprint("AMD_MILAN", "6.1"), fingerprint("AMD_MILAN", "6.18"));
    let v = judge(&o, &n);
    let up = against(&v, Journey::RunningUp);
    assert!(up.contains("cpuid.7.0.edx.spec-ctrl"), "{up:?}");
    assert!(!has(&up, "cpuid.7.0.ecx.shstk"), "a running guest never had CET: {up:?}");
    let back = against(&v, Journey::NewBack);
    assert!(
        back.contains("cpuid.7.0.ecx.shstk"),
        "a guest started on 6.18 has CET and cannot go back: {back:?}"
    );
    let cet = v.verdicts[3].findings.iter().find(|f| f.subject == "cpuid.7.0.ecx.shstk").unwrap();
    assert_eq!(cet.cause, Some("X86-043"), "named in the ledger");
    // The reverse change: CET is what a running guest loses, SPEC_CTRL what a new one cannot take along.
    let r = judge(&n, &o);
    assert!(against(&r, Journey::RunningUp).contains("cpuid.7.0.ecx.shstk"));
    assert!(against(&r, Journey::NewBack).contains("cpuid.7.0.edx.spec-ctrl"));
}

#[cfg_attr(
    not(shared),
    ignore = "needs the folder with Firecracker's data: EVENKEEL_SHARED, or ../shared beside the checkout"
)]
#[test]
fn neoverse_loses_74_registers_at_6_1_and_gains_a_bitmap_at_6_18() {
    let (a, b, c) = (
        fingerprint("ARM_NEOVERSE_N1", "5.10"),
        fingerprint("ARM_NEOVERSE_N1", "6.1"),
        fingerprint("ARM_NEOVERSE_N1", "6.18"),
    );
    let listed = |s: &Surface| s.offer.registers.iter().map(|r| r.id.0).collect::<BTreeSet<_>>();
    let gone: Vec<u64> = listed(&a).difference(&listed(&b)).copied().collect();
    assert_eq!(gone.len(), 74);
    let v = judge(&a, &b);
    let up = against(&v, Journey::RunningUp);
    let named = gone.iter().filter(|id| up.contains(&format!("reg.{id:x}"))).count();
    assert_eq!(named, 74, "each of the 74 is named, because 6.1 refuses it: {up:?}");
    let explained =
        v.verdicts[0].findings.iter().filter(|f| f.subject.starts_with("reg.") && f.cause.is_some()).count();
    assert!(explained >= 70, "{explained} of 74 are explained");

    let bitmap = "arm64.vendor-hyp-bmap-2";
    let found = diff((&b, &views(&b, "O")), (&c, &views(&c, "N")));
    let name = evenkeel_contract::Coord::Reg(0x6030_0000_0016_0003).to_string();
    assert!(
        found.iter().any(|d| d.subject.starts_with(&name) || d.at.contains("0x6030000000160003")),
        "{name} ({bitmap}) joins at 6.18"
    );
    assert!(judge(&b, &c).verdicts[3].findings.iter().any(|f| f.outcome != Outcome::HoldsByDefault));
}

#[cfg_attr(
    not(shared),
    ignore = "needs the folder with Firecracker's data: EVENKEEL_SHARED, or ../shared beside the checkout"
)]
#[test]
fn reserved_x2apic_reads_change_under_an_unchanged_cpuid() {
    let cpu = "INTEL_CASCADELAKE";
    let observed = |kernel: &str| {
        let mut surface = fingerprint(cpu, kernel);
        observe_msrs(&mut surface, "T2CL", cpu, kernel);
        surface
    };
    let (o, n) = (observed("6.1"), observed("6.18"));
    let found = diff((&o, &views(&o, "O")), (&n, &views(&n, "N")));
    let reads = |d: &&evenkeel_contract::diff::Difference| {
        let msr = d.subject.strip_prefix("msr.").and_then(|r| r.strip_suffix(".read"));
        msr.and_then(|m| u32::from_str_radix(m, 16).ok()).is_some_and(|m| (0x800..0x900).contains(&m))
            && d.after == "none"
    };
    assert_eq!(found.iter().filter(reads).count(), 215);
    let v = judge(&o, &n);
    assert!(against(&v, Journey::RunningUp).contains("x86.x2apic.reserved-register-read"));
    assert!(
        against(&judge(&n, &o), Journey::RunningUp).contains("x86.x2apic.reserved-register-read"),
        "and back"
    );
    assert!(
        found
            .iter()
            .any(|d| d.subject == "x86.x2apic.reserved-register-read" && d.class == Class::NotSelectable)
    );
    // Without the observation it is unknown, and unknown never holds.
    let (o, n) = (fingerprint(cpu, "6.1"), fingerprint(cpu, "6.18"));
    let up = &judge(&o, &n).verdicts[0];
    assert!(
        up.findings
            .iter()
            .any(|f| f.subject == "x86.x2apic.reserved-register-read" && f.outcome == Outcome::Unknown)
    );
}

#[cfg_attr(
    not(shared),
    ignore = "needs the folder with Firecracker's data: EVENKEEL_SHARED, or ../shared beside the checkout"
)]
#[test]
fn cascade_lake_5_10_to_6_1_changes_no_word() {
    let (o, n) = (fingerprint("INTEL_CASCADELAKE", "5.10"), fingerprint("INTEL_CASCADELAKE", "6.1"));
    let (o, n) = (views(&o, "O"), views(&n, "N"));
    assert_eq!(evenkeel_contract::diff::words(&o[0], &n[0]), []);
}

#[cfg_attr(
    not(shared),
    ignore = "needs the folder with Firecracker's data: EVENKEEL_SHARED, or ../shared beside the checkout"
)]
#[test]
fn template_t2a_leaks_cet_on_6_18() {
    let contract = template("T2A");
    assert!(!contract.is_sealed());
    let (old, new) = (fingerprint("AMD_MILAN", "6.1"), fingerprint("AMD_MILAN", "6.18"));
    let (old, new) = (views(&old, "6.1"), views(&new, "6.18"));
    let leaks = seal::leaks(&contract, &new[0], None);
    let cet = leaks.iter().find(|f| f.subject == "cpuid.7.0.ecx.shstk").expect("the leak is found");
    assert_eq!(cet.cause, Some("X86-043"));
    let added = seal::leaks(&contract, &new[0], Some(&old[0]));
    assert!(added.iter().any(|f| f.subject == "cpuid.7.0.ecx.shstk") && added.len() < leaks.len());
    // Sealed on the old host it leaks nothing on the new one.
    let sealed = seal::sealed(&contract, &old[0]);
    assert!(sealed.is_sealed());
    assert_eq!(seal::leaks(&sealed, &new[0], None), []);
    // And a guest started under the open template on 6.18 cannot go to 6.1.
    let v = evenkeel_contract::verdict::under(&contract, &old, &new);
    assert!(against(&v, Journey::NewBack).contains("cpuid.7.0.ecx.shstk"));
}
