//! The console.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use evenkeel_monitor::devices::virtio::console::Console;

use crate::driver::{Driver, Part};

#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_console_hears_and_speaks() {
    let (input, mut typing) = std::io::pipe().unwrap();
    let said = Said::default();
    let kept = input.try_clone().unwrap();
    let console = |input: std::io::PipeReader| {
        Box::new(Console::new(Some(OwnedFd::from(input)), Box::new(said.clone())).unwrap())
    };
    let mut driver = Driver::new(console(input), 0);
    typing.write_all(b"too early").unwrap();
    assert!(!driver.wakes(), "nobody takes it yet");

    let (a, at_a) = driver.add(0, &[Part::In(4)]);
    driver.kick(0);
    assert_eq!(driver.used(0), [(a, 4)]);
    assert_eq!(driver.bytes(at_a[0], 4), b"too ");
    assert!(!driver.wakes(), "the guest has no room");
    let (b, at_b) = driver.add(0, &[Part::In(64)]);
    driver.kick(0);
    assert_eq!(driver.used(0), [(b, 5)]);
    assert_eq!(driver.bytes(at_b[0], 5), b"early");

    let (c, at_c) = driver.add(0, &[Part::In(64)]);
    driver.kick(0);
    assert_eq!(driver.used(0), [], "there is nothing yet");
    assert!(!driver.wakes());
    typing.write_all(b"now").unwrap();
    assert!(driver.wakes());

    // Saved with a buffer that waits, and input that nobody read.
    let mut driver = driver.moved(console(kept));
    driver.serve();
    assert_eq!(driver.used(0), [(c, 3)]);
    assert_eq!(driver.bytes(at_c[0], 3), b"now");

    let (d, _) = driver.add(1, &[Part::Out(b"hello, "), Part::Out(b"world")]);
    driver.kick(1);
    assert_eq!(driver.used(1), [(d, 0)]);
    assert_eq!(*said.0.lock().unwrap(), b"hello, world");

    driver.add(0, &[Part::In(64)]);
    driver.kick(0);
    drop(typing);
    driver.serve();
    assert_eq!(driver.used(0), [], "the end is no input, and asks for nothing any more");
    assert!(!driver.wakes());
}

#[test]
fn a_regular_file_is_input_too() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[7; 10_000]).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let mut driver =
        Driver::new(Box::new(Console::new(Some(file.into()), Box::new(std::io::sink())).unwrap()), 0);
    let mut got = 0;
    for _ in 0..20 {
        driver.add(0, &[Part::In(1000)]);
        driver.kick(0);
        driver.serve();
        got += driver.used(0).iter().map(|(_, length)| length).sum::<u32>();
    }
    assert_eq!(got, 10_000);
}
