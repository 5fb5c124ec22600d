//! Writing a capsule.
//!
//! Memory is streamed: it is asked for some megabytes at a time, packed on several threads while what is packed already is
//! written in large pieces. The header comes last of all, so that what was not finished does not look like a capsule.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::sync::mpsc::{channel, sync_channel};

use evenkeel_surface::Arch;

use crate::encode::{Context, How, Packed, pack};
use crate::error::Refused;
use crate::header::{self, ALIGN, Entry, HEADER, Header, Id, MAX_SECTION, MAX_SECTIONS, Root};
use crate::index::{self, Chunk, Index, Kind, Region};
use crate::names::{INDEX, MEMORY};
use crate::overlap::{each, threads};
use crate::read::Reader;

/// Bytes of memory that are held at a time.
const BATCH: u64 = 32 << 20;
/// Bytes that are written at a time: the sooner they are, the more of packing goes on beside it.
const PIECE: usize = 1 << 20;
/// Bytes that a thread reads and packs ahead: they stay in the CPU's cache until they are written.
const AHEAD: u64 = 512 << 10;
/// Pieces that each thread may be ahead.
const DEPTH: usize = 4;

/// A section other than memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u16,
    /// The oldest reader that can read this version.
    pub reader: u16,
    /// A reader that does not know it must stop.
    pub critical: bool,
    /// What it holds.
    pub bytes: Vec<u8>,
}

impl Section {
    /// A section of version 1, for every reader.
    pub fn new(name: impl Into<String>, critical: bool, bytes: Vec<u8>) -> Section {
        Section { name: name.into(), version: 1, reader: 1, critical, bytes }
    }
}

/// How memory is laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The regions, ascending; addresses and lengths are multiples of `page`.
    pub regions: Vec<Region>,
    /// Held whole, to be mapped, with holes for what is zero.
    pub lazy: bool,
    /// Zstandard's level, for an eager one; level 1 is the fastest.
    pub level: Option<i32>,
    /// 4096, 16384 or 65536: the page size of hosts that shall be able to map it.
    pub page: u32,
    /// Bytes of a chunk; 0: as many as suit the size.
    pub chunk: u32,
    /// No threads are started: whoever writes may not.
    pub alone: bool,
}

impl Layout {
    /// Eager, without compression.
    pub fn eager(regions: Vec<Region>) -> Layout {
        Layout { regions, lazy: false, level: None, page: 4096, chunk: 0, alone: false }
    }

    /// To be mapped.
    pub fn lazy(regions: Vec<Region>) -> Layout {
        Layout { lazy: true, ..Layout::eager(regions) }
    }
}

/// Where guest memory comes from: a function that fills what it is given, or [`Slices`].
pub trait Source {
    /// So many bytes from this guest-physical address on: in `buffer`, which may be made longer or shorter, or in place.
    ///
    /// # Errors
    /// Memory could not be read; the capsule is not written.
    fn get<'a>(&'a mut self, address: u64, length: usize, buffer: &'a mut Vec<u8>) -> io::Result<&'a [u8]>;
}

impl<F: FnMut(u64, &mut [u8]) -> io::Result<()>> Source for F {
    fn get<'a>(&'a mut self, address: u64, length: usize, buffer: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
        buffer.resize(length, 0);
        self(address, buffer)?;
        Ok(buffer)
    }
}

/// Guest memory that several threads may read at once.
pub trait Shared: Sync {
    /// As many bytes as there is room for, from this guest-physical address on. Each address is asked for once, about in order.
    ///
    /// # Errors
    /// Memory could not be read; the capsule is not written.
    fn read(&self, address: u64, into: &mut [u8]) -> io::Result<()>;
}

/// Guest memory that is there already: nothing is copied.
#[derive(Clone, Copy, Debug)]
pub struct Slices<'m>(
    /// Guest-physical address and bytes of each.
    pub &'m [(u64, &'m [u8])],
);

