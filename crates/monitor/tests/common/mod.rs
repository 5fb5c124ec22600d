//! A kernel of a few instructions.

use std::fs::File;
use std::io::{Seek, Write};

/// Where its code is.
pub const CODE: u64 = 0x10_0000;
/// Where in the file its note is, where it has one; the code is at 0x1000.
const NOTE: u64 = 0x800;

/// An ELF file of this code, which begins at its first instruction; `note`: one of XEN_ELFNOTE_PHYS32_ENTRY, with this entry.
pub fn elf(code: &[u8], note: Option<u32>) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend([2_u16, 0x3e].iter().flat_map(|n| n.to_le_bytes()));
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend([CODE, 64, 0].iter().flat_map(|n| n.to_le_bytes()));
    bytes.extend(0_u32.to_le_bytes());
    let headers = 1 + u16::from(note.is_some());
    bytes.extend([64_u16, 56, headers, 0, 0, 0].iter().flat_map(|n| n.to_le_bytes()));
    let mut segment = |kind: u32, at: u64, to: u64, length: u64, align: u64| {
        bytes.extend([kind, 5].iter().flat_map(|n| n.to_le_bytes()));
        bytes.extend([at, to, to, length, length, align].iter().flat_map(|n| n.to_le_bytes()));
    };
    segment(1, 0x1000, CODE, code.len() as u64, 0x1000);
    if let Some(entry) = note {
        segment(4, NOTE, 0, 20, 4);
        bytes.resize(NOTE as usize, 0);
        // Lengths of name and value, type; name; value.
        bytes.extend([4, 4, 18, u32::from_le_bytes(*b"Xen\0"), entry].iter().flat_map(|n| n.to_le_bytes()));
    }
    bytes.resize(0x1000, 0);
    bytes.extend(code);
    bytes
}

/// These bytes as a file.
#[allow(dead_code, reason = "not every test boots it")]
pub fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}
