// The types of state: items, groups and their fields, what comes before what, what is rewritten and what cannot be saved. Like
// model.rs, this file is read by the build script and by the library.

record! {
    /// An MSR as an item of state (x86).
    pub struct Msr {
        /// The number; the last one of a run where `last` is given.
        pub msr: u32,
        /// The last number of a run of like MSRs.
        pub last: Option<u32>,
        /// The symbol in the kernel's or the manual's spelling, without a number for a run: `MSR_IA32_TSC`.
        pub name: Str,
        /// What it holds, in a line.
        pub title: Str,
        /// What it belongs to.
        pub class: MsrClass,
        /// The value that it holds in a guest that never touched it; needed for `droppable`.
        pub absent: Option<u64>,
        /// Dropping it from a saved state loses nothing when it holds `absent`.
        pub droppable: bool,
        /// It runs by itself.
        pub running: bool,
        /// Facet fields of which at least one must be shown to a guest for it to have the MSR. Empty: every guest has it.
        pub any_of: List<Str>,
        /// A capture asks for it even where KVM_GET_MSR_INDEX_LIST does not name it.
        pub ask: bool,
        /// Why it is not saved, or not as an MSR. Every other MSR is asked for when a guest is saved, listed or not.
        pub unsaved: Str,
        /// How what is read back, or saved again, may differ.
        pub compare: Compare,
        /// Bits that are not compared.
        pub ignore: u64,
        /// What it runs with, as in [`StateField`].
        pub clock: Str,
        /// It holds the moment of its end, as in [`StateField`].
        pub deadline: bool,
        /// Why it is not compared as it is.
        pub why: Str,
    }

    /// A ONE_REG register as an item of state (arm64).
    pub struct Reg {
        /// The ONE_REG id, size bits included.
        pub id: u64,
        /// The last id of a run.
        pub last: Option<u64>,
        /// The name: `PMMIR_EL1`, `KVM_REG_ARM_PSCI_VERSION`.
        pub name: Str,
        /// What it holds.
        pub title: Str,
        /// The value in a guest that never touched it; needed for `droppable`.
        pub absent: Option<u64>,
        /// Dropping it from a saved state loses nothing when it holds `absent`.
        pub droppable: bool,
        /// It runs by itself.
        pub running: bool,
        /// Which guests have it, in a word: `pmu`, `sve`, `every`.
        pub guests: Str,
        /// It shows another register's state once more (PMINTENCLR_EL1 that of PMINTENSET_EL1): leaving it out loses
        /// nothing, as long as that one is saved.
        pub alias_of: Option<u64>,
        /// A value up to the host's own is accepted and not stored, a higher one refused.
        pub checked: bool,
        /// Bits that the kernel computes whenever they are read, whatever was set.
        pub computed: u64,
        /// Bits that a kernel holds only if it shows them in a fresh vCPU: elsewhere they are cleared in what is set.
        pub masked: u64,
        /// It has a bit for each event counter that PMCR_EL0.N counts, and bit 31 for the cycle counter. Other bits mean
        /// nothing; kernels differ in whether they store them and in whether a guest sees them, so captures try that.
        pub counters: bool,
        /// How what is read back, or saved again, may differ. `computed` bits are never compared.
        pub compare: Compare,
        /// What it runs with, as in [`StateField`].
        pub clock: Str,
        /// It holds the moment of its end, as in [`StateField`].
        pub deadline: bool,
        /// Why it is not compared as it is.
        pub why: Str,
    }

