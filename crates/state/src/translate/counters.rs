//! Bits of counters that the guest does not have, in the registers of its PMU that have a bit for each counter.
//!
//! A kernel that fills such a register with a pattern saves the pattern (5.10). Its guest never sees it. On a kernel that
//! stores what it is given and shows what it stored (6.1) it would, could not clear it, and would be sent interrupts of
//! counters that there are not.

use evenkeel_catalog as catalog;
use evenkeel_contract::view::ItemKey;

use super::{Destination, Rewrite};
use crate::entries::{self, Entry, Key};
use crate::{Image, Owner};

/// PMCR_EL0, whose bits 15:11 (N) count the event counters, and the bit of the cycle counter.
const PMCR: u64 = 0x6030_0000_0013_dce0;
const CYCLES: u64 = 1 << 31;

const BECAUSE: &str = "the bits are those of counters that the guest does not have, and mean nothing";

/// Clears them, but for those that the host itself has in a fresh vCPU.
pub(super) fn apply(to: &Destination<'_>, image: &mut Image, at: usize, log: &mut Vec<Rewrite>) {
    let item = &image.items[at];
    let Some(mut kept) = entries::of(item) else { return };
    let changes = |entry: &Entry| {
        let Key::Reg(id) = entry.key else { return None };
        catalog::reg(id).filter(|reg| reg.counters)?;
        let held = super::number(&entry.value)?;
        let there = to.shows(ItemKey::Reg(id)).unwrap_or(0);
        let meant = held & (counters(image, item.owner)? | there);
        (meant != held && entry.value.len() == 8).then(|| meant.to_le_bytes().to_vec())
    };
    let (owner, section) = (item.owner, item.name.clone());
    for (place, entry) in (0..).zip(&mut kept) {
        let Some(meant) = changes(entry) else { continue };
        let before = std::mem::replace(&mut entry.value, meant.clone());
        log.push(Rewrite {
            owner,
            section: section.clone(),
            part: entry.key().to_string(),
            place,
            translator: "counters-that-are".to_owned(),
            before,
            after: Some(meant),
            because: BECAUSE.to_owned(),
        });
    }
    entries::put(&mut image.items[at], &kept);
}

/// The bits of the counters that a vCPU has; none where its PMCR_EL0 was not saved.
fn counters(image: &Image, owner: Owner) -> Option<u64> {
    let of_vcpu = image.items.iter().filter(|item| item.owner == owner).filter_map(entries::of);
    let control = of_vcpu.flatten().find(|entry| entry.key == Key::Reg(PMCR))?;
    let events = super::number(&control.value)? >> 11 & 0x1f;
    Some(((1 << events) - 1) | CYCLES)
}
