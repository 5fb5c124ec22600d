//! What an ioctl is: its number, its name for errors and logs, and how its argument travels.

use serde::{Deserialize, Serialize};

/// What a file descriptor stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FdKind {
    /// `/dev/kvm`.
    System,
    /// From KVM_CREATE_VM.
    Vm,
    /// From KVM_CREATE_VCPU.
    Vcpu,
    /// From KVM_CREATE_DEVICE.
    Device,
    /// `/dev/net/tun`.
    Tun,
    /// `/dev/vhost-net`.
    Vhost,
}

impl FdKind {
    /// The word in logs and messages.
    pub fn name(self) -> &'static str {
        match self {
            FdKind::System => "system",
            FdKind::Vm => "vm",
            FdKind::Vcpu => "vcpu",
            FdKind::Device => "device",
            FdKind::Tun => "tun",
            FdKind::Vhost => "vhost",
        }
    }
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The argument is an integer, not a pointer.
    Int,
    /// The kernel reads the bytes.
    In,
    /// The kernel writes the bytes.
    Out,
    /// The kernel reads and writes the bytes.
    InOut,
}

impl Flow {
    /// The kernel reads from the buffer.
    pub fn goes_in(self) -> bool {
        matches!(self, Flow::In | Flow::InOut)
    }

    /// The kernel writes to the buffer.
    pub fn comes_out(self) -> bool {
        matches!(self, Flow::Out | Flow::InOut)
    }
}

/// How an ioctl hands out a new file descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creates {
    /// As the return value.
    Returned(FdKind),
    /// In the argument, as a 32-bit word at this offset.
    Field(FdKind, usize),
}

/// A flexible array at the end of a structure: the kernel touches `base + count * each` bytes, where `count` is the
/// 32-bit word at `count_at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Offset of the count.
    pub count_at: usize,
    /// Bytes before the array.
    pub base: usize,
    /// Bytes of an element.
    pub each: usize,
}

/// One ioctl. The constants are in [`requests`](crate::requests); none can be made outside of this crate, because the
/// bounds that they state are what makes [`Live`](crate::Live) sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Request {
    /// The request number, with direction and size in it.
    pub number: u32,
    /// The name in the kernel's headers.
    pub name: &'static str,
    /// How the argument travels.
    pub flow: Flow,
    /// The file descriptor that it creates.
    pub creates: Option<Creates>,
    /// The array at the end of its structure.
    pub tail: Option<Tail>,
    /// The offset of a pointer in its structure, and how what is pointed at travels.
    pub payload: Option<(usize, Flow)>,
    /// Bytes that the kernel may touch behind the caller's buffer, because it sizes the structure by itself
    /// (XSAVE areas, attribute payloads). `Live` backs them with a scratch buffer.
    pub slack: usize,
}

const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;

const fn encode(direction: u32, kind: u8, nr: u8, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | (kind as u32) << 8 | nr as u32
}

impl Request {
    const fn new(name: &'static str, number: u32, flow: Flow) -> Self {
        Request { number, name, flow, creates: None, tail: None, payload: None, slack: 0 }
    }

    /// `_IO`: an integer argument, or none.
    pub(crate) const fn io(name: &'static str, kind: u8, nr: u8) -> Self {
        Self::new(name, encode(NONE, kind, nr, 0), Flow::Int)
    }

    /// `_IOR`: the kernel writes the structure.
    pub(crate) const fn ior(name: &'static str, kind: u8, nr: u8, size: usize) -> Self {
        Self::new(name, encode(READ, kind, nr, size), Flow::Out)
    }

    /// `_IOW`: the kernel reads the structure.
    pub(crate) const fn iow(name: &'static str, kind: u8, nr: u8, size: usize) -> Self {
        Self::new(name, encode(WRITE, kind, nr, size), Flow::In)
    }

    /// `_IOWR`: both.
    pub(crate) const fn iowr(name: &'static str, kind: u8, nr: u8, size: usize) -> Self {
        Self::new(name, encode(READ | WRITE, kind, nr, size), Flow::InOut)
    }

    /// The bytes really go this way, whatever the number says.
    pub(crate) const fn flowing(self, flow: Flow) -> Self {
        Request { flow, ..self }
    }

    pub(crate) const fn creating(self, creates: Creates) -> Self {
        Request { creates: Some(creates), ..self }
    }

    pub(crate) const fn tailed(self, count_at: usize, base: usize, each: usize) -> Self {
        Request { tail: Some(Tail { count_at, base, each }), ..self }
    }

    pub(crate) const fn pointing(self, at: usize, flow: Flow) -> Self {
        Request { payload: Some((at, flow)), ..self }
    }

    pub(crate) const fn slack(self, slack: usize) -> Self {
        Request { slack, ..self }
    }

    /// The size of the structure that the number encodes: what the kernel touches at least.
    pub fn size(&self) -> usize {
        (self.number >> 16 & 0x3fff) as usize
    }
}
