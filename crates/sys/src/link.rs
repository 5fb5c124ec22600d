//! Files that frames are read from and written to: a tap of this name, and what was passed to this process by number.
//!
//! These are not asked through the choke point: nothing about the host is learned from them, and what is done with them is reading and
//! writing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{IntegerSetter, Setter, Updater, ioctl};

use crate::requests::{TUNSETIFF, TUNSETOFFLOAD};
use crate::{Errno, Error, Refusal};

const TUNGETIFF: u32 = 0x8004_54d2;
const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;

const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
/// The flags of `struct ifreq`, behind the name.
const FLAGS: usize = 16;

fn error(ioctl: &'static str, argument: &str, why: rustix::io::Errno) -> Error {
    Error { ioctl, argument: argument.to_owned(), why: Refusal::Errno(Errno(why.raw_os_error())) }
}

/// Opens the tap interface of this name, with a virtio header before each frame. It is made if it is not there, which takes
/// CAP_NET_ADMIN, as does one that was not made for this user.
///
/// # Errors
/// There is no `/dev/net/tun`, the name is none, or the interface is not ours to open.
pub fn open_tap(name: &str) -> Result<OwnedFd, Error> {
    let mut ifreq = [0_u8; 40];
    if name.is_empty() || name.len() >= FLAGS || name.contains('%') {
        let why = Refusal::Nonsense("a name has 1 to 15 bytes and no %".to_owned());
        return Err(Error { ioctl: TUNSETIFF.name, argument: name.to_owned(), why });
    }
    let path = "/dev/net/tun";
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| error("open", path, e))?;
    ifreq[..name.len()].copy_from_slice(name.as_bytes());
    ifreq[FLAGS..FLAGS + 2].copy_from_slice(&(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR).to_ne_bytes());
    // SAFETY: the kernel reads and writes a `struct ifreq`, 40 bytes, which this is.
    unsafe { ioctl(&fd, Updater::<{ TUNSETIFF.number }, _>::new(&mut ifreq)) }
        .map_err(|e| error(TUNSETIFF.name, name, e))?;
    Ok(fd)
}

/// What a file is, if it is an interface of `/dev/net/tun`: whether it is a tap without packet information, and whether it has a
/// virtio header before each frame.
pub fn tap_kind(fd: BorrowedFd<'_>) -> Option<(bool, bool)> {
    let mut ifreq = [0_u8; 40];
    // SAFETY: as above; other files do not know the request.
    unsafe { ioctl(fd, Updater::<TUNGETIFF, _>::new(&mut ifreq)) }.ok()?;
    let flags = u16::from_ne_bytes([ifreq[FLAGS], ifreq[FLAGS + 1]]);
    let wanted = IFF_TAP | IFF_NO_PI;
    Some((flags & wanted == wanted, flags & IFF_VNET_HDR != 0))
}

/// TUNSETVNETHDRSZ: the length of the virtio header.
///
/// # Errors
/// The kernel takes no such length.
pub fn set_tap_header(fd: BorrowedFd<'_>, length: i32) -> Result<(), Error> {
    // SAFETY: the kernel reads an int.
    unsafe { ioctl(fd, Setter::<TUNSETVNETHDRSZ, i32>::new(length)) }
        .map_err(|e| error("TUNSETVNETHDRSZ", &length.to_string(), e))
}

/// TUNSETOFFLOAD with exactly these TUN_F_* bits.
///
/// # Errors
/// The kernel does not know one of them.
pub fn set_tap_offload(fd: BorrowedFd<'_>, bits: u32) -> Result<(), Error> {
    // SAFETY: the argument is the mask itself.
    unsafe { ioctl(fd, IntegerSetter::<{ TUNSETOFFLOAD.number }>::new_usize(bits as usize)) }
        .map_err(|e| error(TUNSETOFFLOAD.name, &format!("{bits:#x}"), e))
}

/// A file that this process was started with, by its number: a copy of it, which is closed with the value.
///
/// # Errors
/// There is none.
pub fn inherited(number: i32) -> Result<OwnedFd, Error> {
    let shown = number.to_string();
    if number < 0 {
        return Err(error("fcntl", &shown, rustix::io::Errno::BADF));
    }
    // SAFETY: it is only asked to be copied, and the kernel says so when no file has this number.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), 3).map_err(|e| error("fcntl", &shown, e))
}
