//! A disk of one instant: copied while nobody writes to it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use evenkeel_monitor::board::Disk;
use evenkeel_monitor::control::protocol::DiskHow;
use rustix::fs::{SeekFrom, ftruncate, ioctl_ficlone, seek};
use rustix::io::Errno;

/// Bytes that are copied at a time.
const PIECE: usize = 1 << 20;

/// Copies a disk into an empty file: by sharing its blocks where the file system can, else what is not a hole, byte by byte.
///
/// # Errors
/// It cannot be read, or the file takes no more.
pub fn copy(disk: &Disk, to: &File) -> io::Result<DiskHow> {
    if ioctl_ficlone(to, &disk.file).is_ok() {
        return Ok(DiskHow::Reflinked);
    }
    ftruncate(to, disk.length)?;
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < disk.length {
        let begin = match seek(&disk.file, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            // It does not know holes: all of it is copied.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(e) => return Err(e.into()),
        };
        let end = match seek(&disk.file, SeekFrom::Hole(begin)) {
            Ok(end) => end.min(disk.length),
            Err(_) => disk.length,
        };
        at = begin;
        while at < end {
            let part = &mut piece[..PIECE.min((end - at) as usize)];
            disk.file.read_exact_at(part, at)?;
            to.write_all_at(part, at)?;
            at += part.len() as u64;
        }
    }
    Ok(DiskHow::Copied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_holds_what_the_disk_holds_and_its_holes() {
        use std::os::unix::fs::MetadataExt as _;
        let (file, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let length = 9 << 20;
        file.set_len(length).unwrap();
        file.write_all_at(&[7; 3000], (4 << 20) - 1000).unwrap();
        file.write_all_at(&[9; 512], length - 512).unwrap();
        let disk = Disk { name: "disk0".to_owned(), file, length };
        copy(&disk, &to).unwrap();
        let read = |file: &File| {
            let mut all = vec![0; length as usize];
            file.read_exact_at(&mut all, 0).unwrap();
            all
        };
        assert!(read(&disk.file) == read(&to));
        assert_eq!(to.metadata().unwrap().len(), length);
        assert!(to.metadata().unwrap().blocks() * 512 < length / 2, "holes stay holes");
    }
}
