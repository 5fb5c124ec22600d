//! KVM_CHECK_EXTENSION, of every number, on the system fd and on a VM of every shape.

use evenkeel_surface::{Arch, Capability};
use evenkeel_sys::{Errno, Fd};

use crate::Parts;
use crate::book::Book;

/// Numbers below this are asked. The newest known is below 250.
pub(crate) const ASKED: u32 = 300;

/// KVM_CAP_NR_VCPUS: the recommended number of vCPUs, which is that of the CPUs online.
const NR_VCPUS: u32 = 9;

/// The answers on one fd; `None` where there was none, which the book has.
pub(crate) struct Answers(Vec<Option<i32>>);

impl Answers {
    /// Asks every number. On the system fd (`shape` is empty) EINVAL means that only a VM can be asked
    /// (KVM_CAP_MSI_DEVID on arm64): an answer too, rather than a failure.
    pub(crate) fn ask(fd: &Fd<'_>, shape: &str, book: &mut Book) -> Self {
        let of = if shape.is_empty() { "system" } else { shape };
        let ask = |cap| match fd.check_extension(cap) {
            Err(error) if shape.is_empty() && error.errno() == Some(Errno::EINVAL) => None,
            answer => book.ask_in(format_args!("cap.{cap}"), answer, of),
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
        let on_system = system.get(cap);
        let on_vms: Vec<i32> = vms.iter().filter_map(|vm| vm.get(cap)).collect();
        // An answer is missing: the book names it, and a list with a gap would speak of the wrong shape.
        if on_vms.len() != vms.len() || on_vms.iter().copied().chain(on_system).all(|answer| answer == 0) {
            continue;
        }
        let capability = if on_vms.iter().all(|&answer| Some(answer) == on_system) {
            Capability { cap, all: on_system, system: None, vm: Vec::new() }
        } else {
            Capability { cap, all: None, system: on_system, vm: on_vms }
        };
        let volatile =
            cap == NR_VCPUS || evenkeel_catalog::capability(cap, arch.name()).is_some_and(|c| c.volatile);
        let list = if volatile { &mut parts.volatile.capabilities } else { &mut parts.offer.capabilities };
        list.push(capability);
    }
}
