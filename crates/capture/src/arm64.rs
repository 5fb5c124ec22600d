//! Capture of an arm64 host.
//!
//! The order of the questions is the one in which a VMM sets a guest up: vCPU features, SVE, the interrupt controller,
//! the PMU; then the registers.

use evenkeel_surface::{Arch, Hex64, Section, Shape, Write};
use evenkeel_sys::layout;
use evenkeel_sys::requests::*;
use evenkeel_sys::{Device, Error as CallError, Source, System, Vcpu, Vm};

use crate::capabilities::{self, Answers};
use crate::registers::Registers;
use crate::shapes::Sections;
use crate::{Error, Parts, Timings, number};

mod attributes;
mod choices;

use attributes::Attributes;

const CAP_MP_STATE: u32 = 14;
const CAP_VCPU_EVENTS: u32 = 41;
const CAP_PMU_V3: u32 = 126;
const CAP_IPA_SIZE: u32 = 165;
const CAP_SVE: u32 = 170;
const CAP_PAUTH_ADDRESS: u32 = 171;
const CAP_PAUTH_GENERIC: u32 = 172;
const CAP_REG_MASK_RANGES: u32 = 230;

/// A vCPU feature of KVM_ARM_VCPU_INIT: its bit, its word in the document, the capability that offers it.
struct Feature {
    bit: u32,
    name: &'static str,
    cap: Option<u32>,
}

const POWER_OFF: Feature = Feature { bit: 0, name: "power-off", cap: None };
/// Every VMM asks for it; without it a guest has PSCI 0.1 and no version to speak of.
const PSCI: Feature = Feature { bit: 2, name: "psci-0.2", cap: None };
const PMU: Feature = Feature { bit: 3, name: "pmu", cap: Some(CAP_PMU_V3) };
const SVE: Feature = Feature { bit: 4, name: "sve", cap: Some(CAP_SVE) };
const PAUTH_ADDRESS: Feature = Feature { bit: 5, name: "pauth-address", cap: Some(CAP_PAUTH_ADDRESS) };
const PAUTH_GENERIC: Feature = Feature { bit: 6, name: "pauth-generic", cap: Some(CAP_PAUTH_GENERIC) };

/// The shapes and what a vCPU of each is asked to have, as far as the host offers it.
const SHAPES: [(&str, &[Feature]); 3] = [
    ("min", &[POWER_OFF, PSCI]),
    ("pmu", &[POWER_OFF, PSCI, PMU]),
    ("full", &[POWER_OFF, PSCI, PMU, SVE, PAUTH_ADDRESS, PAUTH_GENERIC]),
];

/// Where the interrupt controller's frames go: any place would do, nothing runs.
const GIC_DISTRIBUTOR: u64 = 0x0800_0000;
const GIC_REDISTRIBUTOR: u64 = 0x080a_0000;
/// KVM_DEV_TYPE_ARM_VGIC_V3, KVM_DEV_TYPE_ARM_VGIC_ITS.
const DEVICE_GIC_V3: u32 = 7;
const DEVICE_ITS: u32 = 8;

/// A scratch VM of one shape.
struct Scratch<'b> {
    name: &'static str,
    /// Its place in the document's list of shapes.
    index: u8,
    vm: Vm<'b>,
    caps: Answers,
    vcpu: Option<Vcpu<'b>>,
    gic: Option<Device<'b>>,
    its: Option<Device<'b>>,
}

pub(crate) fn capture<'b>(
    system: &System<'b>,
    parts: &mut Parts<'b>,
    timings: &mut Timings,
) -> Result<(), Error> {
    let system_caps = timings.phase("system", || Answers::ask(system, "", &mut parts.book));
    let vms = timings.phase("vms", || create_vms(system, &system_caps, parts))?;
    let caps: Vec<Answers> = timings.phase("capabilities", || {
        vms.iter().map(|(name, vm)| Answers::ask(vm, name, &mut parts.book)).collect()
    });
    capabilities::record(Arch::Aarch64, &system_caps, &caps, parts);
    let scratches: Vec<Scratch<'b>> = timings.phase("vcpus", || {
        let whole = vms.into_iter().zip(caps).enumerate();
        whole.map(|(index, ((name, vm), caps))| set_up(index, name, vm, caps, parts)).collect()
    });
    timings.phase("attributes", || ask_attributes(&scratches, parts));
    timings.phase("registers", || ask_registers(&scratches, parts));
    timings.phase("sections", || ask_sections(&scratches, parts));
    // Last: these set what they measure.
    timings.phase("choices", || {
        for scratch in &scratches {
            if let Some(vcpu) = &scratch.vcpu {
                choices::psci(vcpu, scratch.index, scratch.name, parts);
            }
        }
        if let Some(gic) = scratches.iter().find_map(|s| s.gic.as_ref()) {
            choices::gic_revision(gic, parts);
        }
    });
    let hz = number(system.backend(), Source::CounterFrequency, &mut parts.book, "arm64.cntfrq");
    if let Some(hz) = hz {
        parts.measured("arm64.cntfrq", None, hz);
        parts.volatile.tsc_khz = Some((hz / 1000) as u32);
    }
    for Scratch { vm, vcpu, gic, its, .. } in scratches {
        let inner = [vcpu.map(Into::into), gic.map(Into::into), its.map(Into::into)];
        parts.graves.add(inner.into_iter().flatten().chain([vm.into()]));
    }
    Ok(())
}

