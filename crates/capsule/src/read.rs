//! Reading a capsule: any bytes give a capsule or a refusal that names section and offset, in bounded memory.
//!
//! Opening reads the header and the table, sees that the root is theirs, that nothing asks for a newer reader, that every
//! section lies where it must, and the index of memory. Then what a section holds is verified when it is read, and a chunk of
//! memory before anybody sees it. [`Reader::verify`] looks at every byte.

use std::io::{self, Read, Seek, SeekFrom};

use crate::encode::{genuine, is_zero};
use crate::error::{Refused, Why};
use crate::header::{self, ENTRY, Entry, HEADER, Header, Raw};
use crate::index::Index;
use crate::names::{CONTRACT, INDEX, MANIFEST, MEMORY, PROVENANCE, SURFACE};

/// The newest version of a section, by its name, that the caller has a use for; `None`: it does not know this section.
pub type Known<'k> = &'k dyn Fn(&str) -> Option<u16>;

/// What this crate itself knows: what every capsule may have.
pub fn known(name: &str) -> Option<u16> {
    [CONTRACT, SURFACE, MANIFEST, PROVENANCE, INDEX, MEMORY].contains(&name).then_some(1)
}

/// An open capsule.
#[derive(Debug)]
pub struct Reader<R> {
    pub(crate) io: R,
    header: Header,
    table: usize,
    entries: Vec<Entry>,
    index: Option<Index>,
}

impl<R: Read + Seek> Reader<R> {
    /// Opens a capsule for somebody who knows these sections.
    ///
    /// # Errors
    /// It is not one, it is damaged, it says what cannot be, or it has something critical that is not known.
    pub fn open(io: R, known: Known<'_>) -> Result<Reader<R>, Refused> {
        let mut reader = Reader::inspect(io)?;
        for (i, entry) in reader.entries.iter().enumerate().filter(|(_, entry)| entry.critical) {
            let Entry { version, reader, .. } = *entry;
            let why = match known(&entry.name) {
                Some(known) if version <= known => continue,
                Some(known) => Why::TooNew { version, known, reader },
                None => Why::UnknownCritical { version },
            };
            return Err(Refused::new(&entry.name, (HEADER + i * ENTRY) as u64, why));
        }
        reader.read_index()?;
        Ok(reader)
    }

    /// Opens a capsule only to look at it: whatever its sections are, and without its memory.
    ///
    /// # Errors
    /// As [`Reader::open`], but that nothing has to be known.
    pub fn inspect(mut io: R) -> Result<Reader<R>, Refused> {
        let length = io.seek(SeekFrom::End(0)).map_err(Refused::io("header", 0))?;
        let mut head = [0; HEADER];
        let stated = |bytes: &[u8; HEADER]| header::u64_at(bytes, 32);
        if length < HEADER as u64 {
            let have = length as usize;
            exact(&mut io, "header", 0, &mut head[..have])?;
            let begins = have.min(8);
            let why = if head[..begins] == header::MAGIC[..begins] {
                Why::Truncated(stated(&head))
            } else {
                Why::NotACapsule
            };
            return Err(Refused::new("header", length, why));
        }
        exact(&mut io, "header", 0, &mut head)?;
        let raw = Raw::new(head)?;
        if length < (HEADER + raw.table()) as u64 {
            if stated(&head) <= length {
                let what = format!("{} sections take more room than the file has", raw.sections);
                return Err(Refused::lies("header", 20, what));
            }
            return Err(Refused::new("table", length, Why::Truncated(stated(&head))));
        }
        let mut table = vec![0; raw.table()];
        exact(&mut io, "table", HEADER as u64, &mut table)?;
        let (header, entries) = raw.parse(&table)?;
        if length < header.length {
            let cut = entries.iter().find(|entry| length < entry.end()).map_or("table", |entry| &entry.name);
            return Err(Refused::new(cut, length, Why::Truncated(header.length)));
        }
        if length > header.length {
            let last = entries.last().map_or("table", |entry| &entry.name);
            return Err(Refused::new(last, header.length, Why::Trailing));
        }
        header::check_places(&header, raw.table(), &entries)?;
        Ok(Reader { io, header, table: raw.table(), entries, index: None })
    }

    /// What the header says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The sections, in the order of the file.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What is in the index of memory; `None` if the capsule holds no memory, or was opened only to look at it.
    pub fn index(&self) -> Option<&Index> {
        self.index.as_ref()
    }

    /// What the table says of the section with this name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// What the section with this name holds, verified; `None` if there is none. Not for memory.
    ///
    /// # Errors
    /// It is damaged, or cannot be read.
    pub fn section(&mut self, name: &str) -> Result<Option<Vec<u8>>, Refused> {
        let entry = self.entry(name).cloned();
        entry.map(|entry| self.bytes(&entry)).transpose()
    }

