//! The disk.

use std::fs::File;
use std::os::unix::fs::FileExt;

use evenkeel_monitor::devices::virtio::Device;
use evenkeel_monitor::devices::virtio::block::{Block, Config};

use crate::driver::{Driver, MEMORY, Part, used_ring};
use vm_memory::GuestMemoryBackend as _;

const SECTORS: u64 = 64;

fn file() -> File {
    let file = tempfile::tempfile().unwrap();
    for sector in 0..SECTORS {
        file.write_all_at(&[sector as u8; 512], sector * 512).unwrap();
    }
    file
}

fn disk(file: &File, read_only: bool) -> Box<Block> {
    Box::new(Block::new(file.try_clone().unwrap(), read_only, "disk0").unwrap())
}

fn head(kind: u32, sector: u64) -> Vec<u8> {
    let mut head = kind.to_le_bytes().to_vec();
    head.extend([0; 4]);
    head.extend(sector.to_le_bytes());
    head
}

/// One request; its status, and the length in the used ring.
fn ask(driver: &mut Driver, kind: u32, sector: u64, data: Part<'_>) -> (u8, u32, Vec<u8>) {
    let length = match &data {
        Part::Out(bytes) => bytes.len(),
        Part::In(length) => *length,
    };
    let (id, places) = driver.add(0, &[Part::Out(&head(kind, sector)), data, Part::In(1)]);
    driver.kick(0);
    driver.serve();
    let used = driver.used(0);
    assert_eq!(used.len(), 1);
    assert_eq!(used[0].0, id);
    (driver.bytes(places[2], 1)[0], used[0].1, driver.bytes(places[1], length))
}

