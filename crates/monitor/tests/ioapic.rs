//! The IOAPIC: its registers, edges and levels, and what it takes for its state.

use evenkeel_monitor::devices::ioapic::{Ioapic, Message};

const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
const REMOTE: u32 = 1 << 14;

fn write(ioapic: &mut Ioapic, register: u32, value: u32) -> Vec<Message> {
    assert_eq!(ioapic.write(0x00, &register.to_le_bytes()).messages, []);
    ioapic.write(0x10, &value.to_le_bytes()).messages
}

fn read(ioapic: &mut Ioapic, register: u32) -> u32 {
    ioapic.write(0x00, &register.to_le_bytes());
    let mut word = [0; 4];
    ioapic.read(0x10, &mut word);
    u32::from_le_bytes(word)
}

/// A pin with this entry; the upper half first, as Linux does.
fn with(pin: u32, low: u32, destination: u8) -> Ioapic {
    let mut ioapic = Ioapic::default();
    assert_eq!(write(&mut ioapic, 0x11 + 2 * pin, u32::from(destination) << 24), []);
    assert_eq!(write(&mut ioapic, 0x10 + 2 * pin, low), []);
    ioapic
}

fn message(destination: u8, data: u32) -> Message {
    Message { address: 0xfee0_0000 | u32::from(destination) << 12, data: data | 1 << 14 }
}

#[test]
fn registers_are_those_of_the_datasheet() {
    let mut ioapic = Ioapic::default();
    assert_eq!(read(&mut ioapic, 1), 0x0017_0020, "24 pins, with an EOI register");
    write(&mut ioapic, 0, 0xffff_ffff);
    assert_eq!(read(&mut ioapic, 0), 0x0f00_0000);
    assert_eq!(read(&mut ioapic, 2), 0x0f00_0000, "arbitration follows identification");
    for pin in 0..24 {
        assert_eq!(read(&mut ioapic, 0x10 + 2 * pin), MASKED, "masked at first");
        assert_eq!(read(&mut ioapic, 0x11 + 2 * pin), 0);
    }
    write(&mut ioapic, 0x10, 0xffff_ffff);
    assert_eq!(
        read(&mut ioapic, 0x10),
        0x0001_afff,
        "delivery status and remote IRR are not the driver's to write"
    );
    write(&mut ioapic, 0x11, 0xffff_ffff);
    assert_eq!(read(&mut ioapic, 0x11), 0xff00_0000);
    assert_eq!(read(&mut ioapic, 0x40), 0, "behind the table is nothing");
    assert_eq!(write(&mut ioapic, 0x40, 5), []);
}

#[test]
fn an_edge_is_sent_once() {
    let mut ioapic = with(4, 0x31, 1);
    assert_eq!(ioapic.set(4, true), Some(message(1, 0x31)));
    assert_eq!(ioapic.set(4, true), None, "it is high already");
    assert_eq!(ioapic.set(4, false), None);
    assert_eq!(ioapic.set(4, true), Some(message(1, 0x31)), "no EOI is waited for");
    assert_eq!(ioapic.eoi(0x31), []);
    ioapic.set(4, false);
    // A masked edge is lost; unmasking sends nothing.
    write(&mut ioapic, 0x18, 0x31 | MASKED);
    assert_eq!(ioapic.set(4, true), None);
    assert_eq!(write(&mut ioapic, 0x18, 0x31), []);
    assert_eq!(ioapic.set(99, true), None, "there is no such pin");
}

#[test]
fn a_level_is_sent_until_it_is_ended() {
    let mut ioapic = with(9, 0x52 | LEVEL, 3);
    let sent = message(3, 0x52 | LEVEL);
    assert_eq!(ioapic.set(9, true), Some(sent));
    assert_eq!(read(&mut ioapic, 0x22), 0x52 | LEVEL | REMOTE);
    assert_eq!(ioapic.set(9, false), None);
    assert_eq!(ioapic.set(9, true), None, "the first one is not ended");
    assert_eq!(ioapic.eoi(0x53), [], "that is another vector");
    assert_eq!(ioapic.eoi(0x52), [sent], "it is still high");
    assert_eq!(ioapic.set(9, false), None);
    assert_eq!(ioapic.eoi(0x52), []);
    assert_eq!(read(&mut ioapic, 0x22), 0x52 | LEVEL);
    assert_eq!(ioapic.set(9, true), Some(sent));
    ioapic.set(9, false);
    // By its own register.
    assert_eq!(ioapic.write(0x40, &0x52_u32.to_le_bytes()).messages, []);
    assert_eq!(ioapic.set(9, true), Some(sent));
}

