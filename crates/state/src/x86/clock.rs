//! kvmclock and the TSC, which go on while nobody runs.
//!
//! The offset of the TSC is worked out as the kernel documents it (Documentation/virt/kvm/devices/vcpu.rst): the guest's
//! TSC at the time of the destination's KVM_GET_CLOCK is what it was at the source's, and the time between by
//! CLOCK_REALTIME. That needs KVM_CLOCK_REALTIME and KVM_CLOCK_HOST_TSC of both hosts; elsewhere MSR_IA32_TSC is written
//! with the value that was read.

use evenkeel_sys::layout::{X86_CLOCK, long, word};

const REALTIME: u32 = 4;
const HOST_TSC: u32 = 8;

/// What the guest's clocks do about the time between saving and setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// They count it, where both hosts tell the time: the guest's clocks are right afterwards.
    #[default]
    Counts,
    /// They do not: the guest was stopped.
    Stands,
}

/// `struct kvm_clock_data`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    flags: u32,
    nanoseconds: u64,
    realtime: u64,
    host_tsc: u64,
}

impl Clock {
    pub(super) fn read(bytes: &[u8]) -> Clock {
        Clock {
            nanoseconds: long(bytes, 0),
            flags: word(bytes, 8),
            realtime: long(bytes, 16),
            host_tsc: long(bytes, 24),
        }
    }

    /// Time and TSC were read at one moment.
    pub(super) fn is_whole(&self) -> bool {
        self.flags & (REALTIME | HOST_TSC) == REALTIME | HOST_TSC
    }

    /// The time since another clock was read; none where one of them does not tell the time.
    pub(super) fn after(&self, other: Clock) -> Option<std::time::Duration> {
        let known = self.flags & other.flags & REALTIME != 0;
        known.then(|| std::time::Duration::from_nanos(self.realtime.saturating_sub(other.realtime)))
    }

    /// The structure for KVM_SET_CLOCK, on a kernel that knows these flags.
    pub(super) fn to_set(self, known: u32, policy: Policy) -> [u8; X86_CLOCK] {
        let mut bytes = [0; X86_CLOCK];
        bytes[..8].copy_from_slice(&self.nanoseconds.to_ne_bytes());
        if policy == Policy::Counts && self.flags & known & REALTIME != 0 {
            bytes[8..12].copy_from_slice(&REALTIME.to_ne_bytes());
            bytes[16..24].copy_from_slice(&self.realtime.to_ne_bytes());
        }
        bytes
    }
}

/// The offset for a vCPU whose TSC had `offset` on the source, at `khz` ticks a millisecond; `here` is what the
/// destination's clock tells now. None where one of them does not tell time and TSC together.
pub(super) fn offset(source: Clock, offset: u64, khz: u32, here: Clock, policy: Policy) -> Option<u64> {
    if !source.is_whole() || !here.is_whole() || khz == 0 {
        return None;
    }
    let between = match policy {
        // As KVM_SET_CLOCK does it: never backwards.
        Policy::Counts => here.realtime.saturating_sub(source.realtime),
        Policy::Stands => 0,
    };
    let ticks = (u128::from(between) * u128::from(khz) / 1_000_000) as u64;
    let then = source.host_tsc.wrapping_add(offset);
    Some(then.wrapping_add(ticks).wrapping_sub(here.host_tsc))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_is_the_one_that_the_kernel_documents() {
        let whole = |nanoseconds, realtime, host_tsc| Clock { flags: 14, nanoseconds, realtime, host_tsc };
        let (source, here) = (whole(5_000, 1_000_000_000, 700), whole(5_000_000, 1_004_000_000, 90_000));
        let (khz, before) = (2_000_000, 300_u64);
        // ofs_dst = ofs_src - (guest_src - guest_dest) * freq + (tsc_src - tsc_dest), with guest_dest as KVM_SET_CLOCK
        // has set it: 4 ms later.
        let documented = before.wrapping_add(4_000_000 * 2).wrapping_add(700).wrapping_sub(90_000);
        assert_eq!(offset(source, before, khz, here, Policy::Counts), Some(documented));
        assert_eq!(offset(source, before, khz, here, Policy::Stands), Some(1000_u64.wrapping_sub(90_000)));
        // A wall clock that was set back does not take the guest back.
        assert_eq!(offset(here, before, khz, source, Policy::Counts), Some(90_300_u64.wrapping_sub(700)),);
        assert_eq!(offset(Clock { flags: 2, ..source }, before, khz, here, Policy::Counts), None);
    }

    #[test]
    fn time_is_told_only_to_kernels_that_take_it() {
        let clock = Clock { flags: 14, nanoseconds: 5, realtime: 6, host_tsc: 7 };
        assert_eq!(word(&clock.to_set(14, Policy::Counts), 8), REALTIME);
        assert_eq!(clock.to_set(2, Policy::Counts)[8..], [0; 40]);
        assert_eq!(clock.to_set(14, Policy::Stands)[8..], [0; 40]);
    }
}
