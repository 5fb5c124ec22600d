//! What there is to do to restore an image, in the order in which it has to be done.

use evenkeel_sys::layout::{ARM_VCPU_INIT, MP_STATE, VCPU_EVENTS};

use super::place::{self, CTRL, DIST, ITS, LEVELS, REDIST, SYSREGS};
use super::read::{PER_VCPU, PER_VM, PVTIME_CTRL, TIMER_CTRL};
use super::sections::{self, Devices};
use crate::image::{Image, Item, Owner};
use crate::manifest::{Noted, Role};
use crate::order::Order;
use crate::outcome::Refused;
use crate::pack::{unpack_attributes, unpack_registers};
use crate::registers::rank_in;

const _: () = assert!(ARM_VCPU_INIT == 32, "features are in the first word behind the target");

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step<'i> {
    pub(super) rank: u32,
    pub(super) owner: Owner,
    pub(super) section: &'static str,
    pub(super) what: What<'i>,
}

/// What it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What<'i> {
    /// A call of the manifest.
    Call(&'i Noted),
    /// KVM_SET_ONE_REG.
    Register(u64, &'i [u8]),
    /// KVM_SET_DEVICE_ATTR: on what, group, attribute, value.
    Attribute(Role, u32, u64, &'i [u8]),
    /// KVM_SET_MP_STATE.
    MpState(&'i [u8]),
    /// KVM_SET_VCPU_EVENTS.
    Events(&'i [u8]),
    /// KVM_DEV_ARM_ITS_RESTORE_TABLES.
    Tables,
    /// Nothing is set: it is in guest memory.
    InMemory,
}

/// The part of an item that a step is about, for [`Step::part`].
pub(super) type Part = (Owner, &'static str, u32, u64);

impl Step<'_> {
    /// Which part of which item.
    pub(super) fn part(&self) -> Part {
        let (group, id) = match self.what {
            What::Register(id, _) => (0, id),
            What::Attribute(_, group, attr, _) => (group, attr),
            _ => (0, 0),
        };
        (self.owner, self.section, group, id)
    }

    /// The value that was saved.
    pub(super) fn wanted(&self) -> &[u8] {
        match self.what {
            What::Register(_, value) | What::Attribute(_, _, _, value) => value,
            What::MpState(value) | What::Events(value) => value,
            What::Call(call) => &call.argument,
            What::Tables | What::InMemory => &[],
        }
    }
}

/// Takes an item apart.
///
/// # Errors
/// Nobody knows the item, or its payload makes no sense.
pub(super) fn parts_of<'i>(
    item: &'i Item,
    devices: &Devices,
) -> Result<Vec<(&'static str, What<'i>)>, Refused> {
    let refused = |why: String| Refused::new(item.owner, &item.name, why);
    let known = match item.owner {
        Owner::Vm => PER_VM,
        Owner::Vcpu(_) => PER_VCPU,
    };
    let section = known.iter().find(|name| **name == item.name);
    let section = *section.ok_or_else(|| refused("nobody here knows such an item".to_owned()))?;
    let sized = |size: usize| match item.bytes.len() {
        length if length == size => Ok(item.bytes.as_slice()),
        length => Err(refused(format!("{length} bytes, and the structure has {size}"))),
    };
    let device = |place: Option<usize>, what: &str| {
        let place = place.ok_or_else(|| refused(format!("the VM was made without {what}")))?;
        Ok::<_, Refused>(Role::Device(place as u32))
    };
    let of_vcpu = match item.owner {
        Owner::Vm => Role::Vm,
        Owner::Vcpu(index) => Role::Vcpu(index),
    };
    let (on, group) = match section {
        "arm64-id-registers" | "arm64-firmware-registers" | "arm64-registers" | "arm64-counters" => {
            let registers = unpack_registers(&item.bytes).map_err(|why| refused(why.to_string()))?;
            return Ok(registers
                .into_iter()
                .map(|(id, value)| (section, What::Register(id, value)))
                .collect());
        }
        "arm64-mp-state" => return Ok(vec![(section, What::MpState(sized(MP_STATE)?))]),
        "arm64-vcpu-events" => return Ok(vec![(section, What::Events(sized(VCPU_EVENTS)?))]),
        "its-tables" => {
            sized(0)?;
            device(devices.its, "an ITS")?;
            return Ok(vec![(section, What::Tables)]);
        }
        "vgic-v3-pending-lpis" => {
            sized(0)?;
            return Ok(vec![(section, What::InMemory)]);
        }
        "arm64-timer-irqs" => (of_vcpu, TIMER_CTRL),
        "arm64-pvtime" => (of_vcpu, PVTIME_CTRL),
        "vgic-v3-iidr" | "vgic-v3-dist" => (device(devices.gic, "a GICv3")?, DIST),
        "vgic-v3-lpi-tables" | "vgic-v3-redist" => (device(devices.gic, "a GICv3")?, REDIST),
        "vgic-v3-line-levels" => (device(devices.gic, "a GICv3")?, LEVELS),
        "vgic-v3-cpu" => (device(devices.gic, "a GICv3")?, SYSREGS),
        _ => (device(devices.its, "an ITS")?, ITS),
    };
    let attributes = unpack_attributes(&item.bytes).map_err(|why| refused(why.to_string()))?;
    let strange = attributes.iter().find(|attribute| attribute.group != group || group == CTRL);
    if let Some(strange) = strange {
        return Err(refused(format!("an attribute of group {}, which does not belong there", strange.group)));
    }
    let what = |attribute: crate::pack::Attribute<'i>| {
        (section, What::Attribute(on, group, attribute.attr, attribute.value))
    };
    Ok(attributes.into_iter().map(what).collect())
}

/// Everything, by rank first, then as the image has it.
///
/// # Errors
/// Something in the image does not belong there. Nothing has been done then.
pub(super) fn plan<'i>(
    image: &'i Image,
    later: &'i [Noted],
    vcpus: usize,
    devices: &Devices,
    order: &Order,
) -> Result<Vec<Step<'i>>, Refused> {
    let mut steps: Vec<Step<'i>> = Vec::new();
    for call in later {
        let section = sections::section(call, devices);
        let owner = match call.on {
            Role::Vcpu(index) => Owner::Vcpu(index),
            _ => Owner::Vm,
        };
        steps.push(Step { rank: order.rank(section), owner, section, what: What::Call(call) });
    }
    for item in &image.items {
        if let Owner::Vcpu(index) = item.owner
            && index as usize >= vcpus
        {
            return Err(Refused::new(item.owner, &item.name, format!("the VM has {vcpus} vCPUs")));
        }
        if image.items.iter().filter(|other| (other.owner, &other.name) == (item.owner, &item.name)).count()
            > 1
        {
            return Err(Refused::new(item.owner, &item.name, "it is there twice"));
        }
        for (section, what) in parts_of(item, devices)? {
            let rank = match what {
                What::Register(id, _) => rank_in(order, id),
                _ => order.rank(section),
            };
            steps.push(Step { rank, owner: item.owner, section, what });
        }
    }
    // Stable: within a rank calls of the manifest come first, then items in the image's order.
    steps.sort_by_key(|step| step.rank);
    Ok(steps)
}

/// What people call a part.
pub(super) fn name(part: &Part) -> String {
    let (_, section, group, id) = *part;
    match section {
        "arm64-id-registers" | "arm64-firmware-registers" | "arm64-registers" | "arm64-counters" => {
            super::register_name(id)
        }
        "arm64-timer-irqs" => format!("timer.{id}"),
        _ if group != 0 => place::name(group, id),
        _ => String::new(),
    }
}
