//! Data on standard output, words on standard error, and files that are whole or not there.

use std::io::{self, Write as _};
use std::path::Path;

use serde::Serialize;

use crate::failure::Failure;

/// Prints to standard output; colours go where they are wanted.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(Failure::pipe()),
        Err(e) => Err(Failure::bad(format!("standard output: {e}"), "")),
    }
}

/// Prints a document.
pub fn json<T: Serialize>(document: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|e| Failure::bad(format!("the answer cannot be written as JSON: {e}"), ""))?;
    print(&(text + "\n"))
}

/// Writes a file so that it is the old one or the new one at every moment.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<(), Failure> {
    evenkeel_files::replace(path, |file| file.write_all(content.as_ref())).map_err(|e: io::Error| {
        let hint = match e.kind() {
            io::ErrorKind::NotFound => "the directory must exist",
            io::ErrorKind::StorageFull => "nothing was written; free some space",
            _ => "nothing was written",
        };
        Failure::bad(format!("cannot write {}: {e}", path.display()), hint)
    })
}
