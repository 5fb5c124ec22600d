//! The header and the table of sections, byte by byte.
//!
//! | at | bytes | header |
//! |---|---|---|
//! | 0 | 8 | magic: `89 45 56 4b 0d 0a 1a 0a`, which does not survive a transfer as text |
//! | 8 | 2 | format version |
//! | 10 | 2 | the oldest reader that can read all of it |
//! | 12 | 2 | architecture, as ELF's `e_machine`: 62 x86, 183 arm64 |
//! | 14 | 2 | flags: 1 lazy, 2 compressed |
//! | 16 | 4 | page size: where memory begins, and what its offsets are multiples of if it is lazy |
//! | 20 | 4 | number of sections |
//! | 24 | 4 | bytes of an entry of the table: 128, later perhaps more |
//! | 28 | 4 | bytes of this header: 128 |
//! | 32 | 8 | bytes of the file |
//! | 40 | 16 | id of what was saved: random |
//! | 56 | 40 | 0 |
//! | 96 | 32 | root: BLAKE3 over the 96 bytes before and the table |
//!
//! | at | bytes | entry of the table |
//! |---|---|---|
//! | 0 | 64 | name, filled up with 0 |
//! | 64 | 2 | version |
//! | 66 | 2 | the oldest reader that can read this version |
//! | 68 | 4 | flags: 1 critical, 2 in chunks (the digest is that of `memory.index`) |
//! | 72 | 8 | offset in the file |
//! | 80 | 8 | length |
//! | 88 | 32 | BLAKE3 of the section |
//! | 120 | 8 | 0 |

use std::fmt;

use evenkeel_surface::Arch;

use crate::error::{Refused, Why};

/// The first bytes of every capsule.
pub const MAGIC: [u8; 8] = *b"\x89EVK\r\n\x1a\n";
/// Bytes of the header.
pub const HEADER: usize = 128;
/// Bytes of an entry of the table.
pub const ENTRY: usize = 128;
/// Bytes of a name.
pub const NAME: usize = 64;
/// Sections that are taken at most: 1,024 vCPUs have some 20 each.
pub const MAX_SECTIONS: u32 = 1 << 16;
/// Bytes of a section that are taken at most; memory apart.
pub const MAX_SECTION: u64 = 64 << 20;
/// Bytes of all sections together that are taken at most; memory apart.
pub const MAX_SECTIONS_BYTES: u64 = 256 << 20;
/// Pages that memory can be aligned to.
pub const PAGES: [u32; 3] = [4096, 16384, 65536];
/// Sections begin at multiples of this.
pub const ALIGN: u64 = 8;

const LAZY: u16 = 1;
const COMPRESSED: u16 = 2;
const CRITICAL: u32 = 1;
const CHUNKED: u32 = 2;
const ROOT: usize = 96;
/// An entry that a later format made longer is still taken, up to this.
const MAX_ENTRY: u32 = 1024;

/// What was saved: random, made when the guest was saved. Copies and rewritten forms of a capsule have the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub [u8; 16]);

/// A capsule's identity: BLAKE3 over all of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Root(pub [u8; 32]);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("blake3:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The format's version.
    pub format: u16,
    /// The oldest reader that can read all of it.
    pub reader: u16,
    /// The guest's architecture.
    pub arch: Arch,
    /// Memory is held whole, to be mapped.
    pub lazy: bool,
    /// Some chunks of memory are compressed.
    pub compressed: bool,
    /// Page size in bytes.
    pub page: u32,
    /// Bytes of the file.
    pub length: u64,
    /// What was saved.
    pub id: Id,
    /// The capsule's identity.
    pub root: Root,
}

/// What the table says of a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name: `contract`, `vm/clock`, `vcpu.3/sregs2`, `memory`.
    pub name: String,
    /// Its version.
    pub version: u16,
    /// The oldest reader that can read this version.
    pub reader: u16,
    /// A reader that does not know it must stop.
    pub critical: bool,
    /// It is memory: the digest is that of its index, which holds one for each chunk.
    pub chunked: bool,
    /// Where it begins in the file.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
    /// BLAKE3.
    pub digest: [u8; 32],
}

/// The header as it is in the file, before anything in it is believed.
pub(crate) struct Raw {
    bytes: [u8; HEADER],
    /// Sections.
    pub sections: u32,
    /// Bytes of an entry.
    pub entry: u32,
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Thirty-two bytes at a place.
pub(crate) fn digest_at(bytes: &[u8], at: usize) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(&bytes[at..at + 32]);
    digest
}

fn root_of(head: &[u8], table: &[u8]) -> Root {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head[..ROOT]);
    hasher.update(table);
    Root(*hasher.finalize().as_bytes())
}

