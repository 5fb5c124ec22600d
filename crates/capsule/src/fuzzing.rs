//! The body of the fuzz target: any bytes give a capsule or a refusal; a capsule is written back as it was.

use std::io::Cursor;

use crate::{Draft, Provenance, Reader, known};

/// Reads any bytes in all ways that there are.
pub fn capsule(bytes: &[u8]) {
    let reach = |offset: u64| assert!(offset <= bytes.len() as u64 + (1 << 16), "a refusal at byte {offset}");
    let everything = |name: &str| known(name).or(Some(1));
    let mut reader = match Reader::open(Cursor::new(bytes), &everything) {
        Ok(reader) => reader,
        Err(refused) => {
            reach(refused.offset);
            assert!(!refused.section.is_empty() && refused.to_string().len() < 1000);
            return;
        }
    };
    if let Err(refused) = reader.verify() {
        return reach(refused.offset);
    }
    for i in 0..reader.index().map_or(0, |index| index.chunks.len()).min(64) {
        let mut chunk = Vec::new();
        reader.chunk(i, &mut chunk).expect("verified before");
    }
    for entry in reader.entries().to_vec() {
        if !entry.chunked {
            let section = reader.bytes(&entry).expect("verified before");
            if entry.name == crate::names::PROVENANCE {
                let _ = Provenance::read(&section, entry.offset);
            }
        }
    }
    if reader.index().is_none() {
        let mut again = Cursor::new(Vec::new());
        let draft = Draft::like(&mut reader).expect("verified before");
        // What is not written is what this reader takes only from others: an entry of a later length.
        if draft.write(&mut again).is_ok() && reader.header().format == crate::FORMAT {
            Reader::open(again, &everything).expect("what is written is read").verify().expect("and is good");
        }
    }
}
