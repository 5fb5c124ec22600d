//! What is saved is what memory was at the pause, whoever writes afterwards, and whatever goes wrong.
#![cfg(target_arch = "x86_64")]

mod common;

use std::io::{self, Cursor, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{BURSTS, Habit, guest, with, word};
use evenkeel_capsule::{Draft, Id, Reader, Section, Shared as _};
use evenkeel_memory::{CHUNK, DirtyLog, Error, Guard, Life, Options, Way, load, snapshot};
use evenkeel_sys::{Ram, Slot};
use vm_memory::{Bytes as _, GuestAddress};

const MIB: usize = 1 << 20;
const BUSY: Habit = Habit { memory: 96 * MIB, rate: 200, bursts: 500 };

fn digest_in(capsule: &[u8], memory: usize) -> [u8; 32] {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(capsule).unwrap();
    let reader = Reader::open(Cursor::new(capsule), &|_| Some(1)).unwrap();
    let ram = Arc::new(Ram::new(memory).unwrap());
    load(&reader, &file, &guest(&ram)).unwrap();
    guest(&ram).digest().unwrap()
}

/// A file that is slow, so that the guest and devices get ahead of the copier.
struct Slow(Cursor<Vec<u8>>, Duration);

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        std::thread::sleep(self.1);
        self.0.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Slow {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

/// A file that is full after some bytes, or at which the copier dies.
struct Full(Cursor<Vec<u8>>, usize, bool);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.get_ref().len() > self.1 {
            assert!(!self.2, "the copier dies");
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Full {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

#[test]
#[cfg_attr(not(all(kvm, uffd)), ignore = "there is no usable /dev/kvm or /dev/userfaultfd here")]
fn kvm_what_is_saved_is_what_was_there_at_the_pause() {
    with(BUSY, |pilot, machine| {
        let guard = Guard::new(guest(machine.ram()), None, 64 << 20).unwrap();
        for lazy in [false, true, false] {
            pilot.goes_on();
            let mut out = Slow(Cursor::new(Vec::new()), Duration::from_micros(500));
            let options = Options { lazy, digest: true, ..Options::default() };
            let before = word(machine.ram(), BURSTS);
            let report = snapshot(&Way::Guard(&guard), pilot, &mut out, &options).unwrap();
            assert!(word(machine.ram(), BURSTS) > before, "the guest went on");
            assert!(report.served.copied > 0, "it wrote before its chunks were copied: {report:?}");
            let now = guest(machine.ram()).digest().unwrap();
            assert_ne!(report.digest, Some(now), "memory is another by now");
            assert_eq!(report.digest, Some(digest_in(out.0.get_ref(), BUSY.memory)), "{report}");
            pilot.goes_on();
        }
    });
}

#[test]
#[cfg_attr(not(all(kvm, uffd)), ignore = "there is no usable /dev/kvm or /dev/userfaultfd here")]
fn kvm_copies_aside_are_bounded_and_who_writes_more_waits() {
    with(BUSY, |pilot, machine| {
        let room = 4 * CHUNK;
        let guard = Guard::new(guest(machine.ram()), None, room).unwrap();
        pilot.goes_on();
        let mut out = Slow(Cursor::new(Vec::new()), Duration::from_micros(500));
        let options = Options { digest: true, ..Options::default() };
        let report = snapshot(&Way::Guard(&guard), pilot, &mut out, &options).unwrap();
        assert!(report.served.aside_most <= room, "{:?}", report.served);
        assert!(report.served.held > 0, "{:?}", report.served);
        assert_eq!(report.digest, Some(digest_in(out.0.get_ref(), BUSY.memory)));
        pilot.goes_on();
    });
}

#[test]
#[cfg_attr(not(all(kvm, uffd)), ignore = "there is no usable /dev/kvm or /dev/userfaultfd here")]
fn kvm_a_device_that_writes_after_the_resume_does_not_write_into_the_snapshot() {
    let habit = Habit { rate: 0, ..BUSY };
    with(habit, |pilot, machine| {
        let view = evenkeel_monitor::view(machine.ram(), 0).unwrap();
        let guard = Guard::new(guest(machine.ram()), None, 64 << 20).unwrap();
        guard.arm().unwrap();
        // Before the pause: it is in the snapshot.
        let at = GuestAddress(40 << 20);
        view.write_obj(0x1111_u64, at).unwrap();
        pilot.pause().unwrap();
        let frozen = guard.freeze().unwrap();
        let then = guest(machine.ram()).digest().unwrap();
        pilot.resume().unwrap();
        // After it: by memory, by a system call that fills a buffer, and from a thread of its own.
        view.write_obj(0x2222_u64, at).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0x33; 8192]).unwrap();
        file.rewind().unwrap();
        view.read_exact_volatile_from(GuestAddress(50 << 20), &mut file, 8192).unwrap();
        machine.ram().write(60 << 20, &[0x44; 16]).unwrap();
        let mut kept = vec![0; machine.ram().len()];
        for (i, part) in kept.chunks_mut(MIB).enumerate() {
            frozen.read((i * MIB) as u64, part).unwrap();
        }
        // The guest may only now get to its first instructions, which KVM notes in its page tables: a chunk more.
        assert!(frozen.served().copied >= 3, "each waited for its chunk");
        drop(frozen);
        assert_eq!(*blake3::hash(&kept).as_bytes(), then);
        assert_eq!(kept[40 << 20..][..8], 0x1111_u64.to_ne_bytes());
        assert_eq!(word(machine.ram(), 40 << 20), 0x2222);
        assert_eq!(word(machine.ram(), 50 << 20), 0x3333_3333_3333_3333);
    });
}

#[test]
#[cfg_attr(not(all(kvm, uffd)), ignore = "there is no usable /dev/kvm or /dev/userfaultfd here")]
fn kvm_a_full_disk_and_a_copier_that_dies_leave_a_guest_that_goes_on_and_the_old_file() {
    with(BUSY, |pilot, machine| {
        let guard = Guard::new(guest(machine.ram()), None, 64 << 20).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guest.capsule");
        std::fs::write(&path, "the old one").unwrap();
        for dies in [false, true] {
            pilot.goes_on();
            let options = Options::default();
            let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                evenkeel_files::replace(&path, |_| {
                    let mut out = Full(Cursor::new(Vec::new()), 10 * MIB, dies);
                    let report = snapshot(&Way::Guard(&guard), pilot, &mut out, &options);
                    report.map_err(io::Error::other)
                })
            }));
            match tried {
                Ok(Err(error)) if !dies => assert!(error.to_string().contains("no storage space"), "{error}"),
                Err(_) if dies => {}
                other => panic!("{other:?}"),
            }
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "the old one");
            assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
            pilot.goes_on();
        }
        // And the next one works.
        let mut out = Cursor::new(Vec::new());
        let options = Options { digest: true, ..Options::default() };
        let report = snapshot(&Way::Guard(&guard), pilot, &mut out, &options).unwrap();
        assert_eq!(report.digest, Some(digest_in(out.get_ref(), BUSY.memory)));
        pilot.goes_on();
    });
}