impl Source for Slices<'_> {
    fn get<'a>(&'a mut self, address: u64, length: usize, _: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
        let found = self.0.iter().find_map(|(begin, bytes)| {
            let from = usize::try_from(address.checked_sub(*begin)?).ok()?;
            bytes.get(from..from.checked_add(length)?)
        });
        found.ok_or_else(|| io::Error::other(format!("nothing holds {length:#x} bytes at {address:#x}")))
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The capsule's identity.
    pub root: Root,
    /// Bytes of the file.
    pub length: u64,
    /// Chunks that were zero.
    pub zero: u64,
}

/// A capsule to be written: everything but memory.
#[derive(Clone, Debug)]
pub struct Draft {
    arch: Arch,
    id: Id,
    sections: Vec<Section>,
}

fn wrong(section: &str, what: impl Into<String>) -> Refused {
    Refused::lies(section, 0, what)
}

impl Draft {
    /// Nothing yet, of the guest that was saved as `id`.
    pub fn new(arch: Arch, id: Id) -> Draft {
        Draft { arch, id, sections: Vec::new() }
    }

    /// What another capsule holds, memory apart: to write it anew with one section more, fewer or other. What this reader does not
    /// know is carried through byte for byte.
    ///
    /// # Errors
    /// A section cannot be read.
    pub fn like<R: Read + Seek>(reader: &mut Reader<R>) -> Result<Draft, Refused> {
        let mut draft = Draft::new(reader.header().arch, reader.header().id);
        let entries = reader.entries().to_vec();
        for entry in entries.iter().filter(|entry| entry.name != INDEX && entry.name != MEMORY) {
            let bytes = reader.bytes(entry)?;
            let Entry { version, reader, critical, .. } = *entry;
            draft.sections.push(Section { name: entry.name.clone(), version, reader, critical, bytes });
        }
        Ok(draft)
    }

    /// Adds a section behind the others, or puts it in the place of the one with its name.
    pub fn put(&mut self, section: Section) {
        match self.sections.iter_mut().find(|other| other.name == section.name) {
            Some(other) => *other = section,
            None => self.sections.push(section),
        }
    }

    /// The sections, in the order of the file.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Writes a capsule without memory.
    ///
    /// # Errors
    /// A section that no reader would take, or what the operating system says.
    pub fn write<W: Write + Seek>(&self, out: W) -> Result<Written, Refused> {
        self.put_out(out, None, |_, _, _| Ok(()))
    }

    /// Writes a capsule with memory.
    ///
    /// # Errors
    /// A section or a layout that no reader would take, or what the operating system or the source of memory says.
    pub fn write_with<W: Write + Seek, S: Source>(
        &self,
        out: W,
        layout: &Layout,
        memory: S,
    ) -> Result<Written, Refused> {
        self.put_out(out, Some(layout), |writer, size, index| {
            in_turn(writer, layout, (size, BATCH), memory, index)
        })
    }

    /// Writes a capsule with memory that several threads may read at once: while one piece is written, the next ones are read and
    /// packed.
    ///
    /// # Errors
    /// As [`Draft::write_with`].
    pub fn write_from<W: Write + Seek, S: Shared>(
        &self,
        out: W,
        layout: &Layout,
        memory: &S,
    ) -> Result<Written, Refused> {
        self.put_out(out, Some(layout), |writer, size, index| {
            if !layout.alone {
                return ahead(writer, layout, size, memory, index);
            }
            let one = |address: u64, into: &mut [u8]| memory.read(address, into);
            in_turn(writer, layout, (size, AHEAD), one, index)
        })
    }

