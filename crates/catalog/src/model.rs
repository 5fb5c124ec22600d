// The catalog's types, written once and used twice: by the build script, which reads the files in `data/` into them
// (`Str` is `String`, `List` a growable list), and by the library, where they are constants in the binary (`Str` is
// `&'static str`, `List` a static slice). The macros `record!` and `names!` add the derives each side needs.

record! {
    /// A register of facets: one word that a guest (or KVM's interface) shows, cut into fields.
    pub struct Register {
        /// The facet name of the word: `cpuid.7.0.ecx`, `msr.10a`, `arm64.id-aa64pfr0-el1`.
        pub name: Str,
        /// What the word is, in a line.
        pub title: Str,
        /// Where it is.
        pub at: At,
        /// The rule of the bits that no field names.
        pub rest: Rule,
        /// The value a kernel or host shows that never heard of the register.
        pub absent: u64,
        /// A VMM must ask for it by name (Hyper-V leaves, emulated CPUID): it is not part of what a guest is shown
        /// by a VMM that passes on all that KVM offers.
        pub opt_in: bool,
        /// The named bit ranges, ascending, not overlapping.
        pub fields: List<Field>,
        /// The choice that makes KVM heed the bits: while its value is 0, a guest reaches what they enumerate whether it
        /// is shown them or not.
        pub gate: Str,
        /// The facet that must not be 0 for a guest to reach anything of it: the interface's signature.
        pub within: Str,
    }

    /// Where a register is. Exactly one of `leaf`, `msr` and `reg` is given.
    pub struct At {
        /// `supported` (default), `emulated` or `hyperv`: which of KVM's CPUID tables.
        pub table: Str,
        /// CPUID leaf.
        pub leaf: Option<u32>,
        /// First subleaf that this entry speaks of.
        pub subleaf: u32,
        /// Last subleaf that this entry speaks of, when it stands for several (`cpuid.4.N.eax`).
        pub subleaf_last: Option<u32>,
        /// CPUID output register: `eax`, `ebx`, `ecx` or `edx`.
        pub register: Str,
        /// Feature MSR number.
        pub msr: Option<u32>,
        /// ONE_REG id.
        pub reg: Option<u64>,
    }

    /// A named bit range of a register.
    pub struct Field {
        /// The last part of the facet's name: `shstk` in `cpuid.7.0.ecx.shstk`.
        pub name: Str,
        /// What the field says, in a line.
        pub title: Str,
        /// Lowest bit.
        pub lo: u8,
        /// Highest bit.
        pub hi: u8,
        /// How hosts meet over it.
        pub rule: Rule,
        /// Where the value comes from.
        pub kind: Kind,
        /// The field is two's complement (signed arm64 ID fields, where 0xF means "absent").
        pub signed: bool,
        /// The value that is always safe to show, for `exact-or-safe` and `higher-or-zero`.
        pub safe: u64,
        /// The first kernel, among those whose sources were read, whose KVM advertises it: `6.18`. A hint for predictions.
        pub since: Str,
        /// Facet fields that must be set where this one is set (CPUID dependencies).
        pub needs: List<Str>,
        /// What it enumerates behind the register's `gate`: MSRs (`msr.4b564d02`, `msr.40000090-4000009f`) and
        /// hypercalls by number (`hypercall.b`, `hv-hypercall.5c`).
        pub reaches: List<Str>,
    }

    /// A facet with a few values that is not a word of its own: a quirk, a revision, a behaviour.
    pub struct Choice {
        /// The facet's name: `x86.x2apic.suppress-eoi-broadcast`.
        pub name: Str,
        /// The architecture.
        pub arch: Arch,
        /// What it is, in a line.
        pub title: Str,
        /// The values, each with a number (unique in the facet), a name and what it means for a guest.
        pub values: List<Choosable>,
        /// The number of the value that a host gives when nobody asks. Ignored when `from` measures it.
        pub default: u64,
        /// The number of the value that a host shows that never heard of the facet.
        pub absent: u64,
        /// Where the offer comes from.
        pub from: Source,
        /// Saving and restoring the guest's state carries the value by itself (a register that is saved).
        pub carried: bool,
        /// Which hosts and shapes it exists on.
        pub applies: Applies,
        /// How a VMM selects a value: the ioctl steps, in order, `{value}` standing for the number.
        pub selector: List<Str>,
        /// The hazard of going to a host that lacks the value, in words ("bit 24 of the LVR comes back silently").
        pub hazard: Str,
        /// Words for the order in which to prefer values in a baseline: numbers, best first. Empty: the default first.
        pub prefer: List<u64>,
    }

    /// One value of a [`Choice`].
    pub struct Choosable {
        /// The number.
        pub value: u64,
        /// The name: `legacy`.
        pub name: Str,
        /// What a guest sees under it.
        pub means: Str,
        /// Offered when all of these hold; an empty list means always.
        pub when: List<Condition>,
        /// Offered when all of these hold, as well; an empty list never is.
        pub or_when: List<Condition>,
        /// Otherwise not determined when all of these hold: userspace can ask for it, and no ioctl tells whether the
        /// kernel heeds it. An empty list never is.
        pub unsure_when: List<Condition>,
    }

