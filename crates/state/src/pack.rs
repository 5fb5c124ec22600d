//! The bytes of items that are many small things, packed and unpacked: see [`Item`](crate::Item). As lists, whatever they hold:
//! [`entries`](crate::entries).

use std::fmt;

/// A packed payload that is not what it should be, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Offset of the entry.
    pub at: usize,
    /// Why.
    pub why: &'static str,
}

impl fmt::Display for Unpacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.why, self.at)
    }
}

/// The bytes of a register, from bits 52 to 55 of its id; KVM_REG_SIZE_MAX is 2048 bits, larger codes are not defined.
pub fn register_size(id: u64) -> Option<usize> {
    let code = id >> 52 & 0xf;
    (code <= 8).then(|| 1 << code)
}

/// Packs registers.
pub fn pack_registers<'v>(registers: impl IntoIterator<Item = (u64, &'v [u8])>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (id, value) in registers {
        bytes.extend(id.to_le_bytes());
        bytes.extend(value);
        pad(&mut bytes);
    }
    bytes
}

/// Takes registers apart.
///
/// # Errors
/// The payload ends within an entry, an id has no size, or what fills it up is not 0.
pub fn unpack_registers(bytes: &[u8]) -> Result<Vec<(u64, &[u8])>, Unpacked> {
    let mut registers = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let bad = |why| Unpacked { at, why };
        let id = bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        let id = id.ok_or(bad("an entry that is cut off"))?;
        let size = register_size(id).ok_or(bad("a register without a size"))?;
        let (value, next) = value(bytes, at + 8, size).map_err(bad)?;
        registers.push((id, value));
        at = next;
    }
    Ok(registers)
}

/// An attribute of a device or a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attribute<'v> {
    /// KVM_DEV_ARM_VGIC_GRP_* and the like.
    pub group: u32,
    /// Which of the group.
    pub attr: u64,
    /// Its value.
    pub value: &'v [u8],
}

/// Packs attributes.
pub fn pack_attributes<'v>(attributes: impl IntoIterator<Item = Attribute<'v>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for attribute in attributes {
        bytes.extend(attribute.group.to_le_bytes());
        bytes.extend((attribute.value.len() as u32).to_le_bytes());
        bytes.extend(attribute.attr.to_le_bytes());
        bytes.extend(attribute.value);
        pad(&mut bytes);
    }
    bytes
}

/// Takes attributes apart.
///
/// # Errors
/// The payload ends within an entry, a length is absurd, or what fills it up is not 0.
pub fn unpack_attributes(bytes: &[u8]) -> Result<Vec<Attribute<'_>>, Unpacked> {
    let mut attributes = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let bad = |why| Unpacked { at, why };
        let word =
            |from: usize| bytes.get(from..from + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        let attr = bytes.get(at + 8..at + 16).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        let (Some(group), Some(length), Some(attr)) = (word(at), word(at + 4), attr) else {
            return Err(bad("an entry that is cut off"));
        };
        let length = usize::try_from(length).ok().filter(|length| *length <= 4096);
        let (value, next) =
            value(bytes, at + 16, length.ok_or(bad("a length that is absurd"))?).map_err(bad)?;
        attributes.push(Attribute { group, attr, value });
        at = next;
    }
    Ok(attributes)
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}

/// A value and where the next entry begins.
fn value(bytes: &[u8], at: usize, size: usize) -> Result<(&[u8], usize), &'static str> {
    let next = (at + size).next_multiple_of(8);
    let whole = bytes.get(at..next).ok_or("an entry that is cut off")?;
    let (value, padding) = whole.split_at(size);
    if padding.iter().any(|byte| *byte != 0) {
        return Err("an entry that is not filled up with 0");
    }
    Ok((value, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    const X0: u64 = 0x6030_0000_0010_0000;
    const V0: u64 = 0x6040_0000_0010_0054;
    const FPSR: u64 = 0x6020_0000_0010_00d4;

    #[test]
    fn registers_are_unpacked_as_they_were_packed() {
        let values: [(u64, &[u8]); 3] = [(X0, &[1; 8]), (V0, &[2; 16]), (FPSR, &[3; 4])];
        let bytes = pack_registers(values);
        assert_eq!(bytes.len(), 16 + 24 + 16);
        assert_eq!(unpack_registers(&bytes).unwrap(), values);
        for cut in 1..bytes.len() {
            let whole = [0, 16, 40].contains(&cut);
            assert_eq!(unpack_registers(&bytes[..cut]).is_ok(), whole, "{cut}");
        }
        let mut dirty = bytes;
        *dirty.last_mut().unwrap() = 1;
        assert_eq!(unpack_registers(&dirty).unwrap_err().at, 40);
        assert!(unpack_registers(&u64::MAX.to_le_bytes()).is_err());
    }

    #[test]
    fn attributes_are_unpacked_as_they_were_packed() {
        let values = [
            Attribute { group: 1, attr: 0x80, value: &[1, 2, 3, 4] },
            Attribute { group: 6, attr: 0xc663, value: &[5; 8] },
            Attribute { group: 4, attr: 0, value: &[] },
        ];
        let bytes = pack_attributes(values);
        assert_eq!(bytes.len(), 24 + 24 + 16);
        assert_eq!(unpack_attributes(&bytes).unwrap(), values);
        for cut in 1..bytes.len() {
            let whole = [24, 48].contains(&cut);
            assert_eq!(unpack_attributes(&bytes[..cut]).is_ok(), whole, "{cut}");
        }
        let mut lying = bytes;
        lying[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(
            unpack_attributes(&lying).unwrap_err(),
            Unpacked { at: 0, why: "a length that is absurd" }
        );
    }
}