#[test]
fn a_masked_level_waits() {
    let mut ioapic = with(9, 0x52 | LEVEL | MASKED, 0);
    assert_eq!(ioapic.set(9, true), None);
    assert_eq!(write(&mut ioapic, 0x22, 0x52 | LEVEL), [message(0, 0x52 | LEVEL)]);
    // Masked while it is in service: its end is heard, and it is sent again only when it is unmasked.
    write(&mut ioapic, 0x22, 0x52 | LEVEL | MASKED);
    assert_eq!(read(&mut ioapic, 0x22), 0x52 | LEVEL | MASKED | REMOTE);
    assert_eq!(ioapic.eoi(0x52), []);
    assert_eq!(write(&mut ioapic, 0x22, 0x52 | LEVEL), [message(0, 0x52 | LEVEL)]);
    // And what is low again by then is not sent at all.
    write(&mut ioapic, 0x22, 0x52 | LEVEL | MASKED);
    ioapic.eoi(0x52);
    ioapic.set(9, false);
    assert_eq!(write(&mut ioapic, 0x22, 0x52 | LEVEL), []);
}

#[test]
fn a_level_that_got_stuck_is_freed_by_making_it_an_edge() {
    let mut ioapic = with(9, 0x52 | LEVEL, 0);
    ioapic.set(9, true);
    ioapic.set(9, false);
    write(&mut ioapic, 0x22, 0x52 | MASKED);
    write(&mut ioapic, 0x22, 0x52 | LEVEL);
    assert_eq!(read(&mut ioapic, 0x22), 0x52 | LEVEL);
    assert!(ioapic.set(9, true).is_some());
}

#[test]
fn pins_that_share_a_vector_are_ended_together() {
    let mut ioapic = with(5, 0x60 | LEVEL, 0);
    write(&mut ioapic, 0x10 + 2 * 6, 0x60 | LEVEL);
    ioapic.set(5, true);
    ioapic.set(6, true);
    ioapic.set(5, false);
    assert_eq!(ioapic.eoi(0x60), [message(0, 0x60 | LEVEL)], "pin 6, which is high");
}

#[test]
fn routes_follow_the_table_and_masks_do_not_change_them() {
    let mut ioapic = Ioapic::default();
    ioapic.write(0, &0x1a_u32.to_le_bytes());
    assert!(ioapic.write(0x10, &(0x41 | 1 << 11 | 1 << 8 | LEVEL | MASKED).to_le_bytes()).rerouted);
    assert!(
        !ioapic.write(0x10, &(0x41 | 1 << 11 | 1 << 8 | LEVEL).to_le_bytes()).rerouted,
        "only the mask changed"
    );
    ioapic.write(0, &0x1b_u32.to_le_bytes());
    assert!(ioapic.write(0x10, &(0x0f00_0000_u32).to_le_bytes()).rerouted);
    let routes = ioapic.routes();
    assert_eq!(routes.len(), 24);
    // Logical destination, lowest priority.
    assert_eq!(routes[5], Message { address: 0xfee0_f004, data: 0x41 | 1 << 8 | LEVEL | 1 << 14 });
}

#[test]
fn it_goes_on_where_it_was() {
    let mut ioapic = with(9, 0x52 | LEVEL, 3);
    write(&mut ioapic, 0x18, 0x31);
    ioapic.set(9, true);
    ioapic.set(4, true);
    let mut again = Ioapic::at(&ioapic.state()).unwrap();
    assert_eq!(again, ioapic);
    assert_eq!(again.set(9, true), None, "not sent twice");
    assert_eq!(again.set(4, true), None, "not sent twice");
    assert_eq!(again.eoi(0x52), [message(3, 0x52 | LEVEL)], "and not lost");
}

#[test]
fn no_state_is_taken_that_no_guest_can_make() {
    use evenkeel_capsule::cbor;
    #[derive(Clone, serde::Serialize)]
    struct Saved {
        select: u32,
        id: u32,
        lines: u32,
        table: Vec<u64>,
    }
    let good = Saved { select: 0x10, id: 1 << 24, lines: 1, table: vec![1 << 16; 24] };
    let taken = |it: &Saved| Ioapic::at(&cbor::print(it)).is_ok();
    assert!(taken(&good));
    let wrong = [
        Saved { select: 0x100, ..good.clone() },
        Saved { id: 1, ..good.clone() },
        Saved { lines: 1 << 24, ..good.clone() },
        Saved { table: vec![1 << 16; 23], ..good.clone() },
        Saved { table: vec![1 << 16; 25], ..good.clone() },
        Saved { table: vec![1 << 12; 24], ..good.clone() },
        Saved { table: vec![1 << 17; 24], ..good.clone() },
        // Remote IRR of an edge.
        Saved { table: vec![1 << 14; 24], ..good.clone() },
    ];
    for (n, wrong) in wrong.iter().enumerate() {
        assert!(!taken(wrong), "number {n}");
    }
    let bytes = cbor::print(&good);
    assert!((0..bytes.len()).all(|cut| Ioapic::at(&bytes[..cut]).is_err()));
    assert!(Ioapic::at(&[&bytes[..], &[0]].concat()).is_err());
}