impl Raw {
    /// Believes only what is needed to find the table.
    pub fn new(bytes: [u8; HEADER]) -> Result<Raw, Refused> {
        if bytes[..8] != MAGIC {
            return Err(Refused::new("header", 0, Why::NotACapsule));
        }
        let raw = Raw { sections: u32_at(&bytes, 20), entry: u32_at(&bytes, 24), bytes };
        let lies = |at, what| Err(Refused::lies("header", at, what));
        if raw.sections == 0 || raw.sections > MAX_SECTIONS {
            return lies(20, format!("it has {} sections; 1 to {MAX_SECTIONS} are taken", raw.sections));
        }
        if raw.entry < ENTRY as u32 || raw.entry > MAX_ENTRY || !raw.entry.is_multiple_of(8) {
            return lies(24, format!("entries of the table have {} bytes", raw.entry));
        }
        if u32_at(&raw.bytes, 28) != HEADER as u32 {
            return lies(
                28,
                format!("the header has {} bytes, and it always has {HEADER}", u32_at(&raw.bytes, 28)),
            );
        }
        Ok(raw)
    }

    /// Bytes of the table.
    pub fn table(&self) -> usize {
        self.sections as usize * self.entry as usize
    }

    /// The header and the entries, once the root was seen to be that of both.
    pub fn parse(&self, table: &[u8]) -> Result<(Header, Vec<Entry>), Refused> {
        let root = root_of(&self.bytes, table);
        if root.0 != digest_at(&self.bytes, ROOT) {
            return Err(Refused::new("header", 0, Why::Damaged));
        }
        let entries: Vec<Entry> = table
            .chunks_exact(self.entry as usize)
            .enumerate()
            .map(|(i, bytes)| Entry::parse(bytes, (HEADER + i * self.entry as usize) as u64))
            .collect::<Result<_, _>>()?;
        let header = self.header(root, &entries)?;
        Ok((header, entries))
    }

    fn header(&self, root: Root, entries: &[Entry]) -> Result<Header, Refused> {
        let bytes = &self.bytes;
        let (format, reader) = (u16_at(bytes, 8), u16_at(bytes, 10));
        // The entries first: they say which section it is that asks for a newer reader.
        if let Some((i, entry)) = entries.iter().enumerate().find(|(_, entry)| entry.reader > crate::READER) {
            let offset = (HEADER + i * self.entry as usize) as u64;
            let why = Why::TooNew { version: entry.version, known: 0, reader: entry.reader };
            return Err(Refused::new(&entry.name, offset, why));
        }
        if reader > crate::READER {
            return Err(Refused::new("header", 10, Why::TooNew { version: format, known: 0, reader }));
        }
        let lies = |at, what| Err(Refused::lies("header", at, what));
        if format == 0 || reader == 0 || reader > format {
            return lies(8, format!("format {format} for readers from {reader}"));
        }
        let arch = match u16_at(bytes, 12) {
            62 => Arch::X86_64,
            183 => Arch::Aarch64,
            other => return lies(12, format!("architecture {other} is neither 62 (x86) nor 183 (arm64)")),
        };
        let flags = u16_at(bytes, 14);
        if flags & !(LAZY | COMPRESSED) != 0 || flags == LAZY | COMPRESSED {
            return lies(14, format!("flags {flags:#x}"));
        }
        let page = u32_at(bytes, 16);
        if !PAGES.contains(&page) {
            return lies(16, format!("pages of {page} bytes"));
        }
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[40..56]);
        if bytes[56..ROOT].iter().any(|&b| b != 0) {
            return lies(56, "what has to be 0 is not".to_owned());
        }
        let (lazy, compressed) = (flags & LAZY != 0, flags & COMPRESSED != 0);
        Ok(Header {
            format,
            reader,
            arch,
            lazy,
            compressed,
            page,
            length: u64_at(bytes, 32),
            id: Id(id),
            root,
        })
    }
}

