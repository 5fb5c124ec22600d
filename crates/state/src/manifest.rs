//! What was selected when a VM was made and no ioctl tells afterwards: KVM_ENABLE_CAP, quirks, filters, routing, the irqchip's
//! mode. The VMM has to remember it; here it is an ordered list of the calls themselves, which are made again where the VM
//! is made anew.

use evenkeel_sys::Request;
use evenkeel_sys::requests::KVM_CREATE_VM;

/// What a call was made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// `/dev/kvm`: KVM_CREATE_VM with its type.
    System,
    /// The VM.
    Vm,
    /// The vCPU with this index.
    Vcpu(u32),
    /// The device of KVM_CREATE_DEVICE with this place in the order of their creation (arm64: GIC, ITS).
    Device(u32),
}

/// One call that selected something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    /// What it was made on.
    pub on: Role,
    /// The ioctl's name: `KVM_ENABLE_CAP`.
    pub call: String,
    /// The argument: 8 bytes of an integer, or the structure in the kernel's layout.
    pub argument: Vec<u8>,
    /// What a pointer in the structure points at; empty without one.
    pub payload: Vec<u8>,
}

/// The calls that selected something, in the order in which they were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The calls.
    pub calls: Vec<Noted>,
}

impl Manifest {
    /// Of a VM that another VMM made by itself: it tells what it selected, in the order in which it did.
    /// `kind` is the argument of KVM_CREATE_VM.
    pub fn of(kind: u64) -> Manifest {
        let mut manifest = Manifest::default();
        manifest.note(Role::System, &KVM_CREATE_VM, &kind.to_le_bytes());
        manifest
    }

    /// A call that selected something: KVM_CREATE_VCPU, KVM_CREATE_IRQCHIP, KVM_ENABLE_CAP, …; `argument` is an integer's 8 bytes
    /// or the structure, in the kernel's layout.
    pub fn note(&mut self, on: Role, request: &Request, argument: &[u8]) {
        let (call, argument) = (request.name.to_owned(), argument.to_vec());
        self.calls.push(Noted { on, call, argument, payload: Vec::new() });
    }

    /// The shape of the VM that it makes, by its name in captures: by the interrupt controllers in the kernel on x86, by the
    /// features of the first vCPU on arm64.
    pub fn shape(&self) -> &'static str {
        // Of `struct kvm_enable_cap`: KVM_CAP_SPLIT_IRQCHIP. Of `struct kvm_vcpu_init`: the first word of features.
        let word = |call: &Noted, at: usize| evenkeel_sys::layout::word(&call.argument, at);
        let init = self.calls.iter().find(|c| c.call == "KVM_ARM_VCPU_INIT").map(|c| word(c, 4));
        match init {
            // KVM_ARM_VCPU_SVE, KVM_ARM_VCPU_PMU_V3.
            Some(features) if features & 1 << 4 != 0 => "full",
            Some(features) if features & 1 << 3 != 0 => "pmu",
            Some(_) => "min",
            None if self.calls.iter().any(|c| c.call == "KVM_CREATE_IRQCHIP") => "kernel",
            None if self.calls.iter().any(|c| c.call == "KVM_ENABLE_CAP" && word(c, 0) == 121) => "split",
            None => "none",
        }
    }
}
