//! Whether what was read back is what was set.

use std::collections::BTreeMap;

use evenkeel_sys::layout::*;

use super::msrs;

/// The field of the initial count.
pub(super) const TMICT: &str = "at 0x380";

/// What became of the parts of an item.
#[derive(Default)]
pub(super) struct Compared {
    /// Parts that are the same.
    pub kept: u32,
    /// Parts that went on.
    pub running: u32,
    /// The others.
    pub differ: Vec<Differs>,
}

/// A part that differs.
pub(super) struct Differs {
    pub field: String,
    pub wanted: Vec<u8>,
    pub got: Option<Vec<u8>>,
}

/// Compares, but for what the kernel works out.
pub(super) fn compare(name: &str, wanted: &[u8], got: &[u8]) -> Compared {
    match name {
        "msrs" => of_msrs(wanted, got),
        "cpuid" => of_cpuid(wanted, got),
        // What the kernel says of the host's time is that of the moment.
        "clock" if long(got, 0) >= long(wanted, 0) => Compared { running: 1, ..Compared::default() },
        "clock" => of_bytes(&wanted[..8], &got[..8], |_| false),
        // The version register and the current count.
        "lapic" => of_bytes(wanted, got, |at| (0x30..0x34).contains(&at) || (0x390..0x394).contains(&at)),
        // When each of the three channels was loaded, in the host's time.
        "pit2" => of_bytes(wanted, got, |at| at < 72 && at % 24 >= 16),
        "sregs" | "sregs2" if wanted.len() != got.len() => {
            let most = X86_SREGS2_FLAGS;
            of_bytes(&wanted[..most.min(wanted.len())], &got[..most.min(got.len())], |_| false)
        }
        "xsave" | "xsave2" => {
            let length = wanted.len().max(got.len());
            let padded = |bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                bytes.resize(length, 0);
                bytes
            };
            of_bytes(&padded(wanted), &padded(got), |_| false)
        }
        _ => of_bytes(wanted, got, |_| false),
    }
}

fn of_bytes(wanted: &[u8], got: &[u8], ignored: impl Fn(usize) -> bool) -> Compared {
    if wanted.len() != got.len() {
        let whole = Differs { field: String::new(), wanted: wanted.to_vec(), got: Some(got.to_vec()) };
        return Compared { differ: vec![whole], ..Compared::default() };
    }
    // In words of four, so that a message shows values.
    let mut all = Compared::default();
    for (at, (w, g)) in wanted.chunks(4).zip(got.chunks(4)).enumerate() {
        if w == g || w.iter().zip(g).enumerate().all(|(n, (w, g))| w == g || ignored(4 * at + n)) {
            all.kept += 1;
        } else {
            all.differ.push(Differs {
                field: format!("at {:#x}", 4 * at),
                wanted: w.to_vec(),
                got: Some(g.to_vec()),
            });
        }
    }
    all
}

fn of_msrs(wanted: &[u8], got: &[u8]) -> Compared {
    let there: BTreeMap<u32, u64> = msrs::unpack(got).into_iter().collect();
    let mut all = Compared::default();
    for (msr, value) in msrs::unpack(wanted) {
        match there.get(&msr).copied() {
            Some(now) if now == value => all.kept += 1,
            Some(now) if msrs::runs(msr) && now > value => all.running += 1,
            // A deadline that has passed is gone.
            Some(0) if msr == msrs::TSC_DEADLINE => all.running += 1,
            now => all.differ.push(Differs {
                field: format!("msr.{msr:x}"),
                wanted: value.to_ne_bytes().to_vec(),
                got: now.map(|now| now.to_ne_bytes().to_vec()),
            }),
        }
    }
    all
}

fn of_cpuid(wanted: &[u8], got: &[u8]) -> Compared {
    let table = |bytes: &[u8]| -> BTreeMap<(u32, u32), [u32; 4]> {
        let entries = bytes.chunks_exact(X86_CPUID_ENTRY).map(CpuidEntry::from_bytes);
        entries.map(|e| ((e.function, e.index), e.output)).collect()
    };
    let there = table(got);
    let mut all = Compared::default();
    for ((function, index), output) in table(wanted) {
        // What KVM edits when state is set: MWAIT and OSXSAVE, the APIC's bit, OSPKE, the sizes of XSAVE areas.
        let masks = match (function, index) {
            (1, _) => [!0, !0, !(1 << 27 | 1 << 3), !(1 << 9)],
            (7, 0) => [!0, !0, !(1 << 4), !0],
            (0xd, 0 | 1) => [!0, 0, !0, !0],
            _ => [!0_u32; 4],
        };
        let now = there.get(&(function, index));
        if now.is_some_and(|now| (0..4).all(|n| (output[n] ^ now[n]) & masks[n] == 0)) {
            all.kept += 1;
            continue;
        }
        let bytes = |words: &[u32; 4]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        let field = format!("{function:x}.{index:x}");
        all.differ.push(Differs { field, wanted: bytes(&output), got: now.map(bytes) });
    }
    all
}
