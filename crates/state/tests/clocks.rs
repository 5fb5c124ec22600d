//! The parts of an image are read one after the other, and the guest's clocks go on from the moment of kvmclock: how far a TSC
//! may be from what was read follows from the image itself, to the tick, and not from a tolerance.

use std::time::Duration;

use evenkeel_state::{Elapsed, Image, Item, Manifest, Owner, compare};
use evenkeel_surface::Arch;

const HOST_TSC: u64 = 99_788_752_672;
const OFFSET: u64 = 0_u64.wrapping_sub(90_000_000_000);
/// The guest's TSC at the moment of kvmclock.
const AT_CLOCK: u64 = HOST_TSC.wrapping_add(OFFSET);
/// A TSC of 1 GHz.
const KHZ: u32 = 1_000_000;
const MS: u64 = 1_000_000;

/// An image with these MSRs, whose clock was read when the guest's TSC was `AT_CLOCK`.
fn image(msrs: &[(u32, u64)], host_tsc: u64) -> Image {
    let item = |owner, name: &str, bytes| Item { owner, name: name.to_owned(), bytes };
    let mut clock = [0; 48];
    clock[..8].copy_from_slice(&5_000_000_000_u64.to_le_bytes());
    clock[8] = 14;
    clock[24..32].copy_from_slice(&host_tsc.to_le_bytes());
    let entry = |&(msr, value): &(u32, u64)| [u64::from(msr).to_le_bytes(), value.to_le_bytes()].concat();
    let cpu = Owner::Vcpu(0);
    Image {
        arch: Arch::X86_64,
        manifest: Manifest::default(),
        items: vec![
            item(Owner::Vm, "clock", clock.to_vec()),
            item(cpu, "tsc-khz", KHZ.to_le_bytes().to_vec()),
            item(cpu, "tsc-offset", OFFSET.to_le_bytes().to_vec()),
            item(cpu, "msrs", msrs.iter().flat_map(entry).collect()),
        ],
    }
}

/// What is wrong with a TSC that reads `after`, where one was read as `before`, 10 ms ago at most and with 1 ms of slack.
fn found(before: u64, after: u64, host_tsc: u64) -> Vec<String> {
    let elapsed = Elapsed::of(Duration::from_millis(10));
    let of = |tsc| image(&[(0x10, tsc)], host_tsc);
    compare(&of(before), &of(after), elapsed).iter().map(ToString::to_string).collect()
}

#[test]
fn a_tsc_that_was_read_after_the_clock_may_be_read_back_that_much_earlier() {
    // Measured in the lab: read 52 ms after the clock, and set on a host whose wall clock is behind.
    let read = AT_CLOCK + 52 * MS;
    assert_eq!(found(read, read - 31 * MS, HOST_TSC), [""; 0]);
    assert_eq!(found(read, AT_CLOCK, HOST_TSC), [""; 0]);
    assert_eq!(found(read, read + 11 * MS, HOST_TSC), [""; 0]);
    assert!(found(read, AT_CLOCK - 1, HOST_TSC)[0].contains("it went back by"));
    assert!(found(read, read + 11 * MS + 1, HOST_TSC)[0].contains("time by 11000000 at most"));
}

#[test]
fn a_tsc_that_was_read_before_the_clock_may_be_read_back_that_much_later() {
    let read = AT_CLOCK - 70 * MS;
    assert_eq!(found(read, read, HOST_TSC), [""; 0]);
    assert_eq!(found(read, AT_CLOCK + 11 * MS, HOST_TSC), [""; 0]);
    assert!(found(read, read - 1, HOST_TSC)[0].contains("it went back by 1 ticks"));
    assert!(found(read, AT_CLOCK + 11 * MS + 1, HOST_TSC)[0].contains("time by 81000000 at most"));
}

#[test]
fn where_the_clock_does_not_tell_the_tsc_nothing_is_allowed_for() {
    let read = AT_CLOCK + 52 * MS;
    assert!(found(read, read - 1, 0)[0].contains("it went back by 1 ticks"));
    assert!(found(AT_CLOCK - 70 * MS, AT_CLOCK, 0)[0].contains("time by 11000000 at most"));
}

#[test]
fn other_clocks_of_the_vcpu_are_as_far_from_the_clock_as_its_tsc() {
    // HV_X64_MSR_TIME_REF_COUNT, in units of 100 ns: 52 ms are 520,000.
    let of = |count| image(&[(0x10, AT_CLOCK + 52 * MS), (0x4000_0020, count)], HOST_TSC);
    let elapsed = Elapsed::of(Duration::from_millis(10));
    let compared = |count| compare(&of(9_000_000), &of(count), elapsed).len();
    assert_eq!([9_000_000, 9_000_000 - 520_000, 9_110_000].map(compared), [0, 0, 0]);
    assert_eq!([9_000_000 - 520_001, 9_110_001].map(compared), [1, 1]);
}
