//! The capture file, type by type. Field order here is the order in the file.
//!
//! Everything under [`Offer`] is *stable*: it must be the same when the same kernel on the same machine is captured
//! again, from another CPU or after a reboot. What is not (the APIC id of the CPU that ran the ioctl, the measured
//! TSC rate, the number of CPUs online) is in [`Volatile`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::hex::{Hex32, Hex64};

/// The schema name that this crate writes, and the newest that it reads.
pub const SCHEMA: &str = "evenkeel.surface/1";

/// One host, captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Surface {
    /// [`SCHEMA`]. A reader that is too old stops here and says so.
    pub schema: String,
    /// The architecture of guest and host.
    pub arch: Arch,
    /// Digests of `offer` and of `provenance`, each over its canonical form.
    pub digests: Digests,
    /// What a guest can be shown and what state can be saved: stable.
    pub offer: Offer,
    /// What the host is made of: kernel, CPU, boot. Stable, but not guest-visible by itself.
    pub provenance: Provenance,
    /// What may differ between two captures of one host.
    pub volatile: Volatile,
}

/// An architecture that KVM runs guests of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Arch {
    /// 64-bit x86, Intel's and AMD's and their relatives'.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Arch {
    /// The name in documents, which is also the target's name in Rust and in `uname -m`.
    pub fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }
}

/// `blake3:` and 64 hexadecimal digits, over the canonical form of the named part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Digests {
    /// Over [`Offer`]. Two hosts with one offer digest declare the same things to a VMM.
    pub offer: String,
    /// Over [`Provenance`].
    pub provenance: String,
}

/// The stable part: what the kernel answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// The VM shapes that scratch VMs were made in. Lists "per shape" elsewhere follow this order.
    pub shapes: Vec<Shape>,
    /// KVM_CHECK_EXTENSION was asked for every number below this one; what is not listed answered 0 everywhere.
    pub capabilities_asked: u32,
    /// KVM_CHECK_EXTENSION answers that are not 0 everywhere, ascending by number.
    pub capabilities: Vec<Capability>,
    /// KVM_GET_SUPPORTED_CPUID, ascending by leaf and subleaf (x86).
    pub cpuid: Vec<CpuidEntry>,
    /// KVM_GET_EMULATED_CPUID (x86).
    pub cpuid_emulated: Vec<CpuidEntry>,
    /// KVM_GET_SUPPORTED_HV_CPUID (x86).
    pub cpuid_hyperv: Vec<CpuidEntry>,
    /// Entries that KVM_GET_CPUID2 gave back otherwise than KVM_SET_CPUID2 was given them, as given back (x86).
    pub cpuid_stored: Vec<CpuidEntry>,
    /// KVM_GET_MSR_FEATURE_INDEX_LIST with the value of each by KVM_GET_MSRS on the system fd (x86).
    pub feature_msrs: Vec<FeatureMsr>,
    /// MSRs of a fresh vCPU that could be listed, read or written; ascending (x86).
    pub msrs: Vec<MsrItem>,
    /// MSRs that were asked for and are neither listed, nor readable, nor writable; ascending (x86).
    pub msrs_refused: Vec<Hex32>,
    /// KVM_GET_REG_LIST of a fresh vCPU, ascending by id (arm64; x86 where the kernel has it).
    pub registers: Vec<Register>,
    /// Device attributes that exist.
    pub attributes: Vec<Attribute>,
    /// Fixed groups of state (an ioctl pair each) with size and flags.
    pub sections: Vec<Section>,
    /// Facets that were measured on a scratch VM rather than declared by an enumeration.
    pub measured: Vec<Measured>,
    /// What could not be read, and why. A capture is never silently short.
    pub unread: Vec<Unread>,
}

/// One VM shape: what a VMM decides when it creates the VM and that changes what KVM shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// x86: `none`, `kernel`, `split` (the irqchip). arm64: `min`, `pmu`, `full` (the vCPU features).
    pub name: String,
    /// What was asked for: `irqchip=kernel`, `gic=v3`, `pmu`, `sve`, `pauth`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
}

