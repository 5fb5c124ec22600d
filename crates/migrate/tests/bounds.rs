//! What a move takes beside the guest: memory of both sides together, and how fast it is.

use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use evenkeel_handover::{Epoch, Token};
use evenkeel_migrate::{
    Arriving, GuestError, JournalFile, Leaving, Policy, Range, Received, Section, Stream, receive, send,
};

/// A guest whose memory is made up as it is read, and checked as it is written.
struct Made {
    size: u64,
    came: u64,
}

fn word(address: u64) -> [u8; 8] {
    address.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23).to_le_bytes()
}

impl Leaving for Made {
    fn offer(&mut self) -> Result<Vec<u8>, GuestError> {
        Ok(Vec::new())
    }
    fn memory(&self) -> Vec<Range> {
        vec![Range { address: 0, length: self.size }]
    }
    fn track(&mut self) -> Result<(), GuestError> {
        Ok(())
    }
    fn written(&mut self) -> Result<Vec<Range>, GuestError> {
        Ok(Vec::new())
    }
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), GuestError> {
        // A page is one word: it is to cost no more than a copy.
        for (n, page) in into.chunks_mut(4096).enumerate() {
            page.fill(3);
            page[..8].copy_from_slice(&word(address + n as u64 * 4096));
        }
        Ok(())
    }
    fn pause(&mut self) -> Result<(), GuestError> {
        Ok(())
    }
    fn state(&mut self) -> Result<Vec<Section>, GuestError> {
        Ok(vec![Section { name: "state".to_owned(), bytes: vec![1; 4096] }])
    }
    fn resume(&mut self) -> Result<(), GuestError> {
        Ok(())
    }
    fn free(&mut self) {}
}

impl Arriving for Made {
    fn accepts(&mut self, _: &[u8]) -> Result<(), GuestError> {
        Ok(())
    }
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), GuestError> {
        for (n, page) in bytes.chunks(4096).enumerate() {
            assert_eq!(page[..8], word(address + n as u64 * 4096));
        }
        self.came += bytes.len() as u64;
        Ok(())
    }
    fn zero(&mut self, _: u64, _: u64) -> Result<(), GuestError> {
        Err(GuestError("nothing of it is zero".to_owned()))
    }
    fn restore(&mut self, _: Vec<Section>) -> Result<(), GuestError> {
        Ok(())
    }
    fn run(&mut self, _: u64) -> Result<(), GuestError> {
        Ok(())
    }
    fn discard(&mut self) {
        self.came = 0;
    }
}

fn kilobytes(of: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(of)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn both_sides_together_hold_less_than_64_mebibytes() {
    // 256 MiB, and 2 GiB where time matters.
    let size = if cfg!(debug_assertions) { 256 << 20 } else { 2 << 30 };
    for (streams, compress) in [(1, false), (2, false), (8, false), (8, true)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        // The most that was resident begins anew.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = kilobytes("VmRSS");
        let policy = Policy { streams, compress, patience: Duration::from_secs(20), ..Policy::default() };
        let (mut source, mut destination) = (Made { size, came: 0 }, Made { size, came: 0 });
        let journal = |name: &str| JournalFile::open(&folder.path().join(name)).unwrap();
        let (mut ours, mut theirs) = (journal("a"), journal("b"));
        let over = std::sync::atomic::AtomicBool::new(false);
        let sent = std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                let mut accept = |wait: Duration| -> std::io::Result<Option<Box<dyn Stream>>> {
                    if let Ok((stream, _)) = listener.accept() {
                        stream.set_nonblocking(false)?;
                        return Ok(Some(Box::new(stream)));
                    }
                    std::thread::sleep(wait.min(Duration::from_millis(1)));
                    Ok(None)
                };
                let mut go_on = |_| !over.load(std::sync::atomic::Ordering::SeqCst);
                receive(&mut destination, &mut theirs, &mut accept, policy, &mut go_on)
            });
            let mut connect =
                || -> std::io::Result<Box<dyn Stream>> { Ok(Box::new(UnixStream::connect(&path)?)) };
            let about = (Token([3; 16]), Epoch(1));
            let sent = send(&mut source, &mut ours, &mut connect, policy, about, &mut |_| true);
            over.store(true, std::sync::atomic::Ordering::SeqCst);
            assert!(matches!(there.join().unwrap(), Received::Runs(_)));
            sent.unwrap()
        });
        assert_eq!(destination.came, size);
        let held = (kilobytes("VmHWM") - before) / 1024;
        let rate = size as f64 / sent.took.as_secs_f64() / f64::from(1 << 30);
        println!(
            "{streams} streams{}: {} MiB in {:.2?}, {rate:.2} GiB/s, pause {:.2?}, {held} MiB held by both sides together",
            if compress { ", compressed" } else { "" },
            size >> 20,
            sent.took,
            sent.paused
        );
        assert!(held < 64, "{held} MiB");
    }
}
