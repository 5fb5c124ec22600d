//! Groups of state with an ioctl pair of their own: is it there, how large, and does it go back?

use evenkeel_surface::{Hex64, Section, Write};
use evenkeel_sys::layout::{self, long, word};
use evenkeel_sys::requests::*;
use evenkeel_sys::{Arg, Error as CallError, Fd, Request};

use super::{Irqchip, Scratch};
use crate::Parts;
use crate::shapes::Sections;

const CAP_MP_STATE: u32 = 14;
const CAP_PIT_STATE2: u32 = 35;
const CAP_ADJUST_CLOCK: u32 = 39;
const CAP_VCPU_EVENTS: u32 = 41;
const CAP_DEBUGREGS: u32 = 50;
const CAP_XSAVE: u32 = 55;
const CAP_XCRS: u32 = 56;
const CAP_GET_TSC_KHZ: u32 = 61;
const CAP_NESTED_STATE: u32 = 157;
const CAP_SREGS2: u32 = 200;
const CAP_XSAVE2: u32 = 208;

/// A structure that is read and set.
struct Plan {
    item: &'static str,
    get: &'static Request,
    set: &'static Request,
    /// The capability that says that it is there; 0: it always is.
    cap: u32,
    size: usize,
    flags: Option<usize>,
}

const VCPU: [Plan; 7] = [
    Plan {
        item: "regs",
        get: &KVM_GET_REGS,
        set: &KVM_SET_REGS,
        cap: 0,
        size: layout::X86_REGS,
        flags: None,
    },
    Plan {
        item: "sregs",
        get: &KVM_GET_SREGS,
        set: &KVM_SET_SREGS,
        cap: 0,
        size: layout::X86_SREGS,
        flags: None,
    },
    Plan {
        item: "sregs2",
        get: &KVM_GET_SREGS2,
        set: &KVM_SET_SREGS2,
        cap: CAP_SREGS2,
        size: layout::X86_SREGS2,
        flags: Some(layout::X86_SREGS2_FLAGS),
    },
    Plan {
        item: "xcrs",
        get: &KVM_GET_XCRS,
        set: &KVM_SET_XCRS,
        cap: CAP_XCRS,
        size: layout::X86_XCRS,
        flags: None,
    },
    Plan {
        item: "vcpu-events",
        get: &KVM_GET_VCPU_EVENTS,
        set: &KVM_SET_VCPU_EVENTS,
        cap: CAP_VCPU_EVENTS,
        size: layout::VCPU_EVENTS,
        flags: Some(layout::X86_VCPU_EVENTS_FLAGS),
    },
    Plan {
        item: "debugregs",
        get: &KVM_GET_DEBUGREGS,
        set: &KVM_SET_DEBUGREGS,
        cap: CAP_DEBUGREGS,
        size: layout::X86_DEBUGREGS,
        flags: None,
    },
    Plan {
        item: "mp-state",
        get: &KVM_GET_MP_STATE,
        set: &KVM_SET_MP_STATE,
        cap: CAP_MP_STATE,
        size: layout::MP_STATE,
        flags: None,
    },
];

const LAPIC: Plan = Plan {
    item: "lapic",
    get: &KVM_GET_LAPIC,
    set: &KVM_SET_LAPIC,
    cap: 0,
    size: layout::X86_LAPIC,
    flags: None,
};

/// What became of one: its bytes, and whether they went back.
struct Round {
    bytes: Vec<u8>,
    write: Write,
}

struct Asker<'s, 'b, 'p, 'g> {
    scratch: &'s Scratch<'b>,
    found: &'s mut Sections,
    parts: &'p mut Parts<'g>,
}

/// Asks the sections of one shape.
pub(crate) fn ask(scratch: &Scratch<'_>, found: &mut Sections, parts: &mut Parts) {
    let mut asker = Asker { scratch, found, parts };
    if let Some(vcpu) = &scratch.vcpu {
        asker.tsc_khz(vcpu);
        for plan in &VCPU {
            asker.plain(vcpu, plan);
        }
        asker.xsave(vcpu);
        if scratch.irqchip != Irqchip::None {
            asker.plain(vcpu, &LAPIC);
        }
        asker.nested(vcpu);
        asker.tsc_offset(vcpu);
    }
    if scratch.irqchip == Irqchip::Kernel {
        asker.irqchip();
        asker.pit();
    }
    asker.clock();
}

