//! A disk: a raw file (virtio 1.2, section 5.2).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use evenkeel_capsule::cbor;
use serde::{Deserialize, Serialize};
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::Device;
use crate::Error;

const SECTOR: u64 = 512;
/// VIRTIO_BLK_F_RO.
const READ_ONLY: u64 = 1 << 5;
/// VIRTIO_BLK_F_FLUSH.
const FLUSH: u64 = 1 << 9;
/// Bytes that are moved at once, whatever a request asks for.
const PIECE: usize = 64 << 10;
/// The most bytes of one request: more than any driver's.
const MOST: usize = 64 << 20;

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
}

/// A disk.
#[derive(Debug)]
pub struct Block {
    file: File,
    config: Config,
}

/// The length of a file or of a block device.
fn length(file: &File) -> Result<u64, Error> {
    (&mut &*file).seek(SeekFrom::End(0)).map_err(|e| Error::Device(format!("disk: {e}")))
}

impl Block {
    /// A disk with what is in this file, up to the last whole sector. `name` is what the guest can ask for.
    ///
    /// # Errors
    /// The file's length cannot be told.
    pub fn new(file: File, read_only: bool, name: &str) -> Result<Block, Error> {
        let bytes = length(&file)? / SECTOR * SECTOR;
        Block::with(file, Config { bytes, read_only, id: name.to_owned() })
    }

    /// The disk that this describes, in this file.
    ///
    /// # Errors
    /// The file is too short or too long for it, or the description makes no sense.
    pub fn with(file: File, config: Config) -> Result<Block, Error> {
        let found = length(&file)? / SECTOR * SECTOR;
        if config.bytes != found {
            let what =
                format!("disk {}: {} bytes were expected, the file has {found}", config.id, config.bytes);
            return Err(Error::Device(what));
        }
        if config.id.len() > ID {
            return Err(Error::Device(format!("disk {}: a name has at most {ID} bytes", config.id)));
        }
        Ok(Block { file, config })
    }

    /// What it is.
    pub fn described(&self) -> &Config {
        &self.config
    }

    /// One request; returns how many bytes were written into the guest's memory.
    fn request(&mut self, chain: DescriptorChain<&GuestMemoryMmap>, memory: &GuestMemoryMmap) -> u32 {
        let Some(last) = chain.clone().writable().last() else { return 0 };
        let (Ok(mut reader), Ok(mut writer)) =
            (chain.clone().reader::<()>(memory), chain.writer::<()>(memory))
        else {
            return 0;
        };
        let mut head = [0; 16];
        if reader.read_exact(&mut head).is_err() {
            return 0;
        }
        let kind = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let sector = u64::from_le_bytes([
            head[8], head[9], head[10], head[11], head[12], head[13], head[14], head[15],
        ]);
        // The status byte is the last one.
        let room = writer.available_bytes().saturating_sub(1);
        let status = match kind {
            0 => self.read(sector, &mut writer, room),
            1 => self.write(sector, &mut reader),
            4 => {
                if self.file.sync_data().is_ok() {
                    OK
                } else {
                    IO_ERROR
                }
            }
            8 => {
                if writer.write_all(&self.id()[..room.min(ID)]).is_ok() {
                    OK
                } else {
                    IO_ERROR
                }
            }
            _ => UNSUPPORTED,
        };
        let written = writer.bytes_written() as u32;
        let Some(at) = last.len().checked_sub(1).map(u64::from) else { return written };
        let place = last.addr().0.checked_add(at).map(vm_memory::GuestAddress);
        match place.map(|place| memory.write_slice(&[status], place)) {
            Some(Ok(())) => written + 1,
            _ => written,
        }
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
        (end <= self.config.bytes && length as u64 % SECTOR == 0 && length <= MOST).then_some(from)
    }

    fn read(&self, sector: u64, writer: &mut impl Write, length: usize) -> u8 {
        let Some(from) = self.within(sector, length) else { return IO_ERROR };
        let mut piece = vec![0; PIECE.min(length)];
        let mut done = 0;
        while done < length {
            let part = &mut piece[..PIECE.min(length - done)];
            if self.file.read_exact_at(part, from + done as u64).is_err() || writer.write_all(part).is_err() {
                return IO_ERROR;
            }
            done += part.len();
        }
        OK
    }

    fn write(&self, sector: u64, reader: &mut virtio_queue::Reader<'_, ()>) -> u8 {
        let length = reader.available_bytes();
        let Some(from) = self.within(sector, length).filter(|_| !self.config.read_only) else {
            return IO_ERROR;
        };
        let mut piece = vec![0; PIECE.min(length)];
        let mut done = 0;
        while done < length {
            let part = &mut piece[..PIECE.min(length - done)];
            if reader.read_exact(part).is_err() || self.file.write_all_at(part, from + done as u64).is_err() {
                return IO_ERROR;
            }
            done += part.len();
        }
        OK
    }
}

impl Device for Block {
    fn kind(&self) -> u32 {
        2
    }

    fn features(&self) -> u64 {
        FLUSH | if self.config.read_only { READ_ONLY } else { 0 }
    }

    fn queues(&self) -> &'static [u16] {
        &[256]
    }

    fn config(&self) -> Vec<u8> {
        (self.config.bytes / SECTOR).to_le_bytes().to_vec()
    }

    fn config_record(&self) -> Vec<u8> {
        cbor::print(&self.config)
    }

    fn notify(&mut self, _: usize, queue: &mut Queue, memory: &GuestMemoryMmap, _: u64) -> bool {
        let mut used = false;
        // A ring holds at most this many: a driver that adds while we work is notified for again.
        for _ in 0..queue.size() {
            let Some(chain) = queue.pop_descriptor_chain(memory) else { break };
            let head = chain.head_index();
            let written = self.request(chain, memory);
            used |= queue.add_used(memory, head, written).is_ok();
        }
        used
    }
}
