//! What the kernel tells twice, in two groups, tells the same: a look at what was saved, which asks nothing anew.

use evenkeel_sys::layout::{long, word};

use super::msrs::{MCG_CAP, unpack};
use crate::{Image, Item, Owner, Refused};

/// In SREGS and SREGS2: where, and which MSR it is too. FS and GS base, EFER, APIC_BASE.
const TWICE: [(usize, u32); 4] = [(72, 0xc000_0100), (96, 0xc000_0101), (264, 0xc000_0080), (272, 0x1b)];
/// CR8 in SREGS, and the task priority in the APIC's page: bits 7 to 4 of it.
const CR8: usize = 256;
const TPR: usize = 0x80;

/// Refuses an image in which one of these is not as the other.
pub(super) fn check(image: &Image) -> Result<(), Refused> {
    let vcpus = image.items.iter().filter_map(|item| match item.owner {
        Owner::Vcpu(_) if item.name == "sregs" || item.name == "sregs2" => Some(item),
        _ => None,
    });
    for sregs in vcpus {
        let of = |name: &str| image.item(sregs.owner, name).map(|item| item.bytes.as_slice());
        let all = of("msrs").map(unpack).unwrap_or_default();
        let msr = |number: u32| all.iter().find(|(msr, _)| *msr == number).map(|(_, value)| *value);
        for (at, number) in TWICE {
            if let (Some(here), Some(there)) = (at_long(sregs, at), msr(number)) {
                same(sregs, here, there, &format!("msr.{number:x}"))?;
            }
        }
        if let (Some(cr8), Some(page)) = (at_long(sregs, CR8), of("lapic").filter(|p| p.len() > TPR + 4)) {
            same(sregs, cr8, u64::from(word(page, TPR) >> 4 & 15), "the APIC's task priority")?;
        }
        if let (Some(cap), Some(mce)) = (msr(MCG_CAP), of("mce").filter(|mce| mce.len() == 8)) {
            same(sregs, long(mce, 0), cap, "msr.179")?;
        }
    }
    Ok(())
}

fn at_long(item: &Item, at: usize) -> Option<u64> {
    (item.bytes.len() >= at + 8).then(|| long(&item.bytes, at))
}

fn same(item: &Item, here: u64, there: u64, other: &str) -> Result<(), Refused> {
    if here == there {
        return Ok(());
    }
    let why = format!("the kernel says {here:#x}, and of the same as {other} {there:#x}");
    Err(Refused::new(item.owner, &item.name, why).hint(super::save::GOES_ON))
}
