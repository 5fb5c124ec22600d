//! The network back-ends that the kernel gives a VMM: tap and vhost.

use crate::layout::{long, word};
use crate::requests::*;
use crate::{Arg, Backend, Error, Fd, FdKind};

const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// `/dev/net/tun`, and once [`Tap::attach`] succeeded an interface of our own that goes away with it.
#[derive(Debug)]
pub struct Tap<'b>(Fd<'b>);

impl<'b> Tap<'b> {
    /// Opens `/dev/net/tun`.
    pub fn open(backend: &'b dyn Backend) -> Result<Self, Error> {
        Fd::open(backend, "/dev/net/tun", FdKind::Tun).map(Tap)
    }

    /// TUNGETFEATURES: the IFF_* flags that the driver knows.
    pub fn features(&self) -> Result<u32, Error> {
        self.0.get(&TUNGETFEATURES, 4).map(|bytes| word(&bytes, 0))
    }

    /// Makes a tap interface with a virtio header, named by the kernel. It is down and not persistent. Needs
    /// CAP_NET_ADMIN.
    pub fn attach(&self) -> Result<(), Error> {
        let mut ifreq = [0u8; 40];
        ifreq[..4].copy_from_slice(b"ek%d");
        ifreq[16..18].copy_from_slice(&(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR).to_ne_bytes());
        self.0.call(&TUNSETIFF, Arg::Out(&mut ifreq), "IFF_TAP").map(drop)
    }

    /// TUNSETOFFLOAD with exactly these TUN_F_* bits.
    pub fn set_offload(&self, bits: u32) -> Result<(), Error> {
        self.0.int(&TUNSETOFFLOAD, bits.into()).map(drop)
    }
}

impl<'b> From<Tap<'b>> for Fd<'b> {
    fn from(it: Tap<'b>) -> Fd<'b> {
        it.0
    }
}

/// Features of `/dev/vhost-net`: virtio's, and those of the vhost protocol.
pub fn vhost_features(backend: &dyn Backend) -> Result<(u64, Result<u64, Error>), Error> {
    let fd = Fd::open(backend, "/dev/vhost-net", FdKind::Vhost)?;
    let features = fd.get(&VHOST_GET_FEATURES, 8).map(|bytes| long(&bytes, 0))?;
    let protocol = fd.get(&VHOST_GET_BACKEND_FEATURES, 8).map(|bytes| long(&bytes, 0));
    Ok((features, protocol))
}
