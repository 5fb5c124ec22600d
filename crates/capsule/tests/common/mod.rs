//! Small capsules of every kind, and a way to lie in them.
#![allow(dead_code)]

use std::io::Cursor;

use evenkeel_capsule::*;
use evenkeel_surface::Arch;

pub const KINDS: [&str; 3] = ["eager", "lazy", "zstd"];

pub fn id() -> Id {
    Id(*b"0123456789abcdef")
}

pub fn draft() -> Draft {
    let mut draft = Draft::new(Arch::X86_64, id());
    draft.put(Section::new(names::CONTRACT, true, b"schema = \"none\"\n".to_vec()));
    draft.put(Section::new("vm/clock", true, (0..48).collect()));
    draft.put(Section::new("vcpu.0/regs", true, vec![7; 13]));
    draft.put(Section::new("note", false, b"a word".to_vec()));
    draft
}

/// Two regions: zero, mixed, compressible and incompressible chunks.
pub fn memory() -> Vec<(u64, Vec<u8>)> {
    // Chunks of 8 KiB: noise and text, noise and zeros, and a short one of zeros.
    let mut low = vec![0; 5 * 4096];
    let mut seed = 1_u64;
    for byte in &mut low[..3 * 4096] {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *byte = (seed >> 33) as u8;
    }
    low[4096..2 * 4096].fill(0x42);
    let high = vec![0; 4096];
    vec![(0, low), (1 << 32, high)]
}

pub fn regions(memory: &[(u64, Vec<u8>)]) -> Vec<Region> {
    memory.iter().map(|(address, bytes)| Region { address: *address, length: bytes.len() as u64 }).collect()
}

pub fn layout(kind: &str, memory: &[(u64, Vec<u8>)]) -> Layout {
    let base = Layout { chunk: 8192, ..Layout::eager(regions(memory)) };
    match kind {
        "eager" => base,
        "lazy" => Layout { lazy: true, ..base },
        "zstd" => Layout { level: Some(1), ..base },
        _ => unreachable!(),
    }
}

pub fn write(draft: &Draft, layout: &Layout, memory: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let slices: Vec<(u64, &[u8])> = memory.iter().map(|(a, b)| (*a, &b[..])).collect();
    let mut out = Cursor::new(Vec::new());
    draft.write_with(&mut out, layout, Slices(&slices)).unwrap();
    out.into_inner()
}

pub fn small(kind: &str) -> Vec<u8> {
    let memory = memory();
    write(&draft(), &layout(kind, &memory), &memory)
}

/// What a reader of these capsules knows.
pub fn knows(name: &str) -> Option<u16> {
    known(name).or(["vm/clock", "vcpu.0/regs"].contains(&name).then_some(1))
}

pub fn open(bytes: &[u8]) -> Result<Reader<Cursor<&[u8]>>, Refused> {
    Reader::open(Cursor::new(bytes), &knows)
}

pub fn whole(bytes: &[u8]) -> Result<(), Refused> {
    open(bytes)?.verify()
}

/// All that a capsule holds of memory, by address.
pub fn unload(bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut reader = open(bytes).unwrap();
    let regions = reader.index().unwrap().regions.clone();
    let mut out: Vec<(u64, Vec<u8>)> =
        regions.iter().map(|region| (region.address, vec![0; region.length as usize])).collect();
    reader
        .load(|address, bytes| {
            let (begin, into) = out
                .iter_mut()
                .find(|(begin, into)| (*begin..*begin + into.len() as u64).contains(&address))
                .expect("within a region");
            let at = (address - *begin) as usize;
            into[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        })
        .unwrap();
    out
}

/// Makes the root that of what the header and the table say now: what a liar would do.
pub fn reseal(bytes: &mut [u8]) {
    let count = u32::from_le_bytes(bytes[20..24].try_into().unwrap()) as usize;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..96]);
    hasher.update(&bytes[128..128 + 128 * count]);
    let root = *hasher.finalize().as_bytes();
    bytes[96..128].copy_from_slice(&root);
}

/// Makes the digest of a section that of what it holds now, and the root after it.
pub fn redigest(bytes: &mut [u8], name: &str) {
    let reader = Reader::inspect(Cursor::new(&*bytes)).unwrap();
    let at = reader.entries().iter().position(|e| e.name == name).unwrap();
    let entry = reader.entries()[at].clone();
    let digest = *blake3::hash(&bytes[entry.offset as usize..entry.end() as usize]).as_bytes();
    bytes[128 + 128 * at + 88..][..32].copy_from_slice(&digest);
    if name == names::INDEX {
        bytes[128 + 128 * (at + 1) + 88..][..32].copy_from_slice(&digest);
    }
    reseal(bytes);
}

/// Puts a number into an entry of the table, and reseals.
pub fn set_entry(bytes: &mut [u8], entry: usize, at: usize, value: &[u8]) {
    bytes[128 + 128 * entry + at..][..value.len()].copy_from_slice(value);
    reseal(bytes);
}
