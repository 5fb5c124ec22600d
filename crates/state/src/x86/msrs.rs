//! MSRs: packed, read in one go, set in the ranks that edges give them.

use evenkeel_sys::layout::{X86_MSR_ENTRY, long, word};

/// Writing these stores the time into guest memory, and nothing reads them back but the kernel: the guest's own memory holds
/// what came of the guest's write.
pub(super) const WALL_CLOCKS: [u32; 2] = [0x11, 0x4b56_4d00];
/// The time stamp counter.
pub(super) const TSC: u32 = 0x10;
/// MCG_CAP: set by KVM_X86_SETUP_MCE.
pub(super) const MCG_CAP: u32 = 0x179;
/// The Hyper-V reference counter: worked out from kvmclock.
const HV_TIME_REF_COUNT: u32 = 0x4000_0020;

/// Packs as `struct kvm_msr_entry`.
pub(super) fn pack(values: &[(u32, u64)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() * X86_MSR_ENTRY);
    for (msr, value) in values {
        bytes.extend(msr.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(value.to_ne_bytes());
    }
    bytes
}

/// The reverse; a rest that is no entry is left out.
pub(super) fn unpack(bytes: &[u8]) -> Vec<(u32, u64)> {
    bytes.chunks_exact(X86_MSR_ENTRY).map(|entry| (word(entry, 0), long(entry, 8))).collect()
}

/// Why an MSR is not set.
pub(super) fn left_alone(msr: u32) -> Option<&'static str> {
    match msr {
        _ if WALL_CLOCKS.contains(&msr) => {
            Some("a write stores the time into guest memory, where the guest's own write has stored it")
        }
        MCG_CAP => Some("set with the item mce"),
        HV_TIME_REF_COUNT => Some("worked out from the clock"),
        _ => None,
    }
}
