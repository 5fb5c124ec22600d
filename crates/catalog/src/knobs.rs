// The catalog's types for setting things, used twice like those in model.rs: what selects a value of a choice, as data
// that a machine carries out, and how an ioctl shows which value is in force.

record! {
    /// One ioctl that selects values of choices.
    ///
    /// It is made when at least one of its choices is wanted at a value that the host does not give by itself; its
    /// argument is then the `bits` of all wanted values together, because most of these calls replace what was set
    /// before.
    pub struct Knob {
        /// The step's name, by which edges order it: `disable-quirks`.
        pub name: Str,
        /// The architecture.
        pub arch: Arch,
        /// What it does, in a line.
        pub title: Str,
        /// Which ioctl.
        pub call: Call,
        /// When, and on which file descriptor.
        pub stage: Stage,
        /// KVM_ENABLE_CAP: the capability's number.
        pub cap: u32,
        /// KVM_ENABLE_CAP: the number to take where KVM_CHECK_EXTENSION answers 0 for `cap`; 0: none.
        pub instead: u32,
        /// KVM_SET_DEVICE_ATTR: the group.
        pub group: u32,
        /// KVM_SET_DEVICE_ATTR: the attribute.
        pub attr: u64,
        /// KVM_SET_ONE_REG: the id.
        pub reg: u64,
        /// A refusal alone says nothing: another knob for the same choices follows, and what is read back decides.
        pub may_fail: bool,
        /// Which values it selects. A value of these choices that is not listed adds no bits.
        pub sets: List<Sets>,
        /// Where it is known from.
        pub sources: List<Str>,
    }

    /// A value and what stands for it in a knob's argument.
    pub struct Sets {
        /// The facet.
        pub choice: Str,
        /// The value's number.
        pub value: u64,
        /// The bits of the argument.
        pub bits: u64,
    }

    /// How an ioctl shows which value of a choice is in force. A choice without one is write-only.
    pub struct Reading {
        /// The facet.
        pub choice: Str,
        /// Where to look.
        pub look: Look,
        /// When, and on which file descriptor.
        pub stage: Stage,
        /// MSR, ONE_REG id, or offset in the APIC's page.
        pub at: u64,
        /// KVM_GET_DEVICE_ATTR: the group, `at` being the attribute.
        pub group: u32,
        /// Only on the vCPU with index 0: the one that starts.
        pub boot_vcpu: bool,
        /// Only before the guest has run: it can change the place by itself.
        pub fresh: bool,
        /// A facet field that the guest must be shown for the place to tell anything.
        pub needs: Str,
        /// What each value looks like. A value that is not listed cannot be told by looking.
        pub shows: List<Shows>,
        /// Where it is known from.
        pub sources: List<Str>,
    }

    /// What one value looks like.
    pub struct Shows {
        /// The value's number.
        pub value: u64,
        /// The bits to look at.
        pub mask: u64,
        /// What they are.
        pub reads: u64,
        /// The shapes in which that is so; empty: all.
        pub shapes: List<Str>,
    }

    /// Work that a value of a choice needs from the VMM, because no ioctl with a known argument gives it.
    pub struct Duty {
        /// Its name: `answer-msrs`.
        pub name: Str,
        /// The facet.
        pub choice: Str,
        /// The value's number.
        pub value: u64,
        /// Instead of one value: every one but what is given without being asked for.
        pub any: bool,
        /// What to do.
        pub work: Str,
    }
}

names! {
    /// An ioctl that sets something.
    pub enum Call {
        /// KVM_ENABLE_CAP with the bits in `args[0]`.
        #[default]
        EnableCap,
        /// KVM_X86_SETUP_MCE with the bits.
        SetupMce,
        /// KVM_SET_ONE_REG with the bits, as wide as the id says.
        OneReg,
        /// KVM_SET_DEVICE_ATTR with the bits, 4 bytes wide.
        Attr,
        /// The bits go into the first word of features of KVM_ARM_VCPU_INIT.
        VcpuFeature,
        /// The bits are the argument of KVM_CREATE_VM.
        VmType,
    }

    /// A place where a setting shows.
    pub enum Look {
        /// KVM_GET_MSRS.
        #[default]
        Msr,
        /// KVM_GET_ONE_REG.
        OneReg,
        /// KVM_GET_DEVICE_ATTR, 4 bytes wide.
        Attr,
        /// The 32-bit word at an offset of KVM_GET_LAPIC's page.
        Lapic,
        /// The flags of KVM_GET_VCPU_EVENTS.
        EventFlags,
    }

    /// When a step is due, and on which file descriptor; in this order.
    pub enum Stage {
        /// Before there is a vCPU, on the VM.
        #[default]
        Vm,
        /// When a vCPU has just been created, on it.
        Vcpu,
        /// When all vCPUs that the VM starts with have been created, on the interrupt controller (arm64).
        Gic,
        /// Then, on each vCPU.
        Late,
    }
}

/// The steps that no knob stands for, by architecture, name and stage: what follows from the shape and from words.
/// Knobs and these are what edges of phase `apply` order.
pub const BUILT_IN_STEPS: &[(Arch, &str, Stage)] = &[
    (Arch::X86_64, "irqchip", Stage::Vm),
    (Arch::X86_64, "cpuid", Stage::Vcpu),
    (Arch::X86_64, "feature-msrs", Stage::Vcpu),
    (Arch::Aarch64, "vcpu-init", Stage::Vcpu),
    (Arch::Aarch64, "id-registers", Stage::Vcpu),
    (Arch::Aarch64, "firmware-registers", Stage::Vcpu),
    (Arch::Aarch64, "gic-init", Stage::Gic),
    (Arch::Aarch64, "pmu-init", Stage::Late),
];
