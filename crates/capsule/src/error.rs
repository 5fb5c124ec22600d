//! Why a capsule is not taken, and where.

use std::fmt;
use std::io;

/// A capsule that was refused: in which section, at which byte of the file, and why.
#[derive(Debug)]
pub struct Refused {
    /// The section's name; `header` and `table` for what comes before the sections.
    pub section: String,
    /// The byte of the file at which it showed.
    pub offset: u64,
    /// Why.
    pub why: Why,
}

/// Why a capsule was refused.
#[derive(Debug)]
pub enum Why {
    /// The first bytes are not those of a capsule.
    NotACapsule,
    /// The file ends early; it says of itself that it has so many bytes.
    Truncated(u64),
    /// There is more in the file than it says.
    Trailing,
    /// The digest over these bytes is not the one that is written down.
    Damaged,
    /// This version of the section asks for a newer reader, or is unknown to this one.
    TooNew {
        /// The section's version.
        version: u16,
        /// The newest version of it that is known here; 0 where the reader as a whole is too old.
        known: u16,
        /// The oldest reader that can read it.
        reader: u16,
    },
    /// A section that is critical and has no meaning here.
    UnknownCritical {
        /// The section's version.
        version: u16,
    },
    /// What it says of itself cannot be, or is more than is taken.
    Lies(String),
    /// A section that has to be there is not.
    Missing,
    /// The operating system said so.
    Io(io::Error),
}

impl Refused {
    /// A refusal.
    pub fn new(section: impl Into<String>, offset: u64, why: Why) -> Refused {
        Refused { section: section.into(), offset, why }
    }

    /// What it says of itself cannot be.
    pub fn lies(section: impl Into<String>, offset: u64, what: impl Into<String>) -> Refused {
        Refused::new(section, offset, Why::Lies(what.into()))
    }

    /// What the operating system says about a byte of this section.
    pub fn io(section: &str, offset: u64) -> impl FnOnce(io::Error) -> Refused {
        let section = section.to_owned();
        move |e| Refused::new(section, offset, Why::Io(e))
    }

    /// The catalog's code for it.
    pub fn code(&self) -> &'static str {
        match self.why {
            Why::TooNew { .. } | Why::UnknownCritical { .. } => "capsule-newer",
            Why::Damaged => "digest-mismatch",
            _ => "bad-capsule",
        }
    }

    /// What to do about it; may be empty.
    pub fn hint(&self) -> &'static str {
        match self.why {
            Why::NotACapsule => "a capsule is what `evenkeel snapshot` writes",
            Why::Truncated(_) => "the copy is not complete: fetch the file again",
            Why::Trailing | Why::Damaged => "the file was changed after it was written: fetch it again",
            Why::TooNew { .. } | Why::UnknownCritical { .. } => {
                "use the evenkeel that wrote it, or a newer one"
            }
            Why::Lies(_) | Why::Missing | Why::Io(_) => "",
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "section `{}` at byte {}: ", self.section, self.offset)?;
        match &self.why {
            Why::NotACapsule => f.write_str("this is not a capsule"),
            Why::Truncated(stated) => write!(f, "the file ends here, and says that it has {stated} bytes"),
            Why::Trailing => f.write_str("there is more in the file than it says"),
            Why::Damaged => {
                f.write_str("its digest is not the one that is written down: it was changed or damaged")
            }
            Why::TooNew { version, known: 0, reader } => {
                write!(
                    f,
                    "its version {version} takes a reader {reader}, and this is reader {}",
                    crate::READER
                )
            }
            Why::TooNew { version, known, .. } => {
                write!(f, "it has version {version}, and this reader knows up to version {known}")
            }
            Why::UnknownCritical { version } => {
                write!(f, "this reader does not know it (version {version}), and it is critical")
            }
            Why::Lies(what) => f.write_str(what),
            Why::Missing => f.write_str("it is missing"),
            Why::Io(e) => write!(f, "{e}"),
        }
    }
}

impl std::error::Error for Refused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.why {
            Why::Io(e) => Some(e),
            _ => None,
        }
    }
}
