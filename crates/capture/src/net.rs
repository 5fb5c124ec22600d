//! What the kernel's network back-ends give a VMM, and through it a guest's virtio-net device.

use evenkeel_sys::{Backend, Tap, vhost_features};

use crate::Parts;

const CSUM: u32 = 0x01;
const TSO4: u32 = 0x02;
const TSO6: u32 = 0x04;
const ECN: u32 = 0x08;
const UFO: u32 = 0x10;
const USO: u32 = 0x60;
const TUNNEL: u32 = 0x80;
const TUNNEL_CSUM: u32 = 0x100;

/// Combinations that the driver can take: it wants checksums for anything else, segmentation for ECN and for tunnels,
/// and UDP segmentation for both IP versions at once (`set_offload` in `drivers/net/tun.c`).
const TRIES: [u32; 8] = [
    CSUM,
    CSUM | TSO4,
    CSUM | TSO6,
    CSUM | TSO4 | ECN,
    CSUM | UFO,
    CSUM | USO,
    CSUM | TSO4 | TUNNEL,
    CSUM | TSO4 | TUNNEL | TUNNEL_CSUM,
];

/// Measures tap and vhost.
pub(crate) fn measure<'b>(backend: &'b dyn Backend, parts: &mut Parts<'b>) {
    if let Some(tap) = parts.book.ask("net.tap", Tap::open(backend)) {
        if let Some(features) = parts.book.ask("net.tap.features", tap.features()) {
            parts.measured("net.tap.features", None, features.into());
        }
        if parts.book.ask("net.tap.offloads", tap.attach()).is_some() {
            offloads(&tap, parts);
        }
        parts.graves.add([tap.into()]);
    }
    match vhost_features(backend) {
        Ok((features, protocol)) => {
            parts.measured("net.vhost.features", None, features);
            if let Some(protocol) = parts.book.ask("net.vhost.backend-features", protocol) {
                parts.measured("net.vhost.backend-features", None, protocol);
            }
        }
        Err(error) => parts.book.note("net.vhost.features", &error),
    }
}

fn offloads(tap: &Tap<'_>, parts: &mut Parts) {
    let (mut accepts, mut refuses) = (Vec::new(), Vec::new());
    for bits in TRIES {
        match tap.set_offload(bits) {
            Ok(()) => accepts.push(u64::from(bits)),
            Err(error) if error.errno() == Some(evenkeel_sys::Errno::EINVAL) => refuses.push(u64::from(bits)),
            Err(error) => parts.book.note("net.tap.offloads", &error),
        }
    }
    let all = accepts.iter().fold(0, |all, bits| all | bits);
    parts.measured_choice("net.tap.offloads", None, all, accepts, refuses);
}
