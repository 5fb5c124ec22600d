//! Facets of the catalog that only a look from inside tells: what was seen becomes the number of the catalog's value.

use evenkeel_catalog as catalog;
use evenkeel_surface::Hex64;

use crate::observation::{Record, Saw};

/// A register's reading as a number: a value of 0, another value, undefined, trapped.
fn kind(record: &Record, name: &str) -> Option<Kind> {
    Some(match record.get(name)? {
        Saw::Value(Hex64(0)) => Kind::Zero,
        Saw::Value(_) => Kind::Some,
        Saw::Exception { class: 0, .. } => Kind::Undefined,
        Saw::Exception { class: 0x18, .. } => Kind::Trapped,
        _ => return None,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Zero,
    Some,
    Undefined,
    Trapped,
}

/// Bits of a register that was read.
fn bits(record: &Record, name: &str, low: u32, count: u32) -> Option<u64> {
    record.number(name).map(|value| value >> low & ((1 << count) - 1))
}

/// Whether KVM made up the sizes of the caches that CLIDR_EL1 does not name: all are one set and one way, with lines that
/// are no shorter than CTR_EL0 allows. They may be longer, where a contract has a smaller number in CTR_EL0 than the host.
/// None where one of them was not read, where CLIDR_EL1 names all, or where 0 could be either.
fn made_up_caches(record: &Record) -> Option<bool> {
    let (ctr, clidr) = (record.number("arm64.ctr-el0")?, record.number("arm64.clidr-el1")?);
    let beyond = (0..14u32).filter(|selector| {
        // Instruction caches have odd selectors; a level has them with type 1 or 3, and others with 2, 3 or 4.
        let kinds: &[u64] = if selector & 1 == 1 { &[1, 3] } else { &[2, 3, 4] };
        !kinds.contains(&(clidr >> (selector / 2 * 3) & 7))
    });
    let sizes = beyond.map(|selector| {
        // IminLine and DminLine are log2 of words of four bytes; LineSize is log2 of bytes, less four.
        let shortest = (ctr >> if selector & 1 == 1 { 0 } else { 16 }) & 0xf;
        let line = shortest.checked_sub(2).filter(|line| *line != 0)?;
        Some((line..8).contains(&record.number(&format!("arm64.ccsidr-el1.{selector}"))?))
    });
    let sizes: Vec<bool> = sizes.collect::<Option<_>>()?;
    (!sizes.is_empty()).then(|| sizes.iter().all(|made_up| *made_up))
}

/// Records each of them that is about guests of this shape and that what was seen decides.
pub(crate) fn derive(record: &mut Record, shape: &str) {
    use Kind::{Some as Other, Trapped, Undefined, Zero};
    // What a guest without a PMU sees comes from a machine of its own, unless this is one.
    let less = if shape == "min" { "" } else { "@min" };
    let facets = [
        ("ctr-el0-idc", bits(record, "arm64.ctr-el0", 28, 1)),
        ("pmcr-imp", bits(record, "arm64.pmcr-el0", 16, 16).map(|codes| u64::from(codes != 0))),
        ("pmceid-chain", bits(record, "arm64.pmceid0-el0", 30, 1)),
        (
            "pmmir-el1",
            kind(record, "arm64.pmmir-el1").map(|kind| match kind {
                Undefined | Trapped => 0,
                Zero => 1,
                Other => 2,
            }),
        ),
        (
            "pmu-less-registers",
            kind(record, &format!("arm64.pmcr-el0{less}"))
                .map(|kind| u64::from(matches!(kind, Undefined | Trapped))),
        ),
        (
            "pmmir-less",
            kind(record, &format!("arm64.pmmir-el1{less}"))
                .map(|kind| u64::from(!matches!(kind, Undefined | Trapped))),
        ),
        ("smc-conduit", record.number("insn.smc").map(|answer| u64::from(answer as i32 >= 0))),
        (
            "smidr-el1",
            kind(record, "arm64.smidr-el1").and_then(|kind| match kind {
                Zero => Some(0),
                Undefined => Some(1),
                Trapped => Some(2),
                Other => None,
            }),
        ),
        (
            "gmid-el1",
            kind(record, "arm64.gmid-el1").and_then(|kind| match kind {
                Zero | Other => Some(0),
                Trapped => Some(1),
                // A CPU without tagging.
                Undefined => None,
            }),
        ),
        (
            "tpidr2-el0",
            kind(record, "arm64.tpidr2-el0").map(|kind| u64::from(matches!(kind, Undefined | Trapped))),
        ),
        ("os-lock", bits(record, "arm64.oslsr-el1.locked", 1, 1)),
        ("ccsidr-beyond", made_up_caches(record).map(u64::from)),
    ];
    for (facet, number) in facets {
        let mut name = format!("arm64.guest.{facet}");
        let shapes = catalog::choice(&name).map_or(&[][..], |c| c.applies.shapes);
        if !shapes.is_empty() && !shapes.contains(&shape) {
            if !facet.contains("-less") {
                continue;
            }
            name += less;
        }
        match number {
            Some(number) => record.value(name, number),
            None => record.unasked(name, "nothing that was seen decides it"),
        }
    }
    // Registers of the firmware, as the guest is answered: services, and workarounds (0 not there, 1 or 2 there, one more
    // where none is needed).
    let answered = |call: &str| record.number(call).map(|x| u64::from(x as i32 >= 0));
    let level = |call: &str, there: u64| {
        record.number(call).map(|x| if (x as i32) < 0 { 0 } else { there + u64::from(x as u32 != 0) })
    };
    let services =
        |bit: u32| record.number("smccc.86000000").map(|x| u64::from(x as i32 >= 0 && x >> bit & 1 != 0));
    // KVM's services 64 and 65 are in the third word.
    let services_2 = |bit: u32| match record.number("smccc.86000000")? as i32 {
        ..0 => Some(0),
        _ => record.number("smccc.86000000.x2").map(|x| x >> bit & 1),
    };
    let firmware = [
        ("arm64.mte", bits(record, "arm64.id-aa64pfr1-el1", 8, 4).map(|level| u64::from(level != 0))),
        ("arm64.pvtime", answered("smccc.c5000020.c5000021")),
        ("arm64.fw-vendor-hyp-bmap-2.discover-impl-ver", services_2(0)),
        ("arm64.fw-vendor-hyp-bmap-2.discover-impl-cpus", services_2(1)),
        ("arm64.psci.system-suspend", answered("smccc.8400000a.c400000e")),
        ("arm64.fw-std-bmap.trng", answered("smccc.84000050")),
        ("arm64.fw-std-hyp-bmap.pv-time", answered("smccc.80000001.c5000020")),
        ("arm64.fw-vendor-hyp-bmap.func-feat", answered("smccc.86000000")),
        ("arm64.fw-vendor-hyp-bmap.ptp", services(1)),
        ("arm64.fw-workaround-1", level("smccc.80000001.80008000", 1)),
        ("arm64.fw-workaround-2", level("smccc.80000001.80007fff", 2)),
        ("arm64.fw-workaround-3", level("smccc.80000001.80003fff", 1)),
    ];
    for (name, number) in firmware {
        if let Some(number) = number {
            record.value(name, number);
        }
    }
    // Choices that have a word of the guest's own.
    for (facet, seen) in [("arm64.vgic.iidr", "arm64.gicd.iidr"), ("arm64.psci.version", "smccc.84000000")] {
        if let Some(value) = record.number(seen) {
            record.value(facet, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_surface::Hex32;

    #[test]
    fn what_was_seen_becomes_a_value_of_the_catalog() {
        let mut record = Record::default();
        let trapped = Saw::Exception { class: 0x18, iss: Hex32(1) };
        record.value("arm64.ctr-el0", 0x9444_c004);
        record.value("arm64.pmcr-el0", 0x4101_30a8);
        record.value("arm64.pmmir-el1", 0);
        record.value("arm64.gicd.iidr", 0x4b00_343b);
        record.value("arm64.oslsr-el1.locked", 8);
        record.saw("arm64.smidr-el1", trapped);
        record.saw("arm64.pmcr-el0@min", Saw::Exception { class: 0, iss: Hex32(0) });
        derive(&mut record, "full");
        let is = |name: &str| record.number(&format!("arm64.guest.{name}"));
        assert_eq!([is("ctr-el0-idc"), is("pmcr-imp"), is("pmmir-el1")], [Some(1), Some(1), Some(1)]);
        assert_eq!([is("smidr-el1"), is("pmu-less-registers"), is("os-lock")], [Some(2), None, Some(0)]);
        assert_eq!(is("pmu-less-registers@min"), Some(1));
        assert_eq!([is("gmid-el1"), is("pmceid-chain")], [None, None]);
        assert_eq!(record.number("arm64.vgic.iidr"), Some(0x4b00_343b));
    }

    #[test]
    fn caches_that_are_not_there_are_the_cpus_or_made_up() {
        // 6.1, and 7.3 under the contract of 6.1, which has all that CLIDR_EL1 names alike; and 7.3 as it is.
        let seen = |clidr: u64, named: [u64; 3], beyond: u64| {
            let mut record = Record::default();
            record.value("arm64.ctr-el0", 0x9444_c004);
            record.value("arm64.clidr-el1", clidr);
            for selector in 0..14 {
                let size = named.get(selector).copied().unwrap_or(beyond);
                record.value(format!("arm64.ccsidr-el1.{selector}"), size);
            }
            record
        };
        let settled = |mut record: Record| {
            derive(&mut record, "full");
            record.number("arm64.guest.ccsidr-beyond")
        };
        let sizes = [0x701f_e01a, 0x201f_e01a, 0x70ff_e03a];
        assert_eq!(settled(seen(0x8200_0023, sizes, 0)), Some(0));
        assert_eq!(settled(seen(0x8200_0023, sizes, 2)), Some(1));
        assert_eq!(settled(seen(0x200_0021, [2; 3], 2)), Some(1));
        // One of them otherwise: somebody else than KVM made it.
        let mut one = seen(0x8200_0023, sizes, 2);
        one.value("arm64.ccsidr-el1.9", 0);
        assert_eq!(settled(one), Some(0));
        // The unified second level is named, so that its size decides nothing; its instruction cache is not.
        let mut third = seen(0x8200_0023, [0; 3], 2);
        third.value("arm64.ccsidr-el1.3", 0);
        assert_eq!(settled(third), Some(0));
        // Lines of 128 bytes of data and of 64 bytes of instructions.
        let mut lines = seen(0x8200_0023, sizes, 2);
        lines.value("arm64.ctr-el0", 0x9445_c004);
        assert_eq!(settled(lines), Some(0));
        let mut lines = seen(0x8200_0023, sizes, 2);
        // A contract may have shorter lines in CTR_EL0 than the host that makes sizes up; lines of 16 bytes read 0.
        lines.value("arm64.ctr-el0", 0x9443_c003);
        assert_eq!(settled(lines), Some(1));
        let mut short = seen(0x8200_0023, sizes, 0);
        short.value("arm64.ctr-el0", 0x9442_c002);
        assert_eq!(settled(short), None);
        let mut lost = seen(0x8200_0023, sizes, 2);
        lost.saw("arm64.ccsidr-el1.13", Saw::Exception { class: 0, iss: Hex32(0) });
        assert_eq!(settled(lost), None);
        assert_eq!(settled(Record::default()), None);
    }

    #[test]
    fn answers_of_the_firmware_become_its_registers() {
        let mut record = Record::default();
        record.value("smccc.80000001.80008000", 0);
        record.value("smccc.80000001.80007fff", 1);
        record.value("smccc.80000001.80003fff", u64::MAX);
        record.value("smccc.84000050", 0x10000);
        record.value("smccc.86000000", u64::MAX);
        derive(&mut record, "full");
        let workaround = |n: u8| record.number(&format!("arm64.fw-workaround-{n}"));
        assert_eq!([workaround(1), workaround(2), workaround(3)], [Some(1), Some(3), Some(0)]);
        assert_eq!(record.number("arm64.fw-std-bmap.trng"), Some(1));
        assert_eq!(record.number("arm64.fw-vendor-hyp-bmap.ptp"), Some(0));
        assert_eq!(record.number("arm64.psci.system-suspend"), None);
        assert_eq!(record.number("arm64.pvtime"), None);
        record.value("smccc.86000000", 3);
        record.value("smccc.86000000.x2", 2);
        record.value("arm64.id-aa64pfr1-el1", 0x121);
        derive(&mut record, "full");
        let service = |name: &str| record.number(&format!("arm64.fw-vendor-hyp-bmap-2.discover-impl-{name}"));
        assert_eq!(
            [service("ver"), service("cpus"), record.number("arm64.mte")],
            [Some(0), Some(1), Some(1)]
        );
        for name in ["arm64.fw-std-bmap.trng", "arm64.fw-std-hyp-bmap.pv-time", "arm64.fw-workaround-2"] {
            assert!(catalog::register(name).is_some(), "{name}");
        }
    }

    #[test]
    fn every_facet_that_is_observed_on_arm64_is_derived_here() {
        let unasked = |shape: &str| {
            let mut record = Record::default();
            derive(&mut record, shape);
            record.finish(evenkeel_surface::Arch::Aarch64, shape, Default::default()).unasked
        };
        for choice in catalog::CHOICES.iter().filter(|c| c.from.observe.starts_with("arm64.")) {
            let shape = choice.applies.shapes.first().copied().unwrap_or("full");
            assert!(unasked(shape).iter().any(|u| u.name == choice.from.observe), "{}", choice.name);
        }
    }
}
