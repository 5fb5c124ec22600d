//! What the kernel tells twice, in two groups, tells the same: a look at what was saved, which asks nothing anew. There is little
//! of it: EFER, APIC_BASE, FS and GS base are not among the MSRs that KVM lists, and are saved once.

use evenkeel_sys::layout::{long, word};

use super::msrs::{MCG_CAP, unpack};
use crate::{Image, Item, Owner, Refused};

/// CR8 in SREGS, and the task priority in the APIC's page: bits 7 to 4 of it.
const CR8: usize = 256;
const TPR: usize = 0x80;

/// Refuses an image in which one of these is not as the other.
pub(super) fn check(image: &Image) -> Result<(), Refused> {
    let vcpus = image.items.iter().filter(|item| {
        matches!(item.owner, Owner::Vcpu(_)) && matches!(item.name.as_str(), "sregs" | "sregs2")
    });
    for sregs in vcpus {
        let of = |name: &str| image.item(sregs.owner, name).map(|item| item.bytes.as_slice());
        let all = of("msrs").map(unpack).unwrap_or_default();
        let msr = |number: u32| all.iter().find(|(msr, _)| *msr == number).map(|(_, value)| *value);
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

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use evenkeel_capsule::Reader;

    use super::*;
    use crate::file::{Guest, known};

    /// Of three kernels and two makers' CPUs.
    #[test]
    fn saved_guests_agree_and_altered_ones_do_not() {
        for kind in ["eager", "lazy", "zstd"] {
            let path = format!("{}/../../tests/compat/v1/x86-{kind}.capsule", env!("CARGO_MANIFEST_DIR"));
            let bytes = std::fs::read(path).unwrap();
            let image = Guest::read(&mut Reader::open(Cursor::new(bytes), &known).unwrap()).unwrap().image;
            check(&image).unwrap();
            if image.item(Owner::Vcpu(0), "lapic").is_none() {
                continue;
            }
            let at = image.items.iter().position(|item| item.name.starts_with("sregs")).unwrap();
            {
                let mut altered = image.clone();
                altered.items[at].bytes[CR8] ^= 8;
                assert_eq!(check(&altered).unwrap_err().item, image.items[at].name, "{kind}");
            }
        }
    }
}
