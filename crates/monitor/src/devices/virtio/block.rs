//! A disk: a raw file (virtio 1.2, section 5.2). While a process uses it, it holds the file's lock (flock(2)): for itself, or with
//! others where the guest cannot write. Locks of that kind belong to one host: between hosts, storage has to look at the epoch.

use std::fs::{File, TryLockError};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use crate::View;
use evenkeel_capsule::cbor;
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT as _};
use vm_memory::Bytes;

use super::bell::Bell;
use super::chain::{Chain, Side};
use super::turn::Turn;
use super::{Counts, Device};
use crate::Error;
use crate::board::Disk;

const SECTOR: u64 = 512;
/// VIRTIO_BLK_F_SEG_MAX.
const SEG_MAX: u64 = 1 << 2;
/// VIRTIO_BLK_F_RO.
const READ_ONLY: u64 = 1 << 5;
/// VIRTIO_BLK_F_FLUSH.
const FLUSH: u64 = 1 << 9;
/// Every feature that this knows, but for READ_ONLY, which the description has a field for.
const KNOWN: u64 = SEG_MAX | FLUSH;
const QUEUE: u16 = 256;
/// Bytes that are moved at once, whatever a request asks for.
const PIECE: usize = 64 << 10;
/// The most bytes of one request.
const MOST: usize = 16 << 20;
/// So many bytes are moved before others have their turn: the guest's next exit, and a pause.
const TURN: usize = 4 << 20;
/// What a request counts as beside its bytes.
const EACH: usize = 4 << 10;
/// What a flush counts as.
const FLUSHED: usize = 1 << 20;
/// The length of what the guest is told when it asks for the disk's name.
const ID: usize = 20;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// What a disk is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its length in bytes, a multiple of 512.
    pub bytes: u64,
    /// Whether the guest cannot write.
    pub read_only: bool,
    /// What the guest can ask for: at most 20 bytes.
    pub id: String,
    /// VIRTIO_BLK_F_* that the guest is offered, but for VIRTIO_BLK_F_RO.
    pub features: u64,
}

/// A disk.
#[derive(Debug)]
pub struct Block {
    file: File,
    config: Config,
    bell: Bell,
    counts: Counts,
}

/// The length of a file or of a block device.
fn length(file: &File) -> Result<u64, Error> {
    (&mut &*file).seek(SeekFrom::End(0)).map_err(|e| Error::Device(format!("disk: {e}")))
}

impl Block {
    /// A disk with what is in this file, up to the last whole sector. `name` is what the guest can ask for.
    ///
    /// # Errors
    /// The file's length cannot be told, another process uses it, or the name is too long.
    pub fn new(file: File, read_only: bool, name: &str) -> Result<Block, Error> {
        let bytes = length(&file)? / SECTOR * SECTOR;
        Block::with(file, Config { bytes, read_only, id: name.to_owned(), features: KNOWN })
    }

    /// The disk that this describes, in this file.
    ///
    /// # Errors
    /// The file is too short or too long for it, another process uses it, or the description makes no sense.
    pub fn with(file: File, config: Config) -> Result<Block, Error> {
        let wrong = |what: String| Err(Error::Device(format!("disk {}: {what}", config.id)));
        let found = length(&file)? / SECTOR * SECTOR;
        if config.bytes != found {
            return wrong(format!("{} bytes were expected, the file has {found}", config.bytes));
        }
        if config.id.len() > ID {
            return wrong(format!("a name has at most {ID} bytes"));
        }
        if config.features & !KNOWN != 0 {
            let strange = config.features & !KNOWN;
            return wrong(format!(
                "features {strange:#x} are unknown here: restore it with a newer evenkeel"
            ));
        }
        let mut block = Block { file, config, bell: Bell::new()?, counts: Counts::default() };
        block.claim()?;
        Ok(block)
    }

    /// What it is.
    pub fn described(&self) -> &Config {
        &self.config
    }

    /// Requests, until the ring is empty or others have their turn.
    fn serve(&mut self, queue: &mut Queue, memory: &View) -> bool {
        let mut turn = Turn::new(TURN, EACH);
        if turn.serve(queue, memory, |chain| Some(self.request(chain, memory))) {
            self.bell.ring();
        }
        turn.used()
    }