    /// A group of state with an ioctl pair of its own.
    pub struct Section {
        /// The item's name: `sregs2`.
        pub name: Str,
        /// The architecture.
        pub arch: Arch,
        /// What it holds.
        pub title: Str,
        /// The ioctl that reads it.
        pub get: Str,
        /// The ioctl that writes it.
        pub set: Str,
        /// The item that stands in where this one is missing, and under which condition nothing is lost.
        pub instead: Str,
        /// The condition of `instead`.
        pub instead_when: Str,
        /// How the payload is cut into what has a name:
        ///
        /// * empty: the fields of one structure,
        /// * `entries`: structures of `entry` bytes each, told apart by their tag,
        /// * `msrs`, `registers`, `attributes`: packed as `Item` of the crate `state` says; names are those of the catalog's
        ///   MSRs and registers, and of `fields` otherwise,
        /// * `cpuid`: entries of KVM_GET_CPUID2, 40 bytes each,
        /// * `manifest`: no payload, the calls that made it are remembered; `memory`: it is in the guest's memory.
        pub cut: Str,
        /// Setting it writes guest memory: not before a hand-over is committed.
        pub writes_memory: bool,
        /// The size of the structure in bytes; 0: it has parts that can be missing, or are as long as the host says.
        pub size: u32,
        /// The size of an entry, where it is cut into `entries`.
        pub entry: u32,
        /// Where the tag is that says which fields the structure has (`group`), in bytes.
        pub tag_at: u32,
        /// Bytes of the tag; 0: there is none.
        pub tag_size: u32,
        /// The named fields, ascending by `group` and `at`. Of a structure they name every byte.
        pub fields: List<StateField>,
    }

    /// One field of a structure of state, or one register among attributes.
    pub struct StateField {
        /// Its name, after the kernel's: `rip`, `cs.base`, `GICD_CTLR`.
        pub name: Str,
        /// Where it is there: the tag of a structure that comes in several shapes, the group of an attribute, bits 32 to 39 of
        /// a register's id, a leaf of CPUID. None: everywhere.
        pub group: Option<u32>,
        /// Offset in bytes. Of an attribute its lower 32 bits (a register's offset, as a rule), of a register the lower
        /// 32 bits of its id, of CPUID 16 times the subleaf and 0, 4, 8 or 12 for EAX to EDX.
        pub at: u32,
        /// Bytes: 1, 2, 4 or 8 for a number, others for bytes; 0: what is left of the payload.
        pub size: u32,
        /// How many of them follow each other; 0 and 1: one.
        pub count: u32,
        /// From one to the next, in the unit of `at`; 0: `size`.
        pub stride: u32,
        /// How what is read back, or saved again, may differ.
        pub compare: Compare,
        /// Bits that are not compared (KVM edits them).
        pub ignore: u64,
        /// What it runs with, where it runs. Only quantities of time ([`Time`]) have one:
        ///
        /// * `tsc`: ticks of the vCPU's TSC, `counter`: of arm64's counter (CNTFRQ_EL0),
        /// * `apic-bus`: cycles of the local APIC's bus, divided as TDCR says,
        /// * `nanoseconds`, `hundred-ns` (Hyper-V's unit).
        pub clock: Str,
        /// It holds the moment of its end, as the clock will show it; otherwise what has passed, or what is left.
        pub deadline: bool,
        /// Why it is not compared as it is.
        pub why: Str,
        /// Of an attribute: the facet (a choice) whose value it holds. A host that cannot give the value does not take it.
        pub facet: Str,
        /// Of an attribute: bits that a host shows as it does, whatever is set; a capture has them.
        pub shown: u64,
        /// Where they depend on a facet that is saved and set too: as saved, on a host that gives the guest's value of it.
        pub follows: Str,
        /// They are set of the last vCPU only; the one vCPU of a capture is the last.
        pub of_last: bool,
        /// Nothing is lost where a host shows them otherwise, because no guest sees that. Empty: something is.
        pub unseen: Str,
    }

    /// A rewrite of saved state for a host that does not take it as it is, under a condition by which nothing is lost.
    /// Leaving out an MSR or a register that holds its absent value is one for every item that is `droppable`, and is not
    /// written down here once more.
    pub struct Translator {
        /// `sregs2-to-sregs`.
        pub id: Str,
        /// The architecture.
        pub arch: Arch,
        /// What it does, in a line.
        pub title: Str,
        /// The section that it rewrites.
        pub section: Str,
        /// The rewrite.
        pub act: Act,
        /// `replace`: the section that takes its place.
        pub into: Str,
        /// `replace`: how many bytes at the beginning both have in common.
        pub common: u32,
        /// `replace`: the length of the new payload; what lies behind `common` is 0.
        pub length: u32,
        /// `clear`: the field.
        pub field: Str,
        /// `clear`: the bits; for `unreachable-components`, those that may be cleared.
        pub bits: u64,
        /// It is needed where the host's answer to KVM_CHECK_EXTENSION lacks this: a capability number.
        pub cap: Option<u32>,
        /// The bits of the answer that must all be there; 0: any answer but 0.
        pub cap_bits: u64,
        /// Nothing is lost when all of these hold.
        pub lossless_when: List<Holds>,
        /// Why nothing is lost then.
        pub because: Str,
        /// Where it is known from.
        pub sources: List<Str>,
    }

