//! Capture of an x86 host.

use evenkeel_surface::{Arch, Attribute, CpuidEntry, FeatureMsr, Hex32, Hex64, Shape};
use evenkeel_sys::requests::*;
use evenkeel_sys::{Errno, Error as CallError, System, Vcpu, Vm};

use crate::capabilities::{self, Answers};
use crate::registers::Registers;
use crate::shapes::Sections;
use crate::{Error, Options, Parts, Timings};

pub(crate) mod cpuid;
mod lapic;
mod mce;
mod msrs;
mod sections;

/// KVM_CAP_SPLIT_IRQCHIP, and the IOAPIC pins that a usual board has.
const CAP_SPLIT_IRQCHIP: u32 = 121;
const PINS: u64 = 24;
/// KVM_CAP_ONE_REG: answers on x86 since it has registers by id.
const CAP_ONE_REG: u32 = 70;
/// KVM_CAP_EXT_EMUL_CPUID.
const CAP_EMULATED_CPUID: u32 = 95;
/// KVM_CAP_SYS_HYPERV_CPUID.
const CAP_SYS_HYPERV_CPUID: u32 = 191;
/// KVM_CAP_GET_MSR_FEATURES.
const CAP_MSR_FEATURES: u32 = 153;
/// KVM_CAP_SYS_ATTRIBUTES.
const CAP_SYS_ATTRIBUTES: u32 = 209;
/// KVM_CAP_VCPU_ATTRIBUTES.
const CAP_VCPU_ATTRIBUTES: u32 = 127;

/// The irqchip of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Irqchip {
    /// Userspace has all of it.
    None,
    /// The kernel has all of it.
    Kernel,
    /// The kernel has the local APICs.
    Split,
}

impl Irqchip {
    const ALL: [Irqchip; 3] = [Irqchip::None, Irqchip::Kernel, Irqchip::Split];

    /// The shape's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Irqchip::None => "none",
            Irqchip::Kernel => "kernel",
            Irqchip::Split => "split",
        }
    }

    /// Makes a VM with it.
    pub(crate) fn create<'b>(self, system: &System<'b>) -> Result<Vm<'b>, CallError> {
        let vm = system.create_vm(0)?;
        match self {
            Irqchip::None => {}
            Irqchip::Kernel => vm.create_irqchip()?,
            Irqchip::Split => vm.enable_cap(CAP_SPLIT_IRQCHIP, [PINS, 0, 0, 0]).map(drop)?,
        }
        Ok(vm)
    }
}

/// A scratch VM of one shape.
pub(crate) struct Scratch<'b> {
    pub(crate) irqchip: Irqchip,
    /// Its place in the document's list of shapes.
    pub(crate) index: u8,
    pub(crate) vm: Vm<'b>,
    pub(crate) caps: Answers,
    /// With the supported CPUID set.
    pub(crate) vcpu: Option<Vcpu<'b>>,
}

