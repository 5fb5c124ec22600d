//! The body of the fuzz target `wire` over `fuzz/corpus/wire`, and over many changed forms of what is there. `EVENKEEL_UPDATE=1` writes
//! the seeds.

use std::fs;
use std::path::PathBuf;

use evenkeel_handover::fuzzing::{script, wire};
use evenkeel_handover::greeting::{Features, Greeting};
use evenkeel_handover::wire::{Content, Encoder, Frame};
use evenkeel_handover::{Digest, Epoch, Message, Reason, Record, Token};

const TOKEN: Token = Token([5; 16]);

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let greeting = Greeting {
        protocols: (1, 1),
        stream: 0,
        streams: 2,
        features: Features::LZ4.with(Features::VERIFY, true),
        token: TOKEN,
        memory: 1 << 20,
        offer: b"offer".to_vec(),
        program: "evenkeel".to_owned(),
    };
    let frames = [
        Frame::Hello(greeting.encode()),
        Frame::Control(Message::Offer(TOKEN, Epoch(3))),
        Frame::Memory { version: 0, address: 4096, content: Content::Bytes(vec![1; 64]) },
        Frame::Memory { version: 0, address: 8192, content: Content::Packed(64, vec![1; 8]) },
        Frame::Memory { version: 1, address: 0, content: Content::Zeros(4096) },
        Frame::Barrier(0),
        Frame::Verify { address: 0, length: 4096, digest: [7; 32] },
        Frame::Missing(vec![(0, 4096), (8192, 8192)]),
        Frame::Section { name: "count".to_owned(), at: 0, total: 8, bytes: vec![1; 8] },
        Frame::Control(Message::Complete(TOKEN, Digest([9; 32]))),
        Frame::Want(4096),
        Frame::Words("no".to_owned()),
        Frame::Control(Message::Refuse(TOKEN, Reason::Busy)),
    ];
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(0);
    frames.iter().for_each(|frame| encoder.put(frame, &mut bytes).unwrap());
    let records =
        [Record::Committed(TOKEN, Epoch(4)), Record::Returned(TOKEN, Epoch(3)), Record::NeverRan(TOKEN)];
    let mut journal: Vec<u8> = records.iter().flat_map(Record::encode).collect();
    journal.extend_from_slice(&[0; 20]);
    vec![("script", script(&bytes)), ("frames", bytes), ("journal", journal), ("greeting", greeting.encode())]
}

#[test]
fn any_bytes_are_read_or_refused() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/wire");
    if std::env::var_os("EVENKEEL_UPDATE").is_some() {
        fs::create_dir_all(&folder).unwrap();
        seeds().iter().for_each(|(name, bytes)| fs::write(folder.join(name), bytes).unwrap());
    }
    let mut corpus: Vec<Vec<u8>> =
        fs::read_dir(&folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
    assert!(corpus.len() >= 4);
    let seeds = seeds();
    corpus.extend(seeds.into_iter().map(|(_, bytes)| bytes));
    let mut seed = 1_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below.max(1)
    };
    let (mut frames, mut greetings, mut records) = (0, 0, 0);
    for one in &corpus {
        for n in 0..2_000 {
            let mut bytes = one.clone();
            for _ in 0..n.min(3) {
                let at = random(bytes.len());
                match random(5) {
                    0 => bytes.truncate(at),
                    1 => bytes.insert(at.min(bytes.len()), random(256) as u8),
                    2 if !bytes.is_empty() => drop(bytes.remove(at)),
                    _ if !bytes.is_empty() => bytes[at] ^= 1 << random(8),
                    _ => {}
                }
            }
            let reached = wire(&bytes);
            frames += reached.frames;
            greetings += reached.greetings;
            records += reached.records;
        }
    }
    println!("{frames} frames, {greetings} greetings, {records} records");
    assert!(frames > 10_000 && greetings > 1_000 && records > 100);
}