    /// What this section holds, verified. Not for memory.
    ///
    /// # Errors
    /// It is damaged, or cannot be read.
    pub fn bytes(&mut self, entry: &Entry) -> Result<Vec<u8>, Refused> {
        if entry.chunked || entry.length > header::MAX_SECTION {
            return Err(Refused::lies(&entry.name, entry.offset, "it is read in chunks, not whole"));
        }
        let mut bytes = vec![0; entry.length as usize];
        exact(&mut self.io, &entry.name, entry.offset, &mut bytes)?;
        if genuine(&bytes, &entry.digest) {
            Ok(bytes)
        } else {
            Err(Refused::new(&entry.name, entry.offset, Why::Damaged))
        }
    }

    /// Looks at every byte: sections, what is between them, and memory.
    ///
    /// # Errors
    /// The first that is not as it was written.
    pub fn verify(&mut self) -> Result<(), Refused> {
        let mut end = (HEADER + self.table) as u64;
        for entry in self.entries.clone() {
            // Less than the largest page.
            let mut between = vec![0; (entry.offset - end) as usize];
            exact(&mut self.io, &entry.name, end, &mut between)?;
            if let Some(at) = between.iter().position(|&b| b != 0) {
                return Err(Refused::new(&entry.name, end + at as u64, Why::Damaged));
            }
            if !entry.chunked {
                self.bytes(&entry)?;
            }
            end = entry.end();
        }
        self.read_index()?;
        self.load(|_, _| Ok(())).map(drop)
    }

    /// Reads the index of memory, if there is memory and it was not read yet: [`Reader::open`] does, [`Reader::inspect`] does not.
    ///
    /// # Errors
    /// The index is damaged or lies, or one of memory and index is there without the other.
    pub fn read_index(&mut self) -> Result<(), Refused> {
        let (index, memory) = (self.entry(INDEX).cloned(), self.entry(MEMORY).cloned());
        match (index, memory) {
            (None, None) => {}
            (Some(index), None) => return Err(Refused::new(MEMORY, index.end(), Why::Missing)),
            (None, Some(memory)) => return Err(Refused::new(INDEX, memory.offset, Why::Missing)),
            (Some(index), Some(memory)) if self.index.is_none() => {
                let bytes = self.bytes(&index)?;
                if index.digest != memory.digest {
                    return Err(Refused::lies(MEMORY, memory.offset, "its digest is not that of its index"));
                }
                self.index = Some(Index::parse(&bytes, index.offset, &self.header, memory.length)?);
            }
            (Some(_), Some(_)) => {}
        }
        Ok(())
    }

    /// Sees whether these are the bytes of a chunk as the file holds them: for memory that was mapped, before the guest sees it.
    ///
    /// # Errors
    /// They are not, or there is no such chunk.
    pub fn verify_chunk(&self, chunk: usize, stored: &[u8]) -> Result<(), Refused> {
        let base = self.entry(MEMORY).map_or(0, |entry| entry.offset);
        let Some(one) = self.index.as_ref().and_then(|index| index.chunks.get(chunk)) else {
            return Err(Refused::lies(MEMORY, base, format!("there is no chunk {chunk}")));
        };
        one.verify(stored).map_err(|why| Refused::new(MEMORY, base + one.offset, why))
    }

    /// Gives back what it reads from.
    pub fn into_inner(self) -> R {
        self.io
    }
}

impl crate::Chunk {
    /// Unpacks what is stored of it, which was verified, into as many bytes as it has.
    ///
    /// # Errors
    /// It does not unfold to that: whoever wrote it wrote it so.
    pub fn unpack(&self, stored: &[u8], into: &mut Vec<u8>) -> Result<(), Why> {
        into.resize(self.length as usize, 0);
        crate::encode::unpack(&mut Default::default(), self.kind, stored, into)
            .map_err(|what| Why::Lies(what.to_owned()))
    }

    /// Sees whether these bytes are what was stored; of a zero chunk, whether they are zero.
    ///
    /// # Errors
    /// They are not.
    pub fn verify(&self, stored: &[u8]) -> Result<(), Why> {
        let good = match self.kind {
            crate::Kind::Zero => is_zero(stored),
            _ => stored.len() == self.stored as usize && genuine(stored, &self.digest),
        };
        if good { Ok(()) } else { Err(Why::Damaged) }
    }
}

/// Reads so many bytes at a place. A file that has become shorter since it was opened is truncated.
pub(crate) fn exact<R: Read + Seek>(
    io: &mut R,
    section: &str,
    at: u64,
    into: &mut [u8],
) -> Result<(), Refused> {
    io.seek(SeekFrom::Start(at)).map_err(Refused::io(section, at))?;
    io.read_exact(into).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => Refused::new(section, at, Why::Truncated(at + into.len() as u64)),
        _ => Refused::new(section, at, Why::Io(e)),
    })
}
