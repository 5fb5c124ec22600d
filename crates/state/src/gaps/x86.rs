//! What an image of an x86 guest shows of gaps. Numbers of MSRs are those of arch/x86/include/asm/msr-index.h.

use super::{Look, Seen, Shown, vm_if};
use crate::Owner;
use crate::clocks::word;

/// By id of the catalog.
pub(super) const LOOKS: &[(&str, Look)] = &[
    ("G03", software_exception),
    ("G04", startup_vector),
    ("G06", expired_timer),
    ("G07", pit_phase),
    ("G08", line_levels),
    ("G09", kvmclock),
    ("G10", asynchronous_faults),
    ("G11", hyperv_timers),
    ("G12", unlisted_msrs),
    ("G13", msrs_unlisted_before),
    ("G14", shadow_stack),
    ("G15", nested_pat),
    ("G16", hardware_buffers),
    ("G17", xen),
    ("G18", manifest),
    ("G20", stolen_time),
    ("G21", confidential),
    ("G24", feature_msrs),
    ("G26", conflated_exception),
];

/// KVM_MP_STATE_SIPI_RECEIVED.
const SIPI_RECEIVED: u64 = 4;
/// KVM_VCPUEVENT_VALID_PAYLOAD.
const VALID_PAYLOAD: u64 = 0x10;
/// KVM_STATE_NESTED_GUEST_MODE, KVM_STATE_NESTED_FORMAT_SVM.
const NESTED_GUEST_MODE: u64 = 1;
const NESTED_FORMAT_SVM: u64 = 1;
/// Where the payload of nested state has the VMCB, and the VMCB the bit for nested paging.
const VMCB12: usize = 128;
const VMCB_NESTED_CTL: usize = 0x90;

/// A bit of CPUID as the guest has it: leaf, subleaf, register, bit.
fn cpuid(shown: &Shown<'_>, owner: Owner, word: &str, bit: u32) -> bool {
    shown.or_0(owner, "cpuid", word) >> bit & 1 != 0
}

fn software_exception(shown: &Shown<'_>) -> Seen {
    shown.each(|vcpu| {
        let event = |field| shown.get(vcpu, "vcpu-events", field);
        let vector = event("exception.nr")?;
        let told = event("exception.injected")? != 0 || event("exception.pending")? != 0;
        (!told && matches!(vector, 3 | 4))
            .then(|| format!("the last exception was {vector}, and whether it was taken is not told"))
    })
}

fn startup_vector(shown: &Shown<'_>) -> Seen {
    shown.each(|vcpu| {
        let state = shown.get(vcpu, "mp-state", "mp_state")?;
        (state == SIPI_RECEIVED).then(|| "it has received a SIPI and not taken it".to_owned())
    })
}

fn expired_timer(shown: &Shown<'_>) -> Seen {
    shown.each(|vcpu| {
        let register = |name| shown.get(vcpu, "lapic", name);
        let lvtt = register("LVTT")?;
        let (masked, mode) = (lvtt >> 16 & 1 != 0, lvtt >> 17 & 3);
        (!masked && mode == 0 && register("TMICT")? != 0 && register("TMCCT")? == 0)
            .then(|| format!("LVTT {lvtt:#x} is one-shot, TMICT is not 0, TMCCT is"))
    })
}

fn pit_phase(shown: &Shown<'_>) -> Seen {
    let mode = shown.get(Owner::Vm, "pit2", "channels.0.mode");
    vm_if(matches!(mode, Some(2 | 3)), "channel 0 of the PIT is periodic")
}

fn line_levels(shown: &Shown<'_>) -> Seen {
    let irr = shown.or_0(Owner::Vm, "irqchip", "ioapic.irr");
    let entries = shown.all(Owner::Vm, "irqchip", "ioapic.redirtbl");
    let waiting: Vec<String> = (0..)
        .zip(entries)
        // Bit 14 of an entry is remote IRR, bit 15 the trigger mode.
        .filter(|(pin, entry): &(u32, u64)| {
            entry >> 15 & 1 != 0 && (entry >> 14 & 1 != 0 || irr >> pin & 1 != 0)
        })
        .map(|(pin, _)| pin.to_string())
        .collect();
    vm_if(!waiting.is_empty(), &format!("lines of the IOAPIC that were raised: {}", waiting.join(", ")))
}

