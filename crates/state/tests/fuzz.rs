//! The bodies of the fuzz targets, over what is in `fuzz/corpus`, over the capsules of earlier versions, and over many changed
//! forms of each. The fuzzer itself takes a nightly compiler: see `fuzz/README.md`.

use std::fs;
use std::path::{Path, PathBuf};

use evenkeel_capsule::{Draft, Id, Section};
use evenkeel_state::Manifest;
use evenkeel_state::file::manifest_section;
use evenkeel_surface::{
    Arch, Capability, Digests, Hex32, Limits, Offer, Provenance, Shape, Surface, Volatile, canonical,
};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What was written by hand or saved; what the fuzzer found (`found-…`) is apart.
fn files(folder: &Path) -> Vec<Vec<u8>> {
    read(folder, |name| !name.starts_with("found-"))
}

/// What the fuzzer found for this target: itself, and two changed forms, since there are many.
fn found(target: &str, body: impl Fn(&[u8])) {
    run(read(&root().join("fuzz/corpus").join(target), |name| name.starts_with("found-")), 2, body);
}

fn read(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<Vec<u8>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|e| e.unwrap().path())
        .filter(|path| wanted(&path.file_name().unwrap().to_string_lossy()))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }
}

/// One of the things that a fuzzer does.
fn change(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(bytes.len());
    match random.below(7) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
        1 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'9'][random.below(7)],
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..(at + random.below(16)).min(bytes.len()))),
        4 => bytes.insert(at, random.below(256) as u8),
        5 if at + 8 <= bytes.len() => {
            let number = [0, 1, u64::MAX, 1 << 31, 1 << 63, 0xffff_ffff, 4096][random.below(7)];
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        _ => {
            let from = random.below(other.len());
            let part = &other[from..(from + random.below(64)).min(other.len())];
            bytes.splice(at..at, part.iter().copied());
        }
    }
}

fn run(corpus: Vec<Vec<u8>>, changes: usize, body: impl Fn(&[u8])) {
    let mut random = Random(1);
    body(&[]);
    for (i, bytes) in corpus.iter().enumerate() {
        body(bytes);
        for _ in 0..changes {
            let mut changed = bytes.clone();
            for _ in 0..=random.below(4) {
                let other = &corpus[(i + random.below(corpus.len())) % corpus.len()];
                change(&mut changed, other, &mut random);
            }
            body(&changed);
        }
    }
}

/// Makes the root in a changed capsule right again where it can be: otherwise nothing behind it would ever be looked at.
fn reseal(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    evenkeel_capsule::fuzzing::reseal(&mut bytes);
    bytes
}

#[test]
fn capsules() {
    let path = root().join("fuzz/corpus/capsule/small.capsule");
    if !path.exists() && std::env::var_os("EVENKEEL_UPDATE").is_some() {
        let mut draft = Draft::new(Arch::X86_64, Id([1; 16]));
        draft.put(manifest_section(&Manifest::default()));
        draft.put(Section::new("optional", false, b"kept".to_vec()));
        draft.write(fs::File::create(&path).unwrap()).unwrap();
    }
    let mut corpus = files(&root().join("fuzz/corpus/capsule"));
    corpus.extend(files(&root().join("tests/compat/v1")));
    let body = |bytes: &[u8]| {
        for bytes in [bytes.to_vec(), reseal(bytes)] {
            evenkeel_capsule::fuzzing::capsule(&bytes);
            evenkeel_state::fuzzing::guest(&bytes);
        }
    };
    run(corpus, 300, body);
    found("capsule", body);
}

#[test]
fn contracts() {
    run(files(&root().join("fuzz/corpus/contract")), 500, evenkeel_contract::fuzzing::contract);
    found("contract", evenkeel_contract::fuzzing::contract);
}

/// A small surface; written into the corpus with `EVENKEEL_UPDATE=1`, if it is not there.
fn small() -> String {
    let mut offer = Offer { capabilities_asked: 300, ..Offer::default() };
    offer.shapes = vec![Shape { name: "kernel".into(), features: vec!["irqchip=kernel".into()] }];
    offer.capabilities = vec![Capability { cap: 129, all: Some(15), system: None, vm: vec![] }];
    offer.msrs_refused = vec![Hex32(0x1db)];
    let mut surface = Surface {
        schema: evenkeel_surface::document::SCHEMA.to_owned(),
        arch: Arch::X86_64,
        digests: Digests::default(),
        offer,
        provenance: Provenance::default(),
        volatile: Volatile::default(),
    };
    canonical::seal(&mut surface);
    canonical::print(&surface)
}

#[test]
fn surfaces() {
    let path = root().join("fuzz/corpus/surface/small.json");
    if !path.exists() && std::env::var_os("EVENKEEL_UPDATE").is_some() {
        fs::write(&path, small()).unwrap();
    }
    evenkeel_surface::read::surface(&fs::read(&path).unwrap(), &Limits::default())
        .expect("the corpus holds a good one");
    run(files(&root().join("fuzz/corpus/surface")), 500, evenkeel_surface::fuzzing::surface);
    found("surface", evenkeel_surface::fuzzing::surface);
}

#[test]
fn states() {
    let mut corpus = files(&root().join("fuzz/corpus/state"));
    // A beginning of each section, whatever the catalog has.
    let sections = u8::try_from(evenkeel_catalog::SECTIONS.len()).expect("one byte names a section");
    corpus.extend((0..sections).map(|which| [vec![which], vec![0; 64]].concat()));
    run(corpus, 100, evenkeel_state::fuzzing::state);
    found("state", evenkeel_state::fuzzing::state);
}
