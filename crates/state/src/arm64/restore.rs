//! Restoring: set, read back, report.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_catalog::{self as catalog, Arch};
use evenkeel_sys::layout::long;
use evenkeel_sys::requests::{KVM_ARM_SET_COUNTER_OFFSET, KVM_SET_MP_STATE, KVM_SET_VCPU_EVENTS};
use evenkeel_sys::{Device, Error as CallError, Fd, Refusal, Vcpu};

use super::ask;
use super::counters::{self, PHYSICAL, Time, VIRTUAL};
use super::place::{self, CTRL, DIST, ITS, REDIST};
use super::plan::{self, Part, Step, What};
use super::read::{self, Purpose, vcpu_of};
use super::sections::{self, Devices};
use crate::image::{Image, Owner};
use crate::manifest::{Noted, Role};
use crate::order::{Order, Phase};
use crate::outcome::{Became, NotKept, Refused, Report, Unsaved};
use crate::parts::Parts;
use crate::registers::{Group, group};
use crate::remake::repeat_one;

/// Restores an image into a VM that was made as its manifest says, and whose vCPUs have not run. `later` are the calls of the
/// manifest that were not made yet ([`Made::later`](crate::Made)). Guest memory must be in place.
///
/// # Errors
/// The image makes no sense, which is found before anything is set; or a call fails without which nothing can be told. What
/// the kernel refuses or alters is no error, but in the report: a guest must not run unless that is complete.
pub fn restore(
    parts: &mut Parts<'_, '_>,
    image: &Image,
    later: &[Noted],
    time: Time,
) -> Result<Report, Refused> {
    restore_in(parts, image, later, time, Order::catalogued(Arch::Aarch64, Phase::Restore))
}

/// The same in another order than the catalog's, which is good for showing what an edge is there for.
///
/// # Errors
/// As [`restore`].
pub fn restore_in(
    parts: &mut Parts<'_, '_>,
    image: &Image,
    later: &[Noted],
    time: Time,
    order: &Order,
) -> Result<Report, Refused> {
    if image.arch != evenkeel_surface::Arch::Aarch64 {
        return Err(Refused::new(Owner::Vm, "image", format!("it is of {}", image.arch.name())));
    }
    let devices = sections::saveable(&image.manifest)?;
    let steps = plan::plan(image, later, parts.cpus.len(), &devices, order)?;
    let mut restoring = Restoring { parts, time, offset: false, failed: BTreeMap::new() };
    for step in &steps {
        restoring.make(step, &steps)?;
    }
    let Restoring { failed, .. } = restoring;
    look(parts, &devices, &steps, time, &failed)
}

struct Restoring<'r, 'g, 'b> {
    parts: &'r Parts<'g, 'b>,
    time: Time,
    /// The counters were moved together; setting one of them is without effect from then on.
    offset: bool,
    failed: BTreeMap<Part, CallError>,
}