pub(crate) fn capture<'b>(
    system: &System<'b>,
    options: &Options,
    parts: &mut Parts<'b>,
    timings: &mut Timings,
) -> Result<(), Error> {
    let (system_caps, table) = timings.phase("system", || ask_system(system, parts));
    let vms = timings.phase("vms", || create_vms(system, parts))?;
    let caps: Vec<Answers> = timings.phase("capabilities", || {
        vms.iter().map(|(irqchip, vm)| Answers::ask(vm, irqchip.name(), &mut parts.book)).collect()
    });
    capabilities::record(Arch::X86_64, &system_caps, &caps, parts);
    let scratches: Vec<Scratch<'b>> = timings.phase("vcpus", || {
        let whole = vms.into_iter().zip(caps).enumerate();
        whole
            .map(|(index, ((irqchip, vm), caps))| {
                let vcpu = create_vcpu(&vm, irqchip, &table, parts);
                Scratch { irqchip, index: index as u8, vm, caps, vcpu }
            })
            .collect()
    });
    // MSRs and CPUID are asked in one shape: the most usual one that there is.
    let usual = [Irqchip::Kernel, Irqchip::Split, Irqchip::None].into_iter();
    let usual =
        usual.filter_map(|wanted| scratches.iter().find(|s| s.irqchip == wanted)?.vcpu.as_ref()).next();
    let mut reset = None;
    if let Some(vcpu) = usual {
        timings.phase("cpuid", || cpuid::stored(vcpu, &table, parts));
        // Before anything is set: that may leave traces in an MSR.
        reset = Some((vcpu, timings.phase("msrs: read", || msrs::read(system, vcpu, &options.msrs, parts))));
    }
    timings.phase("sections", || ask_sections(&scratches, parts));
    if let Some((vcpu, reset)) = reset {
        timings.phase("msrs: write", || msrs::write_back(vcpu, reset, parts));
    }
    timings.phase("registers", || ask_registers(&scratches, parts));
    timings.phase("lapic", || lapic::measure(system, &scratches, &table, parts));
    for Scratch { vm, vcpu, .. } in scratches {
        parts.graves.add(vcpu.map(Into::into).into_iter().chain([vm.into()]));
    }
    Ok(())
}

/// What is asked on `/dev/kvm` itself. Returns the answers and the supported CPUID as a guest of ours would be given it.
fn ask_system(system: &System<'_>, parts: &mut Parts) -> (Answers, Vec<evenkeel_sys::layout::CpuidEntry>) {
    let caps = Answers::ask(system, "", &mut parts.book);

    let mut table = parts.book.ask("cpuid", system.cpuid(&KVM_GET_SUPPORTED_CPUID)).unwrap_or_default();
    for entry in &mut table {
        parts
            .volatile
            .cpuid_per_cpu
            .extend(cpuid::clear_per_cpu(entry).map(|per_cpu| cpuid::document(&per_cpu)));
    }
    parts.volatile.cpuid_per_cpu.sort();
    // By number only, so that of two entries for one leaf the first, which is the one that counts, stays the first.
    table.sort_by_key(|entry| (entry.function, entry.index));
    parts.offer.cpuid = cpuid::documents(&table);
    let mut other = |may: bool, what: &str, request| {
        let asked = if may { parts.book.ask(what, system.cpuid(request)) } else { None };
        let mut table = asked.unwrap_or_default();
        table.sort_by_key(|entry| (entry.function, entry.index));
        cpuid::documents(&table)
    };
    let emulated: Vec<CpuidEntry> =
        other(caps.may_have(CAP_EMULATED_CPUID), "cpuid.emulated", &KVM_GET_EMULATED_CPUID);
    let hyperv = other(caps.may_have(CAP_SYS_HYPERV_CPUID), "cpuid.hyperv", &KVM_GET_SUPPORTED_HV_CPUID);
    parts.offer.cpuid_emulated = emulated;
    parts.offer.cpuid_hyperv = hyperv;

    mce::measure(system, &caps, &table, parts);
    if caps.may_have(CAP_MSR_FEATURES) {
        let list = system.msr_list(&KVM_GET_MSR_FEATURE_INDEX_LIST);
        let mut list = parts.book.ask("feature-msrs", list).unwrap_or_default();
        list.sort_unstable();
        let values = system.feature_msrs(&list);
        for (msr, value) in list.into_iter().zip(values) {
            if let Some(value) = parts.book.ask(format_args!("feature-msr.{msr:x}"), value) {
                parts.offer.feature_msrs.push(FeatureMsr { msr: Hex32(msr), value: Hex64(value) });
            }
        }
    }
    if caps.may_have(CAP_SYS_ATTRIBUTES) {
        // KVM_X86_XCOMP_GUEST_SUPP; then VMSA features, SNP policy bits and SNP certificates of SEV.
        for (group, attr) in [(0, 0), (1, 0), (1, 1), (1, 2)] {
            let what = format!("attr.system.{group}.{attr}");
            match system.has_attr(group, attr) {
                Ok(()) => {
                    let value =
                        parts.book.ask(&what, system.get_attr::<8>(group, attr)).map(u64::from_le_bytes);
                    parts.offer.attributes.push(Attribute {
                        fd: "system".to_owned(),
                        group,
                        attr: Hex64(attr),
                        shapes: Vec::new(),
                        value: value.map(Hex64),
                    });
                }
                Err(error) if is_absent(&error) => {}
                Err(error) => parts.book.note(what, &error),
            }
        }
    }
    (caps, table)
}

