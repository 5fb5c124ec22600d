//! Reading every group of state: to save it, and to see what was restored.

use evenkeel_sys::layout::{long, word};
use evenkeel_sys::requests::{KVM_GET_MP_STATE, KVM_GET_REG_LIST, KVM_GET_VCPU_EVENTS};
use evenkeel_sys::{Device, Error as CallError, Fd, Refusal, Vcpu};

use super::ask;
use super::place::{self, CTRL, DIST, INTERFACE, ITS, LEVELS, REDIST, SYSREGS};
use super::sections::Devices;
use crate::image::{Item, Owner};
use crate::order::Order;
use crate::outcome::Refused;
use crate::pack::{Attribute, pack_attributes, pack_registers};
use crate::parts::Parts;
use crate::registers::{Group, SVE_VECTOR_LENGTHS, group};

/// MPIDR_EL1.
pub(super) const MPIDR: u64 = 0x6030_0000_0013_c005;
/// KVM_ARM_VCPU_TIMER_CTRL and KVM_ARM_VCPU_PVTIME_CTRL.
pub(super) const TIMER_CTRL: u32 = 1;
pub(super) const PVTIME_CTRL: u32 = 2;
/// What KVM says of the page for stolen time where there is none.
const NO_PAGE: u64 = u64::MAX;

/// Why things are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To save them: what KVM keeps to itself is written into guest memory.
    Save,
    /// To look at them; nothing is written.
    Look,
}

/// Reads all items, in this order.
pub(super) fn all(
    parts: &Parts<'_, '_>,
    devices: &Devices,
    order: &Order,
    purpose: Purpose,
) -> Result<Vec<Item>, Refused> {
    let mut jobs: Vec<(u32, Owner, &'static str)> = Vec::new();
    for (index, _) in parts.cpus.iter().enumerate() {
        let owner = Owner::Vcpu(index as u32);
        jobs.extend(PER_VCPU.iter().map(|section| (order.rank(section), owner, *section)));
    }
    jobs.extend(PER_VM.iter().map(|section| (order.rank(section), Owner::Vm, *section)));
    // By rank first, across all vCPUs; the sort is stable.
    jobs.sort_by_key(|(rank, ..)| *rank);
    let reader = Reader { parts, devices, purpose };
    let mut items = Vec::new();
    for (_, owner, section) in jobs {
        if let Some(bytes) = reader.item(owner, section)? {
            items.push(Item { owner, name: section.to_owned(), bytes });
        }
    }
    Ok(items)
}

/// Sections that each vCPU has.
pub(super) const PER_VCPU: &[&str] = &[
    "arm64-id-registers",
    "arm64-firmware-registers",
    "arm64-registers",
    "arm64-vcpu-events",
    "arm64-mp-state",
    "arm64-timer-irqs",
    "arm64-pvtime",
    "vgic-v3-lpi-tables",
    "vgic-v3-redist",
    "vgic-v3-line-levels",
    "vgic-v3-cpu",
];

/// Sections that the VM has. The counters are last: they run meanwhile.
pub(super) const PER_VM: &[&str] = &[
    "vgic-v3-iidr",
    "vgic-v3-dist",
    "vgic-v3-line-levels",
    "vgic-v3-pending-lpis",
    "its-cbaser",
    "its-regs",
    "its-tables",
    "its-ctlr",
    "arm64-counters",
];

/// The vCPU that an owner is.
pub(super) fn vcpu_of<'g, 'b>(parts: &Parts<'g, 'b>, owner: Owner) -> Option<&'g Vcpu<'b>> {
    match owner {
        Owner::Vm => None,
        Owner::Vcpu(index) => parts.cpus.get(index as usize).map(|cpu| cpu.vcpu),
    }
}

struct Reader<'r, 'g, 'b> {
    parts: &'r Parts<'g, 'b>,
    devices: &'r Devices,
    purpose: Purpose,
}

/// Attributes that were read.
type Read = Vec<(u32, u64, Vec<u8>)>;

