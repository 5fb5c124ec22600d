//! A guest that runs before its memory is there sees what was saved, and nothing that was changed since.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use evenkeel_capsule::{Draft, Id, Layout, Reader, Region, Section, Slices};
use evenkeel_memory::{Guest, Lazy, Loading, Place, load};
use evenkeel_surface::Arch;
use evenkeel_sys::Ram;

const LENGTH: usize = 8 << 20;

fn memory() -> Vec<u8> {
    let mut x = 7_u64;
    let mut memory = vec![0; LENGTH];
    for (i, word) in memory.chunks_mut(8).enumerate() {
        x = x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        // Every fourth chunk is zero, and one page of another.
        if i / 8192 % 4 != 3 && i / 512 != 5 {
            word.copy_from_slice(&x.to_ne_bytes());
        }
    }
    memory
}

fn capsule(memory: &[u8], lazy: bool, level: Option<i32>) -> File {
    let mut file = tempfile::tempfile().unwrap();
    let mut draft = Draft::new(Arch::X86_64, Id([3; 16]));
    draft.put(Section::new("contract", true, vec![1]));
    let regions = vec![Region { address: 0, length: memory.len() as u64 }];
    let layout = if lazy { Layout::lazy(regions) } else { Layout { level, ..Layout::eager(regions) } };
    draft.write_with(&mut file, &layout, Slices(&[(0, memory)])).unwrap();
    file
}

fn empty() -> (Arc<Ram>, Guest) {
    let ram = Arc::new(Ram::new(LENGTH).unwrap());
    let place = Place { guest: 0, ram: ram.clone(), offset: 0, length: LENGTH as u64 };
    (ram, Guest::new(vec![place]).unwrap())
}

#[test]
#[cfg_attr(not(uffd), ignore = "there is no usable /dev/userfaultfd here")]
fn memory_is_there_when_somebody_looks() {
    let memory = memory();
    for (lazy, level) in [(true, None), (false, None), (false, Some(1))] {
        let file = capsule(&memory, lazy, level);
        let reader = Reader::open(&file, &|_| Some(1)).unwrap();
        let (ram, guest) = empty();
        let mut loading = Lazy::new(&reader, &file, guest, None, |e| panic!("{e}")).unwrap();
        // Backwards, so that it is asked for before its turn; and a device's system call.
        let mut seen = vec![0; LENGTH];
        for at in (0..LENGTH).step_by(100 * 1024).rev() {
            let end = (at + 100 * 1024).min(LENGTH);
            ram.read(at, &mut seen[at..end]).unwrap();
        }
        assert!(seen == memory, "lazy {lazy}, level {level:?}");
        assert!(loading.wanted() > 0);
        loading.wait().unwrap();
        drop(loading);
        ram.read(0, &mut seen).unwrap();
        assert!(seen == memory);
    }
}

#[test]
#[cfg_attr(not(uffd), ignore = "there is no usable /dev/userfaultfd here")]
fn nobody_sees_a_chunk_that_was_changed() {
    let memory = memory();
    let mut file = capsule(&memory, true, None);
    let reader = Reader::open(file.try_clone().unwrap(), &|_| Some(1)).unwrap();
    let base = reader.entry("memory").unwrap().offset;
    let changed = 5 << 20;
    file.seek(SeekFrom::Start(base + changed)).unwrap();
    file.write_all(&[memory[changed as usize] ^ 1]).unwrap();
    let (ram, guest) = empty();
    let told = Arc::new(AtomicU32::new(0));
    let tells = told.clone();
    let alarm = move |e: &evenkeel_memory::Error| {
        assert!(e.to_string().contains("memory"), "{e}");
        tells.fetch_add(1, Ordering::Relaxed);
    };
    let mut loading = Lazy::new(&reader, &file, guest, None, alarm).unwrap();
    assert!(loading.wait().is_err());
    assert_eq!(told.load(Ordering::Relaxed), 1);
    // A system call that would read it gets an error, or waits where the kernel has no poison: only where it has is it tried.
    let mut into = tempfile::tempfile().unwrap();
    let view =
        vm_memory::GuestRegionMmap::with_arc(ram.region().clone(), vm_memory::GuestAddress(0)).unwrap();
    let view = vm_memory::GuestMemoryMmap::<evenkeel_sys::Marks>::from_regions(vec![view]).unwrap();
    if loading.poisons() {
        use vm_memory::Bytes as _;
        let read = view.write_all_volatile_to(vm_memory::GuestAddress(changed), &mut into, 4096);
        assert!(read.is_err());
    }
    // Eager loading refuses it as well, and says where.
    let (_, guest) = empty();
    let refused = load(&reader, &file, &guest).unwrap_err().to_string();
    assert!(refused.contains("memory"), "{refused}");
}

#[test]
#[cfg_attr(not(uffd), ignore = "there is no usable /dev/userfaultfd here")]
fn what_is_wanted_before_the_threads_begin_is_there_and_the_rest_comes_later() {
    let memory = memory();
    let file = capsule(&memory, false, None);
    let reader = Reader::open(&file, &|_| Some(1)).unwrap();
    let (ram, guest) = empty();
    let loading = Loading::new(&reader, &file, guest, None).unwrap();
    let mut word = [0; 8];
    loading.serve_while(|| ram.read(5 << 20, &mut word).unwrap()).unwrap();
    assert_eq!(word, memory[5 << 20..(5 << 20) + 8]);
    let entered = Arc::new(AtomicU32::new(0));
    let counts = entered.clone();
    let enter = move || _ = counts.fetch_add(1, Ordering::Relaxed);
    let loading = loading.start(|e| panic!("{e}"), enter).unwrap();
    loading.watch().wait().unwrap();
    assert_eq!(entered.load(Ordering::Relaxed), 2);
    // Through the file: it is there, and not put there because somebody looks.
    let mut seen = vec![0; LENGTH];
    rustix::io::pread(ram.fd(), &mut seen[..], 0).unwrap();
    assert!(seen == memory);
    // Given up: whoever waits hears of it.
    let (_, guest) = empty();
    let loading = Loading::new(&reader, &file, guest, None).unwrap();
    let loading =
        loading.start(|_| (), || std::thread::sleep(std::time::Duration::from_millis(100))).unwrap();
    let watch = loading.watch();
    drop(loading);
    assert!(watch.wait().unwrap_err().to_string().contains("given up"));
}

#[test]
fn eager_loading_gives_what_was_saved() {
    let memory = memory();
    for (lazy, level) in [(true, None), (false, None), (false, Some(1))] {
        let file = capsule(&memory, lazy, level);
        let reader = Reader::open(&file, &|_| Some(1)).unwrap();
        let (ram, guest) = empty();
        load(&reader, &file, &guest).unwrap();
        let mut seen = vec![0; LENGTH];
        ram.read(0, &mut seen).unwrap();
        assert!(seen == memory, "lazy {lazy}, level {level:?}");
    }
}
