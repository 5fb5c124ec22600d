//! `cargo bench -p evenkeel-capsule`: how fast memory goes into a capsule and out of it, each beside what the same bytes cost
//! bare, in one run. Prints a table; decides nothing. Capsules lie in a memfd, so that no disk is measured.
//! `CAPSULE_MIB=256` measures with less memory.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::time::{Duration, Instant};

use evenkeel_capsule::{Draft, Id, Layout, Reader, Region, Section, Slices};
use evenkeel_surface::Arch;

const RUNS: usize = 5;

fn memfd() -> File {
    File::from(rustix::fs::memfd_create("capsule", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd"))
}

/// A guest's memory, as it might be: noise, a little text, zeros; `zeros` of eight pages are zero.
fn guest(bytes: usize, zeros: usize) -> Vec<u8> {
    let mut memory = vec![0; bytes];
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    // Zeros come in stretches of 1 MiB, as in guests that have not used all they have.
    for (i, page) in memory.chunks_mut(4096).enumerate() {
        if (i / 256) % 8 < zeros {
            continue;
        }
        for word in page.chunks_mut(8) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            // Half of each word is noise: what compresses, but not to nothing.
            word.copy_from_slice(&(x & 0xffff_ffff).to_le_bytes()[..word.len()]);
        }
    }
    memory
}

fn median(mut work: impl FnMut() -> Duration) -> Duration {
    let mut all: Vec<Duration> = (0..RUNS).map(|_| work()).collect();
    all.sort();
    all[RUNS / 2]
}

fn row(what: &str, bytes: usize, took: Duration, floor: Duration) {
    let rate = bytes as f64 / took.as_secs_f64() / f64::from(1 << 30);
    let ratio = floor.as_secs_f64() / took.as_secs_f64();
    println!("{what:<54} {:>8.1} ms {rate:>7.2} GiB/s   {ratio:>5.2} of the floor", took.as_secs_f64() * 1e3);
}

fn draft() -> Draft {
    let mut draft = Draft::new(Arch::X86_64, Id([7; 16]));
    draft.put(Section::new("contract", true, vec![0; 4096]));
    draft
}

fn main() {
    let mib = std::env::var("CAPSULE_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(1024);
    let bytes = mib << 20;
    println!("{mib} MiB of guest memory, median of {RUNS} runs");
    for (zeros, name) in [(0, "no zeros"), (4, "half of it zero")] {
        let memory = guest(bytes, zeros);
        let floor = median(|| {
            let mut file = memfd();
            let start = Instant::now();
            file.write_all(&memory).expect("room for it");
            start.elapsed()
        });
        row(&format!("{name}: write(2) into a memfd, the floor"), bytes, floor, floor);
        let regions = vec![Region { address: 0, length: bytes as u64 }];
        let eager = Layout::eager(regions.clone());
        let layouts = [
            ("eager", eager.clone()),
            ("lazy", Layout::lazy(regions)),
            ("eager, zstd 1", Layout { level: Some(1), ..eager }),
        ];
        for (kind, layout) in layouts {
            let mut file = memfd();
            let took = median(|| {
                file = memfd();
                let start = Instant::now();
                draft().write_with(&mut file, &layout, Slices(&[(0, &memory)])).expect("room for it");
                start.elapsed()
            });
            let size = file.metadata().expect("a file").len() >> 20;
            row(&format!("{name}: save, {kind} ({size} MiB)"), bytes, took, floor);
            let mut into = vec![0; bytes];
            let read = median(|| {
                file.rewind().expect("a file");
                let start = Instant::now();
                let (mut at, mut length) = (0, 1);
                while length > 0 {
                    length = file.read(&mut into[at..]).expect("a file");
                    at += length;
                }
                start.elapsed()
            });
            row(&format!("{name}: read(2) of that file, the floor"), bytes, read, read);
            let took = median(|| {
                into.fill(0);
                let start = Instant::now();
                let mut reader = Reader::open(&mut file, &|_| Some(1)).expect("a capsule");
                reader
                    .load(|address, bytes| {
                        into[address as usize..][..bytes.len()].copy_from_slice(bytes);
                        Ok(())
                    })
                    .expect("a capsule");
                start.elapsed()
            });
            assert!(into == memory, "what is measured is right");
            row(&format!("{name}: verified restore, {kind}"), bytes, took, read);
        }
    }
}
