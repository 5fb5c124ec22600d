//! Saving.

use evenkeel_catalog::Arch as Catalogued;
use evenkeel_surface::Arch;
use evenkeel_sys::{Errno, Exit};

use super::read::{self, Purpose};
use super::sections::Devices;
use super::{ask, sections};
use crate::gaps::gaps;
use crate::image::{Image, Item, Owner};
use crate::manifest::Manifest;
use crate::order::{Order, Phase};
use crate::outcome::{Absent, Found, Refused, Saved};
use crate::parts::Parts;
use crate::registers::SVE_VECTOR_LENGTHS;

/// Saves all state of a VM. Guest memory is to be copied afterwards: pending LPIs and the tables of the ITS are written into
/// it. The VM can go on whatever this returns.
///
/// # Errors
/// Something cannot be read, or cannot be saved at all; it is named.
pub fn save(parts: &mut Parts<'_, '_>, manifest: &Manifest) -> Result<Saved, Refused> {
    save_in(parts, manifest, Order::catalogued(Catalogued::Aarch64, Phase::Save))
}

/// The same in another order than the catalog's, which is good for showing what an edge is there for.
///
/// # Errors
/// As [`save`].
pub fn save_in(parts: &mut Parts<'_, '_>, manifest: &Manifest, order: &Order) -> Result<Saved, Refused> {
    let devices = sections::saveable(manifest)?;
    retire(parts)?;
    let mut lengths = Vec::new();
    for (index, cpu) in parts.cpus.iter().enumerate() {
        // Listed only where the vCPU was given SVE.
        let read = match ask::register(cpu.vcpu, SVE_VECTOR_LENGTHS) {
            Ok(bytes) => Some(bytes),
            Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::EINVAL)) => None,
            Err(error) => {
                let owner = Owner::Vcpu(index as u32);
                return Err(Refused::call(owner, "reg.606000000015ffff", "it cannot be read")(error));
            }
        };
        lengths.push(read);
    }
    let items = read::all(parts, &devices, order, Purpose::Save)?;
    let manifest = sections::with_lengths(manifest, &lengths);
    let absent = absent(parts, &devices, &items);
    let image = Image { arch: Arch::Aarch64, manifest, items };
    let mut found = Vec::new();
    for seen in gaps(&image) {
        if seen.refuses() {
            return Err(Refused::new(seen.owner, seen.gap.id, format!("{}: {}", seen.gap.title, seen.seen)));
        }
        found.push(Found { gap: seen.gap.id.to_owned(), owner: seen.owner, what: seen.seen });
    }
    Ok(Saved { image, gaps: found, absent })
}

/// Has the kernel carry out what the last exit of each vCPU left open: the result of a load that the VMM answered is still
/// to go into its register, and the instruction to be passed.
fn retire(parts: &mut Parts<'_, '_>) -> Result<(), Refused> {
    for (index, cpu) in parts.cpus.iter_mut().enumerate() {
        let Some(runner) = cpu.retire.as_mut() else { continue };
        let owner = Owner::Vcpu(index as u32);
        match runner.retire().map_err(Refused::call(owner, "run", "what is pending cannot be retired"))? {
            Exit::Interrupted => {}
            exit => {
                return Err(Refused::new(
                    owner,
                    "run",
                    format!("the vCPU has an exit that nobody saw to: {exit:?}"),
                )
                .hint("answer it, then save"));
            }
        }
    }
    Ok(())
}

/// Groups that are not there, and why.
fn absent(parts: &Parts<'_, '_>, devices: &Devices, items: &[Item]) -> Vec<Absent> {
    let vcpus = (0..parts.cpus.len() as u32).map(Owner::Vcpu);
    let each = vcpus.flat_map(|owner| read::PER_VCPU.iter().map(move |item| (owner, *item)));
    each.chain(read::PER_VM.iter().map(|item| (Owner::Vm, *item)))
        .filter(|(owner, name)| !items.iter().any(|item| item.owner == *owner && item.name == *name))
        .map(|(owner, item)| {
            let why = match item {
                _ if item.starts_with("vgic-v3") && devices.gic.is_none() => "the VM has no GICv3",
                _ if (item.starts_with("its") || item == "vgic-v3-pending-lpis") && devices.its.is_none() => {
                    "the VM has no ITS"
                }
                "arm64-pvtime" => "no page for stolen time was given",
                _ => "the host does not have it",
            };
            Absent { owner, item, why }
        })
        .collect()
}