fn kvmclock(shown: &Shown<'_>) -> Seen {
    shown.each(|vcpu| {
        let on =
            [0x12, 0x4b56_4d01].into_iter().find(|msr| shown.msr(vcpu, *msr).is_some_and(|v| v & 1 != 0))?;
        Some(format!("MSR {on:#x} has a page of kvmclock"))
    })
}

fn asynchronous_faults(shown: &Shown<'_>) -> Seen {
    shown.each(|vcpu| {
        let on = shown.msr(vcpu, 0x4b56_4d02)? & 1 != 0;
        on.then(|| "asynchronous page faults are on".to_owned())
    })
}

fn hyperv_timers(shown: &Shown<'_>) -> Seen {
    shown.each(|vcpu| {
        let periodic = |n: &u32| shown.msr(vcpu, 0x4000_00b0 + 2 * n).is_some_and(|config| config & 3 == 3);
        let timer = (0..4).find(periodic)?;
        Some(format!("timer {timer} of Hyper-V is periodic"))
    })
}

/// Names the first of these that the guest has, by CPUID, and of which the MSR was not saved.
fn missing(shown: &Shown<'_>, features: &[(&str, u32, u32, &str)]) -> Seen {
    shown.each(|vcpu| {
        // Without MSRs or CPUID at all the image is a part of a guest, and says nothing.
        shown.bytes(vcpu, "msrs")?;
        let lost = features
            .iter()
            .find(|(word, bit, msr, _)| cpuid(shown, vcpu, word, *bit) && shown.msr(vcpu, *msr).is_none())?;
        Some(format!("the guest has {}, and MSR {:#x} was not saved", lost.3, lost.2))
    })
}

fn unlisted_msrs(shown: &Shown<'_>) -> Seen {
    let mut seen = machine_checks(shown);
    seen.extend(missing(
        shown,
        &[
            ("1.0.edx", 12, 0x2ff, "memory types (MTRR)"),
            ("40000003.0.eax", 2, 0x4000_0090, "SynIC"),
            ("80000001.0.ecx", 9, 0xc001_0140, "OSVW"),
        ],
    ));
    seen
}

fn machine_checks(shown: &Shown<'_>) -> Seen {
    shown.each(|vcpu| {
        shown.bytes(vcpu, "msrs")?;
        let banks = shown.msr(vcpu, 0x179).or(shown.get(vcpu, "mce", "mcg_cap")).map(|cap| cap & 0xff);
        let lost = cpuid(shown, vcpu, "1.0.edx", 14) && banks != Some(0) && shown.msr(vcpu, 0x400).is_none();
        lost.then(|| "the guest has machine checks, and MSR 0x400 was not saved".to_owned())
    })
}

fn msrs_unlisted_before(shown: &Shown<'_>) -> Seen {
    let mut seen = missing(shown, &[("d.1.eax", 3, 0xda0, "XSAVES")]);
    seen.extend(shown.each(|vcpu| {
        let records = shown.msr(vcpu, 0x1d9)? & 1 != 0 && shown.msr(vcpu, 0x1db).is_none();
        records.then(|| "DEBUGCTL records branches, and MSR 0x1db was not saved".to_owned())
    }));
    seen
}

fn shadow_stack(shown: &Shown<'_>) -> Seen {
    shown.each(|vcpu| {
        let lost = cpuid(shown, vcpu, "7.0.ecx", 7) && shown.get(vcpu, "ssp", "ssp").is_none();
        lost.then(|| "the guest has shadow stacks, and `ssp` was not saved".to_owned())
    })
}

