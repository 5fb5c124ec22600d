//! The ioctls that evenkeel makes, each once. Numbers are from `include/uapi/linux/kvm.h`, `if_tun.h` and `vhost.h`.

use crate::layout::*;
use crate::request::{Creates, FdKind, Flow, Request};

const KVM: u8 = 0xae;
const VHOST: u8 = 0xaf;
const TUN: u8 = b'T';

macro_rules! requests {
    ($($(#[$meta:meta])* $name:ident = $value:expr;)*) => {
        $($(#[$meta])* pub const $name: Request = $value;)*
        /// All of them, to find one by its name.
        pub const ALL: &[Request] = &[$($name),*];
    };
}

requests! {
    /// The API's version: 12 since 2.6.22.
    KVM_GET_API_VERSION = Request::io("KVM_GET_API_VERSION", KVM, 0x00);
    /// A new VM of the given type.
    KVM_CREATE_VM = Request::io("KVM_CREATE_VM", KVM, 0x01).creating(Creates::Returned(FdKind::Vm));
    /// MSRs to save (x86).
    KVM_GET_MSR_INDEX_LIST = Request::iowr("KVM_GET_MSR_INDEX_LIST", KVM, 0x02, 4).tailed(0, 4, 4);
    /// What the kernel, or a VM, offers under a capability's number.
    KVM_CHECK_EXTENSION = Request::io("KVM_CHECK_EXTENSION", KVM, 0x03);
    /// CPUID that KVM can give a guest (x86).
    KVM_GET_SUPPORTED_CPUID = Request::iowr("KVM_GET_SUPPORTED_CPUID", KVM, 0x05, 8).tailed(0, 8, X86_CPUID_ENTRY);
    /// CPUID that KVM can emulate, slowly (x86).
    KVM_GET_EMULATED_CPUID = Request::iowr("KVM_GET_EMULATED_CPUID", KVM, 0x09, 8).tailed(0, 8, X86_CPUID_ENTRY);
    /// MSRs that tell features (x86).
    KVM_GET_MSR_FEATURE_INDEX_LIST = Request::iowr("KVM_GET_MSR_FEATURE_INDEX_LIST", KVM, 0x0a, 4).tailed(0, 4, 4);
    /// The length of the page that a vCPU shares with the kernel.
    KVM_GET_VCPU_MMAP_SIZE = Request::io("KVM_GET_VCPU_MMAP_SIZE", KVM, 0x04);
    /// Memory of a VM: made by [`Backend::set_memory`](crate::Backend::set_memory) only.
    KVM_SET_USER_MEMORY_REGION = Request::iow("KVM_SET_USER_MEMORY_REGION", KVM, 0x46, MEMORY_REGION);
    /// The pages of a slot that were written to, as a bitmap: through [`Vm::dirty_log`](crate::Vm::dirty_log), which knows its length.
    KVM_GET_DIRTY_LOG = Request::iow("KVM_GET_DIRTY_LOG", KVM, 0x42, 16).pointing(8, Flow::Out);
    /// Pages whose writes shall be told again, where KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 was turned on.
    KVM_CLEAR_DIRTY_LOG = Request::iowr("KVM_CLEAR_DIRTY_LOG", KVM, 0xc0, 24).flowing(Flow::In).pointing(16, Flow::In);
    /// Three pages that Intel hosts need in real mode (x86).
    KVM_SET_TSS_ADDR = Request::io("KVM_SET_TSS_ADDR", KVM, 0x47);
    /// A page that Intel hosts need in real mode (x86).
    KVM_SET_IDENTITY_MAP_ADDR = Request::iow("KVM_SET_IDENTITY_MAP_ADDR", KVM, 0x48, 8);
    /// The level of an interrupt line.
    KVM_IRQ_LINE = Request::iow("KVM_IRQ_LINE", KVM, 0x61, 8);
    /// Runs the guest.
    KVM_RUN = Request::io("KVM_RUN", KVM, 0x80);
    /// A message-signalled interrupt.
    KVM_SIGNAL_MSI = Request::iow("KVM_SIGNAL_MSI", KVM, 0xa5, 32);
    /// The routes of interrupts.
    KVM_SET_GSI_ROUTING = Request::iow("KVM_SET_GSI_ROUTING", KVM, 0x6a, 8).tailed(0, 8, 48);
    /// A new vCPU with the given id.
    KVM_CREATE_VCPU = Request::io("KVM_CREATE_VCPU", KVM, 0x41).creating(Creates::Returned(FdKind::Vcpu));
    /// PIC and IOAPIC in the kernel (x86).
    KVM_CREATE_IRQCHIP = Request::io("KVM_CREATE_IRQCHIP", KVM, 0x60);
    /// State of one of the chips (x86).
    KVM_GET_IRQCHIP = Request::iowr("KVM_GET_IRQCHIP", KVM, 0x62, X86_IRQCHIP);
    /// The same, set; the kernel's number has the direction wrong.
    KVM_SET_IRQCHIP = Request::ior("KVM_SET_IRQCHIP", KVM, 0x63, X86_IRQCHIP).flowing(Flow::In);
    /// Xen's interface for guests (x86): `struct kvm_xen_hvm_config`.
    KVM_XEN_HVM_CONFIG = Request::iow("KVM_XEN_HVM_CONFIG", KVM, 0x7a, X86_XEN_HVM_CONFIG);
    /// The i8254 in the kernel (x86).
    KVM_CREATE_PIT2 = Request::iow("KVM_CREATE_PIT2", KVM, 0x77, X86_PIT_CONFIG);
    /// kvmclock, set (x86).
    KVM_SET_CLOCK = Request::iow("KVM_SET_CLOCK", KVM, 0x7b, X86_CLOCK);
    /// kvmclock (x86).
    KVM_GET_CLOCK = Request::ior("KVM_GET_CLOCK", KVM, 0x7c, X86_CLOCK);
    /// General registers (x86).
    KVM_GET_REGS = Request::ior("KVM_GET_REGS", KVM, 0x81, X86_REGS);
    /// The same, set.
    KVM_SET_REGS = Request::iow("KVM_SET_REGS", KVM, 0x82, X86_REGS);
    /// Segments and control registers (x86).
    KVM_GET_SREGS = Request::ior("KVM_GET_SREGS", KVM, 0x83, X86_SREGS);
    /// The same, set.
    KVM_SET_SREGS = Request::iow("KVM_SET_SREGS", KVM, 0x84, X86_SREGS);
    /// MSR values: of a vCPU, or on the system fd of features (x86).
    KVM_GET_MSRS = Request::iowr("KVM_GET_MSRS", KVM, 0x88, 8).tailed(0, 8, X86_MSR_ENTRY);
    /// The same, set, of a vCPU.
    KVM_SET_MSRS = Request::iow("KVM_SET_MSRS", KVM, 0x89, 8).tailed(0, 8, X86_MSR_ENTRY);
    /// An external interrupt, where no APIC is in the kernel (x86).
    KVM_INTERRUPT = Request::iow("KVM_INTERRUPT", KVM, 0x86, 4);
    /// The signals that are blocked while a guest runs: a length, and as many bytes.
    KVM_SET_SIGNAL_MASK = Request::iow("KVM_SET_SIGNAL_MASK", KVM, 0x8b, 4).tailed(0, 4, 1);
    /// The same with no mask: those of the thread.
    KVM_UNSET_SIGNAL_MASK = Request::iow("KVM_SET_SIGNAL_MASK(NULL)", KVM, 0x8b, 4).flowing(Flow::Int);
    /// x87 and SSE registers (x86).
    KVM_GET_FPU = Request::ior("KVM_GET_FPU", KVM, 0x8c, X86_FPU);
    /// The same, set.
    KVM_SET_FPU = Request::iow("KVM_SET_FPU", KVM, 0x8d, X86_FPU);
    /// A non-maskable interrupt (x86).
    KVM_NMI = Request::io("KVM_NMI", KVM, 0x9a);
    /// Tells a guest with kvmclock that it was stopped (x86).
    KVM_KVMCLOCK_CTRL = Request::io("KVM_KVMCLOCK_CTRL", KVM, 0xad);
    /// Single steps and breakpoints of whoever debugs the guest from outside.
    KVM_SET_GUEST_DEBUG = Request::iow("KVM_SET_GUEST_DEBUG", KVM, 0x9b, X86_GUEST_DEBUG);
    /// Whether lost ticks of the PIT are made up for (x86).
    KVM_REINJECT_CONTROL = Request::io("KVM_REINJECT_CONTROL", KVM, 0x71).flowing(Flow::In).slack(64);
    /// The id of the vCPU that starts the machine (x86).
    KVM_SET_BOOT_CPU_ID = Request::io("KVM_SET_BOOT_CPU_ID", KVM, 0x78);
    /// Which events of performance monitoring a guest may count.
    KVM_SET_PMU_EVENT_FILTER = Request::iow("KVM_SET_PMU_EVENT_FILTER", KVM, 0xb2, X86_PMU_FILTER).tailed(4, X86_PMU_FILTER, 8);
    /// Which MSRs a guest may touch: a bitmap for each of 16 ranges, one behind the other in the payload.
    KVM_X86_SET_MSR_FILTER = Request::iow("KVM_X86_SET_MSR_FILTER", KVM, 0xc6, X86_MSR_FILTER).pointing(24, Flow::In);
    /// Xen's state of a VM (x86).
    KVM_XEN_HVM_GET_ATTR = Request::iowr("KVM_XEN_HVM_GET_ATTR", KVM, 0xc8, X86_XEN_ATTR);
    /// The same, set.
    KVM_XEN_HVM_SET_ATTR = Request::iow("KVM_XEN_HVM_SET_ATTR", KVM, 0xc9, X86_XEN_ATTR);
    /// Xen's state of a vCPU (x86).
    KVM_XEN_VCPU_GET_ATTR = Request::iowr("KVM_XEN_VCPU_GET_ATTR", KVM, 0xca, X86_XEN_ATTR);
    /// The same, set.
    KVM_XEN_VCPU_SET_ATTR = Request::iow("KVM_XEN_VCPU_SET_ATTR", KVM, 0xcb, X86_XEN_ATTR);
    /// The local APIC's register page (x86).
    KVM_GET_LAPIC = Request::ior("KVM_GET_LAPIC", KVM, 0x8e, X86_LAPIC);
    /// The same, set.
    KVM_SET_LAPIC = Request::iow("KVM_SET_LAPIC", KVM, 0x8f, X86_LAPIC);
    /// The guest's CPUID (x86).
    KVM_SET_CPUID2 = Request::iow("KVM_SET_CPUID2", KVM, 0x90, 8).tailed(0, 8, X86_CPUID_ENTRY);
    /// The guest's CPUID as KVM holds it (x86).
    KVM_GET_CPUID2 = Request::iowr("KVM_GET_CPUID2", KVM, 0x91, 8).tailed(0, 8, X86_CPUID_ENTRY);
    /// Runnable, halted, waiting.
    KVM_GET_MP_STATE = Request::ior("KVM_GET_MP_STATE", KVM, 0x98, MP_STATE);
    /// The same, set.
    KVM_SET_MP_STATE = Request::iow("KVM_SET_MP_STATE", KVM, 0x99, MP_STATE);
    /// MCG_CAP of a vCPU, set (x86).
    KVM_X86_SETUP_MCE = Request::iow("KVM_X86_SETUP_MCE", KVM, 0x9c, 8);
    /// The machine-check features that a vCPU can be given, as in MCG_CAP (x86).
    KVM_X86_GET_MCE_CAP_SUPPORTED = Request::ior("KVM_X86_GET_MCE_CAP_SUPPORTED", KVM, 0x9d, 8);
    /// Pending and injected events.
    KVM_GET_VCPU_EVENTS = Request::ior("KVM_GET_VCPU_EVENTS", KVM, 0x9f, VCPU_EVENTS);
    /// The same, set.
    KVM_SET_VCPU_EVENTS = Request::iow("KVM_SET_VCPU_EVENTS", KVM, 0xa0, VCPU_EVENTS);
    /// The i8254's state (x86; a VM's ioctl).
    KVM_GET_PIT2 = Request::ior("KVM_GET_PIT2", KVM, 0x9f, X86_PIT2);
    /// The same, set.
    KVM_SET_PIT2 = Request::iow("KVM_SET_PIT2", KVM, 0xa0, X86_PIT2);
    /// Debug registers (x86).
    KVM_GET_DEBUGREGS = Request::ior("KVM_GET_DEBUGREGS", KVM, 0xa1, X86_DEBUGREGS);
    /// The same, set.
    KVM_SET_DEBUGREGS = Request::iow("KVM_SET_DEBUGREGS", KVM, 0xa2, X86_DEBUGREGS);
    /// The guest's TSC rate in kHz, set (x86).
    KVM_SET_TSC_KHZ = Request::io("KVM_SET_TSC_KHZ", KVM, 0xa2);
    /// The guest's TSC rate in kHz (x86).
    KVM_GET_TSC_KHZ = Request::io("KVM_GET_TSC_KHZ", KVM, 0xa3);
    /// Turns something on, of a VM or a vCPU.
    KVM_ENABLE_CAP = Request::iow("KVM_ENABLE_CAP", KVM, 0xa3, ENABLE_CAP);
    /// 4096 bytes of extended state (x86).
    KVM_GET_XSAVE = Request::ior("KVM_GET_XSAVE", KVM, 0xa4, X86_XSAVE);
    /// Extended state, of the size that KVM_CAP_XSAVE2 told.
    KVM_SET_XSAVE = Request::iow("KVM_SET_XSAVE", KVM, 0xa5, X86_XSAVE).slack(XSAVE_SLACK);
    /// Extended state, of the size that KVM_CAP_XSAVE2 told.
    KVM_GET_XSAVE2 = Request::ior("KVM_GET_XSAVE2", KVM, 0xcf, X86_XSAVE).slack(XSAVE_SLACK);
    /// XCR0 (x86).
    KVM_GET_XCRS = Request::ior("KVM_GET_XCRS", KVM, 0xa6, X86_XCRS);
    /// The same, set.
    KVM_SET_XCRS = Request::iow("KVM_SET_XCRS", KVM, 0xa7, X86_XCRS);
    /// A register by its id.
    KVM_GET_ONE_REG = Request::iow("KVM_GET_ONE_REG", KVM, 0xab, ONE_REG).pointing(8, Flow::Out).slack(256);
    /// The same, set.
    KVM_SET_ONE_REG = Request::iow("KVM_SET_ONE_REG", KVM, 0xac, ONE_REG).pointing(8, Flow::In).slack(256);
    /// Target and features of a vCPU (arm64).
    KVM_ARM_VCPU_INIT = Request::iow("KVM_ARM_VCPU_INIT", KVM, 0xae, ARM_VCPU_INIT);
    /// The host's own target (arm64).
    KVM_ARM_PREFERRED_TARGET = Request::ior("KVM_ARM_PREFERRED_TARGET", KVM, 0xaf, ARM_VCPU_INIT);
    /// The ids of a vCPU's registers.
    KVM_GET_REG_LIST = Request::iowr("KVM_GET_REG_LIST", KVM, 0xb0, 8).tailed(0, 8, 8);
    /// The bits of feature registers that userspace may choose (arm64; a VM's ioctl).
    KVM_ARM_GET_REG_WRITABLE_MASKS = Request::ior("KVM_ARM_GET_REG_WRITABLE_MASKS", KVM, 0xb6, ARM_REG_MASK_RANGE)
        .flowing(Flow::In)
        .pointing(0, Flow::Out);
    /// State of nested virtualization (x86).
    KVM_GET_NESTED_STATE = Request::iowr("KVM_GET_NESTED_STATE", KVM, 0xbe, X86_NESTED_STATE).tailed(4, 0, 1);
    /// The same, set.
    KVM_SET_NESTED_STATE = Request::iow("KVM_SET_NESTED_STATE", KVM, 0xbf, X86_NESTED_STATE).tailed(4, 0, 1);
    /// Moves both counters of a VM together (arm64): `struct kvm_arm_counter_offset`.
    KVM_ARM_SET_COUNTER_OFFSET = Request::iow("KVM_ARM_SET_COUNTER_OFFSET", KVM, 0xb5, 16);
    /// CPUID of the Hyper-V interface (x86).
    KVM_GET_SUPPORTED_HV_CPUID =
        Request::iowr("KVM_GET_SUPPORTED_HV_CPUID", KVM, 0xc1, 8).tailed(0, 8, X86_CPUID_ENTRY);
    /// Fixes a feature's configuration, such as SVE's vector lengths (arm64).
    KVM_ARM_VCPU_FINALIZE = Request::iow("KVM_ARM_VCPU_FINALIZE", KVM, 0xc2, 4);
    /// Segments, control registers and PDPTRs (x86).
    KVM_GET_SREGS2 = Request::ior("KVM_GET_SREGS2", KVM, 0xcc, X86_SREGS2);
    /// The same, set.
    KVM_SET_SREGS2 = Request::iow("KVM_SET_SREGS2", KVM, 0xcd, X86_SREGS2);
    /// A new device in the kernel: an interrupt controller.
    KVM_CREATE_DEVICE =
        Request::iowr("KVM_CREATE_DEVICE", KVM, 0xe0, CREATE_DEVICE).creating(Creates::Field(FdKind::Device, 4));
    /// An attribute, set.
    KVM_SET_DEVICE_ATTR =
        Request::iow("KVM_SET_DEVICE_ATTR", KVM, 0xe1, DEVICE_ATTR).pointing(16, Flow::In).slack(ATTR_SLACK);
    /// An attribute.
    KVM_GET_DEVICE_ATTR =
        Request::iow("KVM_GET_DEVICE_ATTR", KVM, 0xe2, DEVICE_ATTR).pointing(16, Flow::InOut).slack(ATTR_SLACK);
    /// Whether an attribute exists.
    KVM_HAS_DEVICE_ATTR = Request::iow("KVM_HAS_DEVICE_ATTR", KVM, 0xe3, DEVICE_ATTR);

    /// Attaches the file to an interface: `struct ifreq`, 40 bytes, the name coming back.
    TUNSETIFF = Request::iow("TUNSETIFF", TUN, 202, 4).flowing(Flow::InOut).slack(64);
    /// IFF_* flags that the driver knows.
    TUNGETFEATURES = Request::ior("TUNGETFEATURES", TUN, 207, 4);
    /// Offloads that the reader of the tap can take; the argument is the mask itself.
    TUNSETOFFLOAD = Request::iow("TUNSETOFFLOAD", TUN, 208, 4).flowing(Flow::Int);

    /// Virtio features of the vhost device.
    VHOST_GET_FEATURES = Request::ior("VHOST_GET_FEATURES", VHOST, 0x00, 8);
    /// Features of the vhost protocol itself.
    VHOST_GET_BACKEND_FEATURES = Request::ior("VHOST_GET_BACKEND_FEATURES", VHOST, 0x26, 8);
}

/// More than any XSAVE area known (AMX brings it to some 11 KiB).
const XSAVE_SLACK: usize = 64 << 10;
/// More than any attribute whose payload the attribute itself sizes.
const ATTR_SLACK: usize = 4096;

/// The request of this name.
pub fn by_name(name: &str) -> Option<&'static Request> {
    ALL.iter().find(|r| r.name == name)
}
