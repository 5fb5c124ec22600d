//! Capsules are hostile files: cut anywhere, changed anywhere, lying about anything, they are refused, named and located, and
//! in bounded memory.

mod common;

use std::io::Cursor;

use common::*;
use evenkeel_capsule::*;

/// Which section a byte of the file belongs to; what is between two, to the latter.
fn owner(entries: &[Entry], byte: u64) -> &str {
    entries.iter().find(|entry| byte < entry.end()).map_or("nobody", |entry| &entry.name)
}

#[test]
fn a_capsule_cut_at_any_byte_is_refused_and_says_where() {
    for kind in KINDS {
        let bytes = small(kind);
        let entries = open(&bytes).unwrap().entries().to_vec();
        let table = 128 + 128 * entries.len();
        for end in 0..bytes.len() {
            let refused = whole(&bytes[..end]).expect_err("a cut capsule was read");
            let expected = match end {
                0..128 => "header",
                _ if end < table => "table",
                _ => owner(&entries, end as u64),
            };
            assert_eq!(
                (refused.section.as_str(), refused.offset),
                (expected, end as u64),
                "{kind}: {refused}"
            );
            assert!(matches!(refused.why, Why::Truncated(_)), "{kind} cut at {end}: {refused}");
        }
    }
}

#[test]
fn any_flipped_bit_is_refused_in_the_section_that_it_is_in() {
    let mut flips = 0;
    for kind in KINDS {
        let bytes = small(kind);
        let entries = open(&bytes).unwrap().entries().to_vec();
        let table = 128 + 128 * entries.len() as u64;
        let mut changed = bytes.clone();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                changed[at] ^= 1 << bit;
                let refused = whole(&changed).expect_err("a changed capsule was read");
                flips += 1;
                if (at as u64) < table {
                    // The digest over both cannot tell which of the two it was.
                    assert!(refused.offset < table, "{kind}, byte {at}, bit {bit}: {refused}");
                } else {
                    let name = owner(&entries, at as u64);
                    assert_eq!(refused.section, name, "{kind}, byte {at}, bit {bit}: {refused}");
                    assert!(refused.offset <= at as u64 && at as u64 - refused.offset < 8192, "{refused}");
                }
                changed[at] ^= 1 << bit;
            }
        }
    }
    println!("{flips} flipped bits were noticed");
    assert!(flips > 300_000);
}

#[test]
fn a_damaged_chunk_is_noticed_before_it_is_handed_over() {
    for kind in KINDS {
        let mut bytes = small(kind);
        let memory = open(&bytes).unwrap().entry(names::MEMORY).unwrap().offset as usize;
        let second = open(&bytes).unwrap().index().unwrap().chunks[1];
        bytes[memory + second.offset as usize + 1000] ^= 1;
        let mut reader = open(&bytes).unwrap();
        let mut seen = Vec::new();
        let refused = reader.load(|address, _| Ok(seen.push(address))).unwrap_err();
        assert_eq!(
            (refused.section.as_str(), refused.offset),
            (names::MEMORY, memory as u64 + 8192),
            "{kind}"
        );
        assert!(seen.iter().all(|&address| address < 8192), "{kind}: {seen:?}");
        let mut into = Vec::new();
        reader.chunk(0, &mut into).unwrap();
        assert_eq!(into, common::memory()[0].1[..8192]);
        reader.chunk(1, &mut into).unwrap_err();
        assert!(into.is_empty(), "nothing of it is given");
    }
}

#[test]
fn a_mapped_chunk_is_verified_holes_too() {
    let bytes = small("lazy");
    let reader = open(&bytes).unwrap();
    let base = reader.entry(names::MEMORY).unwrap().offset;
    assert_eq!(base % 4096, 0);
    let index = reader.index().unwrap();
    for (i, chunk) in index.chunks.iter().enumerate() {
        let at = (base + chunk.offset) as usize;
        let mut mapped = bytes[at..at + chunk.length as usize].to_vec();
        reader.verify_chunk(i, &mapped).unwrap();
        *mapped.last_mut().unwrap() ^= 0x80;
        let refused = reader.verify_chunk(i, &mapped).unwrap_err();
        assert_eq!((refused.section.as_str(), refused.offset), (names::MEMORY, at as u64));
    }
    assert!(reader.verify_chunk(index.chunks.len(), &[]).is_err());
}

