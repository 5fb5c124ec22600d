//! The index of guest memory: its regions, and the chunks that they are cut into.
//!
//! | at | bytes | |
//! |---|---|---|
//! | 0 | 4 | bytes of a chunk: a power of two; a region's last one may be shorter |
//! | 4 | 4 | number of regions |
//! | 8 | 4 | number of chunks |
//! | 12 | 4 | 0 |
//! | 16 | 16 each | regions, ascending: guest address, length |
//! | then | 48 each | chunks, in the order of the regions: kind (4), stored bytes (4), offset in `memory` (8), BLAKE3 of what is stored (32) |
//!
//! The kinds: 0 zero (nothing is stored; offset, length and digest are 0), 1 raw, 2 Zstandard, 3 pages (a bitmap of the pages that
//! are not zero, filled up to 8 bytes, then those pages). A lazy capsule has only the first two, and holds a chunk where it
//! would be if all regions lay one after the other; an eager one holds what is stored without gaps.
//!
//! The digest is over what is stored, not over what it unfolds to: so nothing is unpacked before it was verified, and no bit
//! can change that packing would not notice.

use crate::error::Refused;
use crate::header::{Header, digest_at, u32_at, u64_at};
use crate::names::{INDEX, MEMORY};

/// Regions that are taken at most.
pub const MAX_REGIONS: u32 = 4096;
/// Chunks that are taken at most: 64 GiB in chunks of 64 KiB, 16 TiB in the largest.
pub const MAX_CHUNKS: u32 = 1 << 20;
/// Bytes of a chunk at most.
pub const MAX_CHUNK: u32 = 16 << 20;
/// Bytes of a chunk, unless memory is so large that there would be too many.
pub const CHUNK: u32 = 64 << 10;
/// What the kind `pages` leaves out.
pub const PAGE: usize = 4096;

const HEAD: usize = 16;
const REGION: usize = 16;
const ENTRY: usize = 48;

/// A part of guest memory without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Region {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub length: u64,
}

/// How a chunk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not at all: it is zero.
    Zero,
    /// As it is.
    Raw,
    /// A Zstandard frame.
    Zstd,
    /// Without its zero pages.
    Pages,
}

/// One chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes of guest memory.
    pub length: u32,
    /// How it is stored.
    pub kind: Kind,
    /// Where in the section `memory`; of a zero chunk in a lazy capsule, where its hole is.
    pub offset: u64,
    /// Bytes that are stored.
    pub stored: u32,
    /// BLAKE3 of what is stored; 0 of a zero chunk.
    pub digest: [u8; 32],
}

/// The whole index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// Bytes of a chunk.
    pub chunk: u32,
    /// The regions, ascending.
    pub regions: Vec<Region>,
    /// The chunks, in the order of the regions.
    pub chunks: Vec<Chunk>,
}

/// A size of chunks that makes them few enough.
pub(crate) fn chunk_for(regions: &[Region]) -> u32 {
    let all: u64 = regions.iter().map(|region| region.length).sum();
    let mut chunk = CHUNK;
    while chunk < MAX_CHUNK && all / u64::from(chunk) + regions.len() as u64 > u64::from(MAX_CHUNKS) {
        chunk *= 2;
    }
    chunk
}

/// Bytes of the index of so many.
pub(crate) fn size(regions: usize, chunks: u64) -> u64 {
    HEAD as u64 + (REGION * regions) as u64 + ENTRY as u64 * chunks
}

/// How many chunks these regions are cut into, if regions and chunks are as they must be.
pub(crate) fn count(regions: &[Region], chunk: u32, page: u32) -> Result<u64, String> {
    if !chunk.is_power_of_two() || chunk < page || chunk > MAX_CHUNK {
        return Err(format!("chunks of {chunk} bytes: a power of two from {page} to {MAX_CHUNK} is taken"));
    }
    if regions.len() > MAX_REGIONS as usize {
        return Err(format!("{} regions; at most {MAX_REGIONS} are taken", regions.len()));
    }
    let (mut chunks, mut end) = (0_u64, 0_u64);
    for Region { address, length } in regions {
        let page = u64::from(page);
        let after = address.checked_add(*length).filter(|&after| after < 1 << 56);
        let (Some(after), true) = (after, *length > 0 && *address >= end) else {
            return Err(format!(
                "a region of {length:#x} bytes at {address:#x} is empty, out of order, or overlaps"
            ));
        };
        if address % page != 0 || length % page != 0 {
            return Err(format!(
                "a region of {length:#x} bytes at {address:#x} does not consist of pages of {page}"
            ));
        }
        end = after;
        chunks += length.div_ceil(u64::from(chunk));
    }
    if chunks > u64::from(MAX_CHUNKS) {
        return Err(format!("{chunks} chunks; at most {MAX_CHUNKS} are taken"));
    }
    Ok(chunks)
}

impl Kind {
    fn number(self) -> u32 {
        match self {
            Kind::Zero => 0,
            Kind::Raw => 1,
            Kind::Zstd => 2,
            Kind::Pages => 3,
        }
    }
}