    fn put_out<W: Write + Seek>(
        &self,
        mut out: W,
        layout: Option<&Layout>,
        memory: impl FnOnce(&mut Chunks<'_, W>, usize, &mut Vec<Chunk>) -> Result<(), Refused>,
    ) -> Result<Written, Refused> {
        self.check()?;
        let count = self.sections.len() + if layout.is_some() { 2 } else { 0 };
        let mut header = Header {
            format: crate::FORMAT,
            reader: self.sections.iter().map(|s| s.reader).max().unwrap_or(1).max(1),
            arch: self.arch,
            lazy: layout.is_some_and(|l| l.lazy),
            compressed: layout.is_some_and(|l| l.level.is_some()),
            page: layout.map_or(4096, |l| l.page),
            length: 0,
            id: self.id,
            root: Root([0; 32]),
        };
        let mut entries = Vec::with_capacity(count);
        let mut at = (HEADER + count * header::ENTRY) as u64;
        go(&mut out, at)?;
        for Section { name, version, reader, critical, bytes } in &self.sections {
            at = pad(&mut out, name, at, ALIGN)?;
            out.write_all(bytes).map_err(Refused::io(name, at))?;
            entries.push(Entry {
                name: name.clone(),
                version: *version,
                reader: *reader,
                critical: *critical,
                chunked: false,
                offset: at,
                length: bytes.len() as u64,
                digest: *blake3::hash(bytes).as_bytes(),
            });
            at += bytes.len() as u64;
        }
        let mut zero = 0;
        if let Some(layout) = layout {
            let (index, begin) = self.memory(&mut out, &mut at, layout, memory)?;
            zero = index.chunks.iter().filter(|chunk| chunk.kind == Kind::Zero).count() as u64;
            let bytes = index.print();
            go(&mut out, begin)?;
            out.write_all(&bytes).map_err(Refused::io(INDEX, begin))?;
            let digest = *blake3::hash(&bytes).as_bytes();
            let entry = |name: &str, chunked, offset, length| {
                let (name, version, reader, critical) = (name.to_owned(), 1, 1, true);
                Entry { name, version, reader, critical, chunked, offset, length, digest }
            };
            let memory = (begin + bytes.len() as u64).next_multiple_of(u64::from(layout.page));
            entries.push(entry(INDEX, false, begin, bytes.len() as u64));
            entries.push(entry(MEMORY, true, memory, at - memory));
        }
        header.length = at;
        let head = header.print(&entries);
        header::check_places(&header, entries.len() * header::ENTRY, &entries)?;
        go(&mut out, 0)?;
        out.write_all(&head).and_then(|()| out.flush()).map_err(Refused::io("header", 0))?;
        Ok(Written { root: header.root, length: at, zero })
    }

    /// What no reader would take is not written.
    fn check(&self) -> Result<(), Refused> {
        if self.sections.is_empty() || self.sections.len() as u32 > MAX_SECTIONS - 2 {
            return Err(wrong("table", format!("{} sections", self.sections.len())));
        }
        for section in &self.sections {
            let name = &section.name;
            if !header::good_name(name) || name == INDEX || name == MEMORY {
                return Err(wrong(name, "no section may have this name"));
            }
            if section.version == 0 || section.reader == 0 || section.bytes.len() as u64 > MAX_SECTION {
                return Err(wrong(name, "version 0, or too long"));
            }
        }
        Ok(())
    }

    /// Writes memory, behind room for its index: the index, and where it belongs.
    fn memory<W: Write + Seek>(
        &self,
        out: &mut W,
        at: &mut u64,
        layout: &Layout,
        memory: impl FnOnce(&mut Chunks<'_, W>, usize, &mut Vec<Chunk>) -> Result<(), Refused>,
    ) -> Result<(Index, u64), Refused> {
        let size =
            if layout.chunk == 0 { index::chunk_for(&layout.regions).max(layout.page) } else { layout.chunk };
        if !header::PAGES.contains(&layout.page) || layout.lazy && layout.level.is_some() {
            return Err(wrong(MEMORY, "a page of no host, or lazy and compressed"));
        }
        let count = index::count(&layout.regions, size, layout.page).map_err(|what| wrong(MEMORY, what))?;
        let begin = pad(out, INDEX, *at, ALIGN)?;
        let after = begin + index::size(layout.regions.len(), count);
        go(out, after)?;
        let base = pad(out, MEMORY, after, u64::from(layout.page))?;
        let mut index = Index { chunk: size, regions: layout.regions.clone(), chunks: Vec::new() };
        let mut writer = Chunks {
            out,
            how: How { lazy: layout.lazy, level: layout.level },
            alone: layout.alone,
            base,
            end: 0,
            gap: false,
        };
        memory(&mut writer, size as usize, &mut index.chunks)?;
        writer.finish()?;
        *at = base + writer.end;
        Ok((index, begin))
    }
}

/// Asks for memory a batch at a time, and packs and writes each.
fn in_turn<W: Write + Seek, S: Source>(
    writer: &mut Chunks<'_, W>,
    layout: &Layout,
    (size, batch): (usize, u64),
    mut memory: S,
    index: &mut Vec<Chunk>,
) -> Result<(), Refused> {
    let mut buffer = Vec::new();
    for (address, length) in pieces(&layout.regions, batch.max(size as u64)) {
        let got = memory.get(address, length, &mut buffer);
        let bytes = got.map_err(Refused::io(MEMORY, writer.base + writer.end))?;
        if bytes.len() != length {
            return Err(wrong(MEMORY, "the source of memory gave less or more than it was asked for"));
        }
        writer.batch(address, bytes, size, index)?;
    }
    Ok(())
}

/// What a thread that reads ahead hands over.
type Ahead = io::Result<(Vec<u8>, Vec<io::Result<Packed>>)>;

/// Reads and packs memory on other threads, each some pieces ahead, and writes it on this one.
fn ahead<W: Write + Seek, S: Shared>(
    writer: &mut Chunks<'_, W>,
    layout: &Layout,
    size: usize,
    memory: &S,
    index: &mut Vec<Chunk>,
) -> Result<(), Refused> {
    let pieces: Vec<(u64, usize)> = pieces(&layout.regions, AHEAD.max(size as u64)).collect();
    let (pieces, how) = (&pieces, writer.how);
    // One core writes.
    let lanes = threads().saturating_sub(1).max(1);
    std::thread::scope(|scope| {
        let lane = |first: usize| {
            let (give, taken) = sync_channel::<Ahead>(DEPTH);
            let (back, used) = channel::<Vec<u8>>();
            scope.spawn(move || {
                let mut context = Context::default();
                for (address, length) in pieces.iter().skip(first).step_by(lanes) {
                    let mut bytes: Vec<u8> = used.try_recv().unwrap_or_default();
                    bytes.resize(*length, 0);
                    let done = memory.read(*address, &mut bytes).map(|()| {
                        let packed = bytes.chunks(size).map(|chunk| pack(&mut context, chunk, how)).collect();
                        (bytes, packed)
                    });
                    let failed = done.is_err();
                    // Nobody takes it any more if writing failed.
                    if give.send(done).is_err() || failed {
                        return;
                    }
                }
            });
            (taken, back)
        };
        let lanes: Vec<_> = (0..lanes).map(lane).collect();
        for ((address, _), (taken, back)) in pieces.iter().zip(lanes.iter().cycle()) {
            let done = taken.recv().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")));
            let (bytes, packed) = done.map_err(Refused::io(MEMORY, writer.base + writer.end))?;
            writer.packed(*address, &bytes, size, packed, index)?;
            // It may have no use for it any more.
            let _ = back.send(bytes);
        }
        Ok(())
    })
}

/// Regions in pieces: address and length.
fn pieces(regions: &[Region], most: u64) -> impl Iterator<Item = (u64, usize)> + '_ {
    regions.iter().flat_map(move |region| {
        (0..region.length.div_ceil(most)).map(move |i| {
            let from = i * most;
            (region.address + from, (region.length - from).min(most) as usize)
        })
    })
}

/// Writes chunks, one after the other.
struct Chunks<'w, W> {
    out: &'w mut W,
    how: How,
    alone: bool,
    /// Where memory begins in the file.
    base: u64,
    /// What of `memory` was dealt with.
    end: u64,
    /// A hole was left before `end`.
    gap: bool,
}

