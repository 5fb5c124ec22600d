//! The counters: guest time.
//!
//! Both are of the VM, not of a vCPU (since 6.4; before, writing one vCPU's virtual counter moves it on all). They are set
//! once, last, through the first vCPU.

use evenkeel_sys::layout::long;

use super::ask;
use crate::image::Owner;
use crate::outcome::Refused;
use crate::parts::Parts;

/// `KVM_REG_ARM_TIMER_CNT`: what the guest reads as CNTVCT_EL0. (The ABI swapped its encoding with that of CNTV_CVAL_EL0.)
pub(super) const VIRTUAL: u64 = 0x6030_0000_0013_df1a;
/// `KVM_REG_ARM_PTIMER_CNT`: what the guest reads as CNTPCT_EL0.
pub(super) const PHYSICAL: u64 = 0x6030_0000_0013_df01;

/// How the guest's counters go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Time {
    /// From where they were saved: the guest does not notice that it was stopped.
    #[default]
    Stopped,
    /// As if so many ticks of CNTFRQ_EL0 had passed meanwhile.
    WentOn(u64),
}

impl Time {
    /// A counter's value, when this one was saved.
    pub(super) fn at(self, saved: u64) -> u64 {
        match self {
            Time::Stopped => saved,
            Time::WentOn(ticks) => saved.wrapping_add(ticks),
        }
    }
}

/// How far a counter may be from what was set until it is read back: a generous second at 1 GHz. It shows that it was set
/// at all; hosts have counters of days.
pub(super) const ROOM: u64 = 1_000_000_000;

/// Whether a counter that was set to one value and reads another went on from it.
pub(super) fn went_on(from: u64, now: u64) -> bool {
    now.wrapping_sub(from) < ROOM
}

/// The value of a counter, of the first vCPU.
pub(super) fn now(parts: &Parts<'_, '_>, id: u64) -> Result<u64, Refused> {
    let Some(first) = parts.cpus.first() else {
        return Err(Refused::new(Owner::Vm, "arm64-counters", "the VM has no vCPU"));
    };
    let bytes =
        ask::register(first.vcpu, id).map_err(Refused::call(Owner::Vm, "arm64-counters", "no counter"))?;
    Ok(long(&bytes, 0))
}
