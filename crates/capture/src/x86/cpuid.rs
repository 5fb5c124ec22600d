//! CPUID tables: what of them is stable, and what KVM made of the one it was given.

use std::collections::BTreeMap;

use evenkeel_surface::{Hex32, Unread};
use evenkeel_sys::Vcpu;
use evenkeel_sys::layout::CpuidEntry;

use crate::Parts;

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// As the document has it.
pub(crate) fn document(entry: &CpuidEntry) -> evenkeel_surface::CpuidEntry {
    let [eax, ebx, ecx, edx] = entry.output.map(Hex32);
    evenkeel_surface::CpuidEntry {
        leaf: Hex32(entry.function),
        subleaf: Hex32(entry.index),
        flags: entry.flags,
        eax,
        ebx,
        ecx,
        edx,
    }
}

/// As the document has them.
pub(crate) fn documents(entries: &[CpuidEntry]) -> Vec<evenkeel_surface::CpuidEntry> {
    entries.iter().map(document).collect()
}

/// The bits of an output that name the CPU that ran the instruction, or the ioctl.
fn per_cpu(function: u32) -> &'static [(usize, u32)] {
    match function {
        // The initial APIC id.
        1 => &[(EBX, 0xff00_0000)],
        // The x2APIC id.
        0xb | 0x1f => &[(EDX, !0)],
        // Extended APIC id, core id, node id.
        0x8000_001e => &[(EAX, !0), (EBX, 0xff), (ECX, 0xff)],
        _ => &[],
    }
}

/// Clears what names the CPU that ran; returns it, if the leaf has such a part.
pub(crate) fn clear_per_cpu(entry: &mut CpuidEntry) -> Option<CpuidEntry> {
    let parts = per_cpu(entry.function);
    let mut cleared = CpuidEntry { output: [0; 4], ..*entry };
    for &(register, mask) in parts {
        cleared.output[register] = entry.output[register] & mask;
        entry.output[register] &= !mask;
    }
    (!parts.is_empty()).then_some(cleared)
}

/// Clears what follows from the state of the machine at the moment, as KVM too keeps it up to date in a guest's table:
/// OSXSAVE, the APIC's presence, OSPKE, and the XSAVE sizes of the components that are on.
pub(crate) fn clear_runtime(entry: &mut CpuidEntry) {
    let masks: &[(usize, u32)] = match (entry.function, entry.index) {
        (1, _) => &[(ECX, 1 << 27), (EDX, 1 << 9)],
        (7, 0) => &[(ECX, 1 << 4)],
        (0xd, 0 | 1) => &[(EBX, !0)],
        _ => &[],
    };
    for &(register, mask) in masks {
        entry.output[register] &= !mask;
    }
}

/// Compares the table that KVM stored with the one that it was given.
pub(crate) fn stored(vcpu: &Vcpu<'_>, given: &[CpuidEntry], parts: &mut Parts) {
    let Some(got) = parts.book.ask("cpuid-stored", vcpu.cpuid()) else { return };
    // Of several entries for one leaf the first counts, as in KVM's own search.
    let index = |table: &[CpuidEntry]| {
        let mut first = BTreeMap::new();
        for entry in table {
            let mut entry = *entry;
            clear_per_cpu(&mut entry);
            clear_runtime(&mut entry);
            first.entry((entry.function, entry.index)).or_insert(entry);
        }
        first
    };
    let (whole, given, got) = (given, index(given), index(&got));
    let changed = got.iter().filter(|(at, entry)| given.get(at) != Some(entry));
    parts.offer.cpuid_stored = changed
        .map(|(at, entry)| {
            // What follows from the state of the machine is as it was given: it says nothing about the table.
            let mut entry = *entry;
            if let Some(asked) = whole.iter().find(|e| (e.function, e.index) == *at) {
                let mut without = *asked;
                clear_runtime(&mut without);
                for (out, (asked, without)) in
                    entry.output.iter_mut().zip(asked.output.iter().zip(without.output))
                {
                    *out |= asked & !without;
                }
            }
            document(&entry)
        })
        .collect();
    for (leaf, subleaf) in given.keys().filter(|at| !got.contains_key(at)) {
        parts.book.push(Unread {
            what: format!("cpuid-stored.{leaf:x}.{subleaf:x}"),
            call: "KVM_GET_CPUID2()".to_owned(),
            why: "KVM_SET_CPUID2 was given the entry, but it is not among those that came back".to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_a_cpu_is_taken_out_and_told() {
        let mut entry = CpuidEntry { function: 1, output: [5, 0x0302_0800, 7, 8], ..CpuidEntry::default() };
        let per_cpu = clear_per_cpu(&mut entry).unwrap();
        assert_eq!(entry.output, [5, 0x0002_0800, 7, 8]);
        assert_eq!(per_cpu.output, [0, 0x0300_0000, 0, 0]);
        let mut plain = CpuidEntry { function: 7, output: [1, 2, 3, 4], ..CpuidEntry::default() };
        assert_eq!(clear_per_cpu(&mut plain), None);
        assert_eq!(plain.output, [1, 2, 3, 4]);
    }
}
