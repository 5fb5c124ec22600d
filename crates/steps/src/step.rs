//! What a step is.

use evenkeel_catalog::{CHOICES, Choice, Stage};
use evenkeel_contract::Coord;
use evenkeel_sys::layout::CpuidEntry;
use evenkeel_sys::{Device, Error, Vcpu, Vm};

use crate::Place;
use crate::outcome::Unseen;

/// What a step is carried out on. Borrowed: whoever made it keeps it.
#[derive(Clone, Copy, Debug)]
pub enum Target<'t, 'b> {
    /// The VM.
    Vm(&'t Vm<'b>),
    /// A vCPU, and its index.
    Vcpu(&'t Vcpu<'b>, u32),
    /// The interrupt controller (arm64).
    Gic(&'t Device<'b>),
}

/// One thing to set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Set {
    /// KVM_ENABLE_CAP, on a VM or a vCPU.
    EnableCap {
        /// The capability.
        cap: u32,
        /// Its arguments.
        args: [u64; 4],
    },
    /// KVM_CREATE_IRQCHIP.
    CreateIrqchip,
    /// KVM_SET_CPUID2.
    Cpuid(Vec<CpuidEntry>),
    /// KVM_SET_MSRS.
    Msrs(Vec<(u32, u64)>),
    /// KVM_X86_SETUP_MCE.
    SetupMce(u64),
    /// KVM_SET_ONE_REG, each.
    OneRegs(Vec<(u64, u64)>),
    /// KVM_SET_DEVICE_ATTR.
    Attr {
        /// The group.
        group: u32,
        /// The attribute.
        attr: u64,
        /// The payload.
        value: Vec<u8>,
    },
    /// KVM_ARM_VCPU_INIT.
    Init {
        /// KVM_ARM_PREFERRED_TARGET's answer.
        target: u32,
        /// The first word of features.
        features: u32,
    },
    /// KVM_ARM_VCPU_FINALIZE.
    Finalize(u32),
}

/// What a place belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Facet {
    /// A word of facets, in the contract's coordinates.
    Word(Coord),
    /// A choice, by index into [`CHOICES`], and the wanted value's index.
    Choice(u16, u8),
    /// What the VM is made of, by name: the irqchip.
    Shape(&'static str),
}

impl Facet {
    /// The name.
    pub fn name(&self) -> String {
        match self {
            Facet::Word(at) => at.to_string(),
            Facet::Choice(index, _) => choice(*index).name.to_owned(),
            Facet::Shape(name) => format!("shape.{name}"),
        }
    }
}

/// The catalog's entry.
pub(crate) fn choice(index: u16) -> &'static Choice {
    &CHOICES[usize::from(index)]
}

/// What must be read after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expect {
    /// Where to look.
    pub place: Place,
    /// The bits that count.
    pub mask: u64,
    /// What they must be.
    pub wanted: u64,
    /// What it is.
    pub facet: Facet,
    /// Only until the guest has run: it changes the place itself.
    pub fresh: bool,
}

/// A few ioctls and what must be read afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The name, by which edges order it.
    pub name: &'static str,
    /// When, and on what.
    pub stage: Stage,
    /// In this order; the first that fails ends them.
    pub set: Vec<Set>,
    /// What must be read then.
    pub expect: Vec<Expect>,
    /// What it selects that no ioctl shows.
    pub unseen: Vec<Unseen>,
    /// A failure of `set` alone is no failure: another step follows, and what is read there decides.
    pub may_fail: bool,
    /// Read KVM_GET_REG_LIST again: facets in it that are not among these ids must be at their absent value (arm64).
    pub relist: Option<Vec<u64>>,
}

impl Step {
    /// A step that does nothing yet.
    pub fn new(name: &'static str, stage: Stage) -> Step {
        let (set, expect, unseen) = (Vec::new(), Vec::new(), Vec::new());
        Step { name, stage, set, expect, unseen, may_fail: false, relist: None }
    }
}

