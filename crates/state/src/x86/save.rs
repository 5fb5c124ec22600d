//! Saving.

use evenkeel_catalog::Arch as CatalogArch;
use evenkeel_surface::Arch;
use evenkeel_sys::layout::X86_LAPIC;
use evenkeel_sys::requests::KVM_GET_LAPIC;
use evenkeel_sys::{Errno, Error, Exit};

use super::host::Host;
use super::plan::{self, Read};
use super::{groups, lapic};
use crate::gaps::told;
use crate::order::{Order, Phase};
use crate::{Absent, Image, Item, Manifest, Owner, Parts, Refused, Saved};

/// How often a vCPU whose timer ends during the save is looked at again.
const MOST_ROUNDS: usize = 8;

/// Reads the state of a VM whose vCPUs stand still. Whatever comes of it, the guest can go on.
///
/// # Errors
/// Something cannot be read: nothing is saved by halves.
pub fn save(parts: &mut Parts<'_, '_>, manifest: &Manifest) -> Result<Saved, Refused> {
    let host = Host::ask(parts)?;
    save_with(parts, manifest, &host, Order::catalogued(CatalogArch::X86_64, Phase::Save))
}

/// The same, with what was asked of the host earlier, and in this order.
///
/// # Errors
/// As [`save`].
pub fn save_with(
    parts: &mut Parts<'_, '_>,
    manifest: &Manifest,
    host: &Host,
    order: &Order,
) -> Result<Saved, Refused> {
    if host.xen == 0 && has_xen(manifest) {
        let why = "the VM has Xen's interface, and the kernel denies it";
        return Err(Refused::new(Owner::Vm, "xen-vm", why).hint(GOES_ON));
    }
    retire(parts)?;
    for _ in 0..MOST_ROUNDS {
        let before = settle(parts, host)?;
        let mut saved = Saved {
            image: Image { arch: Arch::X86_64, manifest: manifest.clone(), items: Vec::new() },
            gaps: Vec::new(),
            absent: Vec::new(),
        };
        let mut hidden = false;
        for (owner, name) in plan::all(order, parts.cpus.len()) {
            // A kernel that has Xen's interface reads it out of every VM, and an older one takes it of none.
            if name.starts_with("xen-") && !has_xen(manifest) {
                let why = "Xen's interface was never configured";
                saved.absent.push(Absent { owner, item: name, why });
                continue;
            }
            match plan::read(parts, host, owner, name, None) {
                Ok(Read::Bytes(bytes)) => {
                    if let (Owner::Vcpu(n), "lapic") = (owner, name) {
                        hidden |=
                            before.get(n as usize).is_some_and(|then| lapic::ended_between(then, &bytes));
                    }
                    saved.image.items.push(Item { owner, name: name.to_owned(), bytes });
                }
                Ok(Read::Absent(why)) => saved.absent.push(Absent { owner, item: name, why }),
                Err(error) => {
                    return Err(Refused::call(owner, name, "it cannot be read")(error).hint(GOES_ON));
                }
            }
        }
        if !hidden {
            saved.gaps = told(&saved.image)?;
            return Ok(saved);
        }
    }
    let why = "a timer ends again and again while it is read";
    Err(Refused::new(Owner::Vcpu(0), "lapic", why).hint(GOES_ON))
}

/// The VM was given Xen's interface.
fn has_xen(manifest: &Manifest) -> bool {
    manifest.calls.iter().any(|c| c.call.starts_with("KVM_XEN_"))
}

/// Lets the kernel finish accesses that the guest is waiting for.
fn retire(parts: &mut Parts<'_, '_>) -> Result<(), Refused> {
    for (index, cpu) in (0_u32..).zip(parts.cpus.iter_mut()) {
        if let Some(runner) = cpu.retire.as_mut() {
            stands_still(Owner::Vcpu(index), runner.retire())?;
        }
    }
    Ok(())
}

/// A run that executed nothing came back for nothing else than that.
fn stands_still(owner: Owner, run: Result<Exit, Error>) -> Result<(), Refused> {
    match run {
        // A vCPU that waits for another to start it.
        Ok(Exit::Interrupted) => Ok(()),
        Err(error) if error.errno() == Some(Errno::EAGAIN) => Ok(()),
        Ok(exit) => Err(Refused::new(owner, "", format!("it is waiting for {exit:?}"))
            .hint("the access goes on: answer this exit, and save then")),
        Err(error) => {
            Err(Refused::call(owner, "", "what it is waiting for cannot be finished")(error).hint(GOES_ON))
        }
    }
}

/// Turns timers that expired into interrupts, where only the kernel knows of them. Returns the APICs as they are then.
fn settle(parts: &mut Parts<'_, '_>, host: &Host) -> Result<Vec<Vec<u8>>, Refused> {
    if !host.lapic {
        return Ok(Vec::new());
    }
    let mut all = Vec::with_capacity(parts.cpus.len());
    for (index, cpu) in (0_u32..).zip(parts.cpus.iter_mut()) {
        let owner = Owner::Vcpu(index);
        let look = |bytes: &mut [u8]| {
            groups::fill(cpu.vcpu, &KVM_GET_LAPIC, bytes, 0)
                .map_err(|e| Refused::call(owner, "lapic", "it cannot be read")(e).hint(GOES_ON))
        };
        let mut bytes = vec![0; X86_LAPIC];
        look(&mut bytes)?;
        if let Some(runner) = cpu.retire.as_mut().filter(|_| lapic::may_hide(&bytes)) {
            stands_still(owner, runner.settle())?;
            look(&mut bytes)?;
        }
        all.push(bytes);
    }
    Ok(all)
}

/// What a failed save leaves.
const GOES_ON: &str = "nothing was changed: the guest can go on";