impl Header {
    /// The bytes of header and table; sets `root`.
    pub(crate) fn print(&mut self, entries: &[Entry]) -> Vec<u8> {
        let mut out = vec![0; HEADER];
        let machine: u16 = match self.arch {
            Arch::X86_64 => 62,
            Arch::Aarch64 => 183,
        };
        let flags = if self.lazy { LAZY } else { 0 } | if self.compressed { COMPRESSED } else { 0 };
        out[..8].copy_from_slice(&MAGIC);
        for (at, value) in [(8, self.format), (10, self.reader), (12, machine), (14, flags)] {
            out[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        for (at, value) in
            [(16, self.page), (20, entries.len() as u32), (24, ENTRY as u32), (28, HEADER as u32)]
        {
            out[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        out[32..40].copy_from_slice(&self.length.to_le_bytes());
        out[40..56].copy_from_slice(&self.id.0);
        let table: Vec<u8> = entries.iter().flat_map(Entry::print).collect();
        self.root = root_of(&out, &table);
        out[ROOT..].copy_from_slice(&self.root.0);
        out.extend_from_slice(&table);
        out
    }
}

/// A name is words of small letters, digits, dots and dashes between slashes.
pub(crate) fn good_name(name: &str) -> bool {
    let word = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
    };
    name.len() <= NAME && name.split('/').all(word)
}

impl Entry {
    fn parse(bytes: &[u8], at: u64) -> Result<Entry, Refused> {
        let end = bytes[..NAME].iter().position(|&b| b == 0).unwrap_or(NAME);
        let name = std::str::from_utf8(&bytes[..end]).unwrap_or("");
        if !good_name(name) || bytes[end..NAME].iter().any(|&b| b != 0) {
            return Err(Refused::lies("table", at, "an entry without a proper name"));
        }
        let flags = u32_at(bytes, 68);
        let entry = Entry {
            name: name.to_owned(),
            version: u16_at(bytes, 64),
            reader: u16_at(bytes, 66),
            critical: flags & CRITICAL != 0,
            chunked: flags & CHUNKED != 0,
            offset: u64_at(bytes, 72),
            length: u64_at(bytes, 80),
            digest: digest_at(bytes, 88),
        };
        // What a later format put there is for its readers, which this one says that it is not.
        let plain = flags & !(CRITICAL | CHUNKED) == 0 && bytes[120..].iter().all(|&b| b == 0);
        if entry.reader <= crate::READER && (!plain || entry.version == 0 || entry.reader == 0) {
            return Err(Refused::lies(
                name,
                at,
                "its entry in the table has a version 0, or bits without meaning",
            ));
        }
        Ok(entry)
    }

    fn print(&self) -> Vec<u8> {
        let mut out = vec![0; ENTRY];
        let flags = if self.critical { CRITICAL } else { 0 } | if self.chunked { CHUNKED } else { 0 };
        out[..self.name.len()].copy_from_slice(self.name.as_bytes());
        out[64..66].copy_from_slice(&self.version.to_le_bytes());
        out[66..68].copy_from_slice(&self.reader.to_le_bytes());
        out[68..72].copy_from_slice(&flags.to_le_bytes());
        out[72..80].copy_from_slice(&self.offset.to_le_bytes());
        out[80..88].copy_from_slice(&self.length.to_le_bytes());
        out[88..120].copy_from_slice(&self.digest);
        out
    }

    /// The byte after the last.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// Where the sections have to be: one after the other, in the order of the table, with as many zeros between them as alignment
/// takes, and memory last. Then nothing overlaps, and no byte belongs to nobody.
pub(crate) fn check_places(header: &Header, table: usize, entries: &[Entry]) -> Result<(), Refused> {
    let mut end = (HEADER + table) as u64;
    let mut small = 0_u64;
    let mut seen = std::collections::HashSet::new();
    for (i, entry) in entries.iter().enumerate() {
        let at = (HEADER + i * ENTRY) as u64;
        let lies = |what: String| Err(Refused::lies(&entry.name, at, what));
        if !seen.insert(entry.name.as_str()) {
            return lies("it is there twice".to_owned());
        }
        let memory = entry.name == crate::names::MEMORY;
        if memory != entry.chunked || memory && i + 1 != entries.len() {
            return lies("memory, and nothing else, is in chunks and last".to_owned());
        }
        let align = if memory { u64::from(header.page) } else { ALIGN };
        let from = end.next_multiple_of(align);
        if entry.offset != from {
            return lies(format!(
                "it begins at byte {}, and after the section before it comes {from}",
                entry.offset
            ));
        }
        if !memory {
            small = small.saturating_add(entry.length);
            if entry.length > MAX_SECTION || small > MAX_SECTIONS_BYTES {
                return lies(format!("{} bytes are too many", entry.length));
            }
        }
        // A length that leads beyond what an offset can say leads beyond the file too.
        end = match entry.offset.checked_add(entry.length) {
            Some(end) if end <= header.length => end,
            _ => return lies(format!("it ends beyond the {} bytes of the file", header.length)),
        };
    }
    if end != header.length {
        return Err(Refused::lies(
            "header",
            32,
            format!("the file has {} bytes, and its sections end at {end}", header.length),
        ));
    }
    Ok(())
}
