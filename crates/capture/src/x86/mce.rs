//! Which machine-check features a vCPU can be given (KVM_X86_SETUP_MCE), where kernels differ in them.

use evenkeel_sys::System;
use evenkeel_sys::layout::CpuidEntry;
use evenkeel_sys::requests::KVM_X86_GET_MCE_CAP_SUPPORTED;

use crate::Parts;
use crate::capabilities::Answers;

/// KVM_CAP_MCE.
const CAP_MCE: u32 = 31;
/// Bits of MCG_CAP that kvm_intel alone adds to what KVM emulates everywhere (arch/x86/kvm/vmx/vmx.c, hardware_setup).
const INTEL: [(&str, u32); 2] = [("x86.mce.cmci", 10), ("x86.mce.lmce", 27)];

/// Asks on Intel hosts; the answer elsewhere is the same on every kernel examined. A vCPU has none of them by default.
pub(crate) fn measure(system: &System<'_>, caps: &Answers, table: &[CpuidEntry], parts: &mut Parts<'_>) {
    let intel = table.first().is_some_and(|e| e.function == 0 && e.output[1] == u32::from_le_bytes(*b"Genu"));
    if !intel || !caps.may_have(CAP_MCE) {
        return;
    }
    let Some(bytes) = parts.book.ask("x86.mce", system.get(&KVM_X86_GET_MCE_CAP_SUPPORTED, 8)) else {
        return;
    };
    let supported = bytes.try_into().map(u64::from_le_bytes).unwrap_or_default();
    for (facet, bit) in INTEL {
        let (accepts, refuses) = split(supported, bit);
        parts.measured_choice(facet, None, 0, accepts, refuses);
    }
}

/// Which of the values 0 and 1 of a feature can be had.
fn split(supported: u64, bit: u32) -> (Vec<u64>, Vec<u64>) {
    if supported >> bit & 1 == 1 { (vec![0, 1], Vec::new()) } else { (vec![0], vec![1]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_that_is_not_supported_is_refused() {
        // As kvm_intel of 7.3 answers, and of 5.10: CTL_P, SER_P and LMCE_P, without CMCI_P.
        assert_eq!(split(0x900_0500, 10), (vec![0, 1], vec![]));
        assert_eq!(split(0x900_0100, 10), (vec![0], vec![1]));
        assert_eq!(split(0x900_0100, 27), (vec![0, 1], vec![]));
    }
}
