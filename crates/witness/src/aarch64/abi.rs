//! What the host half and the guest on arm64 agree on: where things are in guest memory, and the tables' layout. Addresses
//! are guest-physical; the assembly takes the same constants as the host.

use evenkeel_monitor::aarch64::MEMORY_BASE;

/// Bytes of guest memory, from [`MEMORY_BASE`] on.
pub const MEMORY: usize = 4 << 20;
/// The table of the pages.
pub const PAGES: u64 = MEMORY_BASE + 0x1000;
/// The guest itself: entry first, vectors at [`VECTORS`].
pub const CODE: u64 = MEMORY_BASE + 0x1_0000;
/// Its length; fixed, so that it is an array of known length to Rust.
pub const CODE_BYTES: usize = 0x1000;
/// Where in it the 16 vectors are.
pub const VECTORS: usize = 0x800;

/// A vCPU's own area, its stack at the end.
pub const AREA: u64 = MEMORY_BASE + 0x2_0000;
/// How many vCPUs can have one.
pub const AREAS: usize = 6;
/// Its length.
pub const AREA_BYTES: u64 = 0x1_0000;
/// Within an area: the index of the next probe (32 bits).
pub const INDEX: u64 = 0;
/// How many probes there are (32 bits).
pub const COUNT: u64 = 4;
/// Whether a probe is running (64 bits).
pub const RUNNING: u64 = 8;
/// What each result of this batch is marked with (64 bits).
pub const NONCE: u64 = 16;
/// Where the probes are (64 bits).
pub const PROBES: u64 = 24;
/// Where the results go (64 bits).
pub const RESULTS: u64 = 32;
/// The guest's own: the probe's code.
pub const AT_CODE: u64 = 40;
/// The guest's own: the probe's result.
pub const AT_RESULT: u64 = 48;

/// Memory that probes may use: 64 KiB.
pub const SCRATCH: u64 = MEMORY_BASE + 0x8_0000;
/// The table of probes.
pub const TABLE: u64 = MEMORY_BASE + 0x10_0000;
/// The results.
pub const OUTCOMES: u64 = MEMORY_BASE + 0x20_0000;
/// The most probes in a batch; the vCPUs other than the first have half of that, one after the other.
pub const BATCH: usize = 2048;

/// A probe's length.
pub const PROBE_BYTES: usize = 128;
/// Within a probe: the code, behind X0 to X5.
pub const PROBE_CODE: usize = 48;
/// The most instructions of a probe: RET is behind them.
pub const CODE_MOST: usize = (PROBE_BYTES - PROBE_CODE) / 4 - 1;

/// A result's length; X0 to X5 are first.
pub const RESULT_BYTES: usize = 128;
/// Within a result: [`RETURNED`] or [`FAULTED`] (64 bits).
pub const KIND: usize = 48;
/// ESR_EL1 of an exception.
pub const ESR: usize = 56;
/// FAR_EL1.
pub const FAR: usize = 64;
/// The instruction's offset in the code.
pub const OFFSET: usize = 72;
/// Which of the 16 vectors was taken.
pub const VECTOR: usize = 80;
/// The nonce, with the index: written last.
pub const TAG: usize = 88;

/// The probe came to its end.
pub const RETURNED: u64 = 1;
/// It ended in an exception.
pub const FAULTED: u64 = 2;

/// Nobody is there: a store of [`DONE`], or of 0x100 and the class of an exception that nobody expected, comes to the host.
pub const DOORBELL: u64 = 0x0900_0000;
/// A batch is done.
pub const DONE: u64 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps() {
        let places = [
            (PAGES, 0x1000),
            (CODE, CODE_BYTES as u64),
            (AREA, AREAS as u64 * AREA_BYTES),
            (SCRATCH, 0x1_0000),
            (TABLE, (BATCH * PROBE_BYTES) as u64),
            (OUTCOMES, (BATCH * RESULT_BYTES) as u64),
        ];
        for pair in places.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
        let (at, length) = places[places.len() - 1];
        assert!((at - MEMORY_BASE + length) as usize <= MEMORY);
        const { assert!(TAG + 8 <= RESULT_BYTES && VECTORS + 16 * 0x80 <= CODE_BYTES) };
        assert_eq!((CODE + VECTORS as u64) % 0x800, 0, "VBAR_EL1 has no lower bits");
        assert!(PROBE_BYTES.is_power_of_two() && RESULT_BYTES.is_power_of_two());
    }
}
