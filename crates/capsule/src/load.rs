//! Memory out of a capsule, verified, some megabytes at a time: on several threads, while the next are read.

use std::collections::HashSet;
use std::io::{self, Read, Seek};
use std::ops::Range;

use crate::encode::{Context, unpack};
use crate::error::{Refused, Why};
use crate::index::{Chunk, Kind};
use crate::names::MEMORY;
use crate::overlap::each;
use crate::read::{Reader, exact};

/// Bytes that are read at a time, at most, but for a chunk that has more.
const BATCH: u64 = 8 << 20;

/// What was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Bytes that were handed over.
    pub bytes: u64,
    /// Bytes that are zero, and were not.
    pub zero: u64,
}

/// Bytes that are handed over at a time, at most, but for a chunk that has more: the sooner, the more is verified beside it.
const PIECE: usize = 1 << 20;

/// Some chunks, and what the file holds of them.
#[derive(Default)]
struct Batch {
    /// Which is the first.
    first: usize,
    chunks: Vec<Chunk>,
    /// Where in `memory` the bytes begin.
    from: u64,
    bytes: Vec<u8>,
}

impl Batch {
    /// The chunk that follows.
    fn next(&self) -> usize {
        self.first + self.chunks.len()
    }
}

/// A chunk ready to be handed over: where, and from which bytes of the batch, or unpacked.
enum Ready {
    Zero,
    InPlace(Range<usize>),
    Unpacked(Vec<u8>),
}

impl<R: Read + Seek> Reader<R> {
    /// Hands over all memory that is not zero, each chunk after it was verified, ascending: to `put(address, bytes)`, in pieces of
    /// one region each. What is not handed over is zero. At the first chunk that is damaged it stops; what came before was good.
    ///
    /// # Errors
    /// A damaged chunk, or what the operating system or `put` says.
    pub fn load(&mut self, mut put: impl FnMut(u64, &[u8]) -> io::Result<()>) -> Result<Loaded, Refused> {
        let mut loaded = Loaded::default();
        let Some(base) = self.entry(MEMORY).map(|entry| entry.offset) else { return Ok(loaded) };
        // Where a region begins a piece begins, even if the one before ends there.
        let regions: HashSet<u64> =
            self.index().into_iter().flat_map(|i| &i.regions).map(|r| r.address).collect();
        let lazy = self.header().lazy;
        let (mut now, mut after) = (Batch::default(), Batch::default());
        self.fill(&mut now, 0, base)?;
        while !now.chunks.is_empty() {
            let Batch { chunks, from, bytes, .. } = &now;
            // Chunks that are as they were in the guest, and follow each other there and here, go in one piece.
            let (mut run, mut at) = (0..0, 0);
            let work = |context: &mut Context, chunk: &Chunk| ready(context, chunk, bytes, *from, lazy);
            let sink = |i: usize, ready: Result<Ready, Why>| {
                let chunk = chunks[i];
                let refuse = |why| Refused::new(MEMORY, base + chunk.offset, why);
                let ready = ready.map_err(refuse)?;
                if let Ready::InPlace(here) = &ready
                    && here.start == run.end
                    && at + run.len() as u64 == chunk.address
                    && run.len() < PIECE
                    && !regions.contains(&chunk.address)
                {
                    run.end = here.end;
                    return Ok(());
                }
                let done = std::mem::take(&mut run);
                hand_over(&mut put, &mut loaded, at, &bytes[done]).map_err(|e| refuse(Why::Io(e)))?;
                match ready {
                    Ready::Zero => loaded.zero += u64::from(chunk.length),
                    Ready::InPlace(here) => (run, at) = (here, chunk.address),
                    Ready::Unpacked(bytes) => hand_over(&mut put, &mut loaded, chunk.address, &bytes)
                        .map_err(|e| refuse(Why::Io(e)))?,
                }
                Ok(())
            };
            let read = || self.fill(&mut after, now.next(), base);
            let (read, done) = each(chunks, bytes.len(), work, read, sink);
            done?;
            let refuse = |e| Refused::new(MEMORY, base + from, Why::Io(e));
            hand_over(&mut put, &mut loaded, at, &bytes[run]).map_err(refuse)?;
            // What cannot be read comes after what was read before it.
            read?;
            std::mem::swap(&mut now, &mut after);
        }
        Ok(loaded)
    }

