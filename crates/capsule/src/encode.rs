//! One chunk of memory, packed and unpacked.

use std::io;

use crate::index::{Kind, PAGE};

/// How a chunk is going to be stored.
pub(crate) struct Packed {
    pub kind: Kind,
    pub digest: [u8; 32],
    /// What is stored; `None`: the chunk as it is, or nothing if it is zero.
    pub bytes: Option<Vec<u8>>,
}

/// How chunks are packed.
#[derive(Clone, Copy)]
pub(crate) struct How {
    /// Raw and zero only.
    pub lazy: bool,
    /// Zstandard's level.
    pub level: Option<i32>,
}

/// Whether all of it is zero. A comparison with itself, moved on: as fast as the C library compares.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let head = bytes.len().min(16);
    bytes[..head].iter().all(|&b| b == 0) && bytes[head..] == bytes[..bytes.len() - head]
}

/// What a thread keeps from one chunk to the next: Zstandard's tables take longer to make than a chunk to pack.
#[derive(Default)]
pub(crate) struct Context {
    compressor: Option<zstd::bulk::Compressor<'static>>,
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
}

impl Context {
    fn compress(&mut self, chunk: &[u8], level: i32) -> io::Result<Vec<u8>> {
        let mut compressor = match self.compressor.take() {
            Some(compressor) => compressor,
            None => zstd::bulk::Compressor::new(level)?,
        };
        let packed = compressor.compress(chunk);
        self.compressor = Some(compressor);
        packed
    }

    fn decompress(&mut self, stored: &[u8], into: &mut [u8]) -> io::Result<usize> {
        let mut decompressor = match self.decompressor.take() {
            Some(decompressor) => decompressor,
            None => zstd::bulk::Decompressor::new()?,
        };
        let length = decompressor.decompress_to_buffer(stored, into);
        self.decompressor = Some(decompressor);
        length
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

/// Packs a chunk.
pub(crate) fn pack(context: &mut Context, chunk: &[u8], how: How) -> io::Result<Packed> {
    if is_zero(chunk) {
        return Ok(Packed { kind: Kind::Zero, digest: [0; 32], bytes: None });
    }
    let packed = if how.lazy {
        None
    } else if let Some(level) = how.level {
        Some((Kind::Zstd, context.compress(chunk, level)?))
    } else {
        pages(chunk).map(|bytes| (Kind::Pages, bytes))
    };
    Ok(match packed.filter(|(_, bytes)| bytes.len() < chunk.len()) {
        Some((kind, bytes)) => Packed { kind, digest: digest(&bytes), bytes: Some(bytes) },
        None => Packed { kind: Kind::Raw, digest: digest(chunk), bytes: None },
    })
}

/// The pages that are not zero, behind a bitmap of them; `None` when there are no others.
fn pages(chunk: &[u8]) -> Option<Vec<u8>> {
    let mut bitmap = vec![0; chunk.len().div_ceil(PAGE).div_ceil(8).next_multiple_of(8)];
    let mut zeros = false;
    for (i, page) in chunk.chunks(PAGE).enumerate() {
        match is_zero(page) {
            true => zeros = true,
            false => bitmap[i / 8] |= 1 << (i % 8),
        }
    }
    if !zeros {
        return None;
    }
    let mut out = bitmap.clone();
    for (i, page) in chunk.chunks(PAGE).enumerate() {
        if bitmap[i / 8] >> (i % 8) & 1 == 1 {
            out.extend_from_slice(page);
        }
    }
    Some(out)
}

/// Whether this is what the digest was taken of.
pub(crate) fn genuine(stored: &[u8], expected: &[u8; 32]) -> bool {
    digest(stored) == *expected
}

/// Unpacks a chunk into as many bytes as it has; what is stored was verified before.
pub(crate) fn unpack(
    context: &mut Context,
    kind: Kind,
    stored: &[u8],
    into: &mut [u8],
) -> Result<(), &'static str> {
    match kind {
        Kind::Zero => into.fill(0),
        Kind::Raw if stored.len() == into.len() => into.copy_from_slice(stored),
        Kind::Raw => return Err("it is not as long as it should be"),
        Kind::Zstd => match context.decompress(stored, into) {
            Ok(length) if length == into.len() => {}
            Ok(_) => return Err("it unfolds to less than it should"),
            Err(_) => return Err("it does not unfold"),
        },
        Kind::Pages => return unpack_pages(stored, into),
    }
    Ok(())
}

fn unpack_pages(stored: &[u8], into: &mut [u8]) -> Result<(), &'static str> {
    let count = into.len().div_ceil(PAGE);
    let Some((bitmap, mut rest)) = stored.split_at_checked(count.div_ceil(8).next_multiple_of(8)) else {
        return Err("its bitmap is not whole");
    };
    for (i, page) in into.chunks_mut(PAGE).enumerate() {
        if bitmap[i / 8] >> (i % 8) & 1 == 0 {
            page.fill(0);
            continue;
        }
        let Some((bytes, after)) = rest.split_at_checked(page.len()) else {
            return Err("pages are missing that its bitmap has");
        };
        page.copy_from_slice(bytes);
        rest = after;
    }
    let beyond = (count..bitmap.len() * 8).any(|i| bitmap[i / 8] >> (i % 8) & 1 == 1);
    if beyond || !rest.is_empty() { Err("there are more pages than it has") } else { Ok(()) }
}
