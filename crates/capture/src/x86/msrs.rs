//! MSRs as items of state: listed, readable, taken back.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_surface::{Hex32, Hex64, MsrItem, Write};
use evenkeel_sys::requests::KVM_GET_MSR_INDEX_LIST;
use evenkeel_sys::{Error as CallError, Refusal, System, Vcpu};

use crate::Parts;

/// Asked whatever the catalog says: last-branch and last-exception records, which a host may take without listing them,
/// or list without an older one taking them.
const ALWAYS: std::ops::RangeInclusive<u32> = 0x1db..=0x1de;

/// What reading told, before anything was written.
pub(crate) struct Reset {
    listed: BTreeSet<u32>,
    /// A value; `None`: KVM does not give one. MSRs whose reading failed otherwise are in the book only.
    values: BTreeMap<u32, Option<u64>>,
}

/// Refused for itself, rather than the whole ioctl having failed.
fn is_refused(error: &CallError) -> bool {
    error.why == Refusal::NotProcessed
}

/// Reads every MSR that the host lists, and these.
pub(crate) fn read(system: &System<'_>, vcpu: &Vcpu<'_>, others: &[u32], parts: &mut Parts) -> Reset {
    let list = parts.book.ask("msr-index-list", system.msr_list(&KVM_GET_MSR_INDEX_LIST));
    let listed: BTreeSet<u32> = list.unwrap_or_default().into_iter().collect();
    let others = others.iter().copied().chain(ALWAYS);
    let asked: BTreeSet<u32> = listed.iter().copied().chain(others).collect();
    let asked: Vec<u32> = asked.into_iter().collect();
    let mut values = BTreeMap::new();
    for (&msr, value) in asked.iter().zip(vcpu.msrs().get(&asked)) {
        match value {
            Ok(value) => drop(values.insert(msr, Some(value))),
            Err(error) if is_refused(&error) => drop(values.insert(msr, None)),
            Err(error) => parts.book.note(format_args!("msr.{msr:x}"), &error),
        }
    }
    Reset { listed, values }
}

/// Reads again, to see which run; writes back what was read, and 0 to those that give no value; and reads a last time.
pub(crate) fn write_back(vcpu: &Vcpu<'_>, reset: Reset, parts: &mut Parts) {
    let msrs = vcpu.msrs();
    let readable: Vec<(u32, u64)> =
        reset.values.iter().filter_map(|(&msr, value)| Some((msr, (*value)?))).collect();
    let numbers: Vec<u32> = readable.iter().map(|&(msr, _)| msr).collect();
    let mut running = BTreeSet::new();
    for (&(msr, first), second) in readable.iter().zip(msrs.get(&numbers)) {
        let catalogued = evenkeel_catalog::msr(msr).is_some_and(|m| m.running);
        match second {
            Ok(second) if second == first && !catalogued => {}
            Ok(_) => drop(running.insert(msr)),
            Err(error) => parts.book.note(format_args!("msr.{msr:x}"), &error),
        }
    }

    // A running one set back would be a step in time, which another state item may notice.
    let still: Vec<(u32, u64)> = readable.iter().copied().filter(|(msr, _)| !running.contains(msr)).collect();
    let silent = reset.values.iter().filter(|(_, value)| value.is_none()).map(|(&msr, _)| (msr, 0));
    let tried: Vec<(u32, u64)> = still.into_iter().chain(silent).collect();
    let mut writes = BTreeMap::new();
    let mut taken = Vec::new();
    for (&(msr, value), set) in tried.iter().zip(msrs.set(&tried)) {
        match set {
            Ok(()) if reset.values[&msr].is_some() => taken.push((msr, value)),
            // Taken, but it does not read: that it was kept is more than anybody can say.
            Ok(()) => drop(writes.insert(msr, Write::Altered)),
            Err(error) if is_refused(&error) => drop(writes.insert(msr, Write::Refused)),
            Err(error) => {
                parts.book.note(format_args!("msr.{msr:x}"), &error);
            }
        }
    }
    let numbers: Vec<u32> = taken.iter().map(|&(msr, _)| msr).collect();
    for (&(msr, value), now) in taken.iter().zip(msrs.get(&numbers)) {
        match now {
            Ok(now) => drop(writes.insert(msr, if now == value { Write::Kept } else { Write::Altered })),
            Err(error) => parts.book.note(format_args!("msr.{msr:x}"), &error),
        }
    }

    for (&msr, &value) in &reset.values {
        let listed = reset.listed.contains(&msr);
        let write = writes.get(&msr).copied().unwrap_or_default();
        if !listed && value.is_none() && write == Write::Refused {
            parts.offer.msrs_refused.push(Hex32(msr));
            continue;
        }
        let running = running.contains(&msr);
        let reset = if running { None } else { value.map(Hex64) };
        parts.offer.msrs.push(MsrItem { msr: Hex32(msr), listed, reset, running, write });
    }
}