    /// A condition over what a capture holds.
    pub struct Condition {
        /// A capability number.
        pub cap: Option<u32>,
        /// These bits of the answer must all be set; 0: the answer must not be 0.
        pub bits: u64,
        /// Ask the answer on the VM of the shape at hand rather than on the system fd.
        pub on_vm: bool,
        /// The answer is a number, and must be this at least; `bits` does not count.
        pub at_least: Option<u64>,
        /// The condition holds when the bits are clear (or the answer is 0, or too small).
        pub not: bool,
    }

    /// Where the offer of a [`Choice`] comes from. At most one is given; none: from the values' conditions.
    pub struct Source {
        /// A measurement of this name in the capture.
        pub measured: Str,
        /// A measurement of this name in the capture, a mask of what a VMM may ask for: the values whose bits are all in it are
        /// offered. Nobody has any without asking.
        pub bits: Str,
        /// A ONE_REG id whose value at reset is the default, and whose accepted values a measurement of the facet's name tells.
        pub reg: Option<u64>,
        /// Only a look from inside a guest tells: the observation's name. Unknown in every capture until observed.
        pub observe: Str,
    }

    /// A guard: where a facet or an item exists. Empty lists do not restrict.
    pub struct Applies {
        /// CPU vendors: `AuthenticAMD`, `GenuineIntel`.
        pub vendors: List<Str>,
        /// Shapes by name.
        pub shapes: List<Str>,
        /// Facet fields of which at least one must be set in what the guest is shown.
        pub any_of: List<Str>,
    }

    /// A capability of KVM_CHECK_EXTENSION.
    pub struct Capability {
        /// Its number.
        pub cap: u32,
        /// Its name.
        pub name: Str,
        /// What the answer is: `bool`, `count`, `mask`, `size`, `value`.
        pub answer: Str,
        /// Whether and how a guest can notice: `no`, `indirect`, `yes`.
        pub guest: Str,
        /// The answer depends on load or on CPUs online: not part of the stable surface.
        pub volatile: bool,
        /// The architecture it was read on: `x86_64`, `aarch64` or empty for both.
        pub arch: Str,
    }

    /// A measurement that a capture makes on a scratch VM or on the host, beside what enumerations declare.
    pub struct Measurement {
        /// Its name in a capture: `x86.lapic.lvr`, `net.tap.offloads`.
        pub name: Str,
        /// What is measured, and how, in a line.
        pub title: Str,
        /// What it means for a guest.
        pub guest: Str,
    }

    /// `A ⇒ B`: what cannot be chosen apart.
    pub struct Constraint {
        /// The architecture.
        pub arch: Arch,
        /// A facet or a field of one. The constraint applies when its value is not 0, or is `equals`.
        pub facet: Str,
        /// The value that makes it apply, when not merely "not 0".
        pub equals: Option<u64>,
        /// Then this field must be set …
        pub needs: Str,
        /// … or the shape must be this one.
        pub shape: Str,
        /// Why.
        pub why: Str,
        /// Where it is known from.
        pub sources: List<Str>,
    }

    /// One known guest-visible change: a file in `data/ledger`.
    pub struct Change {
        /// `X86-001`, `ARM-012`: also the file's name.
        pub id: Str,
        /// The change in a line.
        pub title: Str,
        /// The architecture.
        pub arch: Arch,
        /// The part of KVM: `cpuid`, `msr`, `apic`, `pmu`, `vgic`.
        pub component: Str,
        /// What happened and what it means, for somebody who knows what a VM is.
        pub summary: Str,
        /// What a guest can observe.
        pub guest_observes: Str,
        /// What sort of change it is.
        pub disposition: Disposition,
        /// Who could notice.
        pub blast: Blast,
        /// Which guests, in words.
        pub blast_words: Str,
        /// Which kernels.
        pub kernels: Kernels,
        /// What a kernel with the change does when nobody asks: `old` or `new` behaviour.
        pub default: Era,
        /// How to select the previous behaviour.
        pub selector: Selector,
        /// Can a guest that was started on the new setting go back, and what stops it?
        pub rollback: Str,
        /// How to tell on a running host on which side of the change it is.
        pub detect: Detect,
        /// The facets and state items that it explains, with the values before and after.
        pub explains: List<Explains>,
        /// Kernel file and line with version, changelog, or measurement.
        pub sources: List<Str>,
    }

    /// The kernels between which a change came. Hints: nothing decides by them.
    pub struct Kernels {
        /// The last kernel, among those examined, without it.
        pub last_without: Str,
        /// The first kernel, among those examined, with it.
        pub first_with: Str,
        /// The mainline release, where known.
        pub mainline: Str,
        /// Stable point releases that took it, and those known not to have.
        pub stable: Str,
    }

