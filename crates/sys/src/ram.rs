//! Memory that guests share with this process.

use std::ffi::c_void;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vm_memory::{FileOffset, MmapRegion};

use crate::{Errno, Marks, Refusal};

/// A mapping that is shared with the kernel or with a guest, either of which may change it at any moment: bytes are
/// copied in and out, and no reference to them exists.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// Whoever unmaps it, if this does not.
    owner: Option<Arc<MmapRegion<Marks>>>,
}

// SAFETY: the mapping is not bound to a thread, and it is accessed by copies only.
unsafe impl Send for Mapping {}
// SAFETY: as above; what two threads write at once is mixed, as with a guest that writes, and nothing else.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the whole of `fd`, which has this length.
    pub fn new(fd: impl AsFd, len: usize) -> Result<Mapping, Refusal> {
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses takes no memory from anybody.
        let base = unsafe { mmap(ptr::null_mut(), len, flags, MapFlags::SHARED, fd, 0) };
        let base = base.map_err(|e| Errno(e.raw_os_error()))?;
        let base = NonNull::new(base.cast()).ok_or_else(|| Refusal::Nonsense("mmap at 0".to_owned()))?;
        Ok(Mapping { base, len, owner: None })
    }

    /// What rust-vmm has mapped, without mapping it again.
    fn lent(region: Arc<MmapRegion<Marks>>) -> Result<Mapping, Refusal> {
        let base = NonNull::new(region.as_ptr()).ok_or_else(|| Refusal::Nonsense("mmap at 0".to_owned()))?;
        Ok(Mapping { base, len: region.size(), owner: Some(region) })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Where it is in this process: for the kernel only.
    pub fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Copies out, or says that it is not all within.
    pub fn read(&self, at: usize, into: &mut [u8]) -> Result<(), Outside> {
        self.check(at, into.len())?;
        // SAFETY: the range is within the mapping, which lives as long as `self`; `into` is ours alone.
        unsafe { ptr::copy_nonoverlapping(self.base.as_ptr().add(at), into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Copies in, or says that it is not all within.
    pub fn write(&self, at: usize, from: &[u8]) -> Result<(), Outside> {
        self.check(at, from.len())?;
        // SAFETY: as in `read`.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), self.base.as_ptr().add(at), from.len()) };
        Ok(())
    }

    fn check(&self, at: usize, length: usize) -> Result<(), Outside> {
        match at.checked_add(length) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(Outside { at, length, of: self.len }),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.owner.is_some() {
            return;
        }
        // SAFETY: made by mmap with this length, and nobody uses it any more. It fails only on a bad range.
        let _ = unsafe { munmap(self.base.as_ptr().cast::<c_void>(), self.len) };
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len)
    }
}

/// A place that is not in the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outside {
    /// Offset of the first byte.
    pub at: usize,
    /// How many bytes.
    pub length: usize,
    /// The memory's length.
    pub of: usize,
}

impl fmt::Display for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x} are not within memory of {:#x} bytes", self.length, self.at, self.of)
    }
}

impl std::error::Error for Outside {}

/// Guest memory: a memfd, mapped into this process **once**. A VM is given it with
/// [`Vm::set_memory`](crate::Vm::set_memory); devices see the same mapping through [`Ram::region`]. So what guards the mapping
/// ([`Uffd`](crate::Uffd)) guards it from the guest and from its devices.
#[derive(Debug)]
pub struct Ram {
    file: Arc<File>,
    map: Mapping,
    region: Arc<MmapRegion<Marks>>,
}

impl Ram {
    /// This many bytes, a multiple of the page size, zero at first. The kernel gives pages as they are touched.
    pub fn new(len: usize) -> Result<Ram, Refusal> {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC).map_err(|e| Errno(e.raw_os_error()))?;
        rustix::fs::ftruncate(&fd, len as u64).map_err(|e| Errno(e.raw_os_error()))?;
        Ram::of(fd, len)
    }

    /// This many bytes of a file that is there: a memfd that was handed over.
    pub fn of(fd: OwnedFd, len: usize) -> Result<Ram, Refusal> {
        let file = Arc::new(File::from(fd));
        let region = MmapRegion::from_file(FileOffset::from_arc(file.clone(), 0), len)
            .map_err(|e| Refusal::Nonsense(format!("guest memory cannot be mapped: {e}")))?;
        let region = Arc::new(region);
        Ok(Ram { file, map: Mapping::lent(region.clone())?, region })
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies bytes out. A guest that runs may change them meanwhile.
    pub fn read(&self, at: usize, into: &mut [u8]) -> Result<(), Outside> {
        self.map.read(at, into)
    }

    /// Copies bytes in, and marks them as written.
    pub fn write(&self, at: usize, from: &[u8]) -> Result<(), Outside> {
        self.map.write(at, from)?;
        self.marks().wrote(at as u64, from.len() as u64);
        Ok(())
    }

    /// What this process wrote into it, by any way but its file.
    pub fn marks(&self) -> &Marks {
        self.region.bitmap()
    }

    /// The file behind it. What is written to the file itself is in the memory, and nothing that guards the mapping notices.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The mapping in rust-vmm's terms.
    pub fn region(&self) -> &Arc<MmapRegion<Marks>> {
        &self.region
    }

    /// Where it is in this process: for the kernel only.
    pub(crate) fn address(&self) -> u64 {
        self.map.address()
    }
}
