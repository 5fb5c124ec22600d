//! The facets of the catalog that only a look from inside tells: which value what was seen stands for.

use evenkeel_catalog::{self as catalog, Applies, Arch, CHOICES};
use evenkeel_contract::view::field_of;

use super::selected;
use crate::observation::{Record, Saw};

/// What is known of each facet that is settled by an observation.
pub(super) enum Settled {
    /// This value, by number.
    Value(u64),
    /// Nothing, and why.
    Not(&'static str),
}
use Settled::{Not, Value};

const NO_PROGRAM: &str = "no program looks at it";

/// Settles all of them that what was seen settles; the others are noted with the reason.
pub fn settle(record: &mut Record, shape: &str) {
    for choice in CHOICES.iter().filter(|c| c.arch == Arch::X86_64) {
        let name = choice.name;
        let ours = name == "x86.x2apic.suppress-eoi-broadcast";
        let selected = selected::value(name, record);
        if choice.from.observe.is_empty() && !ours && selected.is_none() {
            continue;
        }
        let settled = match applies(&choice.applies, record, shape) {
            false => Not("it does not apply to this guest"),
            true => selected.unwrap_or_else(|| value(name, record)),
        };
        match settled {
            Value(number) if choice.values.iter().any(|v| v.value == number) => record.value(name, number),
            Value(_) => record.unasked(name, "what was seen is none of its values"),
            Not(why) => record.unasked(name, why),
        }
    }
}

/// The guest's vendor, from leaf 0.
fn vendor(record: &Record) -> String {
    let word = |register: &str| record.number(&format!("cpuid.0.0.{register}")).unwrap_or(0) as u32;
    let bytes = [word("ebx"), word("edx"), word("ecx")].map(u32::to_le_bytes).concat();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn applies(guard: &Applies, record: &Record, shape: &str) -> bool {
    let field = |name: &&&str| field_of(name, |at| record.number(&at.to_string()).unwrap_or_default()) != 0;
    (guard.vendors.is_empty() || guard.vendors.contains(&vendor(record).as_str()))
        && (guard.shapes.is_empty() || guard.shapes.contains(&shape))
        && (guard.any_of.is_empty() || guard.any_of.iter().any(|name| field(&name)))
}

/// 0 where a look returned, 1 where it faulted; or the other way round.
pub(super) fn either(saw: Option<&Saw>, returned: u64, faulted: u64) -> Settled {
    match saw {
        Some(Saw::Value(_) | Saw::Executes) => Value(returned),
        Some(Saw::Fault { .. }) => Value(faulted),
        Some(_) => Not("KVM does not execute it here"),
        None => Not("what it follows from was not asked"),
    }
}

/// What is seen of a bit of an MSR: can be changed, is ignored, faults.
fn bit(record: &Record, msr: u32, bit: u32, changed: u64, ignored: u64, faults: u64) -> Settled {
    let part = |part: &str| record.number(&format!("msr.{msr:x}.{part}")).map(|mask| mask >> bit & 1);
    match (part("writable"), part("faults")) {
        (Some(1), _) => Value(changed),
        // It can be changed, and not back.
        (Some(_), _) if part("sticks") == Some(1) => Value(changed),
        (Some(_), Some(1)) => Value(faults),
        (Some(_), Some(_)) => Value(ignored),
        _ => Not("the MSR cannot be read here"),
    }
}

fn value(name: &str, record: &Record) -> Settled {
    let number = |name: &str| record.number(name);
    match name {
        "x86.x2apic.icr-reserved-bits" => either(record.get("x2apic.icr.reserved-bits"), 0, 1),
        "x86.x2apic.high-bits" => either(record.get("x2apic.tpr.high-bits"), 0, 1),
        "x86.x2apic.reserved-register-read" => either(record.get("x2apic.800"), 0, 1),
        "x86.x2apic.suppress-eoi-broadcast" => {
            match (number("apic.suppress-eoi.claimed"), number("apic.suppress-eoi.broadcast")) {
                (Some(1), Some(1..)) => Value(0),
                (Some(1), Some(0)) => Value(1),
                (Some(0), Some(1..)) => Value(2),
                (_, None) => Not("the IOAPIC is in the kernel: nobody outside sees the EOI"),
                _ => Not("neither claimed nor seen"),
            }
        }
        // CPUID shows no Hyper-V: what is there is there without it.
        "x86.hyperv.msr-without-interface" if number("cpuid.40000001.0.eax") == Some(0x3123_7648) => {
            Not("this guest is shown Hyper-V's interface")
        }
        "x86.hyperv.msr-without-interface" => either(record.get("msr.40000000"), 0, 1),
        "x86.amd.hwcr-tsc-freq-sel" => bit(record, 0xc001_0015, 24, 1, 0, 0),
        "x86.amd.hwcr-clear" => match (number("msr.c0010015.writable"), number("msr.c0010015.sticks")) {
            (Some(writable), sticks) if writable >> 18 & 1 == 1 => {
                Value(u64::from(sticks.unwrap_or(0) >> 18 & 1 == 0))
            }
            _ => Not("the bit cannot be set here"),
        },
        // XSAVE was on before the fault: the look at instructions leaves it so. What is as in the beginning is not told again.
        "x86.svm.osxsave-after-shutdown" => {
            let osxsave = |word: u64| word >> 27 & 1;
            match (number("cpuid.1.0.ecx"), number("cpuid.1.0.ecx@reboot"), record.get("reboot.triple-fault"))
            {
                (Some(before), again, Some(_)) if osxsave(before) == 0 => {
                    Value(u64::from(osxsave(again.unwrap_or(before)) == 0))
                }
                _ => Not("no triple fault, or the bit was on from the beginning"),
            }
        }
        "x86.amd.rdpmc" => either(record.get("insn.rdpmc"), 0, 1),
        "x86.misc-enable.pmu-bits" => bit(record, 0x1a0, 11, 0, 0, 1),
        "x86.amd.hwcr-cpuid-user-dis" => bit(record, 0xc001_0015, 35, 1, 0, 0),
        // The older behaviour takes the one value that the host has, and nothing after it.
        "x86.amd.de-cfg-write" if number("msr.c0011029.sticks").is_some_and(|mask| mask & 2 != 0) => Value(0),
        "x86.amd.de-cfg-write" => bit(record, 0xc001_1029, 1, 1, 1, 0),
        "x86.amd.debugctl-btf" => bit(record, 0x1d9, 1, 0, 1, 1),
        "x86.amd.debugctl-reserved" => bit(record, 0x1d9, 2, 0, 0, 1),
        "x86.intel.debugctl-rtm-debug" => bit(record, 0x1d9, 15, 1, 1, 0),
        // Bits that make no canonical address are kept by hardware only.
        "x86.amd.sysenter-width" if number("msr.175.writable").is_some_and(|mask| mask >> 62 & 1 == 1) => {
            Value(2)
        }
        "x86.amd.sysenter-width" => bit(record, 0x175, 40, 0, 1, 1),
        "x86.amd.ghcb-msr-read" => either(record.get("msr.c0010130"), 1, 0),
        "x86.amd.perf-global-status-set" => either(record.get("msr.c0000303.write"), 1, 0),
        "x86.intel.amd-pmu-msr-read" => either(record.get("msr.c0010200"), 0, 1),
        "x86.svm.invlpga-without-svme" => either(record.get("insn.invlpga"), 0, 1),
        "x86.emulator.avx-mmio" => match record.get("insn.avx-mmio") {
            Some(Saw::Exit(_) | Saw::Value(_) | Saw::Executes) => Value(1),
            Some(Saw::Fault { .. } | Saw::Stopped | Saw::Ends(_))
                if matches!(record.get("insn.avx-vaddps"), Some(Saw::Executes)) =>
            {
                Value(0)
            }
            _ => Not("AVX is not executed here"),
        },
        "x86.xen.tsc-leaf" => match number("xen.tsc-leaf.filled") {
            Some(filled) => Value(1 - filled.min(1)),
            None => Not("the kernel takes no such CPUID"),
        },
        "x86.init.xss" => match number("second.again.xss-kept") {
            Some(kept) => Value(kept),
            None => Not("no second vCPU, or no bit of XSS can be set"),
        },
        "x86.init.edx" => match (number("second.edx"), number("cpuid.1.0.eax")) {
            (Some(0x600), _) => Value(0),
            (Some(edx), Some(signature)) if edx == signature => Value(1),
            _ => Not("no second vCPU"),
        },
        "x86.init.cr0-cd-nw" => match number("second.again.cr0") {
            Some(cr0) => Value(u64::from(cr0 & 0x6000_0000 == 0)),
            None => Not("no second vCPU"),
        },
        "x86.canonical-width" => Not("the same in a guest unless the host has 57-bit addresses"),
        "x86.efer.valid-bits" => Not("what differs is in `msr.c0000080.writable` of such hosts"),
        "x86.pv.msr-without-cpuid-bit" => Not("the same in a guest unless kvm.ignore_msrs is on"),
        "x86.kvmclock.periodic-sync" => Not("takes more than 300 s to see"),
        _ => Not(NO_PROGRAM),
    }
}

/// The name of a choice's value, where there is one.
pub fn value_name(name: &str, number: u64) -> Option<&'static str> {
    Some(catalog::choice(name)?.values.iter().find(|v| v.value == number)?.name)
}
