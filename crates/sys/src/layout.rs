//! Sizes and offsets of the kernel's structures, as its ABI fixes them (`include/uapi/linux/kvm.h` and the `asm/kvm.h`
//! of each architecture). They are written out, rather than taken from the bindings of the build's architecture, so
//! that a log of one architecture replays on the other; a test holds them against the bindings.

/// `struct kvm_regs`, x86.
pub const X86_REGS: usize = 144;
/// `struct kvm_sregs`, x86.
pub const X86_SREGS: usize = 312;
/// `struct kvm_sregs2`; its `flags` are at [`X86_SREGS2_FLAGS`].
pub const X86_SREGS2: usize = 320;
/// Offset of `kvm_sregs2.flags`.
pub const X86_SREGS2_FLAGS: usize = 280;
/// `struct kvm_lapic_state`: the register page, one register every 16 bytes.
pub const X86_LAPIC: usize = 1024;
/// `struct kvm_xsave` without its flexible part.
pub const X86_XSAVE: usize = 4096;
/// `struct kvm_fpu`.
pub const X86_FPU: usize = 416;
/// `struct kvm_guest_debug`, x86.
pub const X86_GUEST_DEBUG: usize = 72;
/// `struct kvm_pmu_event_filter` without its events.
pub const X86_PMU_FILTER: usize = 32;
/// `struct kvm_msr_filter`: a word of flags, and 16 ranges of 24 bytes.
pub const X86_MSR_FILTER: usize = 392;
/// `struct kvm_xen_hvm_attr` and `struct kvm_xen_vcpu_attr`.
pub const X86_XEN_ATTR: usize = 72;
/// `struct kvm_xcrs`.
pub const X86_XCRS: usize = 392;
/// `struct kvm_vcpu_events`, both architectures.
pub const VCPU_EVENTS: usize = 64;
/// Offset of `kvm_vcpu_events.flags` (x86): after exception, interrupt, nmi and the SIPI vector.
pub const X86_VCPU_EVENTS_FLAGS: usize = 20;
/// `struct kvm_debugregs`.
pub const X86_DEBUGREGS: usize = 128;
/// Offset of `kvm_debugregs.flags`.
pub const X86_DEBUGREGS_FLAGS: usize = 48;
/// `struct kvm_mp_state`.
pub const MP_STATE: usize = 4;
/// `struct kvm_clock_data`.
pub const X86_CLOCK: usize = 48;
/// Offset of `kvm_clock_data.flags`.
pub const X86_CLOCK_FLAGS: usize = 8;
/// `struct kvm_irqchip`.
pub const X86_IRQCHIP: usize = 520;
/// `struct kvm_pit_state2`.
pub const X86_PIT2: usize = 112;
/// Offset of `kvm_pit_state2.flags`: after three channels of 24 bytes.
pub const X86_PIT2_FLAGS: usize = 72;
/// `struct kvm_nested_state` without its data.
pub const X86_NESTED_STATE: usize = 128;
/// `struct kvm_cpuid_entry2`.
pub const X86_CPUID_ENTRY: usize = 40;
/// `struct kvm_msr_entry`.
pub const X86_MSR_ENTRY: usize = 16;
/// `struct kvm_xen_hvm_config`.
pub const X86_XEN_HVM_CONFIG: usize = 56;
/// `struct kvm_pit_config`.
pub const X86_PIT_CONFIG: usize = 64;
/// `struct kvm_enable_cap`.
pub const ENABLE_CAP: usize = 104;
/// `struct kvm_userspace_memory_region`.
pub const MEMORY_REGION: usize = 32;
/// `struct kvm_one_reg`.
pub const ONE_REG: usize = 16;
/// `struct kvm_device_attr`.
pub const DEVICE_ATTR: usize = 24;
/// `struct kvm_create_device`.
pub const CREATE_DEVICE: usize = 12;
/// `struct kvm_vcpu_init`, arm64: a target and seven words of features.
pub const ARM_VCPU_INIT: usize = 32;
/// `struct reg_mask_range`, arm64.
pub const ARM_REG_MASK_RANGE: usize = 64;
/// The masks that KVM_ARM_GET_REG_WRITABLE_MASKS fills: `3 * 8 * 8`.
pub const ARM_FEATURE_ID_RANGE: usize = 192;

/// The 32-bit word at an offset; 0 beyond the end.
pub fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
}

/// The 64-bit word at an offset; 0 beyond the end.
pub fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |b| u64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
}