impl Index {
    /// Bytes of guest memory.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.length).sum()
    }

    /// The chunk that holds a guest-physical address.
    pub fn chunk_at(&self, address: u64) -> Option<usize> {
        let at = self.chunks.partition_point(|chunk| chunk.address <= address).checked_sub(1)?;
        let chunk = &self.chunks[at];
        (address - chunk.address < u64::from(chunk.length)).then_some(at)
    }

    pub(crate) fn print(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(size(self.regions.len(), self.chunks.len() as u64) as usize);
        for word in [self.chunk, self.regions.len() as u32, self.chunks.len() as u32, 0] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for region in &self.regions {
            out.extend_from_slice(&region.address.to_le_bytes());
            out.extend_from_slice(&region.length.to_le_bytes());
        }
        for chunk in &self.chunks {
            let offset = if chunk.kind == Kind::Zero { 0 } else { chunk.offset };
            out.extend_from_slice(&chunk.kind.number().to_le_bytes());
            out.extend_from_slice(&chunk.stored.to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(&chunk.digest);
        }
        out
    }

    /// The index in these bytes, which begin at `at` in the file, of a section `memory` of `length` bytes.
    pub(crate) fn parse(bytes: &[u8], at: u64, header: &Header, length: u64) -> Result<Index, Refused> {
        let lies = |offset: usize, what: String| Err(Refused::lies(INDEX, at + offset as u64, what));
        if bytes.len() < HEAD {
            return lies(0, format!("{} bytes are no index", bytes.len()));
        }
        let [chunk, regions, chunks, zero] = [0, 4, 8, 12].map(|word| u32_at(bytes, word));
        if zero != 0 || regions > MAX_REGIONS || chunks > MAX_CHUNKS {
            return lies(0, format!("{regions} regions, {chunks} chunks, {zero}"));
        }
        let expected = size(regions as usize, u64::from(chunks));
        if bytes.len() as u64 != expected {
            return lies(
                4,
                format!("{} bytes, and {regions} regions with {chunks} chunks take {expected}", bytes.len()),
            );
        }
        let (listed, table) = bytes[HEAD..].split_at(REGION * regions as usize);
        let regions: Vec<Region> = listed
            .chunks_exact(REGION)
            .map(|bytes| Region { address: u64_at(bytes, 0), length: u64_at(bytes, 8) })
            .collect();
        match count(&regions, chunk, header.page) {
            Ok(cut) if cut == u64::from(chunks) => {}
            Ok(cut) => return lies(8, format!("{chunks} chunks, and the regions are cut into {cut}")),
            Err(what) => return lies(HEAD, what),
        }
        let mut index = Index { chunk, regions, chunks: Vec::with_capacity(chunks as usize) };
        let places: Vec<(u64, u32)> = places(&index.regions, chunk).collect();
        let mut end = 0;
        for (i, ((address, size), bytes)) in places.into_iter().zip(table.chunks_exact(ENTRY)).enumerate() {
            let here = HEAD + listed.len() + i * ENTRY;
            let mut one = match parse_chunk(bytes, header) {
                Ok(one) => Chunk { address, length: size, ..one },
                Err(what) => return lies(here, format!("chunk {i}: {what}")),
            };
            let fits = match one.kind {
                Kind::Zero => one.stored == 0 && one.offset == 0 && one.digest == [0; 32],
                Kind::Raw => one.stored == size && one.offset == end,
                // What packing does not make smaller is stored as it is.
                Kind::Zstd | Kind::Pages => one.stored > 0 && one.stored < size && one.offset == end,
            };
            if !fits {
                let Chunk { kind, stored, offset, .. } = one;
                return lies(
                    here,
                    format!("chunk {i}: {kind:?}, {stored} bytes at {offset:#x}, for {size} at {end:#x}"),
                );
            }
            if header.lazy {
                one.offset = end;
            }
            end += u64::from(if header.lazy { size } else { one.stored });
            index.chunks.push(one);
        }
        if end != length {
            return lies(0, format!("its chunks take {end} bytes, and `{MEMORY}` has {length}"));
        }
        Ok(index)
    }
}

fn parse_chunk(bytes: &[u8], header: &Header) -> Result<Chunk, String> {
    let kind = match u32_at(bytes, 0) {
        0 => Kind::Zero,
        1 => Kind::Raw,
        2 if header.compressed => Kind::Zstd,
        3 if !header.lazy => Kind::Pages,
        other => return Err(format!("kind {other} does not belong into this capsule")),
    };
    let (stored, offset) = (u32_at(bytes, 4), u64_at(bytes, 8));
    Ok(Chunk { address: 0, length: 0, kind, offset, stored, digest: digest_at(bytes, 16) })
}

/// Address and length of each chunk of these regions.
pub(crate) fn places(regions: &[Region], chunk: u32) -> impl Iterator<Item = (u64, u32)> + '_ {
    regions.iter().flat_map(move |region| {
        (0..region.length.div_ceil(u64::from(chunk))).map(move |i| {
            let begin = i * u64::from(chunk);
            (region.address + begin, (region.length - begin).min(u64::from(chunk)) as u32)
        })
    })
}
