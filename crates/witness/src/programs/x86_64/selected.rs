//! The facets of the catalog that a VMM selects, and that show in what the other programs saw.

use super::choices::Settled::{self, Not, Value};
use super::choices::either;
use crate::observation::{Record, Saw};

/// MCG_CAP.
const MCG_CAP: &str = "msr.179";
const UD: u8 = 6;

/// What was seen of a facet; none where no program sees it.
pub fn value(name: &str, record: &Record) -> Option<Settled> {
    let mcg = |low: u32, mask: u64| match record.number(MCG_CAP) {
        Some(cap) => Value(cap >> low & mask),
        None => Not("MCG_CAP cannot be read here"),
    };
    Some(match name {
        "x86.mce.banks" => mcg(0, 0xff),
        "x86.mce.ctl" => mcg(8, 1),
        "x86.mce.cmci" => mcg(10, 1),
        "x86.mce.ser" => mcg(24, 1),
        "x86.mce.lmce" => mcg(27, 1),
        "x86.msr-platform-info" => either(record.get("msr.ce"), 1, 0),
        // The first vCPU's, before the guest writes it: unmasked for ExtINT, or masked.
        "x86.quirk.lint0-reenabled" => match record.number("xapic.350") {
            Some(0x700) => Value(1),
            Some(0x1_0000) => Value(0),
            Some(_) => Not("LINT0 is neither as after a reset nor as KVM leaves it"),
            None => Not("no local APIC in the kernel"),
        },
        "x86.quirk.fix-hypercall-insn" => hypercall(record),
        "x86.quirk.mwait-never-ud-faults" => mwait(record),
        _ => return None,
    })
}

/// Whether the instruction of the other vendor does what that of this one does.
fn hypercall(record: &Record) -> Settled {
    let [one, other] = ["insn.hypercall-vmcall", "insn.hypercall-vmmcall"].map(|name| record.get(name));
    let ud = |saw: &Saw| matches!(saw, Saw::Fault { vector: UD, .. });
    match (one, other) {
        (Some(Saw::Value(_)), Some(Saw::Value(_))) => Value(1),
        (Some(Saw::Value(_)), Some(saw)) | (Some(saw), Some(Saw::Value(_))) if ud(saw) => Value(0),
        _ => Not("neither of the two instructions is a hypercall here"),
    }
}

/// MONITOR in a guest that is not shown it.
fn mwait(record: &Record) -> Settled {
    if record.number("cpuid.1.0.ecx").is_some_and(|ecx| ecx & 1 << 3 != 0) {
        return Not("the guest is shown MONITOR and MWAIT");
    }
    match record.get("insn.monitor") {
        Some(Saw::Executes | Saw::Value(_)) => Value(1),
        Some(Saw::Fault { vector: UD, .. }) => Value(0),
        _ => Not("MONITOR does not come to its end here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_surface::Hex32;

    fn is(name: &str, record: &Record) -> Option<u64> {
        match value(name, record)? {
            Value(number) => Some(number),
            Not(_) => None,
        }
    }

    #[test]
    fn what_is_selected_shows() {
        let mut record = Record::default();
        let ud = Saw::Fault { vector: UD, code: Hex32(0) };
        for name in ["x86.mce.banks", "x86.quirk.fix-hypercall-insn", "x86.quirk.mwait-never-ud-faults"] {
            assert_eq!(is(name, &record), None, "{name}");
        }
        record.value(MCG_CAP, 0x100_010a);
        record.value("insn.hypercall-vmcall", u64::MAX);
        record.saw("insn.hypercall-vmmcall", ud.clone());
        record.saw("insn.monitor", ud);
        record.value("xapic.350", 0x1_0000);
        let all = ["banks", "ctl", "cmci", "ser", "lmce"].map(|n| is(&format!("x86.mce.{n}"), &record));
        assert_eq!(all, [Some(10), Some(1), Some(0), Some(1), Some(0)]);
        for name in ["lint0-reenabled", "fix-hypercall-insn", "mwait-never-ud-faults"] {
            assert_eq!(is(&format!("x86.quirk.{name}"), &record), Some(0), "{name}");
        }
        record.value("insn.hypercall-vmmcall", u64::MAX);
        record.saw("insn.monitor", Saw::Executes);
        record.value("xapic.350", 0x700);
        for name in ["lint0-reenabled", "fix-hypercall-insn", "mwait-never-ud-faults"] {
            assert_eq!(is(&format!("x86.quirk.{name}"), &record), Some(1), "{name}");
        }
        record.value("cpuid.1.0.ecx", 8);
        assert_eq!(is("x86.quirk.mwait-never-ud-faults", &record), None);
        assert!(value("x86.xen", &record).is_none());
    }

    #[test]
    fn they_are_facets_of_the_catalog_that_nothing_else_settles() {
        let record = Record::default();
        let mine = evenkeel_catalog::CHOICES.iter().filter(|c| value(c.name, &record).is_some());
        let mine: Vec<_> = mine.map(|c| (c.name, c.from.observe)).collect();
        assert_eq!(mine.len(), 9, "{mine:?}");
        assert!(mine.iter().all(|(_, observe)| observe.is_empty()), "{mine:?}");
    }
}
