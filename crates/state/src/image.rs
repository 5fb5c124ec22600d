//! What was saved of one VM.

use std::fmt;

use evenkeel_surface::Arch;

use crate::Manifest;

/// The state of one VM, as one host gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The architecture.
    pub arch: Arch,
    /// What was selected and no ioctl tells.
    pub manifest: Manifest,
    /// The items, in the order in which they were read.
    pub items: Vec<Item>,
}

/// What an item belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// The VM, with the devices that the kernel keeps for it.
    Vm,
    /// The vCPU with this index: the place in the order in which vCPUs were created, not its APIC id or affinity.
    Vcpu(u32),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Vm => f.write_str("vm"),
            Owner::Vcpu(index) => write!(f, "vcpu.{index}"),
        }
    }
}

/// One group of state: a section of the catalog (`data/x86/sections.toml`, `data/arm64/sections.toml`).
///
/// The payload is what the ioctl takes and gives, in the kernel's layout, which is ABI. Groups of many small things are
/// packed, little-endian:
///
/// * MSRs (`msrs`): entries of 16 bytes, as `struct kvm_msr_entry`: index (32 bits), 0 (32 bits), value (64 bits),
/// * registers by id (`registers`, of arm64 and x86's `ssp`): the id (64 bits), then as many bytes as the id says, filled
///   up to a multiple of 8,
/// * device attributes (`attributes`: `vgic-…`, `its-…`, `arm64-timer-irqs`): group (32 bits), length of the value (32 bits),
///   attribute (64 bits), the value filled up to a multiple of 8,
/// * CPUID (`cpuid`): entries of 40 bytes, as `struct kvm_cpuid_entry2`, without a count before them,
/// * structures that a section has several of (`entries`: `xen-vm`, `xen-vcpu`): one after the other; three of
///   `struct kvm_irqchip` are `irqchip`.
///
/// What is a bare number in the interface has the number's bytes: 4 for `tsc-khz`, 8 for `tsc-offset` and `mce`.
#[derive(Clone, PartialEq, Eq)]
pub struct Item {
    /// What it belongs to.
    pub owner: Owner,
    /// The section's name in the catalog: `regs`, `msrs`, `clock`.
    pub name: String,
    /// The payload.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} ({} bytes)", self.owner, self.name, self.bytes.len())
    }
}

impl Image {
    /// The item of this name, if it was saved.
    pub fn item(&self, owner: Owner, name: &str) -> Option<&Item> {
        self.items.iter().find(|item| item.owner == owner && item.name == name)
    }
}
