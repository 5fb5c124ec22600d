//! Where a guest's memory is.

use std::io;
use std::sync::Arc;

use evenkeel_capsule::Region;
use evenkeel_sys::Ram;

use crate::Error;

/// Bytes that are guarded, copied and loaded together when somebody waits for one of them: as many as a chunk of a capsule has.
pub const CHUNK: u64 = evenkeel_capsule::index::CHUNK as u64;

/// A part of a guest's memory: a slot, or several.
#[derive(Clone, Debug)]
pub struct Place {
    /// The guest-physical address.
    pub guest: u64,
    /// What it is in.
    pub ram: Arc<Ram>,
    /// Where in that.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// All memory of a guest.
#[derive(Clone, Debug)]
pub struct Guest {
    places: Vec<Place>,
    rams: Vec<Arc<Ram>>,
}

impl Guest {
    /// Memory in these places: in any order, in pages, without overlaps in the guest.
    ///
    /// # Errors
    /// They are not like that.
    pub fn new(mut places: Vec<Place>) -> Result<Guest, Error> {
        places.sort_by_key(|place| place.guest);
        let mut rams: Vec<Arc<Ram>> = Vec::new();
        let mut end = 0;
        for Place { guest, ram, offset, length } in &places {
            let within = offset.checked_add(*length).is_some_and(|end| end <= ram.len() as u64);
            let pages = [guest, offset, length].iter().all(|&&word| word % 4096 == 0);
            let after = guest.checked_add(*length);
            match after {
                Some(after) if within && pages && *length > 0 && *guest >= end => end = after,
                _ => {
                    return Err(Error::Places(format!(
                        "{length:#x} bytes at {guest:#x}, from {offset:#x} on"
                    )));
                }
            }
            if !rams.iter().any(|known| Arc::ptr_eq(known, ram)) {
                rams.push(ram.clone());
            }
        }
        Ok(Guest { places, rams })
    }

    /// The places, ascending.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// Each memory once.
    pub fn rams(&self) -> &[Arc<Ram>] {
        &self.rams
    }

    /// As a capsule has them.
    pub fn regions(&self) -> Vec<Region> {
        self.places.iter().map(|place| Region { address: place.guest, length: place.length }).collect()
    }

    /// Bytes of all.
    pub fn bytes(&self) -> u64 {
        self.places.iter().map(|place| place.length).sum()
    }

    /// The memory and the offset in it of so many bytes at this guest-physical address, if one place holds them.
    pub(crate) fn find(&self, address: u64, length: u64) -> io::Result<(usize, u64)> {
        let place = self.places.partition_point(|place| place.guest <= address).checked_sub(1);
        let place = place.map(|at| &self.places[at]);
        let found = place
            .filter(|place| address.checked_add(length).is_some_and(|end| end <= place.guest + place.length));
        let found = found.and_then(|place| {
            let ram = self.rams.iter().position(|ram| Arc::ptr_eq(ram, &place.ram))?;
            Some((ram, place.offset + (address - place.guest)))
        });
        found.ok_or_else(|| io::Error::other(format!("the guest has no {length:#x} bytes at {address:#x}")))
    }

    /// BLAKE3 of all memory, place after place: while nobody writes. For tests, and for whoever wants to be sure.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn digest(&self) -> io::Result<[u8; 32]> {
        let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; 1 << 20]);
        for place in &self.places {
            let mut at = 0;
            while at < place.length {
                let length = (place.length - at).min(buffer.len() as u64);
                let bytes = &mut buffer[..length as usize];
                read(&place.ram, place.offset + at, bytes)?;
                hasher.update(bytes);
                at += length;
            }
        }
        Ok(*hasher.finalize().as_bytes())
    }
}

/// Reads memory through its file: no page of the mapping is touched, and none comes to be where nothing was written.
pub(crate) fn read(ram: &Ram, mut at: u64, mut into: &mut [u8]) -> io::Result<()> {
    while !into.is_empty() {
        match rustix::io::pread(ram.fd(), &mut *into, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                at += length as u64;
                into = &mut into[length..];
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Writes memory through its file.
pub(crate) fn write(ram: &Ram, mut at: u64, mut from: &[u8]) -> io::Result<()> {
    while !from.is_empty() {
        match rustix::io::pwrite(ram.fd(), from, at) {
            Ok(length) => {
                at += length as u64;
                from = &from[length..];
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