/// One `struct kvm_cpuid_entry2`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuidEntry {
    /// EAX on input.
    pub function: u32,
    /// ECX on input.
    pub index: u32,
    /// KVM_CPUID_FLAG_*.
    pub flags: u32,
    /// EAX, EBX, ECX and EDX on output.
    pub output: [u32; 4],
}

impl CpuidEntry {
    /// From the kernel's layout; missing bytes count as 0.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        CpuidEntry {
            function: word(bytes, 0),
            index: word(bytes, 4),
            flags: word(bytes, 8),
            output: [word(bytes, 12), word(bytes, 16), word(bytes, 20), word(bytes, 24)],
        }
    }

    /// To the kernel's layout.
    pub fn to_bytes(self) -> [u8; X86_CPUID_ENTRY] {
        let mut bytes = [0; X86_CPUID_ENTRY];
        let words = [self.function, self.index, self.flags].into_iter().chain(self.output);
        for (word, place) in words.zip(bytes.chunks_exact_mut(4)) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use kvm_bindings::*;
    use std::mem::{offset_of, size_of};

    #[test]
    fn sizes_and_offsets_are_those_of_the_bindings() {
        assert_eq!(X86_REGS, size_of::<kvm_regs>());
        assert_eq!(X86_SREGS, size_of::<kvm_sregs>());
        assert_eq!(X86_SREGS2, size_of::<kvm_sregs2>());
        assert_eq!(X86_SREGS2_FLAGS, offset_of!(kvm_sregs2, flags));
        assert_eq!(X86_XEN_HVM_CONFIG, size_of::<kvm_xen_hvm_config>());
        assert_eq!(X86_LAPIC, size_of::<kvm_lapic_state>());
        assert_eq!(X86_XSAVE, size_of::<kvm_xsave>());
        assert_eq!(X86_XCRS, size_of::<kvm_xcrs>());
        assert_eq!(X86_FPU, size_of::<kvm_fpu>());
        assert_eq!(X86_GUEST_DEBUG, size_of::<kvm_guest_debug>());
        assert_eq!(X86_PMU_FILTER, size_of::<kvm_pmu_event_filter>());
        assert_eq!(X86_MSR_FILTER, size_of::<kvm_msr_filter>());
        assert_eq!(X86_XEN_ATTR, size_of::<kvm_xen_hvm_attr>());
        assert_eq!(X86_XEN_ATTR, size_of::<kvm_xen_vcpu_attr>());
        assert_eq!(VCPU_EVENTS, size_of::<kvm_vcpu_events>());
        assert_eq!(X86_VCPU_EVENTS_FLAGS, offset_of!(kvm_vcpu_events, flags));
        assert_eq!(X86_DEBUGREGS, size_of::<kvm_debugregs>());
        assert_eq!(X86_DEBUGREGS_FLAGS, offset_of!(kvm_debugregs, flags));
        assert_eq!(MP_STATE, size_of::<kvm_mp_state>());
        assert_eq!(X86_CLOCK, size_of::<kvm_clock_data>());
        assert_eq!(X86_CLOCK_FLAGS, offset_of!(kvm_clock_data, flags));
        assert_eq!(X86_IRQCHIP, size_of::<kvm_irqchip>());
        assert_eq!(X86_PIT2, size_of::<kvm_pit_state2>());
        assert_eq!(X86_PIT2_FLAGS, offset_of!(kvm_pit_state2, flags));
        assert_eq!(X86_NESTED_STATE, offset_of!(kvm_nested_state, data));
        assert_eq!(X86_CPUID_ENTRY, size_of::<kvm_cpuid_entry2>());
        assert_eq!(X86_MSR_ENTRY, size_of::<kvm_msr_entry>());
        assert_eq!(X86_PIT_CONFIG, size_of::<kvm_pit_config>());
        assert_eq!(ENABLE_CAP, size_of::<kvm_enable_cap>());
        assert_eq!(ONE_REG, size_of::<kvm_one_reg>());
        assert_eq!(DEVICE_ATTR, size_of::<kvm_device_attr>());
        assert_eq!(CREATE_DEVICE, size_of::<kvm_create_device>());
    }

    #[test]
    fn a_cpuid_entry_survives_the_kernel_layout() {
        let entry = CpuidEntry { function: 7, index: 1, flags: 1, output: [1, 2, 3, 0xffff_ffff] };
        assert_eq!(CpuidEntry::from_bytes(&entry.to_bytes()), entry);
        assert_eq!(CpuidEntry::from_bytes(&[]), CpuidEntry::default());
    }
}