impl<W: Write + Seek> Chunks<'_, W> {
    /// Packs some chunks that follow each other, and writes them in few pieces meanwhile.
    fn batch(
        &mut self,
        address: u64,
        bytes: &[u8],
        size: usize,
        index: &mut Vec<Chunk>,
    ) -> Result<(), Refused> {
        let (how, alone) = (self.how, self.alone);
        let chunks: Vec<&[u8]> = bytes.chunks(size).collect();
        let mut batch = Batch { chunks: self, address, bytes, size, index, run: 0..0 };
        let sink = |i: usize, packed: io::Result<Packed>| batch.take(i, packed);
        // Nothing is worth another thread where none may be started.
        let worth = if alone { 0 } else { bytes.len() };
        each(&chunks, worth, |context, chunk| pack(context, chunk, how), || (), sink).1?;
        batch.finish()
    }

    /// Writes chunks that follow each other and were packed, in as few pieces as can be.
    fn packed(
        &mut self,
        address: u64,
        bytes: &[u8],
        size: usize,
        packed: Vec<io::Result<Packed>>,
        index: &mut Vec<Chunk>,
    ) -> Result<(), Refused> {
        let mut batch = Batch { chunks: self, address, bytes, size, index, run: 0..0 };
        packed.into_iter().enumerate().try_for_each(|(i, packed)| batch.take(i, packed))?;
        batch.finish()
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        if bytes.is_empty() {
            return Ok(());
        }
        let at = self.base + self.end;
        if std::mem::take(&mut self.gap) {
            go(self.out, at)?;
        }
        self.end += bytes.len() as u64;
        self.out.write_all(bytes).map_err(Refused::io(MEMORY, at))
    }

    /// A hole at the end is not there until something lies behind it.
    fn finish(&mut self) -> Result<(), Refused> {
        if self.gap {
            let last = self.base + self.end - 1;
            go(self.out, last)?;
            self.out.write_all(&[0]).map_err(Refused::io(MEMORY, last))?;
        }
        Ok(())
    }
}

