//! KVM_CHECK_EXTENSION, of every number, on the system fd and on a VM of every shape.

use evenkeel_surface::{Arch, Capability};
use evenkeel_sys::{Error as CallError, Fd};

use crate::Parts;
use crate::book::Book;

/// Numbers below this are asked. The newest known is below 250.
pub(crate) const ASKED: u32 = 300;

/// KVM_CAP_NR_VCPUS: the recommended number of vCPUs, which is that of the CPUs online.
const NR_VCPUS: u32 = 9;

/// The answers on one fd; `None` where there was none, which the book has.
pub(crate) struct Answers(Vec<Option<i32>>);

impl Answers {
    /// Asks every number.
    pub(crate) fn ask(fd: &Fd<'_>, shape: &str, book: &mut Book) -> Self {
        let ask = |cap| {
            let answer: Result<i32, CallError> = fd.check_extension(cap);
            book.ask_in(format_args!("cap.{cap}"), answer, if shape.is_empty() { "system" } else { shape })
        };
        Answers((0..ASKED).map(ask).collect())
    }

    /// The answer; `None` when it is unknown.
    pub(crate) fn get(&self, cap: u32) -> Option<i32> {
        self.0.get(cap as usize).copied().flatten()
    }

    /// Whether it is worth to try what hangs on this capability: also when nobody knows.
    pub(crate) fn may_have(&self, cap: u32) -> bool {
        self.get(cap) != Some(0)
    }
}

/// Writes the answers down: those that depend on load apart from those that are stable.
pub(crate) fn record(arch: Arch, system: &Answers, vms: &[Answers], parts: &mut Parts) {
    parts.offer.capabilities_asked = ASKED;
    for cap in 0..ASKED {
        let Some(on_system) = system.get(cap) else { continue };
        let on_vms: Vec<i32> = vms.iter().filter_map(|vm| vm.get(cap)).collect();
        // An answer is missing: the book names it, and a list with a gap would speak of the wrong shape.
        if on_vms.len() != vms.len() || (on_system == 0 && on_vms.iter().all(|&answer| answer == 0)) {
            continue;
        }
        let capability = if on_vms.iter().all(|&answer| answer == on_system) {
            Capability { cap, all: Some(on_system), system: None, vm: Vec::new() }
        } else {
            Capability { cap, all: None, system: Some(on_system), vm: on_vms }
        };
        let volatile =
            cap == NR_VCPUS || evenkeel_catalog::capability(cap, arch.name()).is_some_and(|c| c.volatile);
        let list = if volatile { &mut parts.volatile.capabilities } else { &mut parts.offer.capabilities };
        list.push(capability);
    }
}
