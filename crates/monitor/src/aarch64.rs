//! Machines on arm64: a VM with memory, a GICv3 with an ITS, and vCPUs of a known shape, at whose beginning the MMU is off.
//!
//! Everything is made in the order in which a VMM makes it: memory, vCPUs with their features, SVE, interrupt controllers,
//! PMU. Group and attribute numbers are of `arch/arm64/include/uapi/asm/kvm.h`.

use std::sync::Arc;

use evenkeel_sys::{Device, Error as CallError, Ram, Runner, System, Vcpu, Vm};

use crate::Error;

const CAP_PMU_V3: u32 = 126;
const CAP_IPA_SIZE: u32 = 165;
const CAP_SVE: u32 = 170;
const CAP_PAUTH_ADDRESS: u32 = 171;
const CAP_PAUTH_GENERIC: u32 = 172;

const POWER_OFF: u32 = 0;
const PSCI_0_2: u32 = 2;
const PMU: u32 = 3;
const SVE: u32 = 4;
const PAUTH_ADDRESS: u32 = 5;
const PAUTH_GENERIC: u32 = 6;

const DEVICE_GIC_V3: u32 = 7;
const DEVICE_ITS: u32 = 8;
/// Where the distributor is.
pub const GIC_DISTRIBUTOR: u64 = 0x0800_0000;
/// Where the redistributors are, one behind the other.
pub const GIC_REDISTRIBUTOR: u64 = 0x080a_0000;
/// A redistributor's length: the registers' page and the one of the private interrupts.
pub const GIC_REDISTRIBUTOR_BYTES: u64 = 0x2_0000;
/// Where the ITS is: before the redistributors, so that there is room for any number of those.
pub const GIC_ITS: u64 = 0x0808_0000;
/// Where memory begins: QEMU's `virt` has it there too.
pub const MEMORY_BASE: u64 = 0x4000_0000;
/// The private interrupt of the PMU's overflow, as QEMU's `virt` has it.
pub const PMU_INTERRUPT: u32 = 23;

/// `KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE`: X0 in `struct kvm_regs`.
const CORE_X0: u64 = 0x6030_0000_0010_0000;
const CORE_PC: u64 = CORE_X0 + 2 * 32;
const CORE_PSTATE: u64 = CORE_X0 + 2 * 33;
/// EL1 with its own stack pointer, and interrupts, aborts and debug exceptions masked.
const PSTATE_EL1H: u64 = 0x3c5;

/// What the vCPUs are made with, as far as the host has it. The same shapes as in captures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// PSCI.
    Min,
    /// With a PMU.
    Pmu,
    /// With SVE and pointer authentication as well.
    #[default]
    Full,
}

impl Shape {
    /// Its name in captures: `min`, `pmu`, `full`.
    pub fn name(self) -> &'static str {
        match self {
            Shape::Min => "min",
            Shape::Pmu => "pmu",
            Shape::Full => "full",
        }
    }

    /// The shape of this name.
    pub fn by_name(name: &str) -> Option<Shape> {
        [Shape::Min, Shape::Pmu, Shape::Full].into_iter().find(|shape| shape.name() == name)
    }

    /// Feature bits of KVM_ARM_VCPU_INIT and the capabilities that offer them.
    fn wanted(self) -> &'static [(u32, u32)] {
        const ALL: [(u32, u32); 4] = [
            (PMU, CAP_PMU_V3),
            (SVE, CAP_SVE),
            (PAUTH_ADDRESS, CAP_PAUTH_ADDRESS),
            (PAUTH_GENERIC, CAP_PAUTH_GENERIC),
        ];
        match self {
            Shape::Min => &ALL[..0],
            Shape::Pmu => &ALL[..1],
            Shape::Full => &ALL,
        }
    }
}

/// What a step of making a machine does with a vCPU and its number.
pub type ForVcpu<'c> = dyn Fn(&Vcpu<'_>, u64) -> Result<(), CallError> + 'c;

/// What a step of making a machine does with the interrupt controller.
pub type ForGic<'c> = dyn Fn(&Device<'_>) -> Result<(), CallError> + 'c;

/// What is decided besides the shape, and when. Whoever decides a step makes all of it, in the machine's place.
pub struct Configure<'c> {
    /// KVM_CREATE_VM's argument; none: the widest addresses of up to 40 bits.
    pub vm_type: Option<u64>,
    /// The first word of features for KVM_ARM_VCPU_INIT at a reset; none: the shape's.
    pub features: Option<u32>,
    /// Of the VM, before it has vCPUs.
    pub vm: &'c dyn Fn(&Vm<'_>) -> Result<(), CallError>,
    /// KVM_ARM_VCPU_INIT, what is set between it and KVM_ARM_VCPU_FINALIZE, and that.
    pub vcpu: Option<&'c ForVcpu<'c>>,
    /// The GIC's addresses and its initialization.
    pub gic: Option<&'c ForGic<'c>>,
    /// No ITS: devices have wires only.
    pub without_its: bool,
    /// What is left of a vCPU then: its PMU.
    pub late: Option<&'c ForVcpu<'c>>,
    /// After a vCPU's first KVM_RUN.
    pub ran: &'c ForVcpu<'c>,
    /// After KVM_ARM_VCPU_INIT at a reset.
    pub reset: &'c ForVcpu<'c>,
}

