//! Attributes of the VM, the vCPU and the interrupt controllers.

use evenkeel_surface::{Attribute, Hex64};
use evenkeel_sys::{Error as CallError, Fd};

use super::{Scratch, hex};
use crate::Parts;
use crate::shapes::indices;

/// How a value is read, if it is.
#[derive(Clone, Copy)]
enum Value {
    /// It can only be set, or it is an action.
    Silent,
    /// 32 bits.
    Word,
    /// 64 bits.
    Long,
}
use Value::{Long, Silent, Word};

/// KVM_ARM_VM_SMCCC_CTRL: the filter.
const VM: [(u32, u64, Value); 1] = [(0, 0, Silent)];

/// Of a vCPU: the PMU's interrupt, initialization, filter, hardware and number of counters; the interrupts of the four
/// timers; the address of stolen time.
const VCPU: [(u32, u64, Value); 10] = [
    (0, 0, Silent),
    (0, 1, Silent),
    (0, 2, Silent),
    (0, 3, Silent),
    (0, 4, Silent),
    (1, 0, Word),
    (1, 1, Word),
    (1, 2, Word),
    (1, 3, Word),
    (2, 0, Silent),
];

/// Of the GICv3: its addresses; GICD_CTLR, GICD_TYPER, GICD_IIDR, GICD_TYPER2; the number of interrupts; initialization
/// and saving of pending tables; GICR_CTLR and GICR_TYPER of the one vCPU, which is also the last; the maintenance
/// interrupt.
const GIC: [(u32, u64, Value); 13] = [
    (0, 2, Silent),
    (0, 3, Silent),
    (0, 5, Silent),
    (1, 0x0, Word),
    (1, 0x4, Word),
    (1, 0x8, Word),
    (1, 0xc, Word),
    (3, 0, Word),
    (4, 0, Silent),
    (4, 3, Silent),
    (5, 0x0, Word),
    (5, 0x8, Word),
    (9, 0, Silent),
];

/// Of the ITS: its address; initialization, saving and restoring of tables, reset; GITS_CTLR, GITS_IIDR, GITS_TYPER,
/// GITS_CBASER, GITS_BASER0 and 1.
const ITS: [(u32, u64, Value); 11] = [
    (0, 4, Silent),
    (4, 0, Silent),
    (4, 1, Silent),
    (4, 2, Silent),
    (4, 4, Silent),
    (8, 0x0, Long),
    (8, 0x4, Long),
    (8, 0x8, Long),
    (8, 0x80, Long),
    (8, 0x100, Long),
    (8, 0x108, Long),
];

/// Attributes that were found, with the shapes each was found in.
#[derive(Default)]
pub(super) struct Attributes(Vec<(Attribute, Vec<u8>)>);

impl Attributes {
    /// Asks those of one shape.
    pub(super) fn ask(&mut self, scratch: &Scratch<'_>, parts: &mut Parts) {
        self.ask_fd(&scratch.vm, "vm", &VM, scratch, parts);
        if let Some(vcpu) = &scratch.vcpu {
            self.ask_fd(vcpu, "vcpu", &VCPU, scratch, parts);
        }
        if let Some(gic) = &scratch.gic {
            self.ask_fd(gic, "vgic-v3", &GIC, scratch, parts);
        }
        if let Some(its) = &scratch.its {
            self.ask_fd(its, "vgic-its", &ITS, scratch, parts);
        }
    }

    fn ask_fd(
        &mut self,
        fd: &Fd<'_>,
        name: &str,
        list: &[(u32, u64, Value)],
        scratch: &Scratch<'_>,
        parts: &mut Parts,
    ) {
        for &(group, attr, value) in list {
            let what = format!("attr.{name}.{group}.{attr:x}");
            match fd.has_attr(group, attr) {
                Ok(()) => {}
                Err(error) if is_absent(&error) => continue,
                Err(error) => {
                    parts.book.note_in(&what, &error, scratch.name);
                    continue;
                }
            }
            let read = match value {
                Silent => None,
                Word => Some(fd.get_attr::<4>(group, attr).map(|b| hex(u32::from_ne_bytes(b)))),
                Long => Some(fd.get_attr::<8>(group, attr).map(|b| Hex64(u64::from_ne_bytes(b)))),
            };
            let value = read.and_then(|read| parts.book.ask_in(&what, read, scratch.name));
            let found =
                Attribute { fd: name.to_owned(), group, attr: Hex64(attr), shapes: Vec::new(), value };
            match self.0.iter_mut().find(|(known, _)| *known == found) {
                Some((_, shapes)) => shapes.push(scratch.index),
                None => self.0.push((found, vec![scratch.index])),
            }
        }
    }

    /// By fd, group and attribute, where `of` shapes there are.
    pub(super) fn finish(self, of: usize) -> Vec<Attribute> {
        let all = self.0.into_iter();
        let mut all: Vec<Attribute> =
            all.map(|(found, shapes)| Attribute { shapes: indices(&shapes, of), ..found }).collect();
        all.sort_by(|a, b| (&a.fd, a.group, a.attr, &a.shapes).cmp(&(&b.fd, b.group, b.attr, &b.shapes)));
        all
    }
}

/// KVM_HAS_DEVICE_ATTR's ways of saying no: of a PMU that the vCPU lacks it says ENODEV or EINVAL.
fn is_absent(error: &CallError) -> bool {
    use evenkeel_sys::Errno;
    matches!(error.errno(), Some(Errno::ENXIO | Errno::ENOTTY | Errno::EINVAL | Errno::ENODEV))
}
