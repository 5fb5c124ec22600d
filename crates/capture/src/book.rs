//! Keeps the book of what could not be read, so that no failure gets lost.

use std::fmt;

use evenkeel_surface::Unread;
use evenkeel_sys::{Backend, Errno, Error as CallError, Refusal, Source};

use crate::Error;

/// What could not be read so far.
#[derive(Default)]
pub(crate) struct Book {
    unread: Vec<Unread>,
    /// The first answer that a replayed log did not have: then there is no capture.
    off_script: Option<Error>,
}

impl Book {
    /// Notes something in other words than a failed call's.
    pub(crate) fn push(&mut self, unread: Unread) {
        self.unread.push(unread);
    }

    /// Notes a failure about a facet or a state item.
    pub(crate) fn note(&mut self, what: impl fmt::Display, error: &CallError) {
        self.note_in(what, error, "");
    }

    /// Notes a failure in a shape.
    pub(crate) fn note_in(&mut self, what: impl fmt::Display, error: &CallError, shape: &str) {
        if error.is_off_script() && self.off_script.is_none() {
            self.off_script = Some(Error::new(what.to_string(), error.clone()));
        }
        let mut call = error.call();
        if !shape.is_empty() {
            call.push_str(" in shape ");
            call.push_str(shape);
        }
        self.unread.push(Unread { what: what.to_string(), call, why: error.why.short() });
    }

    /// The value, or a note.
    pub(crate) fn ask<T>(&mut self, what: impl fmt::Display, asked: Result<T, CallError>) -> Option<T> {
        self.ask_in(what, asked, "")
    }

    /// The value, or a note that names the shape.
    pub(crate) fn ask_in<T>(
        &mut self,
        what: impl fmt::Display,
        asked: Result<T, CallError>,
        shape: &str,
    ) -> Option<T> {
        asked.map_err(|error| self.note_in(what, &error, shape)).ok()
    }

    /// What a source says, or a note.
    pub(crate) fn read(&mut self, backend: &dyn Backend, source: Source<'_>, what: &str) -> Option<Vec<u8>> {
        let read = backend.read(source).map_err(|why| CallError {
            ioctl: "read",
            argument: source.to_string(),
            why,
        });
        self.ask(what, read)
    }

    /// What a source says, if it exists: that a file is not there is an answer, not a failure.
    pub(crate) fn read_if_any(
        &mut self,
        backend: &dyn Backend,
        source: Source<'_>,
        what: &str,
    ) -> Option<Vec<u8>> {
        match backend.read(source) {
            Err(Refusal::Errno(Errno::ENOENT)) => None,
            Err(why) => {
                self.note(what, &CallError { ioctl: "read", argument: source.to_string(), why });
                None
            }
            Ok(bytes) => Some(bytes),
        }
    }

    /// Takes over another book's notes.
    pub(crate) fn absorb(&mut self, other: Book) {
        self.unread.extend(other.unread);
        self.off_script = self.off_script.take().or(other.off_script);
    }

    /// All notes, in the order of the facets' names, so that the document does not depend on the order of questions.
    pub(crate) fn finish(mut self) -> Result<Vec<Unread>, Error> {
        if let Some(error) = self.off_script {
            return Err(error);
        }
        self.unread.sort_by(|a, b| (&a.what, &a.call, &a.why).cmp(&(&b.what, &b.call, &b.why)));
        Ok(self.unread)
    }
}
