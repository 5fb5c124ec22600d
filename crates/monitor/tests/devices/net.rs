//! The network card, over sockets that keep messages apart.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use evenkeel_monitor::devices::virtio::net::{Config, Link, Net};

use crate::driver::{Driver, Part};

const MAC: [u8; 6] = [2, 0x65, 0x6b, 0, 0, 1];
const RECEIVE: usize = 0;
const SEND: usize = 1;

fn card(socket: UnixDatagram) -> Box<Net> {
    let link = Link::passed(OwnedFd::from(socket)).unwrap();
    Box::new(Net::new(link, Config { mac: MAC, offloads: 0 }).unwrap())
}

fn frame(fill: u8, length: usize) -> Vec<u8> {
    vec![fill; length]
}

#[test]
fn frames_go_both_ways() {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    let mut driver = Driver::new(card(ours), 1 << 5);
    assert_eq!(driver.read(0x100).to_le_bytes(), MAC[..4]);
    assert_eq!(driver.offered(), 1 << 32 | 1 << 5, "no offloads that were not promised");

    theirs.send(&frame(1, 60)).unwrap();
    assert!(!driver.wakes(), "nobody takes it yet");
    let (a, at) = driver.add(RECEIVE, &[Part::In(12), Part::In(1518)]);
    let (b, more) = driver.add(RECEIVE, &[Part::In(1530)]);
    driver.kick(RECEIVE);
    assert_eq!(driver.used(RECEIVE), [(a, 72)]);
    assert_eq!(driver.bytes(at[0], 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], "one buffer");
    assert_eq!(driver.bytes(at[1], 60), frame(1, 60));
    assert_eq!(driver.read(0x60), 1);

    theirs.send(&frame(9, 4000)).unwrap();
    theirs.send(&[]).unwrap();
    theirs.send(&frame(2, 100)).unwrap();
    assert!(driver.wakes());
    driver.serve();
    assert_eq!(driver.used(RECEIVE), [(b, 112)], "what fits nowhere is lost, what comes behind it is not");
    assert_eq!(driver.bytes(more[0] + 12, 100), frame(2, 100));

    let mut header = vec![0xff; 12];
    header.extend(frame(3, 90));
    let (c, _) = driver.add(SEND, &[Part::Out(&header)]);
    let (d, _) = driver.add(SEND, &[Part::Out(&[0; 12]), Part::Out(&frame(4, 70))]);
    let (e, _) = driver.add(SEND, &[Part::Out(&[0; 12])]);
    driver.kick(SEND);
    assert_eq!(driver.used(SEND), [(c, 0), (d, 0), (e, 0)]);
    let mut got = [0; 2000];
    assert_eq!(theirs.recv(&mut got).unwrap(), 90);
    assert_eq!(got[..90], frame(3, 90));
    assert_eq!(theirs.recv(&mut got).unwrap(), 70);
    theirs.set_nonblocking(true).unwrap();
    assert!(theirs.recv(&mut got).is_err(), "a header without a frame is none");
    let counts = driver.transport.device().counts();
    assert_eq!((counts.requests, counts.bytes), (4, 60 + 100 + 90 + 70));
}

#[test]
fn a_link_that_is_full_loses_nothing() {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&ours, 1).unwrap();
    let kept = ours.try_clone().unwrap();
    let mut driver = Driver::new(card(ours), 0);
    let mut ids = Vec::new();
    for n in 0..120 {
        ids.push(driver.add(SEND, &[Part::Out(&[0; 12]), Part::Out(&frame(n, 64))]).0);
        driver.kick(SEND);
    }
    let mut done = driver.used(SEND);
    assert!(done.len() < ids.len(), "a socket takes less than {} frames unread", ids.len());
    assert!(!driver.wakes(), "and nothing spins until there is room");

    // Saved while frames wait; the new card goes on with them.
    let mut driver = driver.moved(card(kept));
    let mut got = Vec::new();
    theirs.set_nonblocking(true).unwrap();
    for _ in 0..1000 {
        let mut bytes = [0; 100];
        while let Ok(64) = theirs.recv(&mut bytes) {
            got.push(bytes[0]);
        }
        driver.serve();
    }
    done.extend(driver.used(SEND));
    assert_eq!(done.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids, "each used once, in order");
    assert_eq!(got, (0..120).collect::<Vec<u8>>(), "each sent once, in order");
}

#[test]
fn buffers_that_wait_are_used_after_a_save() {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    let kept = ours.try_clone().unwrap();
    let mut driver = Driver::new(card(ours), 0);
    let ids: Vec<u16> = (0..4).map(|_| driver.add(RECEIVE, &[Part::In(1530)]).0).collect();
    driver.kick(RECEIVE);
    theirs.send(&frame(1, 60)).unwrap();
    driver.serve();
    assert_eq!(driver.used(RECEIVE), [(ids[0], 72)]);
    theirs.send(&frame(2, 61)).unwrap();
    let mut driver = driver.moved(card(kept));
    driver.serve();
    theirs.send(&frame(3, 62)).unwrap();
    driver.serve();
    assert_eq!(driver.used(RECEIVE), [(ids[1], 73), (ids[2], 74)]);
}

#[test]
fn what_the_host_cannot_do_is_refused_by_its_facet() {
    let (ours, _theirs) = UnixDatagram::pair().unwrap();
    let promised = Config { mac: MAC, offloads: 0x03 };
    let e = Net::new(Link::passed(ours.into()).unwrap(), promised).unwrap_err().to_string();
    assert!(e.contains("net.tap.offloads") && e.contains("IFF_VNET_HDR"), "{e}");
    let (ours, _theirs) = UnixDatagram::pair().unwrap();
    let unknown = Config { mac: MAC, offloads: 0x80 };
    let e = Net::new(Link::passed(ours.into()).unwrap(), unknown).unwrap_err().to_string();
    assert!(e.contains("net.tap.offloads") && e.contains("0x80"), "{e}");
    let (ours, _theirs) = UnixDatagram::pair().unwrap();
    let group = Config { mac: [1; 6], offloads: 0 };
    assert!(Net::new(Link::passed(ours.into()).unwrap(), group).is_err());

    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let e = Link::passed(stream.into()).unwrap_err().to_string();
    assert!(e.contains("SOCK_DGRAM"), "{e}");
    assert!(Link::passed(std::fs::File::open("/dev/null").unwrap().into()).is_err());
    // The features that go with what a tap takes.
    assert_eq!(Config { mac: MAC, offloads: 0 }.features(), 1 << 5);
    let all = Config { mac: MAC, offloads: 0x61 }.features();
    assert_eq!(all, 1 << 5 | 3 | 1 << 54 | 1 << 55 | 1 << 56);
}