/// A KVM_CHECK_EXTENSION number and its answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Capability {
    /// The capability's number in `include/uapi/linux/kvm.h`.
    pub cap: u32,
    /// The answer, when it is the same on the system fd and on a VM of every shape.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all: Option<i32>,
    /// The answer on `/dev/kvm`, when answers differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<i32>,
    /// The answer on a VM of each shape, in the order of `shapes`, when answers differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vm: Vec<i32>,
}

impl Capability {
    /// The answer on the system fd.
    pub fn on_system(&self) -> Option<i32> {
        self.all.or(self.system)
    }

    /// The answer on a VM of the shape with this index.
    pub fn on_vm(&self, shape: usize) -> Option<i32> {
        self.all.or_else(|| self.vm.get(shape).copied())
    }
}

/// One `struct kvm_cpuid_entry2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuidEntry {
    /// CPUID.EAX on input.
    pub leaf: Hex32,
    /// CPUID.ECX on input; 0 where it has no meaning.
    pub subleaf: Hex32,
    /// KVM_CPUID_FLAG_*; bit 0: the subleaf is significant.
    pub flags: u32,
    /// Output register.
    pub eax: Hex32,
    /// Output register.
    pub ebx: Hex32,
    /// Output register.
    pub ecx: Hex32,
    /// Output register.
    pub edx: Hex32,
}

/// A feature MSR and its value: the most that the host can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FeatureMsr {
    /// The MSR's number.
    pub msr: Hex32,
    /// KVM_GET_MSRS on the system fd.
    pub value: Hex64,
}

/// What became of an attempt to write back the value that was just read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Write {
    /// Accepted, and the same value was read back.
    Kept,
    /// The ioctl failed.
    Refused,
    /// Accepted, but another value was read back.
    Altered,
    /// Not tried.
    #[default]
    Unasked,
}

/// An MSR as an item of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MsrItem {
    /// The MSR's number.
    pub msr: Hex32,
    /// Whether KVM_GET_MSR_INDEX_LIST names it: a VMM that saves every listed MSR saves it.
    pub listed: bool,
    /// The value in a fresh vCPU with the supported CPUID; absent when the read was refused or the value runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset: Option<Hex64>,
    /// The value changes by itself (a clock); it was read but is not recorded.
    #[serde(default, skip_serializing_if = "is_false")]
    pub running: bool,
    /// Whether KVM_SET_MSRS takes the value back.
    pub write: Write,
}

impl MsrItem {
    /// Whether KVM_GET_MSRS gave a value.
    pub fn readable(&self) -> bool {
        self.running || self.reset.is_some()
    }
}

/// A KVM_GET_ONE_REG register of a fresh vCPU. One that differs between shapes has an entry for each value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// The ONE_REG id.
    pub id: Hex64,
    /// The shapes (indices into `shapes`) that this entry speaks of; empty: all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shapes: Vec<u8>,
    /// The value in a fresh vCPU; absent when unreadable, running, or wider than 64 bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset: Option<Hex64>,
    /// The value changes by itself (a timer's counter).
    #[serde(default, skip_serializing_if = "is_false")]
    pub running: bool,
    /// The bits that userspace may choose: what KVM_ARM_GET_REG_WRITABLE_MASKS says; of registers with a bit for each
    /// counter (PMCNTENSET_EL0), those that stay when all are set. Absent where nobody tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<Hex64>,
    /// Whether KVM_SET_ONE_REG takes the value back.
    pub write: Write,
}

/// A device attribute that KVM_HAS_DEVICE_ATTR affirms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Attribute {
    /// `system`, `vm`, `vcpu`, or the kind of device: `vgic-v3`, `vgic-its`.
    pub fd: String,
    /// `struct kvm_device_attr.group`.
    pub group: u32,
    /// `struct kvm_device_attr.attr`.
    pub attr: Hex64,
    /// The shapes (indices) in which it exists; empty: all, or not a matter of shape.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shapes: Vec<u8>,
    /// KVM_GET_DEVICE_ATTR's value, where there is one that does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Hex64>,
}

