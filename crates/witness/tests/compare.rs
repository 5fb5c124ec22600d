//! Comparing observations.

use evenkeel_surface::{Arch, Hex32};
use evenkeel_witness::compare::compare;
use evenkeel_witness::observation::{Observation, Record, Saw, Volatile};

fn observation(fill: impl FnOnce(&mut Record)) -> Observation {
    let mut record = Record::default();
    fill(&mut record);
    record.finish(Arch::X86_64, "kernel", Volatile::default())
}

const GP: Saw = Saw::Fault { vector: 13, code: Hex32(0) };

#[test]
fn differences_are_facets_with_their_causes() {
    let old = observation(|r| {
        r.value("cpuid.7.0.ecx", 0x1);
        r.value("x86.amd.hwcr-tsc-freq-sel", 0);
        r.value("msr.c0010015.writable", 0x4_0000);
        r.value("msr.10", 1);
        r.saw("msr.200", GP);
        r.value("only.here", 1);
    });
    let new = observation(|r| {
        r.value("cpuid.7.0.ecx", 0x81);
        r.value("x86.amd.hwcr-tsc-freq-sel", 1);
        r.value("msr.c0010015.writable", 0x104_0000);
        r.value("msr.10", 1);
        r.saw("msr.200", GP);
    });
    let compared = compare(&old, &new);
    let told: Vec<(&str, &str, &str, Option<&str>)> = compared
        .differences
        .iter()
        .map(|d| (d.name.as_str(), d.before.as_str(), d.after.as_str(), d.cause.as_deref()))
        .collect();
    assert!(told.iter().any(|(name, before, after, _)| {
        *name == "cpuid.7.0.ecx.shstk" && *before == "0x0" && *after == "0x1"
    }));
    assert!(told.contains(&("x86.amd.hwcr-tsc-freq-sel", "refused", "settable", Some("X86-066"))));
    assert!(
        told.iter().any(|d| d.0 == "msr.c0010015.writable" && d.3 == Some("X86-066")),
        "what it follows from has the same cause: {told:?}"
    );
    assert_eq!(told.len(), 3);
    assert_eq!(compared.alike, 2);
    assert_eq!(compared.undetermined.len(), 1);
    assert_eq!(compared.undetermined[0].after, "not seen");
}

#[test]
fn clocks_are_compared_by_rule() {
    let with = |saw: Saw| observation(|r| r.runs("msr.10", saw));
    let (a, b) = (with(Saw::Value(1.into())), with(Saw::Value(99.into())));
    assert_eq!(a.digest, b.digest, "no clock is in the digest");
    assert!(compare(&a, &b).differences.is_empty());
    assert_eq!(compare(&a, &with(GP)).differences.len(), 1, "but one that cannot be read is another thing");
}

#[test]
fn a_word_of_cpuid_that_is_not_there_is_zero() {
    let with = observation(|r| r.value("cpuid.7.0.ecx", 4));
    let without = observation(|_| {});
    let compared = compare(&with, &without);
    assert_eq!((compared.differences.len(), compared.undetermined.len()), (1, 0));
    assert_eq!(compared.differences[0].name, "cpuid.7.0.ecx.umip");
}

#[test]
fn what_is_told_only_when_it_is_otherwise_stands_for_the_same() {
    let old = observation(|r| {
        r.value("cpuid.1.0.ecx", 1);
        r.value("msr.c0010015", 0);
        r.value("msr.c0010015.writable", 0x4_0000);
        r.value("msr.c0010015.sticks", 0x4_0000);
        r.value("msr.c0010015@reboot", 0x4_0000);
        r.value("x86.amd.hwcr-clear", 0);
        r.value("msr.c0010016@second", 3);
    });
    let new = observation(|r| {
        r.value("cpuid.1.0.ecx", 1);
        r.value("msr.c0010015", 0);
        r.value("msr.c0010015.writable", 0x4_0000);
        r.value("x86.amd.hwcr-clear", 1);
        r.value("msr.c0010016", 3);
    });
    let compared = compare(&old, &new);
    let told: Vec<(&str, &str, &str, Option<&str>)> = compared
        .differences
        .iter()
        .map(|d| (d.name.as_str(), d.before.as_str(), d.after.as_str(), d.cause.as_deref()))
        .collect();
    assert_eq!(
        told,
        [
            ("msr.c0010015.sticks", "0x40000", "0x0", Some("X86-333")),
            ("msr.c0010015@reboot", "0x40000", "0x0", Some("X86-333")),
            ("x86.amd.hwcr-clear", "sticks", "clears", Some("X86-333")),
        ]
    );
    // There was no second vCPU, so nothing stands for what it saw.
    let open: Vec<&str> = compared.undetermined.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(open, ["msr.c0010016", "msr.c0010016@second"]);
}

#[test]
fn what_runs_on_one_kernel_and_faults_on_the_other_differs_once() {
    let old = observation(|r| {
        r.value("msr.40000000", 0);
        r.runs("msr.40000010", Saw::Value(7.into()));
        r.value("msr.40000002@second", 1);
    });
    let new = observation(|r| {
        r.saw("msr.40000000", GP);
        r.saw("msr.40000002", GP);
        r.saw("msr.40000010", GP);
    });
    let compared = compare(&old, &new);
    let names: Vec<&str> = compared.differences.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["msr.40000000", "msr.40000010"]);
    let open: Vec<(&str, &str)> =
        compared.undetermined.iter().map(|d| (d.name.as_str(), d.after.as_str())).collect();
    assert_eq!(open, [("msr.40000002", "#GP"), ("msr.40000002@second", "not asked: #GP before")]);
}
