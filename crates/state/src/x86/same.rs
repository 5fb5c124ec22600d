//! Whether what was read back is what was set.

use std::collections::BTreeMap;

use evenkeel_sys::layout::*;

use super::msrs;

/// The field of the initial count.
pub(super) const TMICT: &str = "at 0x380";

/// A difference: the field, what was wanted, what is there.
pub(super) type Difference = (String, String, String);

/// What differs, but for what runs by itself and what the kernel works out.
pub(super) fn differences(name: &str, wanted: &[u8], got: &[u8]) -> Vec<Difference> {
    match name {
        "msrs" => of_msrs(wanted, got),
        "cpuid" => of_cpuid(wanted, got),
        // Whatever the kernel says of the host's time is that of the moment.
        "clock" => {
            let (then, now) = (long(wanted, 0), long(got, 0));
            if now < then {
                vec![("clock".to_owned(), then.to_string(), now.to_string())]
            } else {
                Vec::new()
            }
        }
        // The version register and the current count.
        "lapic" => of_bytes(wanted, got, |at| (0x30..0x34).contains(&at) || (0x390..0x394).contains(&at)),
        // When each of the three channels was loaded, in the host's time.
        "pit2" => of_bytes(wanted, got, |at| at < 72 && at % 24 >= 16),
        "sregs" | "sregs2" => {
            let common = |bytes: &[u8]| bytes[..bytes.len().min(X86_SREGS2_FLAGS)].to_vec();
            let (wanted, got) = if wanted.len() == got.len() {
                (wanted.to_vec(), got.to_vec())
            } else {
                (common(wanted), common(got))
            };
            of_bytes(&wanted, &got, |_| false)
        }
        "xsave" | "xsave2" => {
            let length = wanted.len().max(got.len());
            let long = |bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                bytes.resize(length, 0);
                bytes
            };
            of_bytes(&long(wanted), &long(got), |_| false)
        }
        _ => of_bytes(wanted, got, |_| false),
    }
}

fn of_bytes(wanted: &[u8], got: &[u8], ignored: impl Fn(usize) -> bool) -> Vec<Difference> {
    if wanted.len() != got.len() {
        return vec![(String::new(), format!("{} bytes", wanted.len()), format!("{} bytes", got.len()))];
    }
    // In words of four, so that a message shows values.
    let words = wanted.chunks(4).zip(got.chunks(4)).enumerate();
    let differs = |at: usize, w: &[u8], g: &[u8]| {
        w.iter().zip(g).enumerate().any(|(n, (w, g))| w != g && !ignored(4 * at + n))
    };
    let hex = |bytes: &[u8]| bytes.iter().rev().fold("0x".to_owned(), |text, b| text + &format!("{b:02x}"));
    words
        .filter(|(at, (w, g))| differs(*at, w, g))
        .map(|(at, (w, g))| (format!("at {:#x}", 4 * at), hex(w), hex(g)))
        .collect()
}

fn of_msrs(wanted: &[u8], got: &[u8]) -> Vec<Difference> {
    let there: BTreeMap<u32, u64> = msrs::unpack(got).into_iter().collect();
    let mut differences = Vec::new();
    for (msr, value) in msrs::unpack(wanted) {
        let now = there.get(&msr).copied();
        let fine = now.is_some_and(|now| now == value || msrs::runs(msr) && now > value);
        if !fine {
            let now = now.map_or_else(String::new, |now| format!("{now:#x}"));
            differences.push((format!("msr.{msr:x}"), format!("{value:#x}"), now));
        }
    }
    differences
}

fn of_cpuid(wanted: &[u8], got: &[u8]) -> Vec<Difference> {
    let table = |bytes: &[u8]| -> BTreeMap<(u32, u32), [u32; 4]> {
        let entries = bytes.chunks_exact(X86_CPUID_ENTRY).map(CpuidEntry::from_bytes);
        entries.map(|e| ((e.function, e.index), e.output)).collect()
    };
    let there = table(got);
    let mut differences = Vec::new();
    for ((function, index), output) in table(wanted) {
        let name = format!("{function:x}.{index:x}");
        let Some(now) = there.get(&(function, index)) else {
            differences.push((name, format!("{output:x?}"), String::new()));
            continue;
        };
        // What KVM edits when state is set: MWAIT and OSXSAVE, the APIC's bit, OSPKE, the sizes of XSAVE areas.
        let masks = match (function, index) {
            (1, _) => [!0, !0, !(1 << 27 | 1 << 3), !(1 << 9)],
            (7, 0) => [!0, !0, !(1 << 4), !0],
            (0xd, 0 | 1) => [!0, 0, !0, !0],
            _ => [!0_u32; 4],
        };
        if (0..4).any(|n| (output[n] ^ now[n]) & masks[n] != 0) {
            differences.push((name, format!("{output:x?}"), format!("{now:x?}")));
        }
    }
    differences
}