impl Default for Configure<'_> {
    /// Nothing.
    fn default() -> Self {
        Configure {
            vm_type: None,
            features: None,
            vm: &|_| Ok(()),
            vcpu: None,
            gic: None,
            without_its: false,
            late: None,
            ran: &|_, _| Ok(()),
            reset: &|_, _| Ok(()),
        }
    }
}

/// A VM with memory, interrupt controllers and vCPUs. The first vCPU is on, the others wait for PSCI's CPU_ON.
#[derive(Debug)]
pub struct Machine<'s, 'b> {
    system: &'s System<'b>,
    vcpus: Vec<Vcpu<'b>>,
    ram: Arc<Ram>,
    target: u32,
    features: u32,
    /// Why there is no GICv3, where there is none.
    pub no_gic: Option<String>,
    /// Why there is no ITS.
    pub no_its: Option<String>,
    devices: Vec<Device<'b>>,
    vm: Vm<'b>,
}

impl<'s, 'b> Machine<'s, 'b> {
    /// Makes one with this many bytes of memory at [`MEMORY_BASE`], and this many vCPUs.
    ///
    /// # Errors
    /// The kernel refuses a part of it, or has no memory.
    pub fn new(
        system: &'s System<'b>,
        shape: Shape,
        memory: usize,
        vcpus: u64,
        configure: &Configure<'_>,
    ) -> Result<Self, Error> {
        // Type 0 means 40 bits of guest physical address, more than some hosts have.
        let bits = system.check_extension(CAP_IPA_SIZE)?;
        let usual = if (32..40).contains(&bits) { bits as u64 } else { 0 };
        let vm = system.create_vm(configure.vm_type.unwrap_or(usual))?;
        (configure.vm)(&vm)?;
        let ram = Arc::new(Ram::new(memory).map_err(Error::Memory)?);
        vm.set_memory(0, MEMORY_BASE, &ram)?;
        let mut features = 1 << PSCI_0_2;
        for (bit, cap) in shape.wanted() {
            if system.check_extension(*cap)? > 0 {
                features |= 1 << bit;
            }
        }
        let features = configure.features.unwrap_or(features);
        let target = vm.preferred_target()?;
        let mut made = Vec::new();
        for id in 0..vcpus {
            let vcpu = vm.create_vcpu(id)?;
            if let Some(vcpu_is_made) = configure.vcpu {
                vcpu_is_made(&vcpu, id)?;
            } else {
                vcpu.init(target, first_word(features, id))?;
                if features & 1 << SVE != 0 {
                    vcpu.finalize(SVE)?;
                }
            }
            made.push(vcpu);
        }
        let mut machine = Machine {
            system,
            vcpus: made,
            ram,
            target,
            features,
            no_gic: None,
            no_its: None,
            devices: Vec::new(),
            vm,
        };
        machine.controllers(configure)?;
        Ok(machine)
    }

    fn controllers(&mut self, configure: &Configure<'_>) -> Result<(), Error> {
        match gic(&self.vm, configure) {
            Ok(gic) => {
                self.devices.push(gic);
                if configure.without_its {
                    self.no_its = Some("none was asked for".to_owned());
                } else {
                    match its(&self.vm) {
                        Ok(its) => self.devices.push(its),
                        Err(error) => self.no_its = Some(error.to_string()),
                    }
                }
            }
            Err(error) => self.no_gic = Some(error.to_string()),
        }
        if let Some(late) = configure.late {
            for (id, vcpu) in self.vcpus.iter().enumerate() {
                late(vcpu, id as u64)?;
            }
        } else if self.features & 1 << PMU != 0 && self.no_gic.is_none() {
            for vcpu in &self.vcpus {
                // KVM_ARM_VCPU_PMU_V3_CTRL: IRQ, then INIT.
                vcpu.set_attr(0, 0, &PMU_INTERRUPT.to_ne_bytes())?;
                vcpu.set_attr(0, 1, &[])?;
            }
        }
        Ok(())
    }

    /// One that somebody else made: its VM, vCPUs, devices and memory, and the target and features that its first vCPU was
    /// initialized with.
    pub fn adopt(
        system: &'s System<'b>,
        vm: Vm<'b>,
        vcpus: Vec<Vcpu<'b>>,
        devices: Vec<Device<'b>>,
        ram: Arc<Ram>,
        (target, features): (u32, u32),
    ) -> Self {
        Machine { system, vcpus, ram, target, features, no_gic: None, no_its: None, devices, vm }
    }

