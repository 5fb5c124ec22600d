//! A guest is restored once: two copies of it would both believe that they are it, and write to the same disks.
//!
//! What says that a capsule was restored is a note beside it, `ID.restored`, named by the id of the guest that was saved:
//!
//! * not in the capsule: that would change a file whose digest is its identity, and which may lie on what cannot be written,
//! * by the id and not by the file's name: a renamed or copied capsule beside the first holds the same guest, and a new capsule
//!   under an old name holds another,
//! * made by O_EXCL, which also two hosts on one shared folder agree about, and synced with its folder before anything is
//!   restored: of two that try, one does; after a crash the guest counts as restored, as nobody knows how far it came.
//!
//! It is made before the restore and taken back by whoever made it if the restore fails before the guest ran. A copy that was
//! carried to another folder is not noticed: whoever carries it makes a clone. To restore once more all the same, the
//! command has `--clone`; a note that a crash left is removed by hand, by somebody who knows that no copy runs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::replace::folder_of;

/// The right to restore, taken.
#[derive(Debug)]
#[must_use = "a claim that is dropped stays: release it if the guest never ran"]
pub struct Claim {
    note: PathBuf,
}

/// Why it was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Somebody has restored it, or is about to.
    #[error("this guest was restored before: {said} ({})", note.display())]
    Taken {
        /// The note.
        note: PathBuf,
        /// What it says: who did, and when.
        said: String,
    },
    /// The note cannot be written.
    #[error("cannot write down that it is restored, in {}: {error}", note.display())]
    Io {
        /// The note.
        note: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl Claim {
    /// Takes the right to restore the guest with this id from the capsule at `capsule`, and writes down who does.
    ///
    /// # Errors
    /// It was taken before, or it cannot be written down.
    pub fn take(capsule: &Path, id: &str, who: &str) -> Result<Claim, ClaimError> {
        let target = fs::canonicalize(capsule).unwrap_or_else(|_| capsule.to_owned());
        let folder = folder_of(&target);
        let note = folder.join(format!("{id}.restored"));
        let made = OpenOptions::new().write(true).create_new(true).open(&note);
        let write = |mut file: File| {
            file.write_all(who.as_bytes())?;
            file.sync_all()?;
            File::open(&folder)?.sync_all()
        };
        match made {
            Ok(file) => match write(file) {
                Ok(()) => Ok(Claim { note }),
                Err(error) => {
                    // Nothing was restored, and this note is ours.
                    let _ = fs::remove_file(&note);
                    Err(ClaimError::Io { note, error })
                }
            },
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(ClaimError::Taken { said: said(&note), note })
            }
            Err(error) => Err(ClaimError::Io { note, error }),
        }
    }

    /// Where it is written down.
    pub fn note(&self) -> &Path {
        &self.note
    }

    /// Gives the right back: only where the guest never ran.
    ///
    /// # Errors
    /// The note cannot be removed: then the guest counts as restored.
    pub fn release(self) -> io::Result<()> {
        fs::remove_file(&self.note)?;
        File::open(folder_of(&self.note))?.sync_all()
    }
}

/// The first line of a note, as far as it can be shown.
fn said(note: &Path) -> String {
    let mut bytes = [0; 200];
    let length = File::open(note).and_then(|mut file| file.read(&mut bytes)).unwrap_or(0);
    let text = String::from_utf8_lossy(&bytes[..length]);
    let line: String = text.lines().next().unwrap_or("").chars().filter(|c| !c.is_control()).collect();
    if line.is_empty() { "the note does not say by whom".to_owned() } else { line }
}
