//! The body of the fuzz target `receiver` over `fuzz/corpus/receiver`, and over many changed forms of what is there. `EVENKEEL_UPDATE=1`
//! writes the seeds.

use std::fs;
use std::path::PathBuf;

use evenkeel_handover::fuzzing::script;
use evenkeel_handover::wire::{Content, Encoder, Frame};
use evenkeel_handover::{Digest, Epoch, Message};
use evenkeel_migrate::fuzzing::{TOKEN, receiver};

fn seed(agreed: u8, frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(0);
    frames.iter().for_each(|frame| encoder.put(frame, &mut bytes).unwrap());
    let mut seed = vec![agreed];
    seed.extend(script(&bytes));
    seed
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let offer = Frame::Control(Message::Offer(TOKEN, Epoch(3)));
    let page = |version, page: u64, length| Frame::Memory {
        version,
        address: page << 12,
        content: Content::Bytes(vec![page as u8 + 1; length]),
    };
    let section = |name: &str| Frame::Section { name: name.to_owned(), at: 0, total: 8, bytes: vec![1; 8] };
    // Zeros: the digest that is right.
    let complete = Frame::Control(Message::Complete(TOKEN, Digest([0; 32])));
    let commit = Frame::Control(Message::Commit(TOKEN, Epoch(3)));
    let zeros =
        |version, page: u64| Frame::Memory { version, address: page << 12, content: Content::Zeros(4096) };
    let packed = lz4_flex::block::compress(&[7; 4096]);
    let packed = Frame::Memory { version: 0, address: 4096, content: Content::Packed(4096, packed) };
    let nothing = *blake3::hash(&[0; 16 << 12]).as_bytes();
    let plain = vec![
        offer.clone(),
        page(0, 1, 4096),
        zeros(0, 2),
        Frame::Barrier(0),
        page(1, 1, 4096),
        Frame::Barrier(1),
        section("a"),
        section("b"),
        complete.clone(),
        commit.clone(),
    ];
    let verified = vec![
        offer.clone(),
        packed,
        Frame::Barrier(0),
        Frame::Verify { address: 0, length: 16 << 12, digest: nothing },
        Frame::Barrier(1),
        section("a"),
        complete.clone(),
        commit.clone(),
    ];
    let late = vec![
        offer.clone(),
        zeros(0, 3),
        Frame::Barrier(0),
        Frame::Missing(vec![(4096, 8192)]),
        Frame::Barrier(1),
        section("a"),
        complete,
        commit.clone(),
    ];
    let given_up = vec![offer.clone(), zeros(0, 3), Frame::Control(Message::Abort(TOKEN)), offer, commit];
    vec![
        ("plain", seed(0, &plain)),
        ("three-streams", seed(2 << 3, &plain)),
        ("verified", seed(3, &verified)),
        ("late", seed(4, &late)),
        ("given-up", seed(0, &given_up)),
        ("address", b"tls:[::1]:4433".to_vec()),
    ]
}

#[test]
fn whatever_a_source_says_is_taken_in_order_or_refused() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/receiver");
    if std::env::var_os("EVENKEEL_UPDATE").is_some() {
        fs::create_dir_all(&folder).unwrap();
        seeds().iter().for_each(|(name, bytes)| fs::write(folder.join(name), bytes).unwrap());
    }
    let mut corpus: Vec<Vec<u8>> =
        fs::read_dir(&folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
    assert!(corpus.len() >= 6);
    for (name, bytes) in seeds() {
        let reached = receiver(&bytes);
        let runs = u64::from(!matches!(name, "given-up" | "address"));
        assert_eq!((reached.complete, reached.runs), (runs, runs), "{name}: {reached:?}");
        corpus.push(bytes);
    }
    let mut seed = 1_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below.max(1)
    };
    let (mut taken, mut refused, mut runs) = (0, 0, 0);
    for one in &corpus {
        for n in 0..3_000 {
            let mut bytes = one.clone();
            for _ in 0..n.min(3) {
                // Mostly near the beginning of a frame: pages are long.
                let near = if random(2) == 0 { bytes.len() } else { bytes.len().min(100) };
                let at = random(near);
                match random(6) {
                    0 => bytes.truncate(at),
                    1 => bytes.insert(at.min(bytes.len()), random(256) as u8),
                    2 if !bytes.is_empty() => drop(bytes.remove(at)),
                    3 => {
                        let part = bytes[at..bytes.len().min(at + 80)].to_vec();
                        bytes.splice(at..at, part);
                    }
                    _ if !bytes.is_empty() => bytes[at] ^= 1 << random(8),
                    _ => {}
                }
            }
            let reached = receiver(&bytes);
            taken += reached.taken;
            refused += reached.refused;
            runs += reached.runs;
        }
    }
    println!("{taken} frames were taken, {refused} refused, {runs} guests run");
    assert!(taken > 5_000 && refused > 1_000 && runs > 100);
}
