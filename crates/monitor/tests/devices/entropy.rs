//! The source of random bytes.

use evenkeel_monitor::devices::virtio::entropy::Entropy;

use crate::driver::{Driver, Part};

#[test]
fn random_bytes_come() {
    let mut driver = Driver::new(Box::new(Entropy::new().unwrap()), 0);
    let (a, at_a) = driver.add(0, &[Part::In(64)]);
    let (b, at_b) = driver.add(0, &[Part::In(1 << 20)]);
    driver.kick(0);
    assert_eq!(driver.used(0), [(a, 64), (b, 4096)]);
    let (first, second) = (driver.bytes(at_a[0], 64), driver.bytes(at_b[0], 64));
    assert_ne!(first, second);
    assert_ne!(first, [0; 64]);
    assert_eq!(driver.bytes(at_b[0] + 4096, 64), [0; 64], "and nothing behind them");
    // One that was asked for and not yet given is given by whoever comes next.
    let (c, _) = driver.add(0, &[Part::In(8)]);
    let mut driver = driver.moved(Box::new(Entropy::new().unwrap()));
    driver.serve();
    assert_eq!(driver.used(0), [(c, 8)]);
}
