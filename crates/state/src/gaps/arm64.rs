//! What an image of an arm64 guest shows of gaps.

use super::{Look, Seen, Shown, vm_if};
use crate::Owner;

/// By id of the catalog.
pub(super) const LOOKS: &[(&str, Look)] = &[
    ("A01", unreadable),
    ("A02", manifest),
    ("A04", counters),
    ("A05", stolen_time),
    ("A07", routes),
    ("A08", assigned_devices),
    ("A11", tags),
];

/// KVM_DEV_TYPE_VFIO, KVM_DEV_TYPE_ARM_VGIC_V5.
const VFIO: u32 = 4;
const VGIC_V5: u32 = 16;
/// KVM_VM_TYPE_ARM_PROTECTED.
const PROTECTED: u64 = 1 << 31;
/// KVM_CAP_ARM_MTE.
const MTE: u32 = 205;
/// PMCR_EL0 and PMCNTENSET_EL0.
const PMCR: u64 = 0x6030_0000_0013_dce0;
const PMCNTENSET: u64 = 0x6030_0000_0013_dce1;
/// What a 5.10 kernel has in registers of a PMU that the vCPU does not have.
const POISON: u64 = 0x1de7_ec7e_dbad_c0de;

fn unreadable(shown: &Shown<'_>) -> Seen {
    let mut seen = vm_if(shown.device(VGIC_V5), "it has a GICv5");
    seen.extend(vm_if(shown.vm_type() & PROTECTED != 0, "it is protected"));
    seen
}

fn manifest(shown: &Shown<'_>) -> Seen {
    let kept = shown.calls("KVM_ARM_VCPU_INIT").count();
    let vcpus = shown.vcpus().count();
    let none = shown.calls("KVM_CREATE_VM").next().is_none();
    vm_if(
        none || kept < vcpus,
        &format!("the manifest has {kept} KVM_ARM_VCPU_INIT for {vcpus} vCPUs, or no KVM_CREATE_VM"),
    )
}

fn counters(shown: &Shown<'_>) -> Seen {
    shown.each(|vcpu| {
        let register = |id| shown.register(vcpu, "arm64-registers", id).filter(|value| *value != POISON);
        let on = register(PMCR)? & 1 != 0 && register(PMCNTENSET)? != 0;
        on.then(|| "counters of the PMU are on".to_owned())
    })
}

fn stolen_time(shown: &Shown<'_>) -> Seen {
    shown.each(|vcpu| {
        // GPA_INVALID says that there is none.
        let page = shown.get(vcpu, "arm64-pvtime", "IPA").filter(|page| *page != u64::MAX)?;
        Some(format!("stolen time is counted at {page:#x}"))
    })
}

fn routes(shown: &Shown<'_>) -> Seen {
    let its = shown.bytes(Owner::Vm, "its-regs").or(shown.bytes(Owner::Vm, "its-ctlr")).is_some();
    let kept = shown.calls("KVM_SET_GSI_ROUTING").next().is_some();
    vm_if(its && !kept, "it has an ITS, and the manifest has no KVM_SET_GSI_ROUTING")
}

fn assigned_devices(shown: &Shown<'_>) -> Seen {
    vm_if(shown.device(VFIO), "a VFIO device was made")
}

fn tags(shown: &Shown<'_>) -> Seen {
    let saved = shown.bytes(Owner::Vm, "arm64-mte-tags").is_some();
    vm_if(shown.enabled(MTE) && !saved, "MTE is enabled, and no tags were saved")
}
