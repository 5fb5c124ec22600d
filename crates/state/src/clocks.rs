//! How fast the clocks of a guest run, as far as its image tells.

use std::time::Duration;

use crate::compare::Elapsed;
use crate::single::number_of;
use crate::{Image, Item, Owner};

/// No TSC runs faster, in kHz. It stands for a rate that the image does not tell.
const FASTEST_TSC_KHZ: u64 = 10_000_000;
/// A cycle of the APIC's bus in nanoseconds, unless KVM_CAP_X86_APIC_BUS_CYCLES_NS was enabled with another.
const APIC_BUS_NS: u64 = 1;
/// KVM_CAP_X86_APIC_BUS_CYCLES_NS.
const APIC_BUS_CYCLES_NS: u32 = 237;
/// Offsets in the register page of the local APIC: timer, its initial count, its current count, its divisor.
const LVTT: usize = 0x320;
const TMICT: usize = 0x380;
const TMCCT: usize = 0x390;
const TDCR: usize = 0x3e0;
/// LVTT says what the timer does in bits 17 and 18: 0 is one-shot, 1 periodic, 2 by a moment of the TSC.
const PERIODIC: u32 = 1;
const DEADLINE: u32 = 2;

/// What may have gone by, in ticks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    /// Ticks of all the time that went by at most.
    pub ticks: u64,
    /// Ticks of the slack alone.
    pub slack: u64,
    /// Ticks by which it may be earlier: it was read after the clock from whose moment it goes on.
    pub back: u64,
}

/// The clocks of the guest of an image.
pub(crate) struct Clocks<'a> {
    image: &'a Image,
    elapsed: Elapsed,
}

impl<'a> Clocks<'a> {
    pub(crate) fn of(image: &'a Image, elapsed: Elapsed) -> Clocks<'a> {
        Clocks { image, elapsed }
    }

    /// How far a clock of the item's owner can have gone.
    pub(crate) fn limit(&self, item: &Item, clock: &str) -> Limit {
        let hz = match clock {
            "tsc" => u128::from(self.tsc_khz(item.owner)) * 1000,
            "counter" => u128::from(self.elapsed.counter_hz),
            "apic-bus" => 1_000_000_000 / u128::from(self.apic_bus_ns() * divisor(word(&item.bytes, TDCR))),
            "hundred-ns" => 10_000_000,
            _ => 1_000_000_000,
        };
        let ticks = |time: Duration| {
            u64::try_from((time.as_nanos().saturating_mul(hz)).div_ceil(1_000_000_000))
                .unwrap_or(u64::MAX / 2)
        };
        let slack = ticks(self.elapsed.slack);
        let (earlier, later) = self.apart(item);
        let most = self.elapsed.most.saturating_add(earlier);
        Limit { ticks: ticks(most).saturating_add(slack), slack, back: ticks(later) }
    }

    /// By how much the clocks of a vCPU were read earlier than kvmclock, or later. An image is not of one moment: its parts are
    /// read one after the other, and when the guest goes on, its clocks do so from the moment of kvmclock. The guest stood
    /// still in between; the image tells how long that was, because it has the TSC of both moments.
    fn apart(&self, item: &Item) -> (Duration, Duration) {
        let none = (Duration::ZERO, Duration::ZERO);
        let of = |owner, section, field| number(self.image, owner, section, field);
        let (Some(host), Some(offset), Some(read)) = (
            of(Owner::Vm, "clock", "host_tsc").filter(|tsc| *tsc != 0),
            of(item.owner, "tsc-offset", "offset"),
            of(item.owner, "msrs", "MSR_IA32_TSC"),
        ) else {
            return none;
        };
        let gone = host.wrapping_add(offset).wrapping_sub(read).cast_signed();
        let khz = u128::from(self.tsc_khz(item.owner));
        let nanoseconds = u128::from(gone.unsigned_abs()) * 1_000_000 / khz;
        let time = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        if gone >= 0 { (time, Duration::ZERO) } else { (Duration::ZERO, time) }
    }

    /// What a clock showed when the image was made, where the image tells.
    pub(crate) fn now(&self, item: &Item, clock: &str) -> Option<u64> {
        match clock {
            "tsc" => number(self.image, item.owner, "msrs", "MSR_IA32_TSC").or_else(|| {
                let host = number(self.image, Owner::Vm, "clock", "host_tsc").filter(|tsc| *tsc != 0)?;
                Some(host.wrapping_add(number(self.image, item.owner, "tsc-offset", "offset")?))
            }),
            "nanoseconds" => number(self.image, Owner::Vm, "clock", "clock"),
            _ => None,
        }
    }

    /// The period of the timer of a local APIC, if it is periodic.
    pub(crate) fn period(&self, item: &Item) -> Option<u64> {
        let lapic = item.name == "lapic" && word(&item.bytes, LVTT) >> 17 & 3 == PERIODIC;
        lapic.then(|| u64::from(word(&item.bytes, TMICT)))
    }

    /// Bits of a field of a local APIC that its timer sets when it ends, if it can have ended: its vector in IRR.
    pub(crate) fn fired(&self, item: &Item, field: &str) -> u64 {
        let lvtt = word(&item.bytes, LVTT);
        let (vector, masked, mode) = (lvtt & 0xff, lvtt >> 16 & 1 != 0, lvtt >> 17 & 3);
        if item.name != "lapic" || masked || field != format!("IRR.{}", vector / 32) {
            return 0;
        }
        let ended = if mode == DEADLINE {
            let deadline =
                number(self.image, item.owner, "msrs", "MSR_IA32_TSC_DEADLINE").filter(|end| *end != 0);
            let now = self.now(item, "tsc");
            let reached = |(end, now): (u64, u64)| now.saturating_add(self.limit(item, "tsc").ticks) >= end;
            deadline.zip(now).is_some_and(reached)
        } else {
            let left = u64::from(word(&item.bytes, TMCCT));
            left != 0 && left <= self.limit(item, "apic-bus").ticks
        };
        if ended { 1 << (vector % 32) } else { 0 }
    }

    fn tsc_khz(&self, owner: Owner) -> u64 {
        let own = number(self.image, owner, "tsc-khz", "khz");
        let khz = own.or_else(|| number(self.image, Owner::Vm, "tsc-khz", "khz"));
        khz.filter(|khz| *khz != 0).unwrap_or(FASTEST_TSC_KHZ)
    }

    fn apic_bus_ns(&self) -> u64 {
        let enabled = self.image.manifest.calls.iter().rev().find(|call| {
            call.call == "KVM_ENABLE_CAP"
                && call.argument.len() >= 16
                && word(&call.argument, 0) == APIC_BUS_CYCLES_NS
        });
        let ns = enabled.map_or(APIC_BUS_NS, |call| u64::from(word(&call.argument, 8)));
        ns.max(1)
    }
}

/// By how much TDCR divides the bus: bits 0, 1 and 3 say 2, 4, … 128, and 1 (SDM volume 3, figure 12-10).
pub(crate) fn divisor(tdcr: u32) -> u64 {
    let code = (tdcr & 3) | (tdcr & 8) >> 1;
    1 << ((code + 1) & 7)
}

/// The little-endian word of 32 bits at an offset; 0 beyond the end.
pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// A number of the image by section and field.
pub(crate) fn number(image: &Image, owner: Owner, section: &str, field: &str) -> Option<u64> {
    number_of(image.item(owner, section)?, field)
}
