//! All of memory out of a capsule, verified, on as many threads as there are.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::num::NonZero;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use evenkeel_capsule::{Chunk, Kind, Reader, Refused, names::MEMORY};

use crate::guest::write;
use crate::{Error, Guest};

/// Chunks that a thread takes at a time; small enough that what was read is still in the CPU's cache when it is verified.
const SHARE: usize = 8;

/// Where a capsule's chunks are.
#[derive(Debug)]
pub(crate) struct Stored {
    pub file: File,
    pub base: u64,
    pub chunks: Vec<Chunk>,
}

impl Stored {
    /// Of a capsule whose index was read, in this file.
    pub fn of<R: Read + Seek>(reader: &Reader<R>, file: &File, guest: &Guest) -> Result<Stored, Error> {
        let index =
            reader.index().ok_or_else(|| Error::Places("the capsule's index was not read".to_owned()))?;
        if index.regions != guest.regions() {
            return Err(Error::Places("the guest's regions are not the capsule's".to_owned()));
        }
        let base = reader.entry(MEMORY).map_or(0, |entry| entry.offset);
        Ok(Stored { file: file.try_clone()?, base, chunks: index.chunks.clone() })
    }

    /// One chunk, verified; `None`: it is zero. `stored` and `unpacked` are room.
    pub fn chunk<'a>(
        &self,
        chunk: &Chunk,
        stored: &'a mut Vec<u8>,
        unpacked: &'a mut Vec<u8>,
    ) -> Result<Option<&'a [u8]>, Error> {
        if chunk.kind == Kind::Zero {
            return Ok(None);
        }
        stored.resize(chunk.stored as usize, 0);
        let at = self.base + chunk.offset;
        self.file.read_exact_at(stored, at).map_err(Refused::io(MEMORY, at))?;
        let refuse = |why| Refused::new(MEMORY, at, why);
        chunk.verify(stored).map_err(refuse)?;
        if chunk.kind == Kind::Raw {
            return Ok(Some(stored));
        }
        chunk.unpack(stored, unpacked).map_err(refuse)?;
        Ok(Some(unpacked))
    }
}

pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get).min(8)
}

/// Puts all memory of a capsule, of which `reader` has read the index, into a guest whose memory is zero, each chunk after it was
/// verified. `file` is what `reader` reads. Gives how many bytes were put.
///
/// # Errors
/// The guest has other regions; a chunk is damaged; or what the operating system says. Then the guest's memory is not to be used.
pub fn load<R: Read + Seek>(reader: &Reader<R>, file: &File, guest: &Guest) -> Result<u64, Error> {
    let stored = Stored::of(reader, file, guest)?;
    let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || {
        let (mut room, mut unpacked, mut bytes) = (Vec::new(), Vec::new(), 0);
        while !over.load(Ordering::Relaxed) {
            let first = next.fetch_add(SHARE, Ordering::Relaxed);
            let Some(share) = stored.chunks.get(first..(first + SHARE).min(stored.chunks.len())) else {
                break;
            };
            if share.is_empty() {
                break;
            }
            for chunk in share {
                if let Some(data) = stored.chunk(chunk, &mut room, &mut unpacked)? {
                    let (ram, at) = guest.find(chunk.address, u64::from(chunk.length))?;
                    write(&guest.rams()[ram], at, data)?;
                    bytes += data.len() as u64;
                }
            }
        }
        Ok::<u64, Error>(bytes)
    };
    std::thread::scope(|scope| {
        let careful = || work().inspect_err(|_| over.store(true, Ordering::Relaxed));
        let others: Vec<_> = (1..threads()).map(|_| scope.spawn(careful)).collect();
        let mut all = careful();
        for other in others {
            let one = other.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked").into()));
            all = all.and_then(|all| one.map(|one| all + one));
        }
        all
    })
}
