//! Saving.

use evenkeel_catalog::Arch as CatalogArch;
use evenkeel_surface::Arch;
use evenkeel_sys::Exit;
use evenkeel_sys::layout::X86_LAPIC;
use evenkeel_sys::requests::KVM_GET_LAPIC;

use super::host::Host;
use super::plan::{self, Read};
use super::{groups, lapic};
use crate::order::{Order, Phase};
use crate::{Image, Item, Manifest, Owner, Parts, Refused, Saved};

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
    retire(parts)?;
    for _ in 0..MOST_ROUNDS {
        let before = settle(parts, host)?;
        let mut saved = Saved {
            image: Image { arch: Arch::X86_64, manifest: manifest.clone(), items: Vec::new() },
            absent: Vec::new(),
            found: Vec::new(),
        };
        let mut hidden = false;
        for (owner, name) in plan::all(order, parts.cpus.len()) {
            let item = format_args!("{owner}/{name}").to_string();
            match plan::read(parts, host, owner, name, None) {
                Ok(Read::Bytes(bytes)) => {
                    if let (Owner::Vcpu(n), "lapic") = (owner, name) {
                        hidden |=
                            before.get(n as usize).is_some_and(|then| lapic::ended_between(then, &bytes));
                    }
                    saved.image.items.push(Item { owner, name: name.to_owned(), bytes });
                }
                Ok(Read::Absent(why)) => saved.absent.push((item, why.to_owned())),
                Err(error) => return Err(Refused::new(item, error, "the guest can go on")),
            }
        }
        if !hidden {
            return Ok(saved);
        }
    }
    Err(Refused::new("vcpu/lapic", "a timer ends again and again while it is read", "try again"))
}

/// Lets the kernel finish accesses that the guest is waiting for.
fn retire(parts: &mut Parts<'_, '_>) -> Result<(), Refused> {
    for (index, cpu) in parts.cpus.iter_mut().enumerate() {
        let Some(runner) = cpu.retire.as_mut() else { continue };
        let item = format!("vcpu.{index}");
        match runner.retire() {
            Ok(Exit::Interrupted) => {}
            Ok(exit) => {
                let hint = "the access goes on: answer this exit, and save then";
                return Err(Refused::new(item, format_args!("it is waiting for {exit:?}"), hint));
            }
            Err(error) => return Err(Refused::new(item, error, "the guest can go on")),
        }
    }
    Ok(())
}

/// Turns timers that expired into interrupts, where only the kernel knows of them. Returns the APICs as they are then.
fn settle(parts: &mut Parts<'_, '_>, host: &Host) -> Result<Vec<Vec<u8>>, Refused> {
    if !host.lapic {
        return Ok(Vec::new());
    }
    let mut all = Vec::with_capacity(parts.cpus.len());
    for (index, cpu) in parts.cpus.iter_mut().enumerate() {
        let refused = |error| Refused::new(format_args!("vcpu.{index}/lapic"), error, "the guest can go on");
        let mut bytes = vec![0; X86_LAPIC];
        groups::fill(cpu.vcpu, &KVM_GET_LAPIC, &mut bytes, 0).map_err(refused)?;
        if let Some(runner) = cpu.retire.as_mut().filter(|_| lapic::may_hide(&bytes)) {
            match runner.settle() {
                Ok(Exit::Interrupted) => {}
                Ok(exit) => {
                    let why = format!("it is waiting for {exit:?}");
                    return Err(Refused::new(
                        format_args!("vcpu.{index}"),
                        why,
                        "answer this exit, and save then",
                    ));
                }
                Err(error) => return Err(refused(error)),
            }
            groups::fill(cpu.vcpu, &KVM_GET_LAPIC, &mut bytes, 0).map_err(refused)?;
        }
        all.push(bytes);
    }
    Ok(all)
}
