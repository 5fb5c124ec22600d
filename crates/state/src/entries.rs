//! Items that are lists of small things, as lists: MSRs, and registers by id. Their bytes are the business of `pack`.

use evenkeel_sys::layout::{X86_MSR_ENTRY, word};

use crate::{Item, pack_registers, unpack_registers};

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
    const NAMES: [&str; 6] = [
        "registers",
        "arm64-registers",
        "arm64-id-registers",
        "arm64-firmware-registers",
        "arm64-counters",
        "one-regs",
    ];
    NAMES.contains(&item.name.as_str())
}

/// The entries, in their order; none for an item that is no such list, or is cut off.
pub fn of(item: &Item) -> Option<Vec<Entry>> {
    if is_msrs(item) {
        let whole = item.bytes.len().is_multiple_of(X86_MSR_ENTRY);
        let entry = |e: &[u8]| Entry { key: Key::Msr(word(e, 0)), value: e[8..16].to_vec() };
        return whole.then(|| item.bytes.chunks_exact(X86_MSR_ENTRY).map(entry).collect());
    }
    if !is_registers(item) {
        return None;
    }
    let registers = unpack_registers(&item.bytes).ok()?;
    Some(
        registers.into_iter().map(|(id, value)| Entry { key: Key::Reg(id), value: value.to_vec() }).collect(),
    )
}

/// Packs entries as the item's payload. Entries of another kind are not in it.
pub fn put(item: &mut Item, entries: &[Entry]) {
    if is_msrs(item) {
        let packed = |entry: &Entry| match entry.key {
            Key::Msr(msr) => [&u64::from(msr).to_le_bytes(), entry.value.as_slice()].concat(),
            Key::Reg(_) => Vec::new(),
        };
        item.bytes = entries.iter().flat_map(packed).collect();
        return;
    }
    let register = |entry: &Entry| match entry.key {
        Key::Reg(id) => Some(id),
        Key::Msr(_) => None,
    };
    item.bytes = pack_registers(entries.iter().filter_map(|e| Some((register(e)?, e.value.as_slice()))));
}