#[test]
#[cfg_attr(not(kvm), ignore = "there is no usable /dev/kvm here")]
fn kvm_without_userfaultfd_memory_is_copied_before_the_pause() {
    with(BUSY, |pilot, machine| {
        let ram = machine.ram();
        let slot = Slot { number: 0, flags: 0, guest: 0, offset: 0, length: ram.len() as u64 };
        let log = DirtyLog::new(machine.vm(), vec![(slot, ram.clone())]).unwrap();
        // A device that writes all the time, and is quiet when the machine is.
        let (over, quiet) = (Arc::new(AtomicBool::new(false)), Arc::new(std::sync::RwLock::new(0_u64)));
        let device = {
            let (over, quiet, ram) = (over.clone(), quiet.clone(), ram.clone());
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let mut count = quiet.write().unwrap();
                    *count += 1;
                    let at = (2 << 20) + (*count as usize * 4096) % (8 << 20);
                    ram.write(at, &count.to_ne_bytes()).unwrap();
                    drop(count);
                    std::thread::sleep(Duration::from_micros(200));
                }
            })
        };
        struct Both<'p, P>(&'p mut P, Arc<std::sync::RwLock<u64>>, Option<Box<dyn FnOnce()>>);
        impl<P: Life> Life for Both<'_, P> {
            fn pause(&mut self) -> Result<(), String> {
                self.0.pause()?;
                // The lock is held for as long as the machine is paused, by a thread that waits for the resume.
                let (lock, (held, hold), (free, wait)) =
                    (self.1.clone(), std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
                std::thread::spawn(move || {
                    let _quiet = lock.read().unwrap();
                    held.send(()).unwrap();
                    let _ = wait.recv();
                });
                hold.recv().unwrap();
                self.2 = Some(Box::new(move || drop(free)));
                Ok(())
            }
            fn save(&mut self) -> Result<(), String> {
                self.0.save()
            }
            fn resume(&mut self) -> Result<(), String> {
                if let Some(free) = self.2.take() {
                    free();
                }
                self.0.resume()
            }
            fn draft(&mut self) -> Result<Draft, String> {
                self.0.draft()
            }
        }
        for _ in 0..2 {
            pilot.goes_on();
            let mut out = Cursor::new(Vec::new());
            let options = Options { digest: true, ..Options::default() };
            let way = Way::DirtyLog(&log, "no userfaultfd".to_owned());
            let report = snapshot(&way, &mut Both(pilot, quiet.clone(), None), &mut out, &options).unwrap();
            assert!(report.way.contains("no userfaultfd") && report.rounds > 0, "{report}");
            assert_eq!(report.digest, Some(digest_in(out.get_ref(), BUSY.memory)), "{report:?}");
            assert_ne!(report.digest, Some(guest(ram).digest().unwrap()));
            pilot.goes_on();
        }
        over.store(true, Ordering::Relaxed);
        device.join().unwrap();
    });
}

