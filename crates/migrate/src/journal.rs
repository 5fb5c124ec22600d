//! Journals on disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use evenkeel_handover::Record;
use evenkeel_handover::journal::{Damaged, Journal};

/// Where promises are kept.
pub trait Journaling {
    /// What was promised so far.
    fn records(&self) -> &Journal;

    /// Makes a promise: when this returns it outlives a crash.
    ///
    /// # Errors
    /// It may be durable or not; nobody knows.
    fn append(&mut self, record: Record) -> io::Result<()>;
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file.
    #[error("journal: {0}")]
    Io(#[from] io::Error),
    /// What is in it.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// Another process has it.
    #[error("the journal is in use by another process")]
    InUse,
}

/// A journal in a file that no other process has.
#[derive(Debug)]
pub struct JournalFile {
    file: File,
    journal: Journal,
    /// An append failed: what is behind the last whole record is unknown until it is cut off.
    doubtful: bool,
}

impl JournalFile {
    /// Opens it, or makes an empty one that is there after a crash. A torn end is cut off.
    ///
    /// # Errors
    /// It cannot be opened, is in use, or is damaged.
    pub fn open(path: &Path) -> Result<JournalFile, JournalError> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(JournalError::InUse),
            Err(std::fs::TryLockError::Error(error)) => return Err(error.into()),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let journal = Journal::read(&bytes)?;
        let mut opened = JournalFile { file, journal, doubtful: true };
        opened.cut()?;
        // The name of a new file is durable with its folder only.
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
        Ok(opened)
    }

    fn cut(&mut self) -> io::Result<()> {
        if self.doubtful {
            self.file.set_len(self.journal.bytes as u64)?;
            self.file.seek(SeekFrom::Start(self.journal.bytes as u64))?;
            self.file.sync_all()?;
            self.doubtful = false;
        }
        Ok(())
    }
}

impl Journaling for JournalFile {
    fn records(&self) -> &Journal {
        &self.journal
    }

    fn append(&mut self, record: Record) -> io::Result<()> {
        self.cut()?;
        self.doubtful = true;
        let bytes = record.encode();
        self.file.write_all(&bytes)?;
        self.file.sync_data()?;
        self.doubtful = false;
        self.journal.records.push(record);
        self.journal.bytes += bytes.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_handover::{Epoch, Token};

    #[test]
    fn promises_outlive_the_process_and_a_torn_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guest.journal");
        let first = Record::Committed(Token([1; 16]), Epoch(4));
        let second = Record::Returned(Token([1; 16]), Epoch(3));
        let mut journal = JournalFile::open(&path).unwrap();
        journal.append(first).unwrap();
        assert!(matches!(JournalFile::open(&path), Err(JournalError::InUse)));
        drop(journal);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(&second.encode()[..30]);
        std::fs::write(&path, &bytes).unwrap();
        let mut journal = JournalFile::open(&path).unwrap();
        assert_eq!(journal.records().records, [first]);
        journal.append(second).unwrap();
        drop(journal);
        assert_eq!(JournalFile::open(&path).unwrap().records().records, [first, second]);
        bytes[20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(JournalFile::open(&path), Err(JournalError::Damaged(Damaged(0)))));
    }
}
