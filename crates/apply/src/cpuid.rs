//! The CPUID table that a contract stands for.

use std::collections::BTreeMap;

use evenkeel_catalog::REGISTERS;
use evenkeel_contract::coord::Table;
use evenkeel_contract::layout::{index_of, layout};
use evenkeel_contract::{Coord, Shown};
use evenkeel_steps::{Expect, Facet, Place};
use evenkeel_surface::Offer;
use evenkeel_sys::layout::CpuidEntry;

/// Where KVM's own leaves are, and where they go when Hyper-V's take that place.
const PARAVIRTUAL: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_00ff;
const SHIFT: u32 = 0x100;

/// The table, without what follows from the topology; and whether Hyper-V's leaves are in it.
pub(crate) fn table(shown: &Shown, offer: &Offer) -> (Vec<CpuidEntry>, bool) {
    let words = || {
        shown.words.iter().filter_map(|w| match w.at {
            Coord::Cpuid { table, leaf, subleaf, register } if w.value != 0 => {
                Some((table, leaf, subleaf, register, w.value as u32))
            }
            _ => None,
        })
    };
    let hyperv = words().any(|(table, ..)| table == Table::Hyperv);
    let mut entries: BTreeMap<(u32, u32), [u32; 4]> = BTreeMap::new();
    for (table, leaf, subleaf, register, value) in words() {
        let (mut leaf, mut value) = (leaf, value);
        if hyperv && table == Table::Supported && PARAVIRTUAL.contains(&leaf) {
            // The interface's first leaf names its last.
            value += if leaf & 0xff == 0 && register == 0 { SHIFT } else { 0 };
            leaf += SHIFT;
        }
        // What KVM can emulate is shown where the hardware would show it.
        entries.entry((leaf, subleaf)).or_default()[usize::from(register)] |= value;
    }
    let table = entries
        .into_iter()
        .map(|((function, index), output)| CpuidEntry {
            function,
            index,
            flags: u32::from(index != 0 || is_indexed(function, offer)),
            output,
        })
        .collect();
    (table, hyperv)
}

/// KVM_CPUID_FLAG_SIGNIFCANT_INDEX: as the host has it, or as the catalog knows subleaves.
fn is_indexed(leaf: u32, offer: &Offer) -> bool {
    match offer.cpuid.iter().find(|e| e.leaf.0 == leaf) {
        Some(entry) => entry.flags & 1 != 0,
        None => REGISTERS
            .iter()
            .any(|r| r.at.leaf == Some(leaf) && (r.at.subleaf > 0 || r.at.subleaf_last.is_some())),
    }
}

/// What must be read back of a table.
pub(crate) fn expect(table: &[CpuidEntry], hyperv: bool) -> Vec<Expect> {
    let words = table.iter().flat_map(|e| (0..4u8).map(move |r| (e, r)));
    words
        .map(|(e, register)| {
            let at = logical(e.function, e.index, register, hyperv);
            Expect {
                place: Place::Cpuid(e.function, e.index, register),
                // What KVM keeps up to date by itself is no difference.
                mask: at.mask() & !layout(index_of(at)).runtime,
                wanted: u64::from(e.output[usize::from(register)]),
                facet: Facet::Word(at),
                fresh: false,
            }
        })
        .collect()
}

/// The word of a contract that a guest finds in this place.
pub(crate) fn logical(leaf: u32, subleaf: u32, register: u8, hyperv: bool) -> Coord {
    let (table, leaf) = match leaf {
        _ if !hyperv => (Table::Supported, leaf),
        0x4000_0000..=0x4000_00ff => (Table::Hyperv, leaf),
        0x4000_0100..=0x4000_01ff => (Table::Supported, leaf - SHIFT),
        _ => (Table::Supported, leaf),
    };
    Coord::Cpuid { table, leaf, subleaf, register }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_contract::contract::ShownWord;

    fn word(table: Table, leaf: u32, register: u8, value: u64) -> ShownWord {
        let at = Coord::Cpuid { table, leaf, subleaf: 0, register };
        ShownWord { at, layout: index_of(at), value, unknown: 0 }
    }

    #[test]
    fn hyperv_moves_the_leaves_of_kvm_and_emulated_bits_join_the_others() {
        let shown = Shown {
            words: vec![
                word(Table::Supported, 1, 2, 0x1),
                word(Table::Supported, 0x4000_0000, 0, 0x4000_0001),
                word(Table::Supported, 0x4000_0001, 0, 0x9),
                word(Table::Emulated, 1, 2, 1 << 22),
                word(Table::Hyperv, 0x4000_0000, 0, 0x4000_0005),
            ],
            choices: Vec::new(),
            sealed: true,
        };
        let (table, hyperv) = table(&shown, &Offer::default());
        assert!(hyperv);
        let seen: Vec<(u32, u32)> = table.iter().map(|e| (e.function, e.output[0] | e.output[2])).collect();
        assert_eq!(
            seen,
            [(1, 1 | 1 << 22), (0x4000_0000, 0x4000_0005), (0x4000_0100, 0x4000_0101), (0x4000_0101, 9)]
        );
        let expected = expect(&table, hyperv);
        assert_eq!(expected.len(), 16);
        assert_eq!(expected[12].facet.name(), "cpuid.40000001.0.eax");
        assert_eq!(expected[4].facet.name(), "hv.40000000.0.eax");
        // OSXSAVE is KVM's.
        assert_eq!(expected[2].mask >> 27 & 1, 0);
    }
}