/// A machine that is nothing but memory.
struct Nothing;

impl Life for Nothing {
    fn pause(&mut self) -> Result<(), String> {
        Ok(())
    }
    fn save(&mut self) -> Result<(), String> {
        Ok(())
    }
    fn resume(&mut self) -> Result<(), String> {
        Ok(())
    }
    fn draft(&mut self) -> Result<Draft, String> {
        let mut draft = Draft::new(evenkeel_surface::Arch::X86_64, Id([1; 16]));
        draft.put(Section::new("contract", true, vec![1]));
        Ok(draft)
    }
}

#[test]
#[cfg_attr(not(uffd), ignore = "there is no usable /dev/userfaultfd here")]
fn many_threads_that_write_at_random_change_nothing_of_what_is_saved() {
    // The last chunk is not whole, and the regions begin in the middle of chunks.
    let ram = Arc::new(Ram::new(24 * MIB + 0x5000).unwrap());
    common::fill(&ram);
    let place = |guest, offset, length| evenkeel_memory::Place { guest, ram: ram.clone(), offset, length };
    let places = vec![place(0, 0, 0x83000), place(1 << 32, 0x83000, ram.len() as u64 - 0x83000)];
    let all = evenkeel_memory::Guest::new(places).unwrap();
    let guard = Guard::new(all.clone(), None, 2 << 20).unwrap();
    let (over, gate) = (AtomicBool::new(false), std::sync::RwLock::new(()));
    std::thread::scope(|scope| {
        for seed in 1..=4_u64 {
            let (ram, over, gate) = (&ram, &over, &gate);
            scope.spawn(move || {
                let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                while !over.load(Ordering::Relaxed) {
                    let _runs = gate.read().unwrap();
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    ram.write(x as usize % (ram.len() - 8), &x.to_ne_bytes()).unwrap();
                }
            });
        }
        struct Gate<'g>(&'g std::sync::RwLock<()>, Option<std::sync::RwLockWriteGuard<'g, ()>>);
        impl Life for Gate<'_> {
            fn pause(&mut self) -> Result<(), String> {
                self.1 = Some(self.0.write().unwrap());
                Ok(())
            }
            fn save(&mut self) -> Result<(), String> {
                Ok(())
            }
            fn resume(&mut self) -> Result<(), String> {
                self.1 = None;
                Ok(())
            }
            fn draft(&mut self) -> Result<Draft, String> {
                Nothing.draft()
            }
        }
        for _ in 0..6 {
            let mut out = Cursor::new(Vec::new());
            let options = Options { digest: true, ..Options::default() };
            let report = snapshot(&Way::Guard(&guard), &mut Gate(&gate, None), &mut out, &options).unwrap();
            let capsule = out.into_inner();
            let reader = Reader::open(Cursor::new(&capsule), &|_| Some(1)).unwrap();
            let back = Arc::new(Ram::new(ram.len()).unwrap());
            let places: Vec<_> = all
                .places()
                .iter()
                .map(|place| evenkeel_memory::Place { ram: back.clone(), ..place.clone() })
                .collect();
            let back = evenkeel_memory::Guest::new(places).unwrap();
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&capsule).unwrap();
            load(&reader, &file, &back).unwrap();
            assert_eq!(report.digest, Some(back.digest().unwrap()), "{:?}", report.served);
            assert!(report.served.copied > 0);
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn without_a_userfaultfd_the_refusal_says_what_to_do() {
    let ram = Arc::new(Ram::new(MIB).unwrap());
    // What was passed is something else.
    let other = std::fs::File::open("/dev/null").unwrap();
    let refused = Guard::new(guest(&ram), Some(std::os::fd::AsFd::as_fd(&other)), MIB as u64).unwrap_err();
    assert!(matches!(refused, Error::NoUffd(_)), "{refused}");
    assert!(Guard::preflight(Some(std::os::fd::AsFd::as_fd(&other))).is_err());
    assert_eq!(Guard::preflight(None).is_ok(), Guard::new(guest(&ram), None, MIB as u64).is_ok());
    let forbidden = evenkeel_sys::NoUffd::Forbidden(evenkeel_sys::Errno::EPERM).to_string();
    assert!(forbidden.contains("pass an open /dev/userfaultfd"), "{forbidden}");
}