    /// Whether its vCPUs have a PMU.
    pub fn has_pmu(&self) -> bool {
        self.features & 1 << PMU != 0
    }

    /// `/dev/kvm`.
    pub fn system(&self) -> &'s System<'b> {
        self.system
    }

    /// The VM.
    pub fn vm(&self) -> &Vm<'b> {
        &self.vm
    }

    /// Its vCPUs, in the order in which they were made.
    pub fn vcpus(&self) -> &[Vcpu<'b>] {
        &self.vcpus
    }

    /// Its interrupt controllers, in the order in which they were made.
    pub fn devices(&self) -> &[Device<'b>] {
        &self.devices
    }

    /// Its memory.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// A vCPU, ready to run.
    ///
    /// # Errors
    /// The vCPU's page cannot be mapped.
    ///
    /// # Panics
    /// There is no such vCPU.
    pub fn runner(&self, number: usize) -> Result<Runner<'_, 'b>, Error> {
        Ok(self.vcpus[number].runner(self.system)?)
    }

    /// One more vCPU, with this number, of a machine that has run: nothing is set in it.
    ///
    /// # Errors
    /// As the kernel says: where there is a GIC that is initialized, EBUSY.
    pub fn another(&self, id: u64) -> Result<Vcpu<'b>, Error> {
        Ok(self.vm.create_vcpu(id)?)
    }

    /// KVM_ARM_VCPU_INIT once more, for each: what a VMM does at a reset.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn reset(&self) -> Result<(), Error> {
        for (id, vcpu) in self.vcpus.iter().enumerate() {
            vcpu.init(self.target, first_word(self.features, id as u64))?;
        }
        Ok(())
    }
}

/// Where a vCPU of this number says that it is: MPIDR_EL1's affinities, as KVM numbers them (`reset_mpidr` in
/// `arch/arm64/kvm/sys_regs.c`).
pub fn mpidr(number: u64) -> u64 {
    (number & 0xf) | (number >> 4 & 0xff) << 8 | (number >> 12 & 0xff) << 16
}

fn first_word(features: u32, id: u64) -> u32 {
    if id == 0 { features } else { features | 1 << POWER_OFF }
}

fn gic<'b>(vm: &Vm<'b>, configure: &Configure<'_>) -> Result<Device<'b>, CallError> {
    let gic = vm.create_device(DEVICE_GIC_V3)?;
    if let Some(gic_is_made) = configure.gic {
        return gic_is_made(&gic).map(|()| gic);
    }
    // KVM_DEV_ARM_VGIC_GRP_ADDR: distributor, redistributors; KVM_DEV_ARM_VGIC_CTRL_INIT.
    gic.set_attr(0, 2, &GIC_DISTRIBUTOR.to_ne_bytes())?;
    gic.set_attr(0, 3, &GIC_REDISTRIBUTOR.to_ne_bytes())?;
    gic.set_attr(4, 0, &[])?;
    Ok(gic)
}

fn its<'b>(vm: &Vm<'b>) -> Result<Device<'b>, CallError> {
    let its = vm.create_device(DEVICE_ITS)?;
    its.set_attr(0, 4, &GIC_ITS.to_ne_bytes())?;
    its.set_attr(4, 0, &[])?;
    Ok(its)
}

/// Puts a vCPU at `entry` in EL1, with `argument` in X0. Nothing else is changed.
///
/// # Errors
/// As the kernel says.
pub fn enter(vcpu: &Vcpu<'_>, entry: u64, argument: u64) -> Result<(), Error> {
    for (register, value) in [(CORE_X0, argument), (CORE_PC, entry), (CORE_PSTATE, PSTATE_EL1H)] {
        vcpu.set_one_reg(register, &value.to_ne_bytes())?;
    }
    Ok(())
}

/// Writes a table of the first level for 4 KiB pages and 39 bits of address at `table` (an address of the guest): the
/// first GiB is device memory, the second is cacheable.
///
/// # Errors
/// It is not within the memory.
pub fn map(ram: &Ram, table: u64) -> Result<(), Error> {
    // A block, accessed; attributes 1 of MAIR_EL1, and never executed.
    const DEVICE: u64 = 1 | 1 << 2 | 1 << 10 | 3 << 53;
    // Inner shareable, attributes 0, not executed in EL0.
    const MEMORY: u64 = 1 | 3 << 8 | 1 << 10 | 1 << 54;
    let at = (table - MEMORY_BASE) as usize;
    ram.write(at, &DEVICE.to_le_bytes())?;
    ram.write(at + 8, &(MEMORY_BASE | MEMORY).to_le_bytes())?;
    Ok(())
}