impl Set {
    /// The call in a few words.
    pub fn call(&self) -> String {
        match self {
            Set::EnableCap { cap, args } => format!("KVM_ENABLE_CAP({cap}, {:#x})", args[0]),
            Set::CreateIrqchip => "KVM_CREATE_IRQCHIP()".to_owned(),
            Set::Cpuid(entries) => format!("KVM_SET_CPUID2({} entries)", entries.len()),
            Set::Msrs(msrs) => format!("KVM_SET_MSRS({} of them)", msrs.len()),
            Set::SetupMce(value) => format!("KVM_X86_SETUP_MCE({value:#x})"),
            Set::OneRegs(regs) => format!("KVM_SET_ONE_REG({} of them)", regs.len()),
            Set::Attr { group, attr, .. } => format!("KVM_SET_DEVICE_ATTR(group {group}, attr {attr:#x})"),
            Set::Init { features, .. } => format!("KVM_ARM_VCPU_INIT(features {features:#x})"),
            Set::Finalize(feature) => format!("KVM_ARM_VCPU_FINALIZE({feature})"),
        }
    }

    /// Makes the ioctl. Of a list, every item is tried; those that failed come back with their place.
    pub(crate) fn make(&self, target: Target<'_, '_>) -> Vec<(Option<Place>, Error)> {
        let whole = |result: Result<(), Error>| result.err().map(|e| (None, e)).into_iter().collect();
        match (self, target) {
            (Set::EnableCap { cap, args }, Target::Vm(vm)) => whole(vm.enable_cap(*cap, *args).map(drop)),
            (Set::EnableCap { cap, args }, Target::Vcpu(v, _)) => whole(v.enable_cap(*cap, *args).map(drop)),
            (Set::CreateIrqchip, Target::Vm(vm)) => whole(vm.create_irqchip()),
            (Set::Cpuid(entries), Target::Vcpu(v, _)) => whole(v.set_cpuid(entries)),
            (Set::Msrs(msrs), Target::Vcpu(v, _)) => {
                let done = v.msrs().set(msrs);
                let failed = msrs.iter().zip(done).filter_map(|((msr, _), d)| Some((*msr, d.err()?)));
                failed.map(|(msr, e)| (Some(Place::Msr(msr)), e)).collect()
            }
            (Set::SetupMce(value), Target::Vcpu(v, _)) => whole(v.setup_mce(*value)),
            (Set::OneRegs(regs), Target::Vcpu(v, _)) => {
                let make = |(id, value): &(u64, u64)| {
                    let size = 1usize << (id >> 52 & 0xf).min(3);
                    v.set_one_reg(*id, &value.to_le_bytes()[..size]).err().map(|e| (Some(Place::Reg(*id)), e))
                };
                regs.iter().filter_map(make).collect()
            }
            (Set::Attr { group, attr, value }, Target::Gic(gic)) => whole(gic.set_attr(*group, *attr, value)),
            (Set::Attr { group, attr, value }, Target::Vcpu(v, _)) => whole(v.set_attr(*group, *attr, value)),
            (Set::Init { target, features }, Target::Vcpu(v, _)) => whole(v.init(*target, *features)),
            (Set::Finalize(feature), Target::Vcpu(v, _)) => whole(v.finalize(*feature)),
            _ => misplaced(target),
        }
    }
}

/// A step that was planned for one kind of file descriptor and is carried out on another: reported like an ioctl
/// that the kernel does not have there.
fn misplaced(target: Target<'_, '_>) -> Vec<(Option<Place>, Error)> {
    let argument = match target {
        Target::Vm(_) => "on a VM",
        Target::Vcpu(..) => "on a vCPU",
        Target::Gic(_) => "on an interrupt controller",
    };
    let why = evenkeel_sys::Refusal::Nonsense("the step belongs on another file descriptor".to_owned());
    vec![(None, Error { ioctl: "set", argument: argument.to_owned(), why })]
}