    /// One chunk, verified and unpacked, into as many bytes as it has: for a page that is wanted before its turn.
    ///
    /// # Errors
    /// There is no such chunk, it is damaged, or cannot be read.
    pub fn chunk(&mut self, chunk: usize, into: &mut Vec<u8>) -> Result<(), Refused> {
        let base = self.entry(MEMORY).map_or(0, |entry| entry.offset);
        let Some(one) = self.index().and_then(|index| index.chunks.get(chunk)).copied() else {
            return Err(Refused::lies(MEMORY, base, format!("there is no chunk {chunk}")));
        };
        into.clear();
        let (from, length) = self.span(&[one]);
        let mut stored = vec![0; length];
        exact(&mut self.io, MEMORY, base + from, &mut stored)?;
        let refuse = |why| Refused::new(MEMORY, base + one.offset, why);
        match ready(&mut Context::default(), &one, &stored, from, self.header().lazy).map_err(refuse)? {
            Ready::Zero => into.resize(one.length as usize, 0),
            Ready::InPlace(_) => *into = stored,
            Ready::Unpacked(bytes) => *into = bytes,
        }
        Ok(())
    }

    /// Reads as many chunks from this one on as are read at a time; none behind the last.
    fn fill(&mut self, batch: &mut Batch, first: usize, base: u64) -> Result<(), Refused> {
        batch.first = first;
        batch.chunks = self.batch(first);
        let (from, length) = self.span(&batch.chunks);
        batch.from = from;
        batch.bytes.resize(length, 0);
        exact(&mut self.io, MEMORY, base + from, &mut batch.bytes)
    }

    /// As many chunks from this one on as are read at a time.
    fn batch(&self, next: usize) -> Vec<Chunk> {
        let Some(index) = self.index() else { return Vec::new() };
        let mut unfolded = 0;
        let more = |chunk: &&Chunk| {
            // A zero chunk costs nothing where nothing is stored of it.
            let costs =
                if chunk.kind == Kind::Zero && !self.header().lazy { 0 } else { u64::from(chunk.length) };
            let first = unfolded == 0;
            unfolded += costs;
            first || unfolded <= BATCH
        };
        index.chunks[next..].iter().take_while(more).copied().collect()
    }

    /// Where in `memory` these chunks are, and how long that is.
    fn span(&self, batch: &[Chunk]) -> (u64, usize) {
        let lazy = self.header().lazy;
        let mut stored = batch.iter().filter(|chunk| lazy || chunk.kind != Kind::Zero);
        let from = stored.clone().next().map_or(0, |chunk| chunk.offset);
        let bytes = |chunk: &Chunk| u64::from(if lazy { chunk.length } else { chunk.stored });
        let end = stored.next_back().map_or(0, |chunk| chunk.offset + bytes(chunk));
        (from, (end - from) as usize)
    }
}

fn hand_over(
    put: &mut impl FnMut(u64, &[u8]) -> io::Result<()>,
    loaded: &mut Loaded,
    address: u64,
    bytes: &[u8],
) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    loaded.bytes += bytes.len() as u64;
    put(address, bytes)
}

/// Verifies a chunk in what was read from `from` on, and unpacks it if it was packed.
fn ready(context: &mut Context, chunk: &Chunk, read: &[u8], from: u64, lazy: bool) -> Result<Ready, Why> {
    if chunk.kind == Kind::Zero && !lazy {
        return Ok(Ready::Zero);
    }
    let begin = (chunk.offset - from) as usize;
    let here = begin..begin + if lazy { chunk.length } else { chunk.stored } as usize;
    let stored = &read[here.clone()];
    chunk.verify(stored)?;
    match chunk.kind {
        Kind::Zero => Ok(Ready::Zero),
        Kind::Raw => Ok(Ready::InPlace(here)),
        Kind::Zstd | Kind::Pages => {
            let mut bytes = vec![0; chunk.length as usize];
            unpack(context, chunk.kind, stored, &mut bytes).map_err(|what| Why::Lies(what.to_owned()))?;
            Ok(Ready::Unpacked(bytes))
        }
    }
}
