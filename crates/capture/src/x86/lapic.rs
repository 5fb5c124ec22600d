//! The local APIC's version register, by irqchip and by what a VMM asks of KVM_CAP_X2APIC_API.

use evenkeel_sys::layout::{CpuidEntry, X86_LAPIC, word};
use evenkeel_sys::requests::KVM_GET_LAPIC;
use evenkeel_sys::{Error as CallError, System, Vcpu, Vm};

use super::{Irqchip, Scratch};
use crate::Parts;
use crate::graves::Graves;

// Disabled comes first: it is what shows in the register, so that enabling after it shows too.
/// KVM_CAP_X2APIC_API and the flags of it that choose whether the guest is told of EOI broadcast suppression.
const CAP_X2APIC_API: u32 = 129;
const SUPPRESS_EOI: [(&str, u64); 2] =
    [("x86.lapic.lvr.suppress-eoi-disabled", 1 << 3), ("x86.lapic.lvr.suppress-eoi-enabled", 1 << 2)];

/// Offset of the version register in the register page.
const LVR: usize = 0x30;

fn lvr(vcpu: &Vcpu<'_>) -> Result<u64, CallError> {
    Ok(word(&vcpu.get(&KVM_GET_LAPIC, X86_LAPIC)?, LVR).into())
}

/// Measures it in every shape that has a local APIC in the kernel.
pub(crate) fn measure<'b>(
    system: &System<'b>,
    scratches: &[Scratch<'b>],
    table: &[CpuidEntry],
    parts: &mut Parts<'b>,
) {
    for scratch in scratches.iter().filter(|s| s.irqchip != Irqchip::None) {
        let name = scratch.irqchip.name();
        if let Some(vcpu) = &scratch.vcpu
            && let Some(value) = parts.book.ask_in("x86.lapic.lvr", lvr(vcpu), name)
        {
            parts.measured("x86.lapic.lvr", Some(scratch.index), value);
        }
        // Unknown, which the book has, is not worth trying: a refusal would not tell what is not offered.
        let offered = scratch.caps.get(CAP_X2APIC_API).unwrap_or(0) as u64;
        for (facet, flag) in SUPPRESS_EOI.into_iter().filter(|(_, flag)| offered & flag != 0) {
            let late = scratch.vcpu.as_ref().map(|vcpu| select(&scratch.vm, vcpu, flag, table));
            let selected = match late {
                Some(Ok(value)) => Ok(value),
                Some(Err(first)) => {
                    fresh(system, scratch.irqchip, flag, table, &mut parts.graves).map_err(|_| first)
                }
                None => fresh(system, scratch.irqchip, flag, table, &mut parts.graves),
            };
            if let Some(value) = parts.book.ask_in(facet, selected, name) {
                parts.measured(facet, Some(scratch.index), value);
            }
        }
    }
}

/// Asks for the flag on a VM that has a vCPU already: the register is made up anew when CPUID is set. Nothing else is
/// asked of the VM afterwards.
fn select(vm: &Vm<'_>, vcpu: &Vcpu<'_>, flag: u64, table: &[CpuidEntry]) -> Result<u64, CallError> {
    vm.enable_cap(CAP_X2APIC_API, [flag, 0, 0, 0])?;
    vcpu.set_cpuid(table)?;
    lvr(vcpu)
}

/// The value in a VM of its own, for a kernel that wants the flag before there is a vCPU.
fn fresh<'b>(
    system: &System<'b>,
    irqchip: Irqchip,
    flag: u64,
    table: &[CpuidEntry],
    graves: &mut Graves<'b>,
) -> Result<u64, CallError> {
    let vm = irqchip.create(system)?;
    vm.enable_cap(CAP_X2APIC_API, [flag, 0, 0, 0])?;
    let vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid(table)?;
    let value = lvr(&vcpu);
    graves.add([vcpu.into(), vm.into()]);
    value
}