#[test]
fn entries_that_lie_are_refused() {
    let good = small("eager");
    let entries = open(&good).unwrap().entries().to_vec();
    let length = good.len() as u64;
    let huge = [u64::MAX, u64::MAX - 7, 1 << 63, 1 << 40, length, length + 8, 0];
    for (i, entry) in entries.iter().enumerate() {
        for (at, now) in [(72, entry.offset), (80, entry.length)] {
            let near = [now.wrapping_sub(8), now + 8, now.wrapping_sub(1), now + 1];
            for lie in huge.into_iter().chain(near).filter(|&lie| lie != now) {
                let mut bytes = good.clone();
                set_entry(&mut bytes, i, at, &lie.to_le_bytes());
                let refused = whole(&bytes).expect_err("an entry that lies was believed");
                assert!(refused.offset <= length, "{refused}");
            }
        }
        // The name of another, a name that is none, and bits without meaning.
        for (at, lie) in [
            (0, [&entries[(i + 1) % entries.len()].name.as_bytes(), &[0; 64][..]].concat()),
            (0, b"Upper".to_vec()),
            (0, vec![0; 64]),
            (0, b"a//b".to_vec()),
            (0, vec![0xff; 64]),
            (63, vec![b'x']),
            (64, vec![0, 0]),
            (66, vec![0, 0]),
            (68, vec![5]),
            (68, vec![1 - u8::from(entry.chunked) + 2 * u8::from(!entry.chunked)]),
            (120, vec![1]),
        ] {
            let mut bytes = good.clone();
            set_entry(&mut bytes, i, at, &lie[..lie.len().min(64)]);
            whole(&bytes).expect_err("an entry that lies was believed");
        }
    }
}

#[test]
fn headers_that_lie_are_refused() {
    let good = small("eager");
    for (at, lies) in [
        (8, vec![vec![0, 0]]),
        (10, vec![vec![0, 0], vec![2, 0]]),
        (12, vec![vec![0, 0], vec![3, 0]]),
        (14, vec![vec![3, 0], vec![4, 0], vec![1, 0], vec![0, 0x80]]),
        (16, vec![vec![0; 4], vec![1, 0, 0, 0], vec![0, 0x20, 0, 0], vec![0, 0, 1, 0]]),
        (20, vec![vec![0; 4], vec![1, 0, 0, 0], vec![0xff; 4], vec![7, 0, 0, 0]]),
        (24, vec![vec![0; 4], vec![127, 0, 0, 0], vec![0xff; 4], vec![136, 0, 0, 0]]),
        (28, vec![vec![0; 4], vec![0xff; 4]]),
        (32, vec![vec![0; 8], vec![0xff; 8]]),
        (56, vec![vec![1]]),
        (95, vec![vec![1]]),
    ] {
        for lie in lies {
            let mut bytes = good.clone();
            bytes[at..at + lie.len()].copy_from_slice(&lie);
            if at != 20 && at != 24 {
                reseal(&mut bytes);
            }
            whole(&bytes).expect_err(&format!("{lie:?} at {at} was believed"));
        }
    }
}

#[test]
fn an_index_that_lies_is_refused() {
    for kind in KINDS {
        let good = small(kind);
        let entry = open(&good).unwrap().entry(names::INDEX).unwrap().clone();
        let mut believed = Vec::new();
        // Every byte of the index replaced, with digests that fit: whoever can write a capsule can do that.
        for at in entry.offset as usize..entry.end() as usize {
            for lie in [0x00, 0x01, 0x10, 0x7f, 0x80, 0xff] {
                if good[at] == lie {
                    continue;
                }
                let mut bytes = good.clone();
                bytes[at] = lie;
                redigest(&mut bytes, names::INDEX);
                if whole(&bytes).is_ok() {
                    believed.push(at - entry.offset as usize);
                }
            }
        }
        // Only where the regions are in the guest is for the index alone to say.
        believed.dedup();
        assert!(believed.iter().all(|at| (16..48).contains(at)), "{kind}: {believed:?}");
    }
}

#[test]
fn what_is_packed_and_lies_is_refused() {
    for kind in ["eager", "zstd"] {
        let good = small(kind);
        let reader = open(&good).unwrap();
        let (base, entry) = (
            reader.entry(names::MEMORY).unwrap().offset as usize,
            reader.entry(names::INDEX).unwrap().clone(),
        );
        let packed = reader
            .index()
            .unwrap()
            .chunks
            .iter()
            .position(|chunk| matches!(chunk.kind, Kind::Zstd | Kind::Pages))
            .expect("some are packed");
        let chunk = reader.index().unwrap().chunks[packed];
        let digest_at = entry.offset as usize + 16 + 2 * 16 + packed * 48 + 16;
        let (from, mut lies) = (base + chunk.offset as usize, 0);
        for at in 0..chunk.stored as usize {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[from + at] ^= 1 << bit;
                let digest = *blake3::hash(&bytes[from..from + chunk.stored as usize]).as_bytes();
                bytes[digest_at..digest_at + 32].copy_from_slice(&digest);
                redigest(&mut bytes, names::INDEX);
                // Another content may be right; a panic or another length is not.
                let mut into = Vec::new();
                match open(&bytes).unwrap().chunk(packed, &mut into) {
                    Ok(()) => assert_eq!(into.len(), chunk.length as usize),
                    Err(refused) => {
                        lies += 1;
                        assert_eq!((refused.section.as_str(), refused.offset), (names::MEMORY, from as u64));
                    }
                }
            }
            if at > 64 {
                break;
            }
        }
        assert!(lies > 8, "{kind}: {lies}");
    }
}

