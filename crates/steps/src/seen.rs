//! Places that show what is in force, and what was seen there.

use std::collections::BTreeMap;

use evenkeel_contract::Coord;
use evenkeel_contract::layout::{UNKNOWN, index_of};
use evenkeel_sys::layout::{VCPU_EVENTS, X86_LAPIC, X86_VCPU_EVENTS_FLAGS, word};
use evenkeel_sys::requests::{KVM_GET_LAPIC, KVM_GET_VCPU_EVENTS};
use evenkeel_sys::{Errno, Error};

use crate::step::Target;

/// Where to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The kernel has PIC and IOAPIC (KVM_GET_IRQCHIP answers): 1 or 0.
    HasIrqchip,
    /// The kernel has the local APIC (KVM_GET_LAPIC answers): 1 or 0.
    HasLapic,
    /// KVM_GET_CPUID2: leaf, subleaf, and 0 to 3 for EAX to EDX. The first entry counts, as it does for KVM.
    Cpuid(u32, u32, u8),
    /// KVM_GET_MSRS.
    Msr(u32),
    /// A 32-bit word of KVM_GET_LAPIC's page.
    Lapic(u32),
    /// The flags of KVM_GET_VCPU_EVENTS (x86).
    EventFlags,
    /// KVM_GET_ONE_REG.
    Reg(u64),
    /// KVM_GET_DEVICE_ATTR of 4 bytes: group and attribute.
    Attr(u32, u64),
}

/// What was seen, or why nothing was.
#[derive(Clone, Debug, Default)]
pub struct Seen(pub BTreeMap<Place, Result<u64, Error>>);

impl Seen {
    /// Looks at places, those of one ioctl together.
    pub fn look(target: Target<'_, '_>, places: impl Iterator<Item = Place>) -> Seen {
        let mut seen = Seen::default();
        let mut msrs = Vec::new();
        let (mut cpuid, mut lapic) = (Vec::new(), Vec::new());
        for place in places {
            match (place, target) {
                (Place::Cpuid(..), _) => cpuid.push(place),
                (Place::Msr(msr), _) => msrs.push(msr),
                (Place::Lapic(_) | Place::HasLapic, _) => lapic.push(place),
                (Place::EventFlags, Target::Vcpu(v, _)) => {
                    let bytes = v.get(&KVM_GET_VCPU_EVENTS, VCPU_EVENTS);
                    seen.put(place, bytes.map(|b| word(&b, X86_VCPU_EVENTS_FLAGS).into()));
                }
                (Place::Reg(id), Target::Vcpu(v, _)) => seen.put(place, v.one_reg(id).map(|b| number(&b))),
                (Place::Attr(group, attr), Target::Gic(gic)) => {
                    let value = gic.get_attr::<4>(group, attr);
                    seen.put(place, value.map(|b| u32::from_ne_bytes(b).into()));
                }
                (Place::HasIrqchip, Target::Vm(vm)) => {
                    seen.put(place, there(vm.irqchip(0).map(drop), Errno::ENXIO));
                }
                // A step that looks where there is nothing to see: what it expects stays unread.
                _ => {}
            }
        }
        if let Target::Vcpu(v, _) = target {
            if !cpuid.is_empty() {
                seen.cpuid(v.cpuid(), &cpuid);
            }
            if !msrs.is_empty() {
                msrs.sort_unstable();
                msrs.dedup();
                for (msr, value) in msrs.iter().zip(v.msrs().get(&msrs)) {
                    seen.put(Place::Msr(*msr), value);
                }
            }
            if !lapic.is_empty() {
                let page = v.get(&KVM_GET_LAPIC, X86_LAPIC);
                for place in lapic {
                    let value = match (place, &page) {
                        (Place::Lapic(at), Ok(page)) => Ok(word(page, at as usize).into()),
                        (Place::HasLapic, page) => there(page.clone().map(drop), Errno::EINVAL),
                        (_, Err(error)) => Err(error.clone()),
                        _ => continue,
                    };
                    seen.put(place, value);
                }
            }
        }
        seen
    }

    /// The registers that KVM_GET_REG_LIST names, that the catalog knows as facets, and that are not among `known`.
    ///
    /// # Errors
    /// The list could not be read.
    pub fn relist(&mut self, target: Target<'_, '_>, known: &[u64]) -> Result<Vec<Place>, Error> {
        let Target::Vcpu(v, _) = target else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for id in v.reg_list()? {
            let place = Place::Reg(id);
            if index_of(Coord::Reg(id)) != UNKNOWN && !known.contains(&id) {
                self.put(place, v.one_reg(id).map(|b| number(&b)));
                found.push(place);
            }
        }
        Ok(found)
    }

    fn cpuid(&mut self, table: Result<Vec<evenkeel_sys::layout::CpuidEntry>, Error>, places: &[Place]) {
        match table {
            Ok(table) => {
                for entry in &table {
                    for (register, value) in entry.output.iter().enumerate() {
                        let place = Place::Cpuid(entry.function, entry.index, register as u8);
                        self.0.entry(place).or_insert(Ok(u64::from(*value)));
                    }
                }
                // No entry: the guest reads 0.
                for place in places {
                    self.0.entry(*place).or_insert(Ok(0));
                }
            }
            Err(error) => {
                for place in places {
                    self.put(*place, Err(error.clone()));
                }
            }
        }
    }

    fn put(&mut self, place: Place, value: Result<u64, Error>) {
        self.0.insert(place, value);
    }
}

/// 1 where a call succeeds, 0 where it fails with the errno that says "there is none".
fn there(result: Result<(), Error>, none: Errno) -> Result<u64, Error> {
    match result {
        Ok(()) => Ok(1),
        Err(error) if error.errno() == Some(none) => Ok(0),
        Err(error) => Err(error),
    }
}

/// A little-endian number of up to 8 bytes; what is longer is no facet.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |n, b| n << 8 | u64::from(*b))
}
