//! What is written is read back: memory of all sorts, in every layout, streamed and in place, whatever fails on the way.

mod common;

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt as _;

use common::*;
use evenkeel_capsule::*;
use proptest::prelude::*;

#[test]
fn every_layout_gives_back_what_went_in() {
    for kind in KINDS {
        let memory = memory();
        let bytes = small(kind);
        assert_eq!(unload(&bytes), memory, "{kind}");
        whole(&bytes).unwrap();
        // Streamed through a buffer it is the same file.
        let mut out = Cursor::new(Vec::new());
        let mut source = |address: u64, into: &mut [u8]| {
            let (begin, bytes) = memory.iter().rfind(|(begin, _)| *begin <= address).unwrap();
            let at = (address - begin) as usize;
            into.copy_from_slice(&bytes[at..at + into.len()]);
            Ok(())
        };
        let written = draft().write_with(&mut out, &layout(kind, &memory), &mut source).unwrap();
        assert_eq!(out.into_inner(), bytes, "{kind}");
        assert_eq!(written.length, bytes.len() as u64);
        assert_eq!(written.root, open(&bytes).unwrap().header().root);
        let mut reader = open(&bytes).unwrap();
        for i in 0..reader.index().unwrap().chunks.len() {
            let chunk = reader.index().unwrap().chunks[i];
            assert_eq!(reader.index().unwrap().chunk_at(chunk.address + 1), Some(i));
            let mut into = Vec::new();
            reader.chunk(i, &mut into).unwrap();
            let (begin, bytes) = memory.iter().rfind(|(begin, _)| *begin <= chunk.address).unwrap();
            assert_eq!(into, bytes[(chunk.address - begin) as usize..][..into.len()], "{kind} {i}");
        }
        assert_eq!(reader.index().unwrap().chunk_at(1 << 31), None, "between two regions");
    }
}

#[test]
fn kinds_are_used_where_they_help() {
    let kinds = |kind: &str| -> Vec<Kind> {
        open(&small(kind)).unwrap().index().unwrap().chunks.iter().map(|chunk| chunk.kind).collect()
    };
    use Kind::{Pages, Raw, Zero, Zstd};
    assert_eq!(kinds("eager"), [Raw, Pages, Zero, Zero]);
    assert_eq!(kinds("lazy"), [Raw, Raw, Zero, Zero]);
    assert_eq!(kinds("zstd"), [Zstd, Zstd, Zero, Zero]);
}

#[test]
fn a_lazy_file_has_holes_for_zeros() {
    let memory = vec![
        (0, [vec![1; 1 << 20], vec![0; 62 << 20], vec![1; 1 << 20]].concat()),
        (1 << 30, vec![0; 1 << 20]),
    ];
    let mut file = tempfile::tempfile().unwrap();
    let slices: Vec<(u64, &[u8])> = memory.iter().map(|(a, b)| (*a, &b[..])).collect();
    let layout = Layout { page: 65536, ..Layout::lazy(regions(&memory)) };
    let written = draft().write_with(&mut file, &layout, Slices(&slices)).unwrap();
    let data = file.metadata().unwrap();
    assert_eq!((data.len(), written.zero), (written.length, (63 << 20) / 65536));
    assert!(data.len() > 65 << 20 && data.blocks() * 512 < 4 << 20, "{} blocks", data.blocks());
    let mut reader = Reader::open(&file, &knows).unwrap();
    assert_eq!(reader.entry(names::MEMORY).unwrap().offset % 65536, 0);
    reader.verify().unwrap();
    let mut loaded = Vec::new();
    reader.load(|address, bytes| Ok(loaded.push((address, bytes.len())))).unwrap();
    assert_eq!(loaded, [(0, 1 << 20), (63 << 20, 1 << 20)], "in as few pieces as can be");
}

#[test]
fn capsules_without_memory_are_capsules() {
    let mut out = Cursor::new(Vec::new());
    draft().write(&mut out).unwrap();
    let mut reader = open(out.get_ref()).unwrap();
    assert!(reader.index().is_none());
    assert_eq!(reader.load(|_, _| panic!()).unwrap(), Loaded::default());
    assert_eq!(reader.section("vcpu.0/regs").unwrap(), Some(vec![7; 13]));
    assert_eq!(reader.section("vcpu.1/regs").unwrap(), None);
}

#[test]
fn what_no_reader_would_take_is_not_written() {
    let refuse = |draft: Draft, layout: Option<Layout>| {
        let out = Cursor::new(Vec::new());
        let memory = |_: u64, _: &mut [u8]| Ok(());
        match layout {
            Some(layout) => draft.write_with(out, &layout, memory).map(drop),
            None => draft.write(out).map(drop),
        }
        .unwrap_err()
    };
    for name in ["", "Memory", "memory", "memory.index", "a b", "/a", "a/", &"a".repeat(65)] {
        let mut with = draft();
        with.put(Section::new(name, true, Vec::new()));
        refuse(with, None);
    }
    let page = |address, length| Region { address, length };
    for regions in [
        vec![page(0, 0)],
        vec![page(0, 8192), page(4096, 4096)],
        vec![page(8192, 4096), page(0, 4096)],
        vec![page(5, 4096)],
        vec![page(0, 4097)],
        vec![page(u64::MAX - 4095, 4096)],
        vec![page(0, 1 << 55)],
    ] {
        refuse(draft(), Some(Layout::eager(regions.clone())));
        refuse(draft(), Some(Layout::lazy(regions)));
    }
    let good = Layout::lazy(vec![page(0, 4096)]);
    refuse(draft(), Some(Layout { page: 5, ..good.clone() }));
    refuse(draft(), Some(Layout { level: Some(1), ..good.clone() }));
    refuse(draft(), Some(Layout { chunk: 2048, ..good.clone() }));
    refuse(draft(), Some(Layout { chunk: 12288, ..good }));
}