fn nested_pat(shown: &Shown<'_>) -> Seen {
    shown.each(|vcpu| {
        let field = |name| shown.get(vcpu, "nested-state", name);
        let inside = field("flags")? & NESTED_GUEST_MODE != 0 && field("format")? == NESTED_FORMAT_SVM;
        let bytes = shown.bytes(vcpu, "nested-state")?;
        let paging = word(bytes, VMCB12 + VMCB_NESTED_CTL) & 1 != 0;
        (inside && paging && field("svm.gpat") == Some(0))
            .then(|| "it is in a nested guest with nested paging, and gpat is 0".to_owned())
    })
}

fn hardware_buffers(shown: &Shown<'_>) -> Seen {
    shown.each(|vcpu| {
        let on = |msr, mask: u64| shown.msr(vcpu, msr).is_some_and(|v| v & mask != 0);
        let what = if on(0x570, 1) {
            "processor trace is on (RTIT_CTL)"
        } else if on(0x3f1, u64::MAX) {
            "PEBS is on (IA32_PEBS_ENABLE)"
        } else if on(0x14ce, 1) {
            "branch records are on (IA32_LBR_CTL)"
        } else if cpuid(shown, vcpu, "7.0.ebx", 2) {
            "the guest has enclaves (SGX)"
        } else {
            return None;
        };
        Some(what.to_owned())
    })
}

fn xen(shown: &Shown<'_>) -> Seen {
    // Of a VM that is no Xen guest all attributes are 0, or an address that is none.
    let version = shown.or_0(Owner::Vm, "xen-vm", "xen_version");
    let vector = shown.or_0(Owner::Vm, "xen-vm", "vector");
    let gfn = shown.get(Owner::Vm, "xen-vm", "shared_info.gfn").filter(|gfn| *gfn != 0 && *gfn != u64::MAX);
    let used = version != 0 || vector != 0 || gfn.is_some();
    let configured = shown.calls("KVM_XEN_HVM_CONFIG").next().is_some();
    vm_if(used && !configured, "it is a Xen guest, and the manifest has no KVM_XEN_HVM_CONFIG")
}

fn manifest(shown: &Shown<'_>) -> Seen {
    vm_if(shown.calls("KVM_CREATE_VM").next().is_none(), "the manifest has no KVM_CREATE_VM")
}

fn stolen_time(shown: &Shown<'_>) -> Seen {
    shown.each(|vcpu| {
        let kvm = shown.msr(vcpu, 0x4b56_4d03).is_some_and(|v| v & 1 != 0);
        let xen = shown.get(vcpu, "xen-vcpu", "runstate.state_entry_time").is_some_and(|t| t != 0);
        (kvm || xen)
            .then(|| (if kvm { "MSR_KVM_STEAL_TIME is on" } else { "Xen's run state is on" }).to_owned())
    })
}

fn confidential(shown: &Shown<'_>) -> Seen {
    // KVM_X86_SEV_VM to KVM_X86_TDX_VM; before 6.10 SEV was switched on in a VM of the default type.
    let kind = shown.vm_type();
    let encrypted = (2..=5).contains(&kind) || shown.calls("KVM_MEMORY_ENCRYPT_OP").next().is_some();
    vm_if(encrypted, &format!("the VM is of type {kind}, or was given to KVM_MEMORY_ENCRYPT_OP"))
}

fn feature_msrs(shown: &Shown<'_>) -> Seen {
    missing(shown, &[("7.0.edx", 29, 0x10a, "ARCH_CAPABILITIES")])
}

fn conflated_exception(shown: &Shown<'_>) -> Seen {
    shown.each(|vcpu| {
        let event = |field| shown.get(vcpu, "vcpu-events", field);
        let told = event("exception.injected")? != 0 && event("flags")? & VALID_PAYLOAD == 0;
        told.then(|| {
            format!("exception {} may be pending rather than injected", event("exception.nr").unwrap_or(0))
        })
    })
}
