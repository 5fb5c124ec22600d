//! Observations of arm64 guests, compared on any machine.

use evenkeel_surface::{Arch, Hex32};
use evenkeel_witness::compare::compare;
use evenkeel_witness::observation::{Observation, Record, Saw, Volatile};

fn seen(values: &[(&str, u64)], faults: &[(&str, u8)]) -> Observation {
    let mut record = Record::default();
    for (name, value) in values {
        record.value(*name, *value);
    }
    for (name, class) in faults {
        record.saw(*name, Saw::Exception { class: *class, iss: Hex32(0) });
    }
    record.finish(Arch::Aarch64, "full", Volatile::default())
}

#[test]
fn differences_have_the_names_of_fields_and_the_causes_of_the_ledger() {
    // As guests on 6.1 and on 7.3 saw them.
    let old = seen(
        &[
            ("arm64.id-aa64dfr0-el1", 0x1030_5506),
            ("arm64.guest.smc-conduit", 0),
            ("insn.smc", u64::MAX),
            ("arm64.guest.pmmir-less@min", 1),
            ("arm64.pmmir-el1@min", 0),
            ("arm64.midr-el1", 0x414f_d0c1),
        ],
        &[],
    );
    let new = seen(
        &[
            ("arm64.id-aa64dfr0-el1", 0x1030_5609),
            ("arm64.guest.smc-conduit", 1),
            ("insn.smc", 0x1_0001),
            ("arm64.guest.pmmir-less@min", 0),
            ("arm64.midr-el1", 0x414f_d0c1),
        ],
        &[("arm64.pmmir-el1@min", 0)],
    );
    let compared = compare(&old, &new);
    assert_eq!((compared.alike, compared.undetermined.len()), (1, 0));
    let found: Vec<(&str, &str, &str)> = compared
        .differences
        .iter()
        .map(|d| (d.name.as_str(), d.after.as_str(), d.cause.as_deref().unwrap_or("none")))
        .collect();
    assert_eq!(
        found,
        [
            ("arm64.guest.pmmir-less@min", "undefined", "ARM-121"),
            ("arm64.guest.smc-conduit", "served", "ARM-120"),
            ("arm64.id-aa64dfr0-el1.debugver", "0x9", "ARM-024"),
            ("arm64.id-aa64dfr0-el1.pmuver", "0x6", "ARM-018"),
            ("arm64.pmmir-el1@min", "undefined", "ARM-121"),
            ("insn.smc", "0x10001", "ARM-120"),
        ]
    );
}

#[test]
fn caches_that_a_contract_cannot_name_are_explained_without_those_that_it_names() {
    // As guests saw them on 6.1, and on 7.3 under the contract of 6.1: CLIDR_EL1 is alike, so no field of it differs.
    let seen = |who: u64, beyond: u64, selector: u64| {
        let mut record = Record::default();
        record.value("arm64.guest.ccsidr-beyond", who);
        record.value("arm64.clidr-el1", 0x8200_0023);
        record.value("arm64.ccsidr-el1.2", 0x70ff_e03a);
        for cache in 3..14 {
            record.value(format!("arm64.ccsidr-el1.{cache}"), beyond);
        }
        record.value("arm64.csselr-el1", selector);
        record.finish(Arch::Aarch64, "full", Volatile::default())
    };
    let (old, new) = (seen(0, 0, 0xe), seen(1, 2, 0x1de7_ec7e_dbad_c0de));
    // The same entry on the way back.
    for (before, after) in [(&old, &new), (&new, &old)] {
        let compared = compare(before, after);
        assert_eq!((compared.alike, compared.differences.len()), (2, 13));
        let other = compared.differences.iter().find(|d| d.cause.as_deref() != Some("ARM-032"));
        assert!(other.is_none(), "{other:?}");
    }
    // A size that differs between guests whom the same one answers has another reason.
    let compared = compare(&seen(1, 2, 0xe), &seen(1, 3, 0xe));
    let named = compared.differences.iter().filter(|d| d.cause.is_some()).count();
    assert_eq!((compared.differences.len(), named), (11, 0));
}
