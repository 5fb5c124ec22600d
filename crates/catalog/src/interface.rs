// The types of KVM's interface as the uapi headers name it, and of the module parameters. Like model.rs, this file is
// read by the build script and by the library.

record! {
    /// An ioctl on one of KVM's file descriptors that x86 or arm64 kernels have.
    pub struct Ioctl {
        /// The name in `linux/kvm.h`.
        pub name: Str,
        /// The number after the type 0xAE. Not unique: direction and size of the argument tell some apart.
        pub nr: u32,
        /// The descriptors that take it.
        pub fd: List<Fd>,
        /// The architecture: `x86_64`, `aarch64` or empty for both.
        pub arch: Str,
        /// Whether what it sets, or tells a VMM to set, reaches a guest.
        pub guest: Guest,
        /// The groups of state that it reads or sets.
        pub items: List<Str>,
        /// Why nothing of it is saved, where no group is named.
        pub unsaved: Str,
        /// What it is, or why no guest can notice, in a line.
        pub why: Str,
        /// The first kernel, among those whose headers were read, that has it; empty: 5.10 had it.
        pub since: Str,
    }

    /// An attribute of KVM_SET_DEVICE_ATTR and its kin, or of an ioctl that takes attributes in the same manner.
    pub struct DeviceAttribute {
        /// The descriptor that takes it.
        pub fd: Fd,
        /// The group's name in the headers; or the ioctl that takes the attribute.
        pub group: Str,
        /// The group's number; 0 where `group` is an ioctl.
        pub group_number: u32,
        /// The attribute's name; empty where the group's attributes are computed (offsets of registers).
        pub attr: Str,
        /// The attribute's number; 0 where they are computed.
        pub value: u64,
        /// The architecture: `x86_64`, `aarch64` or empty for both.
        pub arch: Str,
        /// Whether a guest can notice what is set, or what a VMM does with what it read.
        pub guest: Guest,
        /// The groups of state that it saves or sets.
        pub items: List<Str>,
        /// Why nothing of it is saved, where no group is named.
        pub unsaved: Str,
        /// What it is, or why no guest can notice, in a line.
        pub why: Str,
        /// The first kernel, among those whose headers were read, that has it; empty: 5.10 had it.
        pub since: Str,
    }

    /// A class of registers of KVM_GET_ONE_REG: part of a register's id.
    pub struct RegisterClass {
        /// The name in the headers.
        pub name: Str,
        /// The number that the headers give it: bits 16 to 31 of an id on arm64, bits 32 to 39 on x86.
        pub value: u64,
        /// The architecture: `x86_64` or `aarch64`.
        pub arch: Str,
        /// The groups of state that hold its registers.
        pub items: List<Str>,
        /// Why its registers are not saved, where no group is named.
        pub unsaved: Str,
        /// What registers it has, in a line.
        pub why: Str,
    }

    /// A flag, type or feature number that an ioctl or a capability takes.
    pub struct Flag {
        /// The ioctl or the capability.
        pub of: Str,
        /// The name in the headers.
        pub name: Str,
        /// The number that the headers give the name: a mask, a bit's number or a type, as `of` takes it.
        pub value: u64,
        /// The architecture: `x86_64`, `aarch64` or empty for both.
        pub arch: Str,
        /// The facet that it selects a value of, where there is one.
        pub facet: Str,
        /// Whether a guest can notice.
        pub guest: Guest,
        /// What it is, or why no guest can notice, in a line.
        pub why: Str,
        /// The first kernel, among those whose headers were read, that has it; empty: 5.10 had it.
        pub since: Str,
    }

    /// A parameter of KVM's modules, or of KVM on the kernel's command line.
    pub struct Parameter {
        /// Module and name: `kvm.halt_poll_ns`.
        pub name: Str,
        /// The type in the newest kernel: `bool`, `int`, `uint`, `ushort`, or `words` for a few named values.
        pub kind: Str,
        /// The architecture: `x86_64`, `aarch64` or empty for both.
        pub arch: Str,
        /// Whether a guest can notice.
        pub guest: Guest,
        /// What a guest can see of it, or why it sees nothing.
        pub effect: Str,
        /// The first kernel, among those whose sources were read, that has it; empty: 5.10 had it.
        pub since: Str,
        /// The last kernel, among those whose sources were read, that has it; empty: 7.3 has it.
        pub until: Str,
    }

    /// Names of the headers that no x86 or arm64 guest can notice, so that they have no entry of their own.
    pub struct NotGuestVisible {
        /// Why.
        pub reason: Str,
        /// The names.
        pub names: List<Str>,
    }
}

names! {
    /// One of KVM's file descriptors.
    pub enum Fd {
        /// `/dev/kvm`.
        #[default]
        System,
        /// That of a VM.
        Vm,
        /// That of a vCPU.
        Vcpu,
        /// That of a device in the kernel.
        Device,
    }

    /// Whether a guest can notice.
    pub enum Guest {
        /// It cannot.
        #[default]
        No,
        /// By what a VMM makes of it, by timing, or only when something else is set.
        Indirect,
        /// It can, by looking.
        Yes,
    }
}