impl<'g, 'b> Reader<'_, 'g, 'b> {
    /// The payload of one item; none where it does not exist.
    fn item(&self, owner: Owner, section: &str) -> Result<Option<Vec<u8>>, Refused> {
        let failed = |error| Refused::call(owner, section, "it cannot be read")(error);
        match (section, vcpu_of(self.parts, owner)) {
            ("arm64-id-registers", Some(vcpu)) => registers(vcpu, Group::Identity).map(some).map_err(failed),
            ("arm64-firmware-registers", Some(vcpu)) => {
                registers(vcpu, Group::Firmware).map(some).map_err(failed)
            }
            ("arm64-registers", Some(vcpu)) => registers(vcpu, Group::Plain).map(some).map_err(failed),
            ("arm64-counters", None) => {
                let Some(first) = self.parts.cpus.first() else { return Ok(None) };
                registers(first.vcpu, Group::Counter).map(some).map_err(failed)
            }
            ("arm64-vcpu-events", Some(vcpu)) => {
                ask::if_there(ask::structure(vcpu, &KVM_GET_VCPU_EVENTS)).map_err(failed)
            }
            ("arm64-mp-state", Some(vcpu)) => {
                ask::structure(vcpu, &KVM_GET_MP_STATE).map(Some).map_err(failed)
            }
            ("arm64-timer-irqs", Some(vcpu)) => {
                timer_interrupts(vcpu, self.devices.el2).map(existing).map_err(failed)
            }
            ("arm64-pvtime", Some(vcpu)) => stolen_time(vcpu).map(existing).map_err(failed),
            _ => self.controllers(owner, section).map(|read| read.and_then(packed)).map_err(failed),
        }
    }

    fn device(&self, place: Option<usize>) -> Option<&'g Device<'b>> {
        self.parts.devices.get(place?).copied()
    }

    /// State of the interrupt controllers. An item that has no attributes of its own but is in memory is empty.
    fn controllers(&self, owner: Owner, section: &str) -> Result<Option<Read>, CallError> {
        let (gic, its) = (self.device(self.devices.gic), self.device(self.devices.its));
        let vcpu = vcpu_of(self.parts, owner);
        Ok(match (section, gic, its) {
            ("vgic-v3-iidr", Some(gic), _) => Some(attributes(gic, DIST, 4, [place::IIDR])?),
            ("vgic-v3-dist", Some(gic), _) => {
                Some(attributes(gic, DIST, 4, place::distributor(interrupts(gic)?))?)
            }
            ("vgic-v3-lpi-tables", Some(gic), _) => {
                Some(attributes(gic, REDIST, 4, self.of(vcpu, &place::LPI_TABLES)?)?)
            }
            ("vgic-v3-redist", Some(gic), _) => {
                Some(attributes(gic, REDIST, 4, self.of(vcpu, &place::redistributor())?)?)
            }
            ("vgic-v3-cpu", Some(gic), _) => Some(interface(gic, self.of(vcpu, &[0])?[0])?),
            ("vgic-v3-line-levels", Some(gic), _) => match vcpu {
                Some(_) => Some(attributes(gic, LEVELS, 4, self.of(vcpu, &[0])?)?),
                None => Some(attributes(gic, LEVELS, 4, (32..interrupts(gic)?).step_by(32))?),
            },
            ("vgic-v3-pending-lpis", Some(gic), Some(_)) => {
                if self.purpose == Purpose::Save {
                    gic.set_attr(CTRL, place::SAVE_PENDING, &[])?;
                }
                Some(Vec::new())
            }
            ("its-cbaser", _, Some(its)) => Some(attributes(its, ITS, 8, [place::ITS_CBASER])?),
            ("its-regs", _, Some(its)) => Some(attributes(its, ITS, 8, place::ITS_REGISTERS)?),
            ("its-tables", _, Some(its)) => {
                if self.purpose == Purpose::Save {
                    its.set_attr(CTRL, place::ITS_SAVE, &[])?;
                }
                Some(Vec::new())
            }
            ("its-ctlr", _, Some(its)) => Some(attributes(its, ITS, 8, [place::ITS_CTLR])?),
            _ => None,
        })
    }

    /// These offsets, of a vCPU: with its affinities.
    fn of(&self, vcpu: Option<&Vcpu<'b>>, offsets: &[u64]) -> Result<Vec<u64>, CallError> {
        let Some(vcpu) = vcpu else { return Ok(Vec::new()) };
        let affinity = place::affinity(long(&ask::register(vcpu, MPIDR)?, 0));
        Ok(offsets.iter().map(|offset| affinity | offset).collect())
    }
}