/// A VM for every shape; not one is an error.
fn create_vms<'b>(
    system: &System<'b>,
    caps: &Answers,
    parts: &mut Parts,
) -> Result<Vec<(&'static str, Vm<'b>)>, Error> {
    // Type 0 means 40 bits of guest physical address, more than some hosts have.
    let bits = caps.get(CAP_IPA_SIZE).filter(|bits| (32..40).contains(bits)).unwrap_or(0);
    let mut vms = Vec::new();
    let mut first = None;
    for (name, features) in SHAPES {
        let what = format!("shape.{name}");
        match system.create_vm(bits as u64) {
            Ok(vm) => {
                let features =
                    features.iter().filter(|f| f.cap.is_none_or(|cap| caps.get(cap).unwrap_or(0) > 0));
                let features = features.map(|f| f.name.to_owned()).collect();
                parts.offer.shapes.push(Shape { name: name.to_owned(), features });
                vms.push((name, vm));
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

/// A vCPU and the interrupt controllers, ready for their registers to be read.
fn set_up<'b>(index: usize, name: &'static str, vm: Vm<'b>, caps: Answers, parts: &mut Parts) -> Scratch<'b> {
    let features = &mut parts.offer.shapes[index].features;
    let wanted = SHAPES.iter().find(|(shape, _)| *shape == name).map_or(&[][..], |(_, wanted)| wanted);
    let bits = wanted
        .iter()
        .filter(|f| features.iter().any(|name| name == f.name))
        .fold(0, |all, f| all | 1 << f.bit);
    let mut scratch = Scratch { name, index: index as u8, vm, caps, vcpu: None, gic: None, its: None };
    let target = parts.book.ask_in("vcpu", scratch.vm.preferred_target(), name);
    let vcpu = parts.book.ask_in("vcpu", scratch.vm.create_vcpu(0), name);
    if let (Some(target), Some(vcpu)) = (target, vcpu) {
        let ready = vcpu
            .init(target, bits)
            .and_then(|()| if bits & 1 << SVE.bit != 0 { vcpu.finalize(SVE.bit) } else { Ok(()) });
        if parts.book.ask_in("vcpu", ready, name).is_some() {
            scratch.vcpu = Some(vcpu);
        }
    }
    scratch.gic = parts.book.ask_in("gic", create_gic(&scratch.vm), name);
    if scratch.gic.is_some() {
        parts.offer.shapes[index].features.push("gic=v3".to_owned());
        scratch.its = match create_its(&scratch.vm) {
            Ok(its) => Some(its),
            // A host without it says so; the attributes of the others are compared with that.
            Err(error) if error.errno() == Some(evenkeel_sys::Errno::ENODEV) => None,
            Err(error) => {
                parts.book.note_in("its", &error, name);
                None
            }
        };
    }
    if let Some(vcpu) = scratch.vcpu.as_ref().filter(|_| bits & 1 << PMU.bit != 0) {
        // KVM_ARM_VCPU_PMU_V3_CTRL: the interrupt (a PPI), then initialization, as a VMM does it.
        let ready = vcpu.set_attr(0, 0, &23u32.to_ne_bytes()).and_then(|()| vcpu.set_attr(0, 1, &[]));
        parts.book.ask_in("pmu", ready, name);
    }
    scratch
}

fn create_gic<'b>(vm: &Vm<'b>) -> Result<Device<'b>, CallError> {
    let gic = vm.create_device(DEVICE_GIC_V3)?;
    // KVM_DEV_ARM_VGIC_GRP_ADDR: distributor and redistributors; then KVM_DEV_ARM_VGIC_CTRL_INIT.
    gic.set_attr(0, 2, &GIC_DISTRIBUTOR.to_ne_bytes())?;
    gic.set_attr(0, 3, &GIC_REDISTRIBUTOR.to_ne_bytes())?;
    gic.set_attr(4, 0, &[])?;
    Ok(gic)
}

fn create_its<'b>(vm: &Vm<'b>) -> Result<Device<'b>, CallError> {
    let its = vm.create_device(DEVICE_ITS)?;
    its.set_attr(0, 4, &0x0810_0000u64.to_ne_bytes())?;
    its.set_attr(4, 0, &[])?;
    Ok(its)
}

