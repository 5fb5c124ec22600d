//! The bodies of the fuzz targets: over what is in `fuzz/corpus`, over many changed forms of it, and over bytes that nobody chose. The
//! fuzzer itself takes a nightly compiler: see `fuzz/README.md`.

#[cfg(target_arch = "x86_64")]
mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use evenkeel_monitor::fuzzing::{self, Reached};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// No body takes as long, on a machine that does other things as well.
const LONG: Duration = Duration::from_secs(20);

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name)
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = folder(name);
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Runs a body over the seeds, over changed seeds and over random bytes; returns what all of them reached together.
fn run(seeds: &[Vec<u8>], cases: u32, longest: usize, body: fn(&[u8]) -> Reached) -> Reached {
    let all = [const { AtomicU64::new(0) }; 4];
    let note = |bytes: &[u8]| {
        let began = Instant::now();
        let it = body(bytes);
        assert!(began.elapsed() < LONG, "{:?} for {} bytes", began.elapsed(), bytes.len());
        for (sum, part) in all.iter().zip([it.requests, it.moves, it.taken, it.interrupts]) {
            sum.fetch_add(part, Ordering::Relaxed);
        }
    };
    note(&[]);
    seeds.iter().for_each(|seed| note(seed));
    let seeds = seeds.to_vec();
    let changed = (0..seeds.len(), vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..8)).prop_map(
        move |(seed, changes)| {
            let mut bytes = seeds[seed].clone();
            for (at, value, how) in changes {
                let at = at.index(bytes.len().max(1));
                match how {
                    0 if at < bytes.len() => bytes[at] = value,
                    1 if at < bytes.len() => bytes[at] ^= 1 << (value % 8),
                    2 => bytes.truncate(at + usize::from(value)),
                    _ => bytes.insert(at.min(bytes.len()), value),
                }
            }
            bytes
        },
    );
    // Bytes that are chosen at random, and programs of them that are repeated.
    let random = vec(any::<u8>(), 0..longest);
    // EVENKEEL_FUZZ=N: N times as many, for a long run.
    let times = std::env::var("EVENKEEL_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let cases = cases.saturating_mul(times);
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_time: 10_000,
        ..ProptestConfig::default()
    };
    let mut runner = TestRunner::new(config);
    let strategy = prop_oneof![changed.boxed(), random.boxed()];
    runner
        .run(&strategy, |bytes| {
            note(&bytes);
            Ok(())
        })
        .unwrap();
    let [requests, moves, taken, interrupts] = all.map(AtomicU64::into_inner);
    Reached { requests, moves, taken, interrupts }
}

#[test]
fn no_guest_breaks_a_device() {
    let reached = run(&corpus("device"), 4000, 800, fuzzing::device);
    println!("{reached:?}");
    assert!(reached.requests > 2000 && reached.moves > 2000 && reached.interrupts > 2000, "{reached:?}");
}

#[test]
fn no_saved_state_breaks_a_device() {
    if std::env::var_os("EVENKEEL_UPDATE").is_some() {
        for (n, state) in fuzzing::states().iter().enumerate() {
            fs::write(folder("saved").join(format!("state-{n:02}")), state).unwrap();
        }
    }
    let seeds = corpus("saved");
    for state in fuzzing::states() {
        assert_eq!(fuzzing::saved(&state).taken, 1, "a state that a device is at is taken");
    }
    let reached = run(&seeds, 4000, 300, fuzzing::saved);
    println!("{reached:?}");
    assert!(reached.taken > 500 && reached.requests > 200, "{reached:?}");
}

#[test]
fn no_guest_breaks_a_port_or_the_ioapic() {
    let reached = run(&corpus("ports"), 6000, 400, fuzzing::ports);
    println!("{reached:?}");
    assert!(reached.moves > 5000 && reached.interrupts > 1000, "{reached:?}");
}

/// Kernels as they should be, as far as a loader looks: by the 64-bit protocol, by PVH, a bzImage, an arm64 Image.
#[cfg(target_arch = "x86_64")]
fn kernels() -> Vec<Vec<u8>> {
    let mut bz = vec![0; 0x800];
    bz[0x1f1] = 1;
    bz[0x202..0x206].copy_from_slice(b"HdrS");
    bz[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    bz[0x211] = 1;
    bz[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    let mut image = vec![0; 0x100];
    image[16] = 0x80;
    image[56..60].copy_from_slice(b"ARM\x64");
    let code = [0xf4; 16];
    let pc = [common::elf(&code, None), common::elf(&code, Some(common::CODE as u32 + 4)), bz];
    let seed = |how: u8, kernel: &[u8]| [&[how], kernel].concat();
    pc.iter().map(|kernel| seed(0, kernel)).chain([seed(1, &image)]).collect()
}

#[test]
#[cfg(target_arch = "x86_64")]
fn no_kernel_breaks_its_loader() {
    if std::env::var_os("EVENKEEL_UPDATE").is_some() {
        for (kernel, name) in kernels().iter().zip(["elf", "pvh", "bzimage", "image"]) {
            fs::write(folder("kernel").join(name), kernel).unwrap();
        }
    }
    for kernel in kernels() {
        assert_eq!(fuzzing::kernel(&kernel).taken, 1, "a kernel as it should be is taken");
    }
    let reached = run(&corpus("kernel"), 4000, 200, fuzzing::kernel);
    println!("{reached:?}");
    assert!(reached.taken > 500, "{reached:?}");
}