#[test]
fn a_reader_that_is_too_old_says_which_section_stops_it_from_the_header_alone() {
    let good = small("eager");
    let table = 128 + 128 * open(&good).unwrap().entries().len();
    // A section that takes a newer reader, with bits of its entry that this one has no meaning for.
    let mut bytes = good.clone();
    bytes[8..12].copy_from_slice(&[2, 0, 2, 0]);
    set_entry(&mut bytes, 1, 64, &[3, 0, 2, 0, 9, 0, 0, 0]);
    bytes[table..].fill(0xee);
    let refused = open(&bytes).unwrap_err();
    assert_eq!((refused.section.as_str(), refused.code()), ("vm/clock", "capsule-newer"), "{refused}");
    assert!(refused.to_string().contains("version 3 takes a reader 2"), "{refused}");
    // A newer version of a section that is known, and one that is not known at all.
    let mut bytes = good.clone();
    set_entry(&mut bytes, 2, 64, &[2, 0]);
    let refused = open(&bytes).unwrap_err();
    assert!(matches!(refused.why, Why::TooNew { version: 2, known: 1, .. }), "{refused}");
    assert_eq!(refused.section, "vcpu.0/regs");
    let mut bytes = good.clone();
    set_entry(&mut bytes, 2, 0, b"vcpu.0/rats");
    let refused = open(&bytes).unwrap_err();
    assert!(matches!(refused.why, Why::UnknownCritical { version: 1 }), "{refused}");
    // Who only looks sees it all the same.
    assert_eq!(Reader::inspect(Cursor::new(&bytes)).unwrap().entries()[2].name, "vcpu.0/rats");
    // The format as a whole.
    let mut bytes = good;
    bytes[8..12].copy_from_slice(&[2, 0, 2, 0]);
    reseal(&mut bytes);
    assert_eq!(open(&bytes).unwrap_err().section, "header");
}

#[test]
fn what_is_optional_and_unknown_is_carried_through_byte_for_byte() {
    let memory = memory();
    let mut strange = draft();
    let section = Section {
        name: "from.the/future".into(),
        version: 7,
        reader: 1,
        critical: false,
        bytes: (0..=255).rev().collect(),
    };
    strange.put(section.clone());
    let bytes = write(&strange, &layout("zstd", &memory), &memory);
    let mut reader = open(&bytes).unwrap();
    let mut again = Draft::like(&mut reader).unwrap();
    assert_eq!(again.sections(), strange.sections());
    again.put(Section::new("vm/clock", true, vec![1; 48]));
    let again = write(&again, &layout("zstd", &memory), &memory);
    let mut reader = open(&again).unwrap();
    assert_eq!(reader.section("from.the/future").unwrap().as_ref(), Some(&section.bytes));
    assert_eq!(reader.entry("from.the/future").unwrap().version, 7);
    assert_eq!(reader.section("vm/clock").unwrap(), Some(vec![1; 48]));
    assert_eq!(reader.header().id, id(), "it is the same guest");
    assert_ne!(reader.header().root, open(&bytes).unwrap().header().root, "in another capsule");
}

#[test]
fn a_few_bytes_cannot_ask_for_much_memory() {
    // A sparse file of a terabyte with a header that fits: refused by what it says, not by running out.
    struct Huge(Vec<u8>, u64);
    impl std::io::Read for Huge {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            assert!(into.len() <= 64 << 20, "somebody wants {} bytes at once", into.len());
            let from = usize::try_from(self.1).unwrap_or(usize::MAX);
            for (i, byte) in into.iter_mut().enumerate() {
                *byte = self.0.get(from.saturating_add(i)).copied().unwrap_or(0);
            }
            self.1 += into.len() as u64;
            Ok(into.len())
        }
    }
    impl std::io::Seek for Huge {
        fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
            self.1 = match to {
                std::io::SeekFrom::Start(at) => at,
                std::io::SeekFrom::End(_) => 1 << 40,
                std::io::SeekFrom::Current(by) => self.1.wrapping_add_signed(by),
            };
            Ok(self.1)
        }
    }
    let good = small("eager");
    let entries = open(&good).unwrap().entries().to_vec();
    for i in 0..entries.len() {
        let mut bytes = good.clone();
        bytes[32..40].copy_from_slice(&(1_u64 << 40).to_le_bytes());
        let length = (1_u64 << 40) - entries[i].offset;
        set_entry(&mut bytes, i, 80, &length.to_le_bytes());
        Reader::open(Huge(bytes, 0), &knows).map(drop).unwrap_err();
    }
    let mut bytes = good;
    bytes[20..24].copy_from_slice(&(1_u32 << 16).to_le_bytes());
    bytes[24..28].copy_from_slice(&1024_u32.to_le_bytes());
    Reader::open(Huge(bytes, 0), &knows).map(drop).unwrap_err();
}
