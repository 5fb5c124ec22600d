//! The boot protocol of arm64 (`Documentation/arch/arm64/booting.rst`): an Image, a device tree, and the MMU off.

use std::io::{Read, Seek, SeekFrom};

use crate::View;
#[cfg(target_arch = "aarch64")]
use linux_loader::loader::{KernelLoader, pe::PE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::Boot;
use crate::Error;
use crate::aarch64::MEMORY_BASE;

/// The tree is at the beginning of memory; it may have 2 MiB, and an Image wants to be at a multiple of them.
pub const TREE: u64 = MEMORY_BASE;
const TREE_MOST: usize = 2 << 20;
const KERNEL: u64 = MEMORY_BASE + TREE_MOST as u64;
/// The longest command line: the kernel's COMMAND_LINE_SIZE.
const COMMAND_LINE_MOST: usize = 2048;
const HEADER: usize = 64;
const MAGIC: &[u8] = b"ARM\x64";

/// Where things are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Where the kernel begins to run.
    pub entry: u64,
    /// Where the initial file system begins and ends.
    pub initramfs: Option<(u64, u64)>,
}

/// What an Image says of itself: where it is from a multiple of 2 MiB, and how much memory it takes from there, more than its file.
fn header(kernel: &mut std::fs::File) -> Result<(u64, u64), Error> {
    let wrong = |what: String| Error::Image(format!("kernel: {what}"));
    let length = kernel.seek(SeekFrom::End(0)).map_err(|e| wrong(e.to_string()))?;
    kernel.rewind().map_err(|e| wrong(e.to_string()))?;
    let mut bytes = [0; HEADER];
    kernel.read_exact(&mut bytes).map_err(|e| wrong(e.to_string()))?;
    kernel.rewind().map_err(|e| wrong(e.to_string()))?;
    if &bytes[56..60] != MAGIC {
        let hint = match &bytes[..2] {
            b"MZ" => ": an EFI program that unpacks itself; give the Image that is in it",
            [0x1f, 0x8b] => ": it is packed (Image.gz); unpack it first",
            _ => "",
        };
        return Err(wrong(format!("no arm64 Image{hint}")));
    }
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    };
    Ok((word(8), word(16).max(length)))
}

/// Puts the kernel and the initial file system into memory, and says where they are.
///
/// # Errors
/// The file is no Image, or something does not fit.
pub fn load(memory: &View, boot: &mut Boot) -> Result<Loaded, Error> {
    if boot.command_line.len() >= COMMAND_LINE_MOST {
        return Err(Error::Image(format!("the command line is longer than {COMMAND_LINE_MOST} bytes")));
    }
    let (offset, length) = header(&mut boot.kernel)?;
    let end = memory.last_addr().0 + 1;
    let fits = |what: &str| Error::Image(format!("{what} does not fit into memory"));
    let entry = KERNEL.checked_add(offset).ok_or_else(|| fits("the kernel"))?;
    let kernel_end = entry.checked_add(length).filter(|to| *to <= end).ok_or_else(|| fits("the kernel"))?;
    put(memory, boot, entry)?;
    let mut initramfs = None;
    if let Some(archive) = &boot.initramfs {
        let at = end.checked_sub(archive.len() as u64).map(|at| at & !0xfff);
        let at = at.filter(|at| *at >= kernel_end).ok_or_else(|| fits("the initramfs"))?;
        let put = memory.write_slice(archive, GuestAddress(at));
        put.map_err(|e| Error::Image(format!("initramfs: {e}")))?;
        initramfs = Some((at, at + archive.len() as u64));
    }
    Ok(Loaded { entry, initramfs })
}

#[cfg(target_arch = "aarch64")]
fn put(memory: &View, boot: &mut Boot, entry: u64) -> Result<(), Error> {
    let loaded = PE::load(memory, Some(GuestAddress(KERNEL)), &mut boot.kernel, None);
    let loaded = loaded.map_err(|e| Error::Image(format!("kernel: {e}")))?;
    // An Image of before 3.17 does not say where it wants to be.
    if loaded.kernel_load.0 != entry {
        return Err(Error::Image("kernel: an Image without its length".to_owned()));
    }
    Ok(())
}

/// The loader of Images is only there for arm64.
#[cfg(not(target_arch = "aarch64"))]
fn put(memory: &View, boot: &mut Boot, entry: u64) -> Result<(), Error> {
    let mut bytes = Vec::new();
    boot.kernel.read_to_end(&mut bytes).map_err(|e| Error::Image(format!("kernel: {e}")))?;
    memory.write_slice(&bytes, GuestAddress(entry)).map_err(|e| Error::Image(format!("kernel: {e}")))
}

/// Puts the tree where the kernel is told that it is.
///
/// # Errors
/// It is longer than a kernel takes.
pub fn put_tree(memory: &View, tree: &[u8]) -> Result<(), Error> {
    if tree.len() > TREE_MOST {
        return Err(Error::Image(format!("a device tree of {} bytes", tree.len())));
    }
    memory.write_slice(tree, GuestAddress(TREE)).map_err(|e| Error::Image(format!("device tree: {e}")))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn image(offset: u64, size: u64, magic: &[u8]) -> std::fs::File {
        let mut bytes = vec![0; 4096];
        bytes[8..16].copy_from_slice(&offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&size.to_le_bytes());
        bytes[56..60].copy_from_slice(magic);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    fn load_it(kernel: std::fs::File, initramfs: usize) -> Result<Loaded, Error> {
        let memory = View::from_ranges(&[(GuestAddress(MEMORY_BASE), 8 << 20)]).unwrap();
        let initramfs = (initramfs > 0).then(|| vec![7; initramfs]);
        let loaded = load(&memory, &mut Boot { kernel, initramfs, command_line: String::new() })?;
        let magic: [u8; 4] = memory.read_obj(GuestAddress(loaded.entry + 56)).unwrap();
        assert_eq!(&magic, MAGIC);
        Ok(loaded)
    }

    #[test]
    fn an_image_is_where_it_wants_to_be_and_nothing_overlaps_what_it_takes_later() {
        let loaded = load_it(image(0x1000, 4 << 20, MAGIC), 5000).unwrap();
        assert_eq!(loaded.entry, KERNEL + 0x1000);
        assert_eq!(loaded.initramfs, Some((MEMORY_BASE + 0x7f_e000, MEMORY_BASE + 0x7f_e000 + 5000)));
        for (image, initramfs, why) in [
            (image(0, 4 << 20, MAGIC), 3 << 20, "the initramfs does not fit"),
            (image(0, 7 << 20, MAGIC), 0, "the kernel does not fit"),
            (image(u64::MAX, 1 << 20, MAGIC), 0, "the kernel does not fit"),
            (image(0, 4096, b"zimg"), 0, "no arm64 Image"),
        ] {
            let error = load_it(image, initramfs).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
