//! A plan, tried on a VM that is made for it and thrown away.

use evenkeel_surface::Arch;
use evenkeel_sys::{Backend, Device, Error, System, Vcpu, Vm};

use crate::applying::Applying;
use crate::plan::Plan;

/// KVM_DEV_TYPE_ARM_VGIC_V3.
const DEVICE_GIC_V3: u32 = 7;

/// A VM of the contract's shape that never runs, with what was applied to it.
pub struct Scratch<'p, 'b> {
    /// What was done.
    pub applying: Applying<'p>,
    /// Its vCPUs.
    pub vcpus: Vec<Vcpu<'b>>,
    /// Its interrupt controller (arm64).
    pub gic: Option<Device<'b>>,
    /// The VM.
    pub vm: Vm<'b>,
}

/// Makes the VM and carries out the whole plan, through every failure, so that the report is complete.
///
/// # Errors
/// The VM, a vCPU or the interrupt controller could not be made: there is nothing to apply a plan to.
pub fn scratch<'p, 'b>(plan: &'p Plan, backend: &'b dyn Backend) -> Result<Scratch<'p, 'b>, Error> {
    let system = System::open(backend)?;
    let vm = system.create_vm(plan.vm_type)?;
    let mut applying = plan.start();
    // Each stage reports its failures; the report is asked, not these results.
    let _ = applying.vm(&vm);
    let mut vcpus = Vec::new();
    for index in 0..plan.setup.topology.vcpus.max(1) {
        let id = match plan.contract.arch {
            Arch::X86_64 => plan.setup.topology.apic_id(index),
            Arch::Aarch64 => index,
        };
        let vcpu = vm.create_vcpu(u64::from(id))?;
        let _ = applying.vcpu(&vcpu, index);
        vcpus.push(vcpu);
    }
    let mut gic = None;
    if !plan.steps(evenkeel_catalog::Stage::Gic, 0, 0).is_empty() {
        let device = vm.create_device(DEVICE_GIC_V3)?;
        let _ = applying.gic(&device);
        gic = Some(device);
    }
    for (index, vcpu) in vcpus.iter().enumerate() {
        let _ = applying.late(vcpu, index as u32);
    }
    Ok(Scratch { applying, vcpus, gic, vm })
}
