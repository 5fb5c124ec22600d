//! The body of the fuzz target: the views of any bytes, and guests out of any capsule.

use std::io::Cursor;

use evenkeel_capsule::Reader;
use evenkeel_catalog as catalog;

use crate::file::{Guest, known};
use crate::view::Value;
use crate::{Elapsed, Image, Item, Manifest, Owner, compare, gaps, view};

/// The first byte names a section of the catalog, the others are a payload of it. It has a view or it has not; a view is of what is
/// there, and an image that holds it does not differ from itself.
pub fn state(bytes: &[u8]) {
    let Some((which, payload)) = bytes.split_first() else { return };
    let Some(section) = catalog::SECTIONS.get(usize::from(*which)) else { return };
    let item = Item { owner: Owner::Vcpu(0), name: section.name.to_owned(), bytes: payload.to_vec() };
    match view(&item) {
        Ok(fields) => {
            for field in &fields {
                let size = match field.value {
                    Value::Number(_) => 1,
                    Value::Bytes(bytes) => bytes.len(),
                };
                assert!(field.at + size <= payload.len(), "{} is not there", field.name);
            }
        }
        Err(e) => assert!(e.at <= payload.len() && !e.what.is_empty(), "{e}"),
    }
    let arch = match section.arch {
        catalog::Arch::Aarch64 => evenkeel_surface::Arch::Aarch64,
        _ => evenkeel_surface::Arch::X86_64,
    };
    let image = Image { arch, manifest: Manifest::default(), items: vec![item] };
    let _ = gaps(&image);
    if view(&image.items[0]).is_ok() {
        assert_eq!(compare(&image, &image, Elapsed::none()), []);
    }
}

/// A guest out of any bytes: one or a refusal, and one that was read is written as it was.
pub fn guest(bytes: &[u8]) {
    let Ok(mut reader) = Reader::open(Cursor::new(bytes), &known) else { return };
    if let Ok(guest) = Guest::read(&mut reader) {
        let mut out = Cursor::new(Vec::new());
        guest.draft().expect("what was read can be written").write(&mut out).expect("memory takes all");
        let mut again = Reader::open(out, &known).expect("what was written can be read");
        assert_eq!(Guest::read(&mut again).expect("what was written can be read"), guest);
    }
}