impl<'g, 'b> Restoring<'_, 'g, 'b> {
    /// Does one thing. What the kernel refuses is noted.
    fn make(&mut self, step: &Step<'_>, all: &[Step<'_>]) -> Result<(), Refused> {
        let done = match step.what {
            What::Call(call) if call.call == KVM_ARM_SET_COUNTER_OFFSET.name => {
                self.move_counters(step, all)?
            }
            What::Call(call) => {
                let vcpus: Vec<&Vcpu<'b>> = self.parts.cpus.iter().map(|cpu| cpu.vcpu).collect();
                let refused = |refused| Refused { item: step.section.to_owned(), ..refused };
                repeat_one(self.parts.vm, &vcpus, &self.parts.devices, call).map_err(refused)?;
                Ok(())
            }
            What::Register(id, value) => self.register(step, id, value, all),
            What::Attribute(on, group, attr, value) => self.attribute(on, group, attr, value),
            What::MpState(value) => self.structure(step.owner, |vcpu| vcpu.set(&KVM_SET_MP_STATE, value)),
            What::Events(value) => self.structure(step.owner, |vcpu| vcpu.set(&KVM_SET_VCPU_EVENTS, value)),
            What::Tables => match self.its(all) {
                Some(its) => its.set_attr(CTRL, place::ITS_RESTORE, &[]),
                None => Ok(()),
            },
            What::InMemory => Ok(()),
        };
        if let Err(error) = done {
            if error.is_off_script() {
                return Err(Refused::call(step.owner, step.section, "restoring it")(error));
            }
            self.failed.insert(step.part(), error);
        }
        Ok(())
    }

    fn structure(
        &self,
        owner: Owner,
        set: impl Fn(&Vcpu<'b>) -> Result<i32, CallError>,
    ) -> Result<(), CallError> {
        // The plan has no vCPU that is not there.
        vcpu_of(self.parts, owner).map_or(Ok(()), |vcpu| set(vcpu).map(drop))
    }

    fn register(&self, step: &Step<'_>, id: u64, value: &[u8], all: &[Step<'_>]) -> Result<(), CallError> {
        let counter = group(id) == Group::Counter;
        if implied(step, id, all) || (counter && self.offset) {
            return Ok(());
        }
        let vcpu = match step.owner {
            // What is of the VM goes through its first vCPU.
            Owner::Vm => self.parts.cpus.first().map(|cpu| cpu.vcpu),
            owner => vcpu_of(self.parts, owner),
        };
        let Some(vcpu) = vcpu else { return Ok(()) };
        if counter && matches!(id, VIRTUAL | PHYSICAL) {
            return vcpu.set_one_reg(id, &self.time.at(long(value, 0)).to_le_bytes());
        }
        // Since 6.12 setting PMCNTENSET_EL0 and its like sets bits and clears none, and a fresh vCPU has bits of no meaning
        // in it: what must not be set is cleared by its counterpart. Where both store what they are given, the second stays.
        if let Some(clears) = catalog::REGS.iter().find(|reg| reg.alias_of == Some(id)).map(|reg| reg.id)
            && all.iter().any(|other| {
                other.owner == step.owner && matches!(other.what, What::Register(o, _) if o == clears)
            })
        {
            let unset: Vec<u8> = value.iter().map(|byte| !byte).collect();
            // A kernel without it has said so, or will: it is in the image.
            let _ = vcpu.set_one_reg(clears, &unset);
        }
        vcpu.set_one_reg(id, value)
    }

    fn attribute(&self, on: Role, group: u32, attr: u64, value: &[u8]) -> Result<(), CallError> {
        let fd: &Fd<'b> = match on {
            Role::Device(place) => match self.parts.devices.get(place as usize) {
                Some(device) => device,
                None => return Err(missing(self.parts.vm)),
            },
            Role::Vcpu(place) => match self.parts.cpus.get(place as usize) {
                Some(cpu) => cpu.vcpu,
                None => return Err(missing(self.parts.vm)),
            },
            Role::Vm | Role::System => self.parts.vm,
        };
        // Writing GITS_CBASER, GITS_BASER, GICR_PROPBASER or GICR_PENDBASER puts attributes of memory into them that are not
        // there in a fresh VM, and in a guest without an ITS never are.
        let tables = group == REDIST && place::LPI_TABLES.contains(&(attr & 0xffff_ffff));
        if (group == ITS || tables) && ask::attribute(fd, group, attr, value.len())? == value {
            return Ok(());
        }
        // Registers that only set bits: what must not be set is cleared first. SGIs are enabled in a fresh VM.
        if let Some(clear) = place::clears(attr & 0xffff_ffff).filter(|_| matches!(group, DIST | REDIST)) {
            let unset: Vec<u8> = value.iter().map(|byte| !byte).collect();
            fd.set_attr(group, attr & !0xffff_ffff | clear, &unset)?;
        }
        fd.set_attr(group, attr, value)
    }

    fn its(&self, all: &[Step<'_>]) -> Option<&'g Device<'b>> {
        let place = all.iter().find_map(|step| match step.what {
            What::Attribute(Role::Device(place), ITS, ..) => Some(place as usize),
            _ => None,
        });
        self.parts.devices.get(place?).copied()
    }

    /// The VMM had moved both counters by one offset, which says nothing on a host whose own counter is another: they are
    /// moved by what brings the virtual one to where it has to be. In a VM where nobody moved anything, the physical
    /// counter is the host's.
    fn move_counters(&mut self, step: &Step<'_>, all: &[Step<'_>]) -> Result<Result<(), CallError>, Refused> {
        let saved = all.iter().find_map(|step| match step.what {
            What::Register(VIRTUAL, value) => Some(long(value, 0)),
            _ => None,
        });
        let saved =
            saved.ok_or_else(|| Refused::new(step.owner, step.section, "no virtual counter was saved"))?;
        let host = counters::now(self.parts, PHYSICAL)?;
        let mut offset = [0; 16];
        offset[..8].copy_from_slice(&host.wrapping_sub(self.time.at(saved)).to_ne_bytes());
        let done = self.parts.vm.set(&KVM_ARM_SET_COUNTER_OFFSET, &offset).map(drop);
        self.offset = done.is_ok();
        Ok(done)
    }
}