fn ask_attributes(scratches: &[Scratch<'_>], parts: &mut Parts) {
    let mut found = Attributes::default();
    for scratch in scratches {
        found.ask(scratch, parts);
    }
    parts.offer.attributes = found.finish(scratches.len());
}

fn ask_registers(scratches: &[Scratch<'_>], parts: &mut Parts) {
    let mut registers = Registers::default();
    for scratch in scratches {
        if let Some(vcpu) = &scratch.vcpu {
            registers.ask(vcpu, scratch.index, scratch.name, &mut parts.book);
        }
    }
    let masks = scratches.iter().find(|s| s.caps.get(CAP_REG_MASK_RANGES).unwrap_or(0) & 1 != 0);
    let masks =
        masks.and_then(|s| parts.book.ask("register-masks", s.vm.writable_masks())).unwrap_or_default();
    parts.offer.registers = registers.finish(scratches.len(), |id| masks.get(feature_index(id)?).copied());
}

/// The place of a feature register among the masks: 64-bit system registers with op0 = 3, CRn = 0, op1 0, 1 or 3 and
/// CRm below 8 (KVM_ARM_FEATURE_ID_RANGE_IDX in the kernel's headers).
fn feature_index(id: u64) -> Option<usize> {
    let (op0, op1) = (id >> 14 & 3, id >> 11 & 7);
    let (crn, crm, op2) = (id >> 7 & 0xf, id >> 3 & 0xf, id & 7);
    let op1 = match op1 {
        0 | 1 => op1,
        3 => 2,
        _ => return None,
    };
    (id >> 16 == 0x6030_0000_0013 && op0 == 3 && crn == 0 && crm < 8)
        .then_some((op1 << 6 | crm << 3 | op2) as usize)
}

fn ask_sections(scratches: &[Scratch<'_>], parts: &mut Parts) {
    let plans = [
        ("arm64-mp-state", CAP_MP_STATE, &KVM_GET_MP_STATE, &KVM_SET_MP_STATE, layout::MP_STATE),
        (
            "arm64-vcpu-events",
            CAP_VCPU_EVENTS,
            &KVM_GET_VCPU_EVENTS,
            &KVM_SET_VCPU_EVENTS,
            layout::VCPU_EVENTS,
        ),
    ];
    let mut found = Sections::default();
    for scratch in scratches {
        let Some(vcpu) = &scratch.vcpu else { continue };
        for (item, cap, get, set, size) in plans {
            if !scratch.caps.may_have(cap) {
                continue;
            }
            let Some(bytes) = parts.book.ask_in(item, vcpu.get(get, size), scratch.name) else { continue };
            let write = match vcpu.set(set, &bytes) {
                Err(error) => {
                    if error.is_off_script() {
                        parts.book.note_in(item, &error, scratch.name);
                    }
                    Write::Refused
                }
                Ok(_) => match parts.book.ask_in(item, vcpu.get(get, size), scratch.name) {
                    Some(now) if now == bytes => Write::Kept,
                    Some(_) => Write::Altered,
                    None => Write::Unasked,
                },
            };
            let section =
                Section { item: item.to_owned(), size: None, flags: None, shapes: Vec::new(), write };
            found.add(section, scratch.index);
        }
    }
    parts.offer.sections = found.finish(scratches.len());
}

/// A value of 32 bits as documents have it.
fn hex(value: u32) -> Hex64 {
    Hex64(value.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feature_registers_have_their_place_among_the_masks() {
        // ID_AA64PFR0_EL1 is 3, 0, 0, 4, 0; CTR_EL0 is 3, 3, 0, 0, 1; SCTLR_EL1 is no feature register.
        assert_eq!(feature_index(0x6030_0000_0013_c020), Some(4 << 3));
        assert_eq!(feature_index(0x6030_0000_0013_d801), Some(2 << 6 | 1));
        assert_eq!(feature_index(0x6030_0000_0013_c080), None);
        assert_eq!(feature_index(0x6030_0000_0014_0000), None);
    }
}