    /// A quantity of time. Nothing else may run by itself: what is no time and differs is a difference.
    pub struct Time {
        /// `clock/clock` (section and field), `msr.10`, `reg.603000000013df1a`.
        pub of: Str,
        /// The clock, as in [`StateField`].
        pub clock: Str,
        /// Why it is time.
        pub why: Str,
        /// Where it is known from.
        pub sources: List<Str>,
    }

    /// A condition over saved state.
    pub struct Holds {
        /// The field of the section at hand.
        pub field: Str,
        /// The bits that count; 0: all.
        pub mask: u64,
        /// What they must be …
        pub equals: u64,
        /// … or what this MSR of the same vCPU holds.
        pub or_msr: Option<u32>,
        /// Instead of a field: all bytes from this offset on are 0.
        pub zero_from: Option<u32>,
    }

    /// State that KVM cannot save.
    pub struct Gap {
        /// `G01`, `A01`.
        pub id: Str,
        /// The architecture.
        pub arch: Arch,
        /// What it is.
        pub title: Str,
        /// What a guest loses.
        pub loses: Str,
        /// What saving does about it: `retired` (made not to exist before saving), `refused` (saving refuses while it exists),
        /// `reported` (saving tells that it exists), `duty` (work of the VMM, told each time), `documented` (nothing tells).
        pub handling: Str,
        /// What was saved shows whether it is there: `evenkeel_state::gaps` finds it.
        pub in_image: bool,
        /// How it is found when a guest is saved, or why it cannot be.
        pub detect: Str,
        /// Where it is known from.
        pub sources: List<Str>,
    }

    /// One step that must come before another, when state is set.
    pub struct Edge {
        /// The architecture.
        pub arch: Arch,
        /// The earlier item.
        pub before: Str,
        /// The later item.
        pub after: Str,
        /// `save`, `restore` (both order state items), or `apply` (orders steps: knobs and [`BUILT_IN_STEPS`]).
        pub phase: Str,
        /// Why: what is lost otherwise.
        pub why: Str,
        /// The scene of `state/tests/x86`, or arm64's scenario of `evenkeel rounds`, in which state goes wrong when this is turned round; empty where none shows it, and
        /// it is known from its sources alone.
        pub shown_by: Str,
        /// Where it is known from.
        pub sources: List<Str>,
    }
}

names! {
    /// What a translator does.
    pub enum Act {
        /// Another section takes the place of this one.
        #[default]
        Replace,
        /// Bits of a field are cleared.
        Clear,
        /// XSAVE components that the guest's CPUID does not give it are marked as unused.
        UnreachableComponents,
    }

    /// How an item of state that was set may differ when it is read back, or saved again.
    pub enum Compare {
        /// Not at all.
        #[default]
        Identical,
        /// Not in the bits that count.
        Masked,
        /// It runs: it may be later by the time that went by, and never earlier.
        Monotonic,
        /// A timer that is armed again: its end is the same within the time that setting it took.
        Rearmed,
        /// KVM works it out anew; shown and not compared.
        Computed,
        /// KVM cannot carry it.
        Lost,
    }

    /// What an MSR belongs to.
    pub enum MsrClass {
        /// Ordinary processor state.
        #[default]
        State,
        /// Feature enumeration, fixed at the first run.
        Feature,
        /// Performance monitoring.
        Pmu,
        /// KVM's own paravirtual interface.
        Pv,
        /// Hyper-V's interface.
        Hyperv,
        /// Machine checks.
        MachineCheck,
        /// Debugging and branch records.
        Debug,
        /// Control-flow enforcement.
        Cet,
        /// Memory types.
        Mtrr,
        /// The local APIC.
        Apic,
        /// Nested virtualization.
        Nested,
        /// Processor trace.
        Trace,
        /// Power and thermal.
        Power,
    }
}