fn missing(fd: &Fd<'_>) -> CallError {
    let why = Refusal::Nonsense("there is no such device or vCPU".to_owned());
    fd.error(&evenkeel_sys::requests::KVM_SET_DEVICE_ATTR, "", why)
}

/// A register that shows another one once more, which is set as well: setting it would clear bits of that one.
fn implied(step: &Step<'_>, id: u64, all: &[Step<'_>]) -> bool {
    let of = catalog::reg(id).and_then(|reg| reg.alias_of);
    of.is_some_and(|of| {
        all.iter()
            .any(|other| other.owner == step.owner && matches!(other.what, What::Register(o, _) if o == of))
    })
}

/// Reads everything again and compares.
fn look(
    parts: &Parts<'_, '_>,
    devices: &Devices,
    steps: &[Step<'_>],
    time: Time,
    failed: &BTreeMap<Part, CallError>,
) -> Result<Report, Refused> {
    let items = read::all(parts, devices, Order::catalogued(Arch::Aarch64, Phase::Save), Purpose::Look)?;
    let mut here: BTreeMap<Part, &[u8]> = BTreeMap::new();
    let mut taken_apart = Vec::new();
    for item in &items {
        for (section, what) in plan::parts_of(item, devices)? {
            taken_apart.push(Step { rank: 0, owner: item.owner, section, what });
        }
    }
    here.extend(taken_apart.iter().map(|step| (step.part(), step.wanted())));

    let mut report = Report::default();
    let mut saved: BTreeSet<Part> = BTreeSet::new();
    for step in steps {
        let part = step.part();
        saved.insert(part);
        let (error, now) = (failed.get(&part), here.get(&part).copied());
        let became = match (error, now, &step.what) {
            (None, _, What::Call(_)) => continue,
            (Some(_), ..) => Some(Became::Refused),
            (None, _, What::Tables | What::InMemory) => None,
            (None, None, _) => Some(Became::Unreadable),
            (None, Some(now), What::Register(id, wanted)) => {
                if implied(step, *id, steps) {
                    report.implied += 1;
                    continue;
                }
                if group(*id) == Group::Counter && went_on(*id, wanted, now, time) {
                    report.running += 1;
                    continue;
                }
                (!same(*id, wanted, now)).then_some(Became::Altered)
            }
            (None, Some(now), _) => (now != step.wanted()).then_some(Became::Altered),
        };
        match became {
            None => report.kept += 1,
            Some(became) => report.not_kept.push(NotKept {
                owner: step.owner,
                item: step.section.to_owned(),
                field: plan::name(&part),
                became,
                wanted: step.wanted().to_vec(),
                now: now.map(<[u8]>::to_vec),
                error: error.map(ToString::to_string),
            }),
        }
    }
    for step in taken_apart.iter().filter(|step| !saved.contains(&step.part())) {
        if matches!(step.what, What::InMemory | What::Tables) {
            continue;
        }
        report.unsaved.push(Unsaved {
            owner: step.owner,
            item: step.section.to_owned(),
            field: plan::name(&step.part()),
            now: step.wanted().to_vec(),
        });
    }
    Ok(report)
}

/// Registers that KVM computes bits of are compared without those.
fn same(id: u64, wanted: &[u8], now: &[u8]) -> bool {
    let computed = catalog::reg(id).map_or(0, |reg| reg.computed).to_le_bytes();
    let bits = |n: usize| computed.get(n).copied().unwrap_or(0);
    wanted.len() == now.len() && wanted.iter().zip(now).enumerate().all(|(n, (a, b))| (a ^ b) & !bits(n) == 0)
}

fn went_on(id: u64, wanted: &[u8], now: &[u8], time: Time) -> bool {
    let from = if matches!(id, VIRTUAL | PHYSICAL) { time.at(long(wanted, 0)) } else { long(wanted, 0) };
    counters::went_on(from, long(now, 0))
}