/// Chunks that follow each other, on their way to the file.
struct Batch<'b, 'w, W> {
    chunks: &'b mut Chunks<'w, W>,
    address: u64,
    bytes: &'b [u8],
    size: usize,
    index: &'b mut Vec<Chunk>,
    /// What is stored as it is, follows each other, and was not written yet.
    run: Range<usize>,
}

impl<W: Write + Seek> Batch<'_, '_, W> {
    /// The next chunk.
    fn take(&mut self, i: usize, packed: io::Result<Packed>) -> Result<(), Refused> {
        let begin = i * self.size;
        let length = self.size.min(self.bytes.len() - begin);
        let out = &mut *self.chunks;
        let packed = packed.map_err(Refused::io(MEMORY, out.base + out.end))?;
        let in_place = packed.kind == Kind::Raw;
        if !in_place {
            out.put(&self.bytes[std::mem::take(&mut self.run)])?;
        } else if self.run.is_empty() {
            self.run = begin..begin + length;
        } else {
            self.run.end = begin + length;
        }
        let stored = match (&packed.bytes, packed.kind) {
            (Some(bytes), _) => bytes.len(),
            (None, Kind::Zero) => 0,
            (None, _) => length,
        };
        self.index.push(Chunk {
            address: self.address + begin as u64,
            length: length as u32,
            kind: packed.kind,
            // What waits in `run` comes before this.
            offset: out.end + (self.run.len() - if in_place { length } else { 0 }) as u64,
            stored: stored as u32,
            digest: packed.digest,
        });
        match packed.bytes {
            Some(bytes) => out.put(&bytes)?,
            None if packed.kind == Kind::Zero && out.how.lazy => {
                out.gap = true;
                out.end += length as u64;
            }
            None if self.run.len() >= PIECE => out.put(&self.bytes[std::mem::take(&mut self.run)])?,
            None => {}
        }
        Ok(())
    }

    fn finish(self) -> Result<(), Refused> {
        self.chunks.put(&self.bytes[self.run])
    }
}

fn go(out: &mut impl Seek, at: u64) -> Result<(), Refused> {
    out.seek(SeekFrom::Start(at)).map(drop).map_err(Refused::io("header", at))
}

/// Zeros up to where something may begin.
fn pad(out: &mut impl Write, section: &str, at: u64, align: u64) -> Result<u64, Refused> {
    let from = at.next_multiple_of(align);
    let zeros = vec![0; (from - at) as usize];
    out.write_all(&zeros).map_err(Refused::io(section, at))?;
    Ok(from)
}
