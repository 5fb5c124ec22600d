//! The **capsule**: a file that holds one guest, saved, for years.
//!
//! ```text
//! header (128 bytes) │ section table │ contract │ surface │ … │ memory.index │ memory, page-aligned
//! ```
//!
//! * The [`header`] and the table of sections are little-endian and written by hand; their layout is for ever. So a reader
//!   that is too old finds out from them alone which section of which version it is too old for.
//! * A section has a name, a version and a BLAKE3 digest, and is *critical* (a reader that does not know it must stop) or
//!   optional (a reader that does not know it carries it through byte for byte).
//! * Guest memory is cut into chunks ([`index`]), each with a digest of its own, so that a page can be verified when the guest
//!   first touches it. An *eager* capsule leaves zeros out and may be compressed; a *lazy* one holds every region whole, with
//!   holes for zeros, to be mapped.
//! * The root in the header is BLAKE3 over the rest of the header and the table, which holds the digests of everything else. It
//!   is the capsule's identity, and covers every byte: what is between two sections must be zero.
//!
//! This crate is pure: it reads and writes what is [`std::io::Read`], [`std::io::Write`] and [`std::io::Seek`], and knows no path and
//! no clock. Files that are whole or not there, and guests that are restored once, are the crate `files`'.
#![forbid(unsafe_code)]

pub mod cbor;
mod encode;
mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod header;
pub mod index;
mod load;
mod overlap;
mod provenance;
mod read;
mod write;

pub use error::{Refused, Why};
pub use header::{Entry, Header, Id, Root};
pub use index::{Chunk, Index, Kind, Region};
pub use load::Loaded;
pub use provenance::{Exposed, Provenance};
pub use read::{Known, Reader, known};
pub use write::{Draft, Layout, Section, Shared, Slices, Source, Written};

/// The format that this crate writes.
pub const FORMAT: u16 = 1;

/// The reader that this crate is: it reads what says that it is for this one or an older one.
pub const READER: u16 = 1;

/// Names of the sections that every capsule may have, whatever the architecture.
pub mod names {
    /// What the guest was promised: the contract, as the TOML that it is.
    pub const CONTRACT: &str = "contract";
    /// The surface of the host that saved it: the capture, as the JSON that it is.
    pub const SURFACE: &str = "surface";
    /// The calls that made the VM: CBOR.
    pub const MANIFEST: &str = "manifest";
    /// Who saved it, where and when: CBOR, [`crate::Provenance`].
    pub const PROVENANCE: &str = "provenance";
    /// Regions and chunks of guest memory: [`crate::Index`].
    pub const INDEX: &str = "memory.index";
    /// Guest memory.
    pub const MEMORY: &str = "memory";
}