#[test]
fn a_disk_is_read_and_written() {
    let file = file();
    let mut driver = Driver::new(disk(&file, false), 1 << 9 | 1 << 2);
    assert_eq!(driver.read(0x100), SECTORS as u32);
    assert_eq!(driver.read(0x10c), 254, "segments of a request");

    let (status, length, data) = ask(&mut driver, 0, 3, Part::In(1024));
    assert_eq!((status, length), (0, 1025));
    assert_eq!(data, [[3; 512], [4; 512]].concat());

    let (status, length, _) = ask(&mut driver, 1, 5, Part::Out(&[0xab; 1024]));
    assert_eq!((status, length), (0, 1));
    let mut there = [0; 1536];
    file.read_exact_at(&mut there, 5 * 512).unwrap();
    assert_eq!(there[..1024], [0xab; 1024]);
    assert_eq!(there[1024..], [7; 512]);

    assert_eq!(ask(&mut driver, 4, 0, Part::Out(&[])).0, 0, "a flush");
    let (status, length, name) = ask(&mut driver, 8, 0, Part::In(20));
    assert_eq!((status, length), (0, 21));
    assert_eq!(&name, b"disk0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(ask(&mut driver, 77, 0, Part::In(512)).0, 2, "no such request");
    let counts = driver.transport.device().counts();
    assert_eq!((counts.requests, counts.bytes), (5, 2068));
}

/// KVM logs what vCPUs write and not what devices do: a copy of a guest that runs would miss what was read from its disk.
#[test]
fn what_a_device_writes_into_memory_is_marked_and_nothing_else() {
    let file = file();
    let mut driver = Driver::new(disk(&file, false), 1 << 9 | 1 << 2);
    let region = driver.memory.iter().next().unwrap().get_mmap();
    let marks = region.bitmap();
    let take = || -> Vec<u64> {
        let words = (0..MEMORY as u64 / 4096).step_by(64).map(|page| (page, marks.take(page)));
        words
            .flat_map(|(page, word)| {
                (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| page + bit)
            })
            .collect()
    };
    let (_, places) = driver.add(0, &[Part::Out(&head(0, 2)), Part::In(3 * 4096), Part::In(1)]);
    take();
    driver.kick(0);
    driver.serve();
    let mut wanted: Vec<u64> = (places[1]..places[1] + 3 * 4096).map(|at| at / 4096).collect();
    wanted.extend([places[2] / 4096, used_ring(0) / 4096]);
    wanted.sort_unstable();
    wanted.dedup();
    assert_eq!(take(), wanted, "the data, the status, and the used ring");
    assert_eq!(driver.bytes(places[1], 512), [2; 512]);
    // What is written to the disk is read from memory.
    let (_, places) = driver.add(0, &[Part::Out(&head(1, 2)), Part::Out(&[5; 4096]), Part::In(1)]);
    take();
    driver.kick(0);
    driver.serve();
    let mut wanted = vec![places[2] / 4096, used_ring(0) / 4096];
    wanted.sort_unstable();
    assert_eq!(take(), wanted);
}

#[test]
fn what_is_not_on_the_disk_is_refused_and_nothing_changes() {
    let file = file();
    let mut driver = Driver::new(disk(&file, false), 0);
    for (sector, length) in
        [(SECTORS, 512), (SECTORS - 1, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 100)]
    {
        let data = vec![0xee; length];
        assert_eq!(ask(&mut driver, 0, sector, Part::In(length)).0, 1, "read of {length} at {sector}");
        assert_eq!(ask(&mut driver, 1, sector, Part::Out(&data)).0, 1, "write of {length} at {sector}");
    }
    let mut there = vec![0; SECTORS as usize * 512];
    file.read_exact_at(&mut there, 0).unwrap();
    assert!(there.chunks(512).zip(0..).all(|(sector, n)| sector == [n; 512]));
    assert_eq!(file.metadata().unwrap().len(), SECTORS * 512);
}

#[test]
fn a_disk_that_is_read_only_is_not_written() {
    let file = file();
    let mut driver = Driver::new(disk(&file, true), 1 << 5);
    assert_eq!(ask(&mut driver, 1, 0, Part::Out(&[9; 512])).0, 1);
    assert_eq!(ask(&mut driver, 0, 1, Part::In(512)), (0, 513, vec![1; 512]));
    let mut there = [1; 512];
    file.read_exact_at(&mut there, 0).unwrap();
    assert_eq!(there, [0; 512]);
}

#[test]
fn what_is_no_request_is_used_and_hurts_nobody() {
    let file = file();
    let mut driver = Driver::new(disk(&file, false), 0);
    // No room for a status; no header; the device's part before the driver's; a circle; a place outside of memory; a descriptor
    // that goes on to none.
    let chains: [&[Part<'_>]; 3] = [
        &[Part::Out(&head(0, 0))],
        &[Part::Out(&[0; 8]), Part::In(513)],
        &[Part::In(513), Part::Out(&head(0, 0))],
    ];
    for chain in chains {
        let (id, _) = driver.add(0, chain);
        driver.kick(0);
        assert_eq!(driver.used(0), [(id, 0)]);
    }
    for (flags, next, place) in
        [(1, 200, 0x30_0000), (0, 0, 0xffff_ffff_ffff_f000), (1, 999, 0x30_0000), (4, 0, 0x30_0000)]
    {
        driver.descriptor(0, 200, place, 16, flags, next);
        driver.offer(0, 200);
        driver.kick(0);
        assert_eq!(driver.used(0), [(200, 0)], "flags {flags}, next {next}");
    }
    // A head that is not in the table is not one to use either.
    driver.offer(0, 300);
    driver.kick(0);
    assert_eq!(driver.used(0), []);
    assert_eq!(ask(&mut driver, 0, 1, Part::In(512)), (0, 513, vec![1; 512]), "and it goes on");
}

#[test]
fn much_work_is_done_in_turns_and_goes_on_across_a_save() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(64 << 20).unwrap();
    let new = || disk(&file, false);
    let mut driver = Driver::new(new(), 0);
    // 80 requests of 1 MiB each, which all write the same memory: more than one turn takes.
    let (first, places) = driver.add(0, &[Part::Out(&head(0, 0)), Part::In(1 << 20), Part::In(1)]);
    let mut ids = vec![first];
    for index in 1..80_u16 {
        let from = index * 3;
        driver.descriptor(0, from, places[0], 16, 1, from + 1);
        driver.descriptor(0, from + 1, places[1], 1 << 20, 3, from + 2);
        driver.descriptor(0, from + 2, places[2], 1, 2, 0);
        driver.offer(0, from);
        ids.push(from);
    }
    driver.kick(0);
    let mut done = driver.used(0);
    assert!((1..20).contains(&done.len()), "{} in one turn", done.len());
    assert!(driver.wakes(), "there is more");
    driver = driver.moved(new());
    assert!(driver.wakes(), "and there is for the new one");
    driver.transport.incoming(&driver.memory.clone());
    done.extend(driver.used(0));
    let second = done.len();
    assert!(second < 40);
    driver = driver.moved(new());
    driver.serve();
    done.extend(driver.used(0));
    let done: Vec<u16> = done.into_iter().map(|(id, _)| id).collect();
    assert_eq!(done, ids, "each once, in order");
}

#[test]
fn a_disk_is_made_again_only_from_the_same() {
    let file = file();
    let disk = disk(&file, false);
    let config = disk.described().clone();
    let record: Config = evenkeel_capsule::cbor::read(&disk.config_record()).unwrap();
    assert_eq!(record, config);
    assert!(Block::with(file.try_clone().unwrap(), record.clone()).is_ok());
    let wrong = [
        Config { bytes: config.bytes + 512, ..config.clone() },
        Config { bytes: config.bytes - 512, ..config.clone() },
        Config { id: "a name of more than twenty bytes".to_owned(), ..config.clone() },
        Config { features: config.features | 1 << 11, ..config },
    ];
    for wrong in wrong {
        assert!(Block::with(file.try_clone().unwrap(), wrong.clone()).is_err(), "{wrong:?}");
    }
}
