//! A VM with memory, in one of the shapes that change what KVM shows.

use std::sync::Arc;

use evenkeel_sys::{Ram, System, Vcpu, Vm};

use crate::Error;

/// KVM_CAP_SPLIT_IRQCHIP.
const CAP_SPLIT_IRQCHIP: u32 = 121;
/// The pins of the IOAPIC that a usual board has.
const PINS: u64 = 24;

/// Which interrupt controllers are in the kernel (x86).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Irqchip {
    /// None of them.
    None,
    /// PICs, IOAPIC and local APICs.
    #[default]
    Kernel,
    /// The local APICs.
    Split,
}

impl Irqchip {
    /// The shape's name in captures: `none`, `kernel`, `split`.
    pub fn name(self) -> &'static str {
        match self {
            Irqchip::None => "none",
            Irqchip::Kernel => "kernel",
            Irqchip::Split => "split",
        }
    }

    /// The irqchip of this name.
    pub fn by_name(name: &str) -> Option<Irqchip> {
        [Irqchip::None, Irqchip::Kernel, Irqchip::Split].into_iter().find(|i| i.name() == name)
    }
}

/// What is decided when a VM is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The irqchip.
    pub irqchip: Irqchip,
    /// An i8254 in the kernel: only where the irqchip is.
    pub pit: bool,
    /// Bytes of memory, from guest-physical address 0 on.
    pub memory: usize,
}

/// A VM with memory. Its vCPUs are made, configured and run by whoever has it.
#[derive(Debug)]
pub struct Machine<'s, 'b> {
    system: &'s System<'b>,
    vm: Vm<'b>,
    ram: Arc<Ram>,
    shape: Shape,
}

impl<'s, 'b> Machine<'s, 'b> {
    /// Makes one.
    ///
    /// # Errors
    /// The kernel refuses a part of the shape, or has no memory.
    pub fn new(system: &'s System<'b>, shape: Shape) -> Result<Self, Error> {
        let vm = system.create_vm(0)?;
        #[cfg(target_arch = "x86_64")]
        crate::x86_64::reserve(&vm)?;
        match shape.irqchip {
            Irqchip::None => {}
            Irqchip::Kernel => {
                vm.create_irqchip()?;
                if shape.pit {
                    vm.create_pit2(0)?;
                }
            }
            Irqchip::Split => vm.enable_cap(CAP_SPLIT_IRQCHIP, [PINS, 0, 0, 0]).map(drop)?,
        }
        let ram = Arc::new(Ram::new(shape.memory).map_err(Error::Memory)?);
        vm.set_memory(0, 0, &ram)?;
        Ok(Machine { system, vm, ram, shape })
    }

    /// One that was made elsewhere: as a manifest says.
    pub fn adopt(system: &'s System<'b>, vm: Vm<'b>, ram: Arc<Ram>, shape: Shape) -> Self {
        Machine { system, vm, ram, shape }
    }

    /// The VM.
    pub fn vm(&self) -> &Vm<'b> {
        &self.vm
    }

    /// Its memory.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// `/dev/kvm`.
    pub fn system(&self) -> &'s System<'b> {
        self.system
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// A new vCPU.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn vcpu(&self, id: u64) -> Result<Vcpu<'b>, Error> {
        Ok(self.vm.create_vcpu(id)?)
    }
}
