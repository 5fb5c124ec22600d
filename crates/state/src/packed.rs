//! Items that are lists of small things: MSRs, and registers by id. The packed forms are described at [`Item`].

use evenkeel_sys::layout::{X86_MSR_ENTRY, long, word};

use crate::Item;

/// One small thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which.
    pub key: Key,
    /// Its bytes, little-endian: 8 of an MSR, as many as the id says of a register.
    pub value: Vec<u8>,
}

/// What an [`Entry`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// An MSR's number.
    Msr(u32),
    /// A ONE_REG id.
    Reg(u64),
}

impl Key {
    /// From `msr.1db`, `reg.603000000013c4f6`.
    pub fn parse(name: &str) -> Option<Key> {
        let (kind, digits) = name.split_once('.')?;
        match kind {
            "msr" => u32::from_str_radix(digits, 16).ok().map(Key::Msr),
            "reg" => u64::from_str_radix(digits, 16).ok().map(Key::Reg),
            _ => None,
        }
    }
}

/// How an item is packed.
fn is_msrs(item: &Item) -> bool {
    item.name == "msrs"
}

fn is_registers(item: &Item) -> bool {
    matches!(item.name.as_str(), "registers" | "arm64-registers" | "one-regs")
}

/// The entries, in their order; none for an item that is no such list, or is cut off.
pub fn entries(item: &Item) -> Option<Vec<Entry>> {
    if is_msrs(item) {
        let whole = item.bytes.len() % X86_MSR_ENTRY == 0;
        let entry = |e: &[u8]| Entry { key: Key::Msr(word(e, 0)), value: e[8..16].to_vec() };
        return whole.then(|| item.bytes.chunks_exact(X86_MSR_ENTRY).map(entry).collect());
    }
    if !is_registers(item) {
        return None;
    }
    let mut entries = Vec::new();
    let mut rest = item.bytes.as_slice();
    while !rest.is_empty() {
        let id = rest.get(..8).map(|_| long(rest, 0))?;
        let size = 1_usize.checked_shl(u32::try_from(id >> 52 & 0xf).ok()?).filter(|size| *size <= 256)?;
        let value = rest.get(8..8 + size)?.to_vec();
        rest = rest.get(8 + size.next_multiple_of(8)..)?;
        entries.push(Entry { key: Key::Reg(id), value });
    }
    Some(entries)
}

/// Packs entries as the item's payload. Entries of another kind are not in it.
pub fn put(item: &mut Item, entries: &[Entry]) {
    let msrs = is_msrs(item);
    item.bytes.clear();
    for entry in entries {
        match entry.key {
            Key::Msr(msr) if msrs => {
                item.bytes.extend(u64::from(msr).to_le_bytes());
                item.bytes.extend(&entry.value);
            }
            Key::Reg(id) if !msrs => {
                item.bytes.extend(id.to_le_bytes());
                item.bytes.extend(&entry.value);
                item.bytes.resize(item.bytes.len().next_multiple_of(8), 0);
            }
            _ => {}
        }
    }
}
