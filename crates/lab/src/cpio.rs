//! A writer of newc cpio archives, the format of an initramfs.
//! Source of the layout: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.

/// An archive under construction. Entries come out in the order of the calls, with every date at 0: the same calls
/// give the same bytes.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;

impl Archive {
    pub fn new() -> Archive {
        Archive::default()
    }

    /// A folder. Parents come first: the kernel makes none by itself.
    pub fn folder(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[]);
    }

    /// A file that everybody may read and run.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, REGULAR | 0o755, (0, 0), content);
    }

    /// A character device.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER | 0o600, (major, minor), &[]);
    }

    /// The archive's bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = u32::MAX; // Becomes 0, as the trailer's is.
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        self.inode = self.inode.wrapping_add(1);
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let size = u32::try_from(content.len()).expect("an initramfs entry is under 4 GiB");
        let name = u32::try_from(path.len() + 1).expect("a path is short");
        self.bytes.extend_from_slice(b"070701");
        for field in [self.inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name, 0] {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// Names and contents start at multiples of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(bytes: &[u8], index: usize) -> usize {
        let at = 6 + 8 * index;
        usize::from_str_radix(std::str::from_utf8(&bytes[at..at + 8]).unwrap(), 16).unwrap()
    }

    /// Reads the archive back, independently of the writer's way of padding.
    fn list(bytes: &[u8]) -> Vec<(String, usize, Vec<u8>)> {
        let mut found = Vec::new();
        let mut rest = bytes;
        loop {
            assert_eq!(&rest[..6], b"070701");
            let (mode, size, name) = (field(rest, 1), field(rest, 6), field(rest, 11));
            let path = std::str::from_utf8(&rest[110..110 + name - 1]).unwrap().to_owned();
            assert_eq!(rest[110 + name - 1], 0);
            let data = (110 + name).div_ceil(4) * 4;
            if path == "TRAILER!!!" {
                assert_eq!(rest.len(), data);
                return found;
            }
            found.push((path, mode, rest[data..data + size].to_vec()));
            rest = &rest[(data + size).div_ceil(4) * 4..];
        }
    }

    #[test]
    fn what_goes_in_can_be_read_back() {
        let mut archive = Archive::new();
        archive.folder("dev");
        archive.device("dev/console", 5, 1);
        for length in 0..9 {
            archive.file(&format!("f{}", "x".repeat(length)), &vec![7; length]);
        }
        let bytes = archive.finish();
        let entries = list(&bytes);
        assert_eq!(entries.len(), 11);
        assert_eq!((entries[0].0.as_str(), entries[0].1), ("dev", 0o040_755));
        assert_eq!((entries[1].0.as_str(), entries[1].1), ("dev/console", 0o020_600));
        for length in 0..9 {
            assert_eq!(entries[2 + length].2, vec![7; length]);
        }
    }

    #[test]
    fn the_same_calls_give_the_same_bytes() {
        let make = || {
            let mut archive = Archive::new();
            archive.file("init", b"x");
            archive.finish()
        };
        assert_eq!(make(), make());
    }
}