impl Asker<'_, '_, '_, '_> {
    fn name(&self) -> &'static str {
        self.scratch.irqchip.name()
    }

    fn add(&mut self, item: &str, size: Option<u32>, flags: Option<u64>, write: Write) {
        let section =
            Section { item: item.to_owned(), size, flags: flags.map(Hex64), shapes: Vec::new(), write };
        self.found.add(section, self.scratch.index);
    }

    /// Sets what was read and reads again.
    fn back(
        &mut self,
        item: &str,
        set: impl FnOnce() -> Result<i32, CallError>,
        same: impl FnOnce() -> Result<bool, CallError>,
    ) -> Write {
        if let Err(error) = set() {
            // That it is refused is an answer; only what is not the host's is a note.
            if error.is_off_script() {
                self.parts.book.note_in(item, &error, self.name());
            }
            return Write::Refused;
        }
        let name = self.name();
        match self.parts.book.ask_in(item, same(), name) {
            Some(true) => Write::Kept,
            Some(false) => Write::Altered,
            None => Write::Unasked,
        }
    }

    fn round(&mut self, item: &str, fd: &Fd<'_>, get: &Request, set: &Request, size: usize) -> Option<Round> {
        let name = self.name();
        let bytes = self.parts.book.ask_in(item, fd.get(get, size), name)?;
        let write = self.back(item, || fd.set(set, &bytes), || Ok(fd.get(get, size)? == bytes));
        Some(Round { bytes, write })
    }

    fn plain(&mut self, fd: &Fd<'_>, plan: &Plan) {
        if plan.cap != 0 && !self.scratch.caps.may_have(plan.cap) {
            return;
        }
        if let Some(round) = self.round(plan.item, fd, plan.get, plan.set, plan.size) {
            // `kvm_sregs2.flags` has 64 bits, the others have 32 and zeroes or other fields behind them.
            let flags = plan.flags.map(|at| match plan.item {
                "sregs2" => long(&round.bytes, at),
                _ => word(&round.bytes, at).into(),
            });
            self.add(plan.item, None, flags, round.write);
        }
    }

    fn xsave(&mut self, fd: &Fd<'_>) {
        match self.scratch.caps.get(CAP_XSAVE2) {
            Some(size) if size > 0 => {
                let size = size as usize;
                if let Some(round) = self.round("xsave2", fd, &KVM_GET_XSAVE2, &KVM_SET_XSAVE, size) {
                    self.add("xsave2", Some(size as u32), None, round.write);
                }
            }
            // An older kernel, or an unknown size, which the book has: the fixed form is what is left.
            _ if self.scratch.caps.may_have(CAP_XSAVE) => {
                let size = layout::X86_XSAVE;
                if let Some(round) = self.round("xsave", fd, &KVM_GET_XSAVE, &KVM_SET_XSAVE, size) {
                    self.add("xsave", Some(size as u32), None, round.write);
                }
            }
            _ => {}
        }
    }

    fn nested(&mut self, fd: &Fd<'_>) {
        let Some(size) = self.scratch.caps.get(CAP_NESTED_STATE).filter(|&size| size > 0) else { return };
        let get = || {
            let mut bytes = vec![0u8; (size as usize).max(layout::X86_NESTED_STATE)];
            let room = bytes.len() as u32;
            bytes[4..8].copy_from_slice(&room.to_ne_bytes());
            fd.call(&KVM_GET_NESTED_STATE, Arg::Out(&mut bytes), format_args!("{room} bytes"))?;
            Ok(bytes)
        };
        let name = self.name();
        let Some(bytes) = self.parts.book.ask_in("nested-state", get(), name) else { return };
        let write =
            self.back("nested-state", || fd.set(&KVM_SET_NESTED_STATE, &bytes), || Ok(get()? == bytes));
        let flags = u64::from(word(&bytes, 0) & 0xffff);
        self.add("nested-state", Some(size as u32), Some(flags), write);
    }

    fn tsc_khz(&mut self, fd: &Fd<'_>) {
        if !self.scratch.caps.may_have(CAP_GET_TSC_KHZ) {
            return;
        }
        let name = self.name();
        let Some(khz) = self.parts.book.ask_in("tsc-khz", fd.int(&KVM_GET_TSC_KHZ, 0), name) else { return };
        self.parts.volatile.tsc_khz.get_or_insert(khz as u32);
        let set = || fd.int(&KVM_SET_TSC_KHZ, khz as u64);
        let write = self.back("tsc-khz", set, || Ok(fd.int(&KVM_GET_TSC_KHZ, 0)? == khz));
        self.add("tsc-khz", None, None, write);
    }

    fn tsc_offset(&mut self, fd: &Fd<'_>) {
        // KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET.
        match fd.has_attr(0, 0) {
            Ok(()) => {}
            Err(error) if super::is_absent(&error) => return,
            Err(error) => return self.parts.book.note_in("tsc-offset", &error, self.name()),
        }
        let name = self.name();
        let Some(offset) = self.parts.book.ask_in("tsc-offset", fd.get_attr::<8>(0, 0), name) else { return };
        let set = || fd.set_attr(0, 0, &offset).map(|()| 0);
        let write = self.back("tsc-offset", set, || Ok(fd.get_attr::<8>(0, 0)? == offset));
        self.add("tsc-offset", None, None, write);
    }

    fn irqchip(&mut self) {
        let (vm, name) = (&self.scratch.vm, self.name());
        let mut worst = Write::Kept;
        for chip in 0..3 {
            let Some(bytes) = self.parts.book.ask_in("irqchip", vm.irqchip(chip), name) else { return };
            let set = || vm.call(&KVM_SET_IRQCHIP, Arg::In(&bytes), chip);
            let write = self.back("irqchip", set, || Ok(vm.irqchip(chip)? == bytes));
            if write != Write::Kept {
                worst = write;
            }
        }
        self.add("irqchip", None, None, worst);
    }

    fn pit(&mut self) {
        let (vm, name) = (&self.scratch.vm, self.name());
        if !self.scratch.caps.may_have(CAP_PIT_STATE2)
            || self.parts.book.ask_in("pit2", vm.create_pit2(0), name).is_none()
        {
            return;
        }
        // The time at which each channel was loaded is the kernel's clock, and set anew.
        let still = |bytes: &[u8]| -> Vec<u8> {
            let mut bytes = bytes.to_vec();
            (0..3).for_each(|channel| bytes[channel * 24 + 16..channel * 24 + 24].fill(0));
            bytes
        };
        let get = || vm.get(&KVM_GET_PIT2, layout::X86_PIT2);
        let Some(bytes) = self.parts.book.ask_in("pit2", get(), name) else { return };
        let write =
            self.back("pit2", || vm.set(&KVM_SET_PIT2, &bytes), || Ok(still(&get()?) == still(&bytes)));
        let flags = u64::from(word(&bytes, layout::X86_PIT2_FLAGS));
        self.add("pit2", None, Some(flags), write);
    }

    fn clock(&mut self) {
        if !self.scratch.caps.may_have(CAP_ADJUST_CLOCK) {
            return;
        }
        let (vm, name) = (&self.scratch.vm, self.name());
        let get = || vm.get(&KVM_GET_CLOCK, layout::X86_CLOCK);
        let Some(bytes) = self.parts.book.ask_in("clock", get(), name) else { return };
        // The flags that are read say what the answer is worth; older kernels refuse them when they are set.
        let mut plain = vec![0u8; bytes.len()];
        plain[..8].copy_from_slice(&bytes[..8]);
        let later = || Ok(long(&get()?, 0) >= long(&bytes, 0));
        let write = self.back("clock", || vm.set(&KVM_SET_CLOCK, &plain), later);
        let flags = u64::from(word(&bytes, layout::X86_CLOCK_FLAGS));
        self.add("clock", None, Some(flags), write);
    }
}
