//! The guests themselves: machine code in this program's read-only data. A program holds only the guest of its own
//! architecture, which is the only one that it can run.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "aarch64")]
pub use aarch64::image;
#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::image;
