//! What this process wrote into guest memory: for whoever copies memory of a guest that runs.
//!
//! KVM's dirty log holds what vCPUs wrote, and what KVM wrote for them; what devices of the monitor write goes by it. So memory
//! notes that itself, whoever writes: every way into [`Ram`](crate::Ram) marks what it wrote, [`Ram::write`](crate::Ram::write)
//! as well as all of rust-vmm's on [`Ram::region`](crate::Ram::region), of which this is the bitmap. A device cannot forget it.

use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

/// Bytes of a page here, on every host: 4 KiB, as KVM's log has it on hosts with pages of this size.
const PAGE: u64 = 4096;

/// A bit for each page of 4 KiB of a [`Ram`](crate::Ram), by the offset in it.
#[derive(Debug, Default)]
pub struct Marks {
    words: Vec<AtomicU64>,
}

impl Marks {
    /// For so many bytes; nothing is marked.
    pub fn new(length: u64) -> Marks {
        let pages = length.div_ceil(PAGE);
        Marks { words: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// So many bytes from this offset on were written to, **before** this is called.
    pub fn wrote(&self, at: u64, length: u64) {
        if length == 0 {
            return;
        }
        for page in at / PAGE..=(at.saturating_add(length - 1)) / PAGE {
            let Some(word) = self.words.get((page / 64) as usize) else { return };
            word.fetch_or(1 << (page % 64), Ordering::Release);
        }
    }

    /// The marks of the 64 pages from `page`, a multiple of 64, on; they are unmarked. What is copied after this is not older than
    /// what was marked: who wrote meanwhile marks it again.
    pub fn take(&self, page: u64) -> u64 {
        self.words.get((page / 64) as usize).map_or(0, |word| word.swap(0, Ordering::Acquire))
    }

    /// Whether the page with this offset is marked.
    pub fn marked(&self, at: u64) -> bool {
        let page = at / PAGE;
        let word = self.words.get((page / 64) as usize).map_or(0, |word| word.load(Ordering::Acquire));
        word >> (page % 64) & 1 == 1
    }
}

impl<'m> WithBitmapSlice<'m> for Marks {
    type S = RefSlice<'m, Marks>;
}

impl Bitmap for Marks {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.wrote(offset as u64, len as u64);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.marked(offset as u64)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Marks> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for Marks {
    fn with_len(len: usize) -> Marks {
        Marks::new(len as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap, GuestRegionMmap, ReadVolatile as _};
    use vm_memory::{GuestMemoryBackend as _, VolatileMemory as _};

    use super::*;
    use crate::Ram;

    #[test]
    fn every_page_that_was_touched_is_marked_once() {
        let marks = Marks::new(1 << 20);
        marks.wrote(4095, 2);
        marks.wrote(64 * 4096, 1);
        marks.wrote(u64::MAX, 1);
        marks.wrote(8192 + 4096, 0);
        assert!(marks.marked(0) && marks.marked(8191) && !marks.marked(8192));
        assert_eq!([marks.take(0), marks.take(64), marks.take(0)], [0b11, 1, 0]);
    }

    /// Whatever way memory is written by: the pages, and no others.
    #[test]
    fn every_way_into_memory_marks_what_it_wrote() {
        let ram = Ram::new(1 << 20).unwrap();
        let region = GuestRegionMmap::with_arc(ram.region().clone(), GuestAddress(0x10_0000)).unwrap();
        let view = GuestMemoryMmap::from_regions(vec![region]).unwrap();
        let at = |page: u64| GuestAddress(0x10_0000 + 4096 * page);
        ram.write(5 * 4096 + 4090, &[1; 8]).unwrap();
        assert_eq!(ram.marks().take(0), 0b11 << 5);
        view.write_slice(&[1; 4097], at(8)).unwrap();
        view.write_obj(1_u32, at(11)).unwrap();
        view.store(1_u16, at(13), Ordering::Relaxed).unwrap();
        assert_eq!(ram.marks().take(0), 0b11 << 8 | 1 << 11 | 1 << 13);
        // By a system call that fills a buffer.
        let fd = rustix::fs::memfd_create("read", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = std::fs::File::from(fd);
        file.write_all(&[7; 100]).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let region = view.find_region(at(20)).unwrap();
        let whole = region.as_volatile_slice();
        let mut slice = whole.get_slice(20 * 4096, 8192).unwrap();
        assert_eq!(file.read_volatile(&mut slice).unwrap(), 100);
        assert_eq!(ram.marks().take(0), 1 << 20);
        let mut back = [0; 4];
        view.read_slice(&mut back, at(20)).unwrap();
        ram.read(0, &mut back).unwrap();
        assert_eq!(ram.marks().take(0), 0, "who reads marks nothing");
    }
}