/// A group of state with an ioctl pair of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// The catalog's name: `regs`, `sregs2`, `xsave2`, `vcpu-events`.
    pub item: String,
    /// Bytes of the structure, where it varies between hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    /// The structure's own flags word in a fresh vCPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<Hex64>,
    /// The shapes (indices) in which it exists; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shapes: Vec<u8>,
    /// Whether what was read could be set again.
    pub write: Write,
}

/// A facet that was measured: set, read back and recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// The catalog's name of the measurement.
    pub facet: String,
    /// The shape (index) it was measured in; absent: not a matter of shape.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<u8>,
    /// What there is when nobody asks.
    pub value: Hex64,
    /// Values that were set and read back the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepts: Vec<Hex64>,
    /// Values that were refused, or accepted and not kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refuses: Vec<Hex64>,
}

/// Something that could not be asked or answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Unread {
    /// Which part, by facet or state item: `cpuid`, `msr.10a`, `shape.split`, `net.tap.offloads`.
    pub what: String,
    /// The call that failed, with its argument: `KVM_GET_MSRS(0x10a)`.
    pub call: String,
    /// The reason: an errno's name, or words.
    pub why: String,
}

/// What the host is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The kernel axis.
    pub kernel: Kernel,
    /// The CPU axis.
    pub cpu: Cpu,
    /// The boot axis: module parameters of KVM and its back-end, ascending by name.
    pub parameters: Vec<Setting>,
    /// The boot axis: `/sys/devices/system/cpu/vulnerabilities`, ascending by name.
    pub mitigations: Vec<Setting>,
}

/// The kernel axis.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// `uname -r`: a hint, never an identity.
    pub release: String,
    /// `uname -v`.
    pub version: String,
    /// `/proc/cmdline` (the boot axis).
    pub cmdline: String,
    /// The KVM back-end module, as far as `/sys/module` tells: `kvm_amd`, `kvm_intel`; empty when it does not.
    pub backend: String,
}

/// The CPU axis.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// `AuthenticAMD`, `GenuineIntel`, `ARM`; empty when unknown.
    pub vendor: String,
    /// The marketing name; empty when unknown.
    pub name: String,
    /// x86: CPUID.1.EAX. arm64: MIDR_EL1.
    pub id: Hex64,
    /// The microcode revision, as the kernel prints it; empty when unknown.
    pub microcode: String,
    /// x86: what the CPUID instruction itself answers in userspace, per-CPU parts cleared. It tells a bit that the
    /// kernel withholds from one that the CPU does not have.
    pub raw: Vec<CpuidEntry>,
}

/// A name and a value from sysfs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// `kvm_amd.nested`, `spectre_v2`.
    pub name: String,
    /// The file's text, trimmed.
    pub value: String,
}

/// What may differ between two captures of one host. In no digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Volatile {
    /// The program that wrote the file, with its version.
    pub tool: String,
    /// Seconds since 1970-01-01 UTC.
    pub captured_at: u64,
    /// The CPU that ran the capture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ran_on_cpu: Option<u32>,
    /// CPUs online.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus_online: Option<u32>,
    /// KVM_GET_TSC_KHZ of a fresh vCPU: exact, and measured anew at each boot. arm64: CNTFRQ_EL0 / 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tsc_khz: Option<u32>,
    /// Capabilities whose answer depends on load or on the CPUs online (KVM_CAP_NR_VCPUS).
    pub capabilities: Vec<Capability>,
    /// The parts of CPUID that name the CPU that ran the ioctl, as they were before they were cleared in `cpuid`.
    pub cpuid_per_cpu: Vec<CpuidEntry>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_false(value: &bool) -> bool {
    !*value
}
