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
