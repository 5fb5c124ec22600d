//! What the host half and the guest on x86 agree on: where things are in guest memory, and the tables' layout.
//!
//! The guest is a loop over a table of **probes**. A probe is a few bytes of machine code and the registers that it
//! starts with; its result is the registers that it ended with, or the fault that it ended in. The assembly takes the
//! same constants as the host.

/// Bytes of guest memory.
pub const MEMORY: usize = 4 << 20;

/// The global descriptors, interrupt descriptors, task state.
pub const GDT: u32 = 0x1000;
/// The interrupt descriptors.
pub const IDT: u32 = 0x2000;
/// The task state.
pub const TSS: u32 = 0x3000;
/// Six pages of page tables.
pub const PAGES: u32 = 0x1_0000;

/// Where the second vCPU starts in real mode: the page that its SIPI names.
pub const TRAMPOLINE: u32 = 0x8000;
/// What it finds in its registers there: EDX, EAX, CR0, CR4, EFER (two words), EFLAGS, CS, DS, SS, EBX, ECX.
pub const ARRIVAL: u32 = 0x8f00;
/// How many words that is.
pub const ARRIVAL_WORDS: usize = 12;

/// The guest itself.
pub const CODE: u32 = 0x2_0000;
/// Its length; fixed, so that it is an array of known length to Rust.
pub const CODE_BYTES: usize = 0x2400;
/// Offsets within it: the entry,
pub const ENTRY: u32 = 0;
/// where to go on after an instruction that KVM gave up on,
pub const GAVE_UP: u32 = 0x10;
/// a stub for each of 256 interrupts and exceptions,
pub const STUBS: u32 = 0x1000;
/// how far they are apart,
pub const STUB_BYTES: u32 = 16;
/// and the real-mode code.
pub const REAL_MODE: u32 = 0x2000;

/// A vCPU's own area: 64 KiB, aligned to that, its stack at the end, so that the stack pointer tells where it is.
pub const AREA: u32 = 0x4_0000;
/// Its length.
pub const AREA_BYTES: u32 = 0x1_0000;
/// Within an area: the index of the next probe (32 bits).
pub const INDEX: u32 = 0;
/// How many probes there are (32 bits).
pub const COUNT: u32 = 4;
/// Whether a probe is running (32 bits).
pub const RUNNING: u32 = 8;
/// What each result of this batch is marked with (64 bits).
pub const NONCE: u32 = 16;
/// Where the probes are (64 bits).
pub const PROBES: u32 = 24;
/// Where the results go (64 bits).
pub const RESULTS: u32 = 32;
/// The guest's own: the stack before a probe.
pub const STACK: u32 = 40;
/// The guest's own: the probe's code.
pub const AT_CODE: u32 = 48;
/// The guest's own: the probe's result.
pub const AT_RESULT: u32 = 56;
/// How often each interrupt arrived: 256 words of 32 bits.
pub const ARRIVALS: u32 = 0x400;

/// The table of probes; the results; memory that probes may use.
pub const TABLE: u32 = 0x10_0000;
/// The results.
pub const OUTCOMES: u32 = 0x20_0000;
/// Memory that probes may use: 64 KiB.
pub const SCRATCH: u32 = 0x3f_0000;
/// The most probes that there is room for.
pub const BATCH: usize = 4096;
/// How many are done at once: each page of a table that is touched for the first time costs as much as ten exits, and
/// the pages of a short table are used again.
pub const AT_ONCE: usize = 512;

/// A probe's length.
pub const PROBE_BYTES: usize = 128;
/// Within a probe: RAX, RBX, RCX, RDX, RSI, RDI.
pub const INPUTS: usize = 0;
/// The code, up to [`CODE_MOST`] bytes and a RET.
pub const PROBE_CODE: usize = 48;
/// The most bytes of code.
pub const CODE_MOST: usize = PROBE_BYTES - PROBE_CODE - 1;

/// A result's length.
pub const RESULT_BYTES: usize = 128;
/// Within a result: RAX, RBX, RCX, RDX, RSI, RDI.
pub const OUTPUTS: usize = 0;
/// Flags after the probe.
pub const FLAGS: usize = 48;
/// [`RETURNED`], [`FAULTED`] or [`STOPPED`] (64 bits).
pub const KIND: usize = 56;
/// The vector of a fault.
pub const VECTOR: usize = 64;
/// Its error code.
pub const ERROR: usize = 72;
/// CR2 at the fault.
pub const CR2: usize = 80;
/// The faulting instruction's offset in the code.
pub const OFFSET: usize = 88;
/// The nonce, with the index: written last.
pub const TAG: usize = 96;

/// The probe came to its end.
pub const RETURNED: u64 = 1;
/// It ended in an exception.
pub const FAULTED: u64 = 2;
/// KVM could not execute it, and the host went on behind it.
pub const STOPPED: u64 = 3;

/// The port of the guest's words to the host: [`DONE`] or 0x100 and the vector of a fault that nobody expected.
pub const PORT: u8 = 0xf4;
/// A port that the host half takes no notice of: a way to leave KVM and come back.
pub const BREATH: u8 = 0xf5;
/// A batch is done.
pub const DONE: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps() {
        let places = [
            (GDT, 0x1000),
            (IDT, 0x1000),
            (TSS, 0x1000),
            (TRAMPOLINE, 0x1000),
            (PAGES, 0x6000),
            (CODE, CODE_BYTES as u32),
            (AREA, 2 * AREA_BYTES),
            (TABLE, (BATCH * PROBE_BYTES) as u32),
            (OUTCOMES, (BATCH * RESULT_BYTES) as u32),
            (SCRATCH, 0x1_0000),
        ];
        for pair in places.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
        let (at, length) = places[places.len() - 1];
        assert!((at + length) as usize <= MEMORY);
        assert_eq!(AREA % AREA_BYTES, 0);
        assert_eq!(1 << PROBE_BYTES.trailing_zeros(), PROBE_BYTES);
        const { assert!(TAG + 8 <= RESULT_BYTES && ARRIVALS + 4 * 256 < AREA_BYTES / 2) };
        assert_eq!(STUBS + 256 * STUB_BYTES, REAL_MODE);
    }
}
