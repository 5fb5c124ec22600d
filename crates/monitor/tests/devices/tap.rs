//! The network card over a real tap: which promises the host's kernel takes. Frames over one are the lab's.

use evenkeel_monitor::devices::virtio::net::{Config, Link, Net};
use evenkeel_monitor::devices::virtio::{Device, Transport};

const MAC: [u8; 6] = [2, 0x65, 0x6b, 0, 0, 2];

#[test]
#[cfg_attr(not(tap), ignore = "needs /dev/net/tun, and root to make an interface")]
fn a_tap_takes_what_it_knows_and_refuses_by_name_what_it_does_not() {
    // A name of this process: tests run side by side.
    let name = format!("ek{}", std::process::id());
    let card = |offloads| Net::new(Link::tap(&name).unwrap(), Config { mac: MAC, offloads });
    let csum = card(0x01).unwrap();
    assert_eq!(csum.features(), 1 << 5 | 3);
    drop(csum);
    assert!(card(0x03).is_ok(), "segmentation of TCP, with checksums");
    // The kernel wants checksums for any segmentation: this is what a bit that it does not know looks like, too.
    let e = card(0x02).unwrap_err().to_string();
    assert!(e.contains("net.tap.offloads") && e.contains("0x2") && e.contains("EINVAL"), "{e}");
    assert!(Link::tap("a name that is too long").is_err());
    let e = Link::tap("").unwrap_err().to_string();
    assert!(e.contains("net.tap"), "{e}");
    // A guest's state with an offload that this card was not promised is refused.
    let mut promised = Transport::new(Box::new(card(0x03).unwrap())).unwrap().state();
    promised.features = 1 << 32 | 1 << 7;
    let memory = evenkeel_monitor::View::from_ranges(&[(vm_memory::GuestAddress(0), 0x1000)]).unwrap();
    Transport::new(Box::new(card(0x03).unwrap())).unwrap().set_state(&promised, &memory).unwrap();
    let mut bare = Transport::new(Box::new(card(0).unwrap())).unwrap();
    assert!(bare.set_state(&promised, &memory).unwrap_err().to_string().contains("0x80"));
}
