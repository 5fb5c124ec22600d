//! A handle that closes itself and whose errors are complete.

use std::fmt;

use crate::{Arg, Backend, Error, FdKind, Handle, Refusal, Request};

/// An open file descriptor of a backend.
pub struct Fd<'b> {
    backend: &'b dyn Backend,
    handle: Handle,
    kind: FdKind,
}

impl<'b> Fd<'b> {
    /// Opens a device node.
    pub fn open(backend: &'b dyn Backend, path: &str, kind: FdKind) -> Result<Self, Error> {
        let handle = backend.open(path, kind).map_err(|why| Error {
            ioctl: "open",
            argument: path.to_owned(),
            why,
        })?;
        Ok(Fd { backend, handle, kind })
    }

    /// One that the backend has already, such as what [`crate::Live::lend`] returned.
    pub fn of(backend: &'b dyn Backend, handle: Handle, kind: FdKind) -> Fd<'b> {
        Fd { backend, handle, kind }
    }

    /// Takes over a handle that an ioctl created.
    pub(crate) fn adopt(&self, number: i32, kind: FdKind) -> Fd<'b> {
        Fd { backend: self.backend, handle: Handle(number as u32), kind }
    }

    /// What it stands for.
    pub fn kind(&self) -> FdKind {
        self.kind
    }

    /// Its number with its backend.
    pub fn handle(&self) -> Handle {
        self.handle
    }

    /// The backend that it belongs to.
    pub fn backend(&self) -> &'b dyn Backend {
        self.backend
    }

    /// Makes the ioctl; `argument` says in an error what was asked.
    pub fn call(&self, request: &Request, arg: Arg<'_>, argument: impl fmt::Display) -> Result<i32, Error> {
        self.backend.call(self.handle, request, arg).map_err(|why| self.error(request, argument, why))
    }

    /// An error of this ioctl.
    pub fn error(&self, request: &Request, argument: impl fmt::Display, why: Refusal) -> Error {
        Error { ioctl: request.name, argument: argument.to_string(), why }
    }

    /// An ioctl with an integer argument.
    pub fn int(&self, request: &Request, value: u64) -> Result<i32, Error> {
        self.call(request, Arg::Int(value), format_args!("{value:#x}"))
    }

    /// An ioctl that fills a structure of this many bytes.
    pub fn get(&self, request: &Request, size: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; size.max(request.size())];
        self.call(request, Arg::Out(&mut bytes), "")?;
        Ok(bytes)
    }

    /// An ioctl that takes a structure.
    pub fn set(&self, request: &Request, bytes: &[u8]) -> Result<i32, Error> {
        self.call(request, Arg::In(bytes), "")
    }

    /// KVM_CHECK_EXTENSION on this fd.
    pub fn check_extension(&self, cap: u32) -> Result<i32, Error> {
        self.call(&crate::requests::KVM_CHECK_EXTENSION, Arg::Int(cap.into()), cap)
    }

    /// KVM_ENABLE_CAP on this fd.
    pub fn enable_cap(&self, cap: u32, args: [u64; 4]) -> Result<i32, Error> {
        let mut bytes = [0u8; crate::layout::ENABLE_CAP];
        bytes[..4].copy_from_slice(&cap.to_ne_bytes());
        for (arg, place) in args.iter().zip(bytes[8..40].chunks_exact_mut(8)) {
            place.copy_from_slice(&arg.to_ne_bytes());
        }
        let shown = format_args!("{cap}, {:#x}", args[0]);
        self.call(&crate::requests::KVM_ENABLE_CAP, Arg::In(&bytes), shown)
    }

    /// A list whose length the kernel tells by E2BIG: calls with room for `guess` elements and grows as told.
    /// `head` bytes precede the elements, the count is the first word. Returns the elements' bytes.
    pub fn list(&self, request: &Request, head: usize, each: usize, guess: usize) -> Result<Vec<u8>, Error> {
        // No count that the kernel can mean is larger; a bound, so that a lying kernel cannot exhaust memory.
        const MOST: usize = 1 << 16;
        let mut room = guess;
        loop {
            let mut bytes = vec![0u8; head + room * each];
            bytes[..4].copy_from_slice(&(room as u32).to_ne_bytes());
            match self.call(request, Arg::Out(&mut bytes), format_args!("room for {room}")) {
                Ok(_) => {
                    let count = crate::layout::word(&bytes, 0) as usize;
                    if count > room {
                        let why = Refusal::Nonsense(format!("{count} elements in room for {room}"));
                        return Err(self.error(request, "", why));
                    }
                    bytes.truncate(head + count * each);
                    bytes.drain(..head);
                    return Ok(bytes);
                }
                Err(error) if error.errno() == Some(crate::Errno::E2BIG) && room < MOST => {
                    // Some lists say how many there are, some (CPUID) only that it was too few.
                    let told = crate::layout::word(&bytes, 0) as usize;
                    room = if told > room { told.min(MOST) } else { (room * 2).clamp(64, MOST) };
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn attr_head(group: u32, attr: u64) -> [u8; crate::layout::DEVICE_ATTR] {
        let mut head = [0u8; crate::layout::DEVICE_ATTR];
        head[4..8].copy_from_slice(&group.to_ne_bytes());
        head[8..16].copy_from_slice(&attr.to_ne_bytes());
        head
    }

    /// KVM_HAS_DEVICE_ATTR on this fd: an error when it does not exist, as the kernel has it.
    pub fn has_attr(&self, group: u32, attr: u64) -> Result<(), Error> {
        let shown = format_args!("{}, group {group}, attr {attr:#x}", self.kind.name());
        self.call(&crate::requests::KVM_HAS_DEVICE_ATTR, Arg::In(&Self::attr_head(group, attr)), shown)
            .map(drop)
    }

    /// KVM_GET_DEVICE_ATTR on this fd, of an attribute of `N` bytes.
    pub fn get_attr<const N: usize>(&self, group: u32, attr: u64) -> Result<[u8; N], Error> {
        let mut payload = [0u8; N];
        let arg = Arg::Pointing { head: &Self::attr_head(group, attr), payload: &mut payload };
        let shown = format_args!("{}, group {group}, attr {attr:#x}", self.kind.name());
        self.call(&crate::requests::KVM_GET_DEVICE_ATTR, arg, shown)?;
        Ok(payload)
    }

    /// KVM_SET_DEVICE_ATTR on this fd.
    pub fn set_attr(&self, group: u32, attr: u64, value: &[u8]) -> Result<(), Error> {
        let mut payload = value.to_vec();
        let arg = Arg::Pointing { head: &Self::attr_head(group, attr), payload: &mut payload };
        let shown = format_args!("{}, group {group}, attr {attr:#x}", self.kind.name());
        self.call(&crate::requests::KVM_SET_DEVICE_ATTR, arg, shown).map(drop)
    }
}

impl Drop for Fd<'_> {
    fn drop(&mut self) {
        self.backend.close(self.handle);
    }
}

impl fmt::Debug for Fd<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.handle.0)
    }
}
