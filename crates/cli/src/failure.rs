//! What went wrong, as it is told: a code, one line, why, and a hint. On standard error.

use std::path::Path;

use evenkeel_hosts::Error as HostError;
use evenkeel_surface::ReadError;

/// A command that could not be carried out.
#[derive(Debug)]
pub struct Failure {
    /// The exit code: 2 for bad use or input, 3 for what could not be measured, 0 for a reader that went away.
    pub exit: u8,
    /// A code of the catalog; may be empty.
    pub code: &'static str,
    /// One line.
    pub message: String,
    /// What to do; may be empty.
    pub hint: String,
    /// Diagnostics with the document's lines, ready to print.
    pub document: String,
}

impl Failure {
    /// Bad use or bad input.
    pub fn bad(message: impl Into<String>, hint: impl Into<String>) -> Failure {
        Failure { exit: 2, code: "", message: message.into(), hint: hint.into(), document: String::new() }
    }

    /// Something is of another architecture than something else.
    pub fn architectures(a: (&str, &str), b: (&str, &str)) -> Failure {
        let message = format!("{} is {} and {} is {}: no guest moves between them", a.0, a.1, b.0, b.1);
        Failure { code: "arch-mismatch", ..Failure::bad(message, "name hosts of one architecture") }
    }

    /// A file could not be read or written.
    pub fn file(path: &Path, error: &dyn std::fmt::Display) -> Failure {
        Failure::bad(format!("{}: {error}", path.display()), "")
    }

    /// Whoever read standard output has had enough.
    pub fn pipe() -> Failure {
        Failure { exit: 0, ..Failure::bad("", "") }
    }

    /// A document that is wrong.
    pub fn document(name: &str, text: &str, error: &ReadError) -> Failure {
        let colour = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
        let document = evenkeel_report::diagnostics(name, text, &error.diagnostics, colour);
        Failure { document, ..Failure::bad(format!("{name} cannot be used"), "") }
    }

    /// Says it.
    pub fn print(&self) {
        if !self.document.is_empty() {
            anstream::eprint!("{}", self.document);
        }
        if !self.message.is_empty() {
            let code = if self.code.is_empty() { String::new() } else { format!("[{}]", self.code) };
            anstream::eprintln!("error{code}: {}", self.message);
        }
        if !self.hint.is_empty() {
            anstream::eprintln!("hint: {}", self.hint);
        }
    }
}

impl From<HostError> for Failure {
    fn from(e: HostError) -> Failure {
        let hint = e.hint();
        match &e {
            HostError::Read { name, text, error } => Failure { hint, ..Failure::document(name, text, error) },
            HostError::Capture(_) => Failure { exit: 3, ..Failure::bad(e.to_string(), hint) },
            _ => Failure::bad(e.to_string(), hint),
        }
    }
}