#[test]
fn versions_and_readers_travel() {
    let mut out = Cursor::new(Vec::new());
    let mut newer = draft();
    newer.put(Section { version: 4, ..Section::new("vm/clock", true, vec![]) });
    newer.write(&mut out).unwrap();
    assert!(matches!(open(out.get_ref()).unwrap_err().why, Why::TooNew { version: 4, known: 1, reader: 1 }));
}

/// A file whose n-th call fails, or writes or reads only a part.
struct Failing<F> {
    file: F,
    left: u32,
}

impl<F> Failing<F> {
    fn due(&mut self) -> io::Result<()> {
        self.left = self.left.checked_sub(1).ok_or(io::Error::from(io::ErrorKind::StorageFull))?;
        Ok(())
    }
}

impl<F: Write> Write for Failing<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.due()?;
        self.file.write(&bytes[..bytes.len().min(5000)])
    }
    fn flush(&mut self) -> io::Result<()> {
        self.due()?;
        self.file.flush()
    }
}

impl<F: Read> Read for Failing<F> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.due()?;
        let most = bytes.len().min(5000);
        self.file.read(&mut bytes[..most])
    }
}

impl<F: Seek> Seek for Failing<F> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.due()?;
        self.file.seek(to)
    }
}

#[test]
fn whichever_call_fails_it_is_an_error_and_no_capsule() {
    for kind in KINDS {
        let (memory, good) = (memory(), small(kind));
        let slices: Vec<(u64, &[u8])> = memory.iter().map(|(a, b)| (*a, &b[..])).collect();
        let mut calls = 0;
        loop {
            let mut out = Failing { file: Cursor::new(Vec::new()), left: calls };
            match draft().write_with(&mut out, &layout(kind, &memory), Slices(&slices)) {
                Ok(_) => {
                    assert_eq!(out.file.into_inner(), good);
                    break;
                }
                Err(refused) => {
                    assert!(matches!(refused.why, Why::Io(_)), "{refused}");
                    let left = out.file.into_inner();
                    assert!(
                        left == good || whole(&left).is_err(),
                        "half a capsule was taken, after {calls} calls"
                    );
                }
            }
            calls += 1;
        }
        assert!(calls > 10, "{kind}: {calls}");
        for left in 0.. {
            let io = Failing { file: Cursor::new(&good), left };
            match Reader::open(io, &knows).and_then(|mut reader| reader.verify()) {
                Ok(()) => break,
                Err(refused) => assert!(matches!(refused.why, Why::Io(_)), "{refused}"),
            }
        }
        // Memory that cannot be read.
        let broken = |address: u64, _: &mut [u8]| match address {
            0 => Ok(()),
            _ => Err(io::Error::other("gone")),
        };
        let out = Cursor::new(Vec::new());
        assert!(matches!(
            draft().write_with(out, &layout(kind, &memory), broken).unwrap_err().why,
            Why::Io(_)
        ));
    }
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_refused() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&small("lazy")).unwrap();
    let mut reader = Reader::open(&file, &knows).unwrap();
    let memory = reader.entry(names::MEMORY).unwrap().offset;
    let shorter: &File = &file;
    shorter.set_len(memory + 10).unwrap();
    let refused = reader.load(|_, _| Ok(())).unwrap_err();
    assert!(matches!(refused.why, Why::Truncated(_)) && refused.section == names::MEMORY, "{refused}");
}

/// What a page holds: zeros, one byte throughout, or noise.
fn page() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => Just(vec![0; 4096]),
        1 => any::<u8>().prop_map(|byte| vec![byte; 4096]),
        1 => any::<u64>().prop_map(|seed| {
            let mut x = seed | 1;
            (0..4096).map(|_| { x ^= x << 13; x ^= x >> 7; x ^= x << 17; x as u8 }).collect()
        }),
        1 => (0..4096_usize).prop_map(|at| { let mut page = vec![0; 4096]; page[at] = 1; page }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn any_memory_is_read_back(
        pages in proptest::collection::vec(proptest::collection::vec(page(), 1..40), 1..4),
        gaps in proptest::collection::vec(0_u64..5, 4),
        kind in 0..3_usize,
        chunk in 0..4_u32,
    ) {
        let (mut memory, mut at) = (Vec::new(), 0);
        for (pages, gap) in pages.into_iter().zip(gaps) {
            let bytes = pages.concat();
            let address = at + gap * 4096;
            at = address + bytes.len() as u64;
            memory.push((address, bytes));
        }
        let layout = Layout { chunk: 4096 << chunk, ..layout(KINDS[kind], &memory) };
        let bytes = write(&draft(), &layout, &memory);
        prop_assert!(whole(&bytes).is_ok());
        prop_assert_eq!(unload(&bytes), memory);
    }
}