/// KVM_HAS_DEVICE_ATTR's way of saying no.
pub(crate) fn is_absent(error: &CallError) -> bool {
    matches!(error.errno(), Some(Errno::ENXIO | Errno::ENOTTY | Errno::EINVAL | Errno::ENODEV))
}

/// A VM of every shape that the host can do; not one is an error.
fn create_vms<'b>(system: &System<'b>, parts: &mut Parts) -> Result<Vec<(Irqchip, Vm<'b>)>, Error> {
    let mut vms = Vec::new();
    let mut first = None;
    for irqchip in Irqchip::ALL {
        let what = format!("shape.{}", irqchip.name());
        match irqchip.create(system) {
            Ok(vm) => {
                vms.push((irqchip, vm));
                let features = vec![format!("irqchip={}", irqchip.name())];
                parts.offer.shapes.push(Shape { name: irqchip.name().to_owned(), features });
            }
            Err(error) => {
                parts.book.note(&what, &error);
                first.get_or_insert(Error::new(what, error));
            }
        }
    }
    match first {
        Some(error) if vms.is_empty() => Err(error),
        _ => Ok(vms),
    }
}

/// A vCPU with the supported CPUID, as far as the host takes it.
fn create_vcpu<'b>(
    vm: &Vm<'b>,
    irqchip: Irqchip,
    table: &[evenkeel_sys::layout::CpuidEntry],
    parts: &mut Parts,
) -> Option<Vcpu<'b>> {
    let vcpu = parts.book.ask_in("vcpu", vm.create_vcpu(0), irqchip.name())?;
    // One without CPUID is still worth asking; the note says what its values are worth.
    parts.book.ask_in("cpuid-stored", vcpu.set_cpuid(table), irqchip.name());
    Some(vcpu)
}

fn ask_sections(scratches: &[Scratch<'_>], parts: &mut Parts) {
    let mut found = Sections::default();
    for scratch in scratches {
        sections::ask(scratch, &mut found, parts);
    }
    parts.offer.sections = found.finish(scratches.len());

    let mut shapes = Vec::new();
    for scratch in scratches {
        let Some(vcpu) = &scratch.vcpu else { continue };
        if !scratch.caps.may_have(CAP_VCPU_ATTRIBUTES) {
            continue;
        }
        // KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET. Its value is that of the host's TSC at creation: not stable.
        match vcpu.has_attr(0, 0) {
            Ok(()) => shapes.push(scratch.index),
            Err(error) if is_absent(&error) => {}
            Err(error) => parts.book.note_in("attr.vcpu.0.0", &error, scratch.irqchip.name()),
        }
    }
    if !shapes.is_empty() {
        let shapes = crate::shapes::indices(&shapes, scratches.len());
        let fd = "vcpu".to_owned();
        parts.offer.attributes.push(Attribute { fd, group: 0, attr: Hex64(0), shapes, value: None });
    }
}

fn ask_registers(scratches: &[Scratch<'_>], parts: &mut Parts) {
    let mut registers = Registers::default();
    for scratch in scratches.iter().filter(|s| s.caps.may_have(CAP_ONE_REG)) {
        if let Some(vcpu) = &scratch.vcpu {
            registers.ask(vcpu, scratch.index, scratch.irqchip.name(), &mut parts.book);
        }
    }
    parts.offer.registers = registers.finish(scratches.len(), |_| None);
}
