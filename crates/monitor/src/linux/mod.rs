//! Linux as a guest: its image, its command line and its initial file system in memory, and a vCPU at its entry.

pub mod aarch64;
#[cfg(target_arch = "x86_64")]
pub mod pvh;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

/// What a guest is booted from.
#[derive(Debug)]
pub struct Boot {
    /// The kernel: a bzImage or an ELF file (by PVH where it has the note) on x86, an Image on arm64.
    pub kernel: std::fs::File,
    /// The initial file system, unpacked by the guest.
    pub initramfs: Option<Vec<u8>>,
    /// The command line.
    pub command_line: String,
}
