//! The journals of movers.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use evenkeel_handover::{Journal, Record};
use evenkeel_migrate::{JournalFile, Journaling};
use evenkeel_monitor::control::protocol::Leave;

use super::leaving::Machine;
use crate::failure::Failure;

/// Opens one; where no place was named it lies beside the socket that it is about.
pub fn open(named: Option<&Path>, beside: &Path) -> Result<(JournalFile, PathBuf), Failure> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => {
            let mut name = beside.as_os_str().to_owned();
            name.push(".journal");
            PathBuf::from(name)
        }
    };
    let opened = JournalFile::open(&path).map_err(|e| {
        let hint = "one journal is for one guest at a time; --journal names another one";
        Failure { exit: 3, ..Failure::bad(format!("{}: {e}", path.display()), hint) }
    })?;
    Ok((opened, path))
}

/// The journal of the side that a guest leaves: the process that runs the guest hears of a promise before it is made.
pub struct Announced {
    /// On disk.
    pub journal: JournalFile,
    /// The guest.
    pub machine: Rc<RefCell<Machine>>,
}

impl Journaling for Announced {
    fn records(&self) -> &Journal {
        self.journal.records()
    }

    fn append(&mut self, record: Record) -> io::Result<()> {
        if let Record::Committed(token, _) = record {
            // From here on it does not go on by itself, even if this process ends.
            let mut machine = self.machine.borrow_mut();
            machine.step(Leave::Commit(token.to_string()), None).map_err(io::Error::other)?;
            machine.given = Some(token);
        }
        self.journal.append(record)
    }
}
