//! What became of saving and of setting.

use std::fmt;

use evenkeel_sys::Error;

use crate::Image;

/// A saved VM.
#[derive(Debug)]
pub struct Saved {
    /// Its state.
    pub image: Image,
    /// Groups of the catalog that this VM or this host does not have: `vcpu.0/nested-state`, and why.
    pub absent: Vec<(String, String)>,
    /// What could not be saved, and was found: the id of a gap in the catalog, and where.
    pub found: Vec<Found>,
}

/// State that KVM cannot save, and that this VM has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The gap's id: `G06`.
    pub gap: &'static str,
    /// What was found: `vcpu.0: …`.
    pub what: String,
}

/// Why nothing was saved, or nothing can be set. The guest that was to be saved can go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The item, or the part of the VM: `vcpu.1/lapic`.
    pub item: String,
    /// Why.
    pub why: String,
    /// What can be done about it; may be empty.
    pub hint: String,
}

impl Refused {
    pub(crate) fn new(item: impl fmt::Display, why: impl fmt::Display, hint: &str) -> Self {
        Refused { item: item.to_string(), why: why.to_string(), hint: hint.to_owned() }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.item, self.why)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, " ({})", self.hint) }
    }
}

impl std::error::Error for Refused {}

/// What became of an image that was set.
#[derive(Debug, Default)]
pub struct Report {
    /// How many items were read back as they were wanted.
    pub kept: usize,
    /// Everything else: set and not in force, or not set.
    pub wrong: Vec<Wrong>,
    /// What was left alone on purpose, and why that loses nothing: `vcpu.0/msr.11`.
    pub left: Vec<(String, String)>,
    /// What the guest can notice although it cannot be set otherwise.
    pub found: Vec<Found>,
}

impl Report {
    /// The guest may run: all that was wanted is in force.
    pub fn usable(&self) -> bool {
        self.wrong.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} items kept, {} not", self.kept, self.wrong.len())?;
        self.wrong.iter().try_for_each(|wrong| writeln!(f, "  {wrong}"))
    }
}

/// An item, or a field of one, that is not as it was wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The item: `vcpu.0/regs`, `vcpu.1/msr.c0000080`.
    pub item: String,
    /// The field, where one can be named.
    pub field: String,
    /// What was wanted.
    pub wanted: String,
    /// What is there; empty when that could not be read.
    pub got: String,
    /// The call that failed, where one did.
    pub failed: Option<Error>,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.item)?;
        if !self.field.is_empty() {
            write!(f, ".{}", self.field)?;
        }
        write!(
            f,
            ": wanted {}, there is {}",
            self.wanted,
            if self.got.is_empty() { "?" } else { &self.got }
        )?;
        match &self.failed {
            Some(error) => write!(f, " ({error})"),
            None => Ok(()),
        }
    }
}