    /// One request; returns how many bytes were written into the guest's memory, and what it counts as beside EACH.
    fn request(&mut self, chain: Chain, memory: &View) -> (u32, usize) {
        let Chain { readable: mut from, writable: mut into, .. } = chain;
        let mut head = [0; 16];
        // The status byte is the last one.
        let Some(status) = into.split_last().filter(|_| from.read(&mut head, memory)) else {
            return (0, 0);
        };
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let sector = u64::from(word(8)) | u64::from(word(12)) << 32;
        let mut cost = 0;
        let result = match word(0) {
            0 => self.read(sector, &mut into, memory),
            1 => self.write(sector, &mut from, memory),
            4 => {
                cost = FLUSHED;
                if self.file.sync_data().is_ok() { OK } else { IO_ERROR }
            }
            8 => {
                let id = self.id();
                if into.write(&id[..into.left().min(ID)], memory) { OK } else { IO_ERROR }
            }
            _ => UNSUPPORTED,
        };
        let moved = into.moved() + from.moved() - head.len();
        self.counts.requests += 1;
        self.counts.bytes += moved as u64;
        // What is behind the length that was written is the driver's: a status that is not next to it is found by its place.
        let told = match memory.write_slice(&[result], status) {
            Ok(()) => into.moved() as u32 + 1,
            Err(_) => 0,
        };
        (told, cost + moved)
    }

    fn id(&self) -> [u8; ID] {
        let mut id = [0; ID];
        id[..self.config.id.len()].copy_from_slice(self.config.id.as_bytes());
        id
    }

    /// Where a request begins, if all of it is on the disk.
    fn within(&self, sector: u64, length: usize) -> Option<u64> {
        let from = sector.checked_mul(SECTOR)?;
        let end = from.checked_add(length as u64)?;
        (end <= self.config.bytes && (length as u64).is_multiple_of(SECTOR) && length <= MOST).then_some(from)
    }

    fn read(&self, sector: u64, into: &mut Side, memory: &View) -> u8 {
        let length = into.left();
        let Some(from) = self.within(sector, length) else { return IO_ERROR };
        let mut piece = vec![0; PIECE.min(length)];
        while into.left() > 0 {
            let at = from + (length - into.left()) as u64;
            let part = &mut piece[..PIECE.min(into.left())];
            if self.file.read_exact_at(part, at).is_err() || !into.write(part, memory) {
                return IO_ERROR;
            }
        }
        OK
    }

    fn write(&self, sector: u64, from: &mut Side, memory: &View) -> u8 {
        let length = from.left();
        let place = self.within(sector, length).filter(|_| !self.config.read_only);
        let Some(place) = place else { return IO_ERROR };
        let mut piece = vec![0; PIECE.min(length)];
        while from.left() > 0 {
            let at = place + (length - from.left()) as u64;
            let part = &mut piece[..PIECE.min(from.left())];
            if !from.read(part, memory) || self.file.write_all_at(part, at).is_err() {
                return IO_ERROR;
            }
        }
        OK
    }
}

impl Device for Block {
    fn kind(&self) -> u32 {
        2
    }

    fn features(&self) -> u64 {
        self.config.features | if self.config.read_only { READ_ONLY } else { 0 }
    }

    fn queues(&self) -> &'static [u16] {
        &[QUEUE]
    }

    fn config(&self) -> Vec<u8> {
        // Capacity, size_max, seg_max: head and status take a descriptor each.
        let mut space = (self.config.bytes / SECTOR).to_le_bytes().to_vec();
        space.extend([0; 4]);
        space.extend(u32::from(QUEUE - 2).to_le_bytes());
        space
    }

    fn config_record(&self) -> Vec<u8> {
        cbor::print(&self.config)
    }

    fn disk(&self) -> Option<Result<Disk, Error>> {
        let failed = |e: std::io::Error| Error::Device(format!("disk {}: {e}", self.config.id));
        let disk = |file| Disk { name: self.config.id.clone(), file, length: self.config.bytes };
        (!self.config.read_only).then(|| self.file.try_clone().map(disk).map_err(failed))
    }

    fn counts(&self) -> Counts {
        self.counts
    }

    fn bell(&self) -> Option<&Bell> {
        Some(&self.bell)
    }

    fn release(&mut self) -> Result<(), Error> {
        let failed = |e: std::io::Error| Error::Device(format!("disk {}: {e}", self.config.id));
        if !self.config.read_only {
            self.file.sync_data().map_err(failed)?;
        }
        self.file.unlock().map_err(failed)
    }

    fn claim(&mut self) -> Result<(), Error> {
        let locked = if self.config.read_only { self.file.try_lock_shared() } else { self.file.try_lock() };
        locked.map_err(|e| {
            Error::Device(match e {
                TryLockError::WouldBlock => format!(
                    "disk {}: another process uses its file: end that one first, or give this guest a copy",
                    self.config.id
                ),
                TryLockError::Error(e) => format!("disk {}: its file cannot be locked: {e}", self.config.id),
            })
        })
    }

    fn notify(&mut self, _: usize, queue: &mut Queue, memory: &View, _: u64) -> bool {
        self.serve(queue, memory)
    }

    fn incoming(&mut self, queues: &mut [Queue], memory: &View, _: u64) -> bool {
        self.bell.silence();
        let ready = queues.first_mut().filter(|queue| queue.ready());
        ready.is_some_and(|queue| self.serve(queue, memory))
    }
}
