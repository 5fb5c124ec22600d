//! The choke point.

use std::fmt;
use std::sync::Arc;

use crate::{FdKind, Ram, Refusal, Request, RunPage};

/// A file descriptor, by the order in which it came to be. Not the kernel's number: a log that is replayed has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(pub u32);

/// An ioctl's argument.
#[derive(Debug)]
pub enum Arg<'a> {
    /// An integer.
    Int(u64),
    /// A structure that the kernel only reads.
    In(&'a [u8]),
    /// A structure that the kernel writes, or reads and writes.
    Out(&'a mut [u8]),
    /// A structure with a pointer in it, and what it points at. The pointer's place in `head` is ignored, so that
    /// logs hold what is said and not where it was.
    Pointing {
        /// The structure.
        head: &'a [u8],
        /// What the pointer points at.
        payload: &'a mut [u8],
    },
}

/// Something that describes the host and is not an ioctl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source<'a> {
    /// The first 16 KiB of a file.
    File(&'a str),
    /// The names in a directory, sorted, one a line.
    Names(&'a str),
    /// `uname`: release, version and machine, a line each (never the host's name).
    Uname,
    /// The CPUID instruction, in userspace, on the CPU that runs: EAX, EBX, ECX, EDX (x86).
    Cpuid {
        /// EAX on input.
        leaf: u32,
        /// ECX on input.
        subleaf: u32,
    },
    /// The number of the CPU that runs, 4 bytes.
    Cpu,
    /// Seconds since 1970-01-01 UTC, 8 bytes.
    Time,
    /// CNTFRQ_EL0 in Hz, 8 bytes (arm64).
    CounterFrequency,
    /// The architecture's name: `x86_64`, `aarch64`.
    Architecture,
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File(path) | Source::Names(path) => f.write_str(path),
            Source::Uname => f.write_str("uname"),
            Source::Cpuid { leaf, subleaf } => write!(f, "cpuid {leaf:#x} {subleaf:#x}"),
            Source::Cpu => f.write_str("cpu"),
            Source::Time => f.write_str("time"),
            Source::CounterFrequency => f.write_str("cntfrq"),
            Source::Architecture => f.write_str("architecture"),
        }
    }
}

/// The one way to the kernel.
///
/// Methods take `&self`, because a VM, its vCPUs and its devices are used side by side; a backend that keeps books
/// does so behind a lock.
pub trait Backend: Send + Sync {
    /// Opens a device node for reading and writing.
    fn open(&self, path: &str, kind: FdKind) -> Result<Handle, Refusal>;

    /// Makes an ioctl. Returns what it returned; of one that creates a file descriptor, the new [`Handle`]'s number.
    fn call(&self, fd: Handle, request: &Request, arg: Arg<'_>) -> Result<i32, Refusal>;

    /// Reads something that describes the host.
    fn read(&self, source: Source<'_>) -> Result<Vec<u8>, Refusal>;

    /// Closes. Handles are never used again.
    fn close(&self, fd: Handle);

    /// KVM_SET_USER_MEMORY_REGION: gives a VM memory, or takes it away. The backend keeps the memory for as long as the
    /// VM may use it.
    ///
    /// # Errors
    /// As the kernel says; a backend without a kernel runs no guests.
    fn set_memory(&self, vm: Handle, slot: Slot, ram: Option<&Arc<Ram>>) -> Result<(), Refusal> {
        let _ = (vm, slot, ram);
        Err(no_guests())
    }

    /// Maps the page that a vCPU shares with the kernel, of this many bytes.
    ///
    /// # Errors
    /// As the kernel says; a backend without a kernel runs no guests.
    fn map_run(&self, vcpu: Handle, length: usize) -> Result<Arc<RunPage>, Refusal> {
        let _ = (vcpu, length);
        Err(no_guests())
    }
}

fn no_guests() -> Refusal {
    Refusal::Nonsense("answers are made up here, and no guest can run".to_owned())
}

/// Where a VM has memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The slot's number.
    pub number: u32,
    /// KVM_MEM_* flags.
    pub flags: u32,
    /// The guest-physical address, a multiple of the page size.
    pub guest: u64,
    /// The first byte within the memory, a multiple of the page size.
    pub offset: u64,
    /// How many bytes; 0 takes the slot's memory away.
    pub length: u64,
}
