//! The registers that all devices have, and what of a saved state is refused.

use evenkeel_capsule::cbor;
use evenkeel_monitor::View;
use evenkeel_monitor::devices::virtio::entropy::Entropy;
use evenkeel_monitor::devices::virtio::{State, Transport};
use vm_memory::GuestAddress;

use crate::driver::{Driver, MEMORY, Part};

fn entropy() -> Box<Entropy> {
    Box::new(Entropy::new().unwrap())
}

#[test]
fn a_ring_outside_of_memory_needs_a_reset() {
    let mut driver = Driver::new(entropy(), 0);
    driver.write(0x70, 3 | 8);
    driver.write(0x30, 0);
    driver.write(0x94, 0x7fff_ffff);
    driver.write(0x70, 3 | 8 | 4);
    driver.kick(0);
    assert_eq!(driver.read(0x70), 3 | 8 | 4 | 0x40);
    assert_eq!(driver.read(0x60), 2, "the driver is told");
    driver.write(0x70, 3 | 8 | 4);
    assert_eq!(driver.read(0x70) & 0x40, 0x40, "and cannot take it back");
    driver.write(0x70, 0);
    assert_eq!((driver.read(0x70), driver.read(0x60)), (0, 0));
}

#[test]
fn a_queue_cannot_be_moved_while_it_is_used() {
    let mut driver = Driver::new(entropy(), 0);
    let before = driver.transport.state();
    for register in [0x38, 0x44, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4] {
        driver.write(register, 0);
    }
    assert_eq!(driver.transport.state(), before);
}

#[test]
fn no_state_is_taken_that_a_device_cannot_be_at() {
    let mut driver = Driver::new(entropy(), 0);
    driver.add(0, &[Part::In(8)]);
    driver.kick(0);
    let memory = driver.memory.clone();
    let good = driver.transport.state();
    let taken = |state: &State| Transport::new(entropy()).unwrap().set_state(state, &memory);
    taken(&good).unwrap();
    let change = |change: &dyn Fn(&mut State)| {
        let mut state = good.clone();
        change(&mut state);
        taken(&state).map_err(|e| e.to_string())
    };
    type Change = fn(&mut State);
    let wrong: [(&str, Change); 14] = [
        ("no queue", |s| s.queues.clear()),
        ("a queue more", |s| s.queues.push(s.queues[0])),
        ("another queue's size", |s| s.queues[0].max_size = 128),
        ("a size that is no power of two", |s| s.queues[0].size = 3),
        ("a size above the most", |s| s.queues[0].size = 128),
        ("size 0", |s| s.queues[0].size = 0),
        ("a crooked table", |s| s.queues[0].desc_table |= 1),
        ("a table behind memory", |s| s.queues[0].desc_table = MEMORY as u64),
        ("a ring over the end", |s| s.queues[0].used_ring = MEMORY as u64 - 8),
        ("a ring at the end of all", |s| s.queues[0].avail_ring = u64::MAX - 1),
        ("features nobody offered", |s| s.features |= 1),
        ("features without version 1", |s| s.features = 0),
        ("a status that is none", |s| s.status |= 0x100),
        ("state of another device", |s| s.device.0.push(0)),
    ];
    for (what, wrong) in wrong {
        assert!(change(&wrong).is_err(), "{what}");
    }
    assert!(change(&|s| s.interrupts = 4).is_err());
    // As bytes: nothing left over, nothing unknown, no end too early.
    let bytes = cbor::print(&good);
    let mut transport = Transport::new(entropy()).unwrap();
    transport.set_record(&bytes, &memory).unwrap();
    for cut in 0..bytes.len() {
        assert!(transport.set_record(&bytes[..cut], &memory).is_err());
    }
    assert!(transport.set_record(&[&bytes[..], &[0]].concat(), &memory).is_err());
    assert_eq!(transport.state(), good, "what is refused changes nothing");
    // In less memory the same state is refused.
    let small = View::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    assert!(transport.set_record(&bytes, &small).is_err());
}
