//! Saving.

use std::time::Instant;

use evenkeel_catalog::Arch as CatalogArch;
use evenkeel_surface::Arch;
use evenkeel_sys::layout::X86_LAPIC;
use evenkeel_sys::requests::KVM_GET_LAPIC;
use evenkeel_sys::{Errno, Error, Exit};

use super::host::Host;
use super::plan::{self, Read};
use super::{agree, groups, lapic};
use crate::gaps::told;
use crate::order::{Order, Phase};
use crate::{Absent, Elapsed, Image, Item, Manifest, Owner, Parts, Refused, Saved, compare};

/// How often a vCPU whose timer ends during the save is looked at again.
const MOST_ROUNDS: usize = 8;
/// How often a save is repeated until two agree.
const MOST_READS: usize = 3;

/// Reads the state of a VM whose vCPUs stand still. Whatever comes of it, the guest can go on.
///
/// # Errors
/// Something cannot be read: nothing is saved by halves.
pub fn save(parts: &mut Parts<'_, '_>, manifest: &Manifest) -> Result<Saved, Refused> {
    let host = Host::ask(parts)?;
    save_with(parts, manifest, &host, Order::catalogued(CatalogArch::X86_64, Phase::Save))
}

/// Saves until two saves, one after the other, agree in all that does not run by itself: a byte that the kernel, or what lies between,
/// told otherwise than it is goes by only if it is told twice. It takes twice as long.
///
/// # Errors
/// As [`save`]; or one save after the other is different, which names the first part that is.
pub fn save_verified(parts: &mut Parts<'_, '_>, manifest: &Manifest) -> Result<Saved, Refused> {
    let mut begin = Instant::now();
    let mut before = save(parts, manifest)?;
    let mut last = None;
    // A timer that ends between two is no lie.
    for _ in 0..MOST_READS {
        let again = Instant::now();
        let after = save(parts, manifest)?;
        match compare(&before.image, &after.image, Elapsed::of(begin.elapsed())).into_iter().next() {
            None => return Ok(after),
            other => last = other,
        }
        (begin, before) = (again, after);
    }
    let (owner, item) = last.as_ref().map_or((Owner::Vm, ""), |d| (d.owner, d.section.as_str()));
    let why =
        last.as_ref().map_or(String::new(), |d| format!("what is read is not what was read before: {d}"));
    Err(Refused::new(owner, item, why).hint(GOES_ON))
}

/// The same as [`save`], with what was asked of the host earlier, and in this order.
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
            agree::check(&saved.image)?;
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
pub(super) const GOES_ON: &str = "nothing was changed: the guest can go on";
