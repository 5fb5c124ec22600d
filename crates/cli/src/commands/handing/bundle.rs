//! What travels beside memory: a capsule without memory, in a file of no file system.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};

use evenkeel_capsule::Reader;
use evenkeel_state::Guest;
use evenkeel_state::file::known;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::commands::moving::ARCH;

/// The most bytes that are read of one: many times what a guest of 64 vCPUs has.
const MOST: u64 = 64 << 20;

/// An empty file.
pub fn empty() -> io::Result<File> {
    Ok(File::from(memfd_create("bundle", MemfdFlags::CLOEXEC)?))
}

/// A file with these bytes.
pub fn holding(bytes: &[u8]) -> io::Result<File> {
    let mut file = empty()?;
    io::Write::write_all(&mut file, bytes)?;
    file.rewind()?;
    Ok(file)
}

/// All that is in one.
pub fn bytes(file: &mut File) -> io::Result<Vec<u8>> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST {
        return Err(io::Error::other(format!("more than {MOST} bytes of state")));
    }
    Ok(bytes)
}

/// Puts a guest into one.
///
/// # Errors
/// The file takes no more, or the guest is none that could be read again.
pub fn put(guest: &Guest, file: &mut File) -> io::Result<u64> {
    file.set_len(0)?;
    file.rewind()?;
    let draft = guest.draft().map_err(io::Error::other)?;
    Ok(draft.write(&mut *file).map_err(io::Error::other)?.length)
}

/// The guest in one, of this architecture, with every byte of it verified.
///
/// # Errors
/// In words: it is damaged, or not for this host.
pub fn guest(bytes: &[u8]) -> Result<Guest, String> {
    let mut reader = Reader::open(io::Cursor::new(bytes), &known).map_err(|e| e.to_string())?;
    reader.verify().map_err(|e| e.to_string())?;
    if reader.header().arch != ARCH {
        return Err(format!(
            "the guest is of {}, and this host of {}",
            reader.header().arch.name(),
            ARCH.name()
        ));
    }
    Guest::read(&mut reader).map_err(|e| e.to_string())
}
