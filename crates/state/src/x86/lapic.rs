//! The local APIC, whose timer takes care.
//!
//! KVM_SET_LAPIC starts the timer from the current count, and takes a count of 0 for one that has to end now: a one-shot
//! timer that had fired would fire once more. And a timer that expires while the vCPU stands still is known to the kernel
//! only, until KVM_RUN turns it into an interrupt: such a vCPU is settled before it is saved, so that a count of 0 always
//! means that the timer has fired.

use evenkeel_sys::layout::word;
use evenkeel_sys::requests::KVM_SET_LAPIC;
use evenkeel_sys::{Error, Vcpu};

const LVTT: usize = 0x320;
const TMICT: usize = 0x380;
const TMCCT: usize = 0x390;
const MASKED: u32 = 1 << 16;
/// The timer's mode in the LVT: one-shot, periodic, TSC deadline, and one that does not exist.
const MODE: u32 = 3 << 17;
const ONE_SHOT: u32 = 0;
const PERIODIC: u32 = 1 << 17;
/// The LVT timer as an MSR of x2APIC mode.
const MSR_LVTT: u32 = 0x832;
/// In the APIC's base: x2APIC mode.
pub(super) const X2APIC: u64 = 1 << 10;

/// The timer counts, or has counted, towards an interrupt that the kernel may know of and not show.
pub(super) fn may_hide(lapic: &[u8]) -> bool {
    let lvtt = word(lapic, LVTT);
    lvtt & MASKED == 0 && word(lapic, TMICT) != 0 && matches!(lvtt & MODE, ONE_SHOT | PERIODIC)
}

/// The timer went past its end between two looks.
pub(super) fn ended_between(before: &[u8], after: &[u8]) -> bool {
    let (then, now) = (word(before, TMCCT), word(after, TMCCT));
    may_hide(after) && (now > then || now == 0 && then != 0)
}

/// The timer is of one shot, and has fired.
pub(super) fn fired(lapic: &[u8]) -> bool {
    word(lapic, TMICT) != 0 && word(lapic, TMCCT) == 0 && word(lapic, LVTT) & MODE == ONE_SHOT
}

/// How a timer that has fired was kept from firing again.
pub(super) enum Set {
    /// Nothing had to be done, or what was done cannot be seen.
    Whole,
    /// The initial count reads 0 now.
    Cleared,
}

/// Sets the APIC without firing a timer that has fired.
pub(super) fn set(vcpu: &Vcpu<'_>, lapic: &[u8], x2apic: bool) -> Result<Set, Error> {
    if !fired(lapic) {
        return vcpu.set(&KVM_SET_LAPIC, lapic).map(|_| Set::Whole);
    }
    let mut bytes = lapic.to_vec();
    let lvtt = word(lapic, LVTT);
    if x2apic && has_deadline(vcpu)? {
        // In a mode that does not exist nothing is started, and the way from there to one-shot clears nothing.
        bytes[LVTT..LVTT + 4].copy_from_slice(&(lvtt | MODE).to_ne_bytes());
        vcpu.set(&KVM_SET_LAPIC, &bytes)?;
        vcpu.msrs().set(&[(MSR_LVTT, lvtt.into())]).into_iter().collect::<Result<Vec<()>, _>>()?;
        return Ok(Set::Whole);
    }
    if lvtt & MASKED != 0 {
        // It expires once more, and nobody hears of it.
        return vcpu.set(&KVM_SET_LAPIC, lapic).map(|_| Set::Whole);
    }
    bytes[TMICT..TMICT + 4].fill(0);
    vcpu.set(&KVM_SET_LAPIC, &bytes).map(|_| Set::Cleared)
}

/// The guest is shown the TSC deadline mode: only then has the mode of the timer two bits.
fn has_deadline(vcpu: &Vcpu<'_>) -> Result<bool, Error> {
    Ok(vcpu.cpuid()?.iter().any(|e| e.function == 1 && e.output[2] & 1 << 24 != 0))
}
