//! The one byte form of a capture, and its digests.
//!
//! Canonical form: the types' field order, no spaces, a line for each key and for each entry of a list. A part of a
//! document (`offer`, `provenance`) has the same bytes inside a file and on its own, so the digest of a part is the
//! BLAKE3 of a slice of the file.

use std::io;

use serde::Serialize;
use serde_json::ser::Formatter;

use crate::document::{Digests, Surface};

/// Breaks lines at the first two levels and nowhere else.
#[derive(Default)]
struct Lines {
    depth: usize,
    empty: bool,
}

impl Lines {
    fn open(&mut self) {
        self.depth += 1;
        self.empty = true;
    }

    fn item<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool, deepest: usize) -> io::Result<()> {
        self.empty = false;
        if !first {
            out.write_all(b",")?;
        }
        if self.depth <= deepest { out.write_all(b"\n") } else { Ok(()) }
    }

    fn close<W: ?Sized + io::Write>(&mut self, out: &mut W, end: &[u8], deepest: usize) -> io::Result<()> {
        if self.depth <= deepest && !self.empty {
            out.write_all(b"\n")?;
        }
        self.empty = false;
        self.depth -= 1;
        out.write_all(end)
    }
}

impl Formatter for Lines {
    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open();
        out.write_all(b"{")
    }
    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.item(out, first, 1)
    }
    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"}", 1)
    }
    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open();
        out.write_all(b"[")
    }
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.item(out, first, 2)
    }
    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"]", 2)
    }
}

/// Something that has a canonical form.
pub trait Canonical: Serialize {
    /// The canonical form.
    fn canonical(&self) -> String {
        let mut out = Vec::with_capacity(32 * 1024);
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, Lines::default());
        self.serialize(&mut serializer).expect("documents hold only what JSON can say");
        String::from_utf8(out).expect("serde_json writes UTF-8")
    }
}

impl<T: Serialize> Canonical for T {}

/// `blake3:…` of a canonical form.
pub fn digest(canonical: &str) -> String {
    format!("blake3:{}", blake3::hash(canonical.as_bytes()).to_hex())
}

/// Fills in the digests of `surface`: the last step of making one.
pub fn seal(surface: &mut Surface) {
    surface.digests = Digests {
        offer: digest(&surface.offer.canonical()),
        provenance: digest(&surface.provenance.canonical()),
    };
}

/// The text of a capture file. Digests are written as they stand; [`seal`] makes them true.
pub fn print(surface: &Surface) -> String {
    format!(
        "{{\n\"schema\":{},\n\"arch\":{},\n\"digests\":{},\n\"offer\":{},\n\"provenance\":{},\n\"volatile\":{}\n}}\n",
        surface.schema.canonical(),
        surface.arch.canonical(),
        surface.digests.canonical(),
        surface.offer.canonical(),
        surface.provenance.canonical(),
        surface.volatile.canonical(),
    )
}
