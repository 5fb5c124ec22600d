//! Files in memory that an emulator opens by path. They vanish with the processes that use them, however those end: a
//! lab that is killed leaves nothing behind.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::Stdio;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::error::Error;

/// A file in memory.
#[derive(Debug)]
pub(crate) struct MemFile(File);

impl MemFile {
    /// With this content. Programs that are started from now on inherit it (it is not closed by exec).
    pub fn new(name: &'static str, content: &[u8]) -> Result<MemFile, Error> {
        let error = |e: rustix::io::Errno| Error::io("create in memory", name)(e.into());
        let fd: OwnedFd = memfd_create(name, MemfdFlags::empty()).map_err(error)?;
        let mut file = File::from(fd);
        file.write_all(content).map_err(Error::io("write in memory", name))?;
        Ok(MemFile(file))
    }

    /// Its path, in a program that inherited it.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }

    /// Its length in bytes; 0 when that cannot be told.
    pub fn len(&self) -> u64 {
        self.0.metadata().map_or(0, |data| data.len())
    }

    /// Up to `buffer.len()` bytes from `offset`.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    /// Its content as text; bytes that are none are replaced.
    pub fn text(&self) -> String {
        let mut bytes = vec![0; usize::try_from(self.len()).unwrap_or_default()];
        let read = self.read_at(&mut bytes, 0).unwrap_or_default();
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }

    /// The last line that holds anything, of the last few thousand bytes.
    pub fn last_line(&self) -> String {
        let mut end = [0; 4096];
        let read = self.read_at(&mut end, self.len().saturating_sub(4096)).unwrap_or_default();
        let text = String::from_utf8_lossy(&end[..read]);
        text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
    }

    /// The file as a program's output.
    pub fn output(&self) -> Result<Stdio, Error> {
        Ok(self.0.try_clone().map_err(Error::io("use", "a file in memory"))?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn another_program_reads_and_writes_it() {
        let file = MemFile::new("test", b"in\n").unwrap();
        let script = format!("cat {0}; echo out > {0}", file.path());
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(output.stdout, b"in\n");
        assert_eq!(file.text(), "out\n");
    }
}