fn some(registers: Vec<(u64, Vec<u8>)>) -> Option<Vec<u8>> {
    Some(pack_registers(registers.iter().map(|(id, value)| (*id, value.as_slice()))))
}

fn packed(read: Read) -> Option<Vec<u8>> {
    Some(pack_attributes(read.iter().map(|(group, attr, value)| Attribute {
        group: *group,
        attr: *attr,
        value,
    })))
}

/// An item that does not exist where there is nothing to it.
fn existing(read: Read) -> Option<Vec<u8>> {
    if read.is_empty() { None } else { packed(read) }
}

/// The registers of a group, in the kernel's order. The vector lengths are in the manifest.
fn registers(vcpu: &Vcpu<'_>, wanted: Group) -> Result<Vec<(u64, Vec<u8>)>, CallError> {
    let mut read = Vec::new();
    let ids = vcpu.reg_list()?;
    if ids.is_empty() || ids.contains(&0) {
        // A list that was not written: nothing is missed because of it.
        let why = Refusal::Nonsense("it succeeded, and wrote no list".to_owned());
        return Err(vcpu.error(&KVM_GET_REG_LIST, "", why));
    }
    for id in ids {
        if id != SVE_VECTOR_LENGTHS && group(id) == wanted {
            read.push((id, ask::register(vcpu, id)?));
        }
    }
    Ok(read)
}

fn attributes(
    fd: &Fd<'_>,
    group: u32,
    length: usize,
    attrs: impl IntoIterator<Item = u64>,
) -> Result<Read, CallError> {
    attrs.into_iter().map(|attr| Ok((group, attr, ask::attribute(fd, group, attr, length)?))).collect()
}

fn interrupts(gic: &Device<'_>) -> Result<u64, CallError> {
    Ok(place::interrupts(word(&ask::attribute(gic, DIST, place::TYPER, 4)?, 0)))
}

fn interface(gic: &Device<'_>, affinity: u64) -> Result<Read, CallError> {
    let mut read = Vec::new();
    for register in INTERFACE {
        let attr = affinity | register.at;
        let value = ask::attribute(gic, SYSREGS, attr, 8);
        if register.may_miss {
            read.extend(ask::if_there(value)?.map(|value| (SYSREGS, attr, value)));
        } else {
            read.push((SYSREGS, attr, value?));
        }
    }
    Ok(read)
}

/// The interrupts of the virtual and the physical timer, and of those of EL2. Since 6.4 KVM tells the latter of vCPUs without
/// EL2 too, where they mean nothing and an older kernel refuses them.
fn timer_interrupts(vcpu: &Vcpu<'_>, el2: bool) -> Result<Read, CallError> {
    let mut read = Vec::new();
    for attr in 0..if el2 { 4 } else { 2 } {
        let value = ask::if_there(ask::attribute(vcpu, TIMER_CTRL, attr, 4))?;
        read.extend(value.map(|value| (TIMER_CTRL, attr, value)));
    }
    Ok(read)
}

fn stolen_time(vcpu: &Vcpu<'_>) -> Result<Read, CallError> {
    let page = ask::if_there(ask::attribute(vcpu, PVTIME_CTRL, 0, 8))?;
    Ok(page.filter(|page| long(page, 0) != NO_PAGE).map(|page| (PVTIME_CTRL, 0, page)).into_iter().collect())
}