    /// The way to the previous behaviour.
    pub struct Selector {
        /// Is there one?
        pub status: Status,
        /// The ioctl steps that select the old behaviour.
        pub steps: List<Str>,
        /// The work that a VMM takes on instead of, or besides, a selector.
        pub duty: Str,
        /// What must be refused because nothing helps.
        pub refusal: Str,
    }

    /// How the side of a change is told. Exactly one is given. Comparing releases is not a way.
    pub struct Detect {
        /// By what a capture holds, in words that name the probe.
        pub probe: Str,
        /// By an observation from inside a guest, by name.
        pub observe: Str,
        /// Not at all, and why.
        pub undetectable: Str,
    }

    /// A pattern over differences: facet (or item) and values must both match.
    pub struct Explains {
        /// A facet, or a field of one: `cpuid.7.0.ecx.shstk`.
        pub facet: Str,
        /// A state item: `msr.1db`, `reg.603000000013c4f6`, `sregs2`; `msr.1db-1de` for a run.
        pub item: Str,
        /// The value before, as a number (`0x0`), a value's name, or for items `unlisted`, `listed`, `refused`; empty: any.
        pub before: Str,
        /// The value after; empty: any.
        pub after: Str,
    }

    /// A code that findings carry.
    pub struct Code {
        /// `facet-lost`.
        pub code: Str,
        /// What it says, in a line.
        pub title: Str,
        /// In plain words: what it means, what usually causes it, what to do.
        pub text: Str,
    }
}

names! {
    /// An architecture.
    pub enum Arch {
        /// 64-bit x86.
        #[default]
        X86_64,
        /// 64-bit Arm.
        Aarch64,
    }

    /// What can be given of a facet, and how two hosts meet over it.
    pub enum Rule {
        /// A bit: 0 everywhere, 1 where supported. Hosts meet by *and*.
        #[default]
        Flag,
        /// A bit that means less (a defeature, or a warning): 1 everywhere, and it must be 1 where it is. Hosts meet by *or*.
        Accumulate,
        /// A number: a host can give its own and every lower one.
        Lower,
        /// A number: a host can give its own and every higher one.
        Higher,
        /// As `higher`, and 0 says "not stated".
        HigherOrZero,
        /// The value itself, nothing else.
        Exact,
        /// The value itself, or the safe one.
        ExactOrSafe,
        /// A VMX capability MSR: low half must-be-one, high half may-be-one.
        VmxControl,
        /// The value itself, and another one is the CPU's doing: offsets, sizes, address widths.
        HardwareExact,
        /// Says who the CPU is; a VMM sets it freely. Compared, never intersected.
        Identity,
        /// Follows from the VM's topology, per vCPU; a VMM sets it freely.
        Template,
        /// Set by KVM at run time (OSXSAVE); ignored when surfaces are compared.
        Runtime,
    }

    /// Where a CPUID bit's value comes from (`arch/x86/kvm/cpuid.c`).
    pub enum Kind {
        /// Hardware has it and the host kernel has it enabled.
        #[default]
        HardwareAndKernel,
        /// KVM emulates it, whatever the hardware.
        Emulated,
        /// The host kernel's own view, even where hardware lacks it (mitigation bits).
        Synthesized,
        /// Hardware has it, even if the host kernel does not use it.
        Passthrough,
        /// Set by kvm_intel or kvm_amd after checks of their own (module parameters).
        Vendor,
        /// Toggled by KVM at run time.
        Runtime,
        /// Data about the host (family, caches, widths), not a feature.
        Data,
        /// Software interface of KVM or Hyper-V.
        Paravirtual,
    }

    /// What sort of change a ledger entry records.
    pub enum Disposition {
        /// KVM shows something else when nobody asks.
        #[default]
        DefaultChange,
        /// Something new that a VMM passes on if it passes on everything.
        NewFeature,
        /// Something new that does nothing until it is asked for.
        OptIn,
        /// A fix that closes a hole: not to be undone.
        SecurityFix,
        /// A fix towards what the architecture says.
        ArchitectureFix,
        /// Something is no longer there.
        Removal,
        /// What is saved, or accepted, changed.
        StateFormat,
        /// Only userspace can notice.
        UapiOnly,
    }

    /// Who could notice.
    pub enum Blast {
        /// Every guest, by default.
        EveryGuest,
        /// Ordinary guests that look, or use a common feature.
        ManyGuests,
        /// Guests that use a rare feature, or do something odd.
        #[default]
        FewGuests,
        /// No guest by itself; a VMM.
        OnlyVmm,
    }

    /// Old or new behaviour.
    pub enum Era {
        /// As before the change.
        Old,
        /// As after the change.
        #[default]
        New,
    }

    /// Is there a way to select the previous behaviour?
    pub enum Status {
        /// Yes.
        Available,
        /// Partly, or only in some configurations.
        Partial,
        /// No.
        #[default]
        None,
        /// The old behaviour stays until somebody asks: nothing to select.
        NotNeeded,
    }
}
