//! What describes the host and is not an ioctl, read from the real one.

use std::fs;
use std::io::Read;

use crate::{Errno, Refusal, Source};

/// Enough for every parameter and the first processor of `/proc/cpuinfo`; a bound for all else.
const MOST: u64 = 16 << 10;

pub(crate) fn read(source: Source<'_>) -> Result<Vec<u8>, Refusal> {
    match source {
        Source::File(path) => {
            let mut text = Vec::new();
            fs::File::open(path).and_then(|f| f.take(MOST).read_to_end(&mut text)).map_err(refusal)?;
            Ok(text)
        }
        Source::Names(path) => {
            let mut names = Vec::new();
            for entry in fs::read_dir(path).map_err(refusal)? {
                names.push(entry.map_err(refusal)?.file_name().to_string_lossy().into_owned());
            }
            names.sort();
            Ok(names.join("\n").into_bytes())
        }
        Source::Uname => {
            let uname = rustix::system::uname();
            let parts = [uname.release(), uname.version(), uname.machine()];
            Ok(parts.map(|part| part.to_string_lossy().into_owned()).join("\n").into_bytes())
        }
        Source::Cpuid { leaf, subleaf } => cpuid(leaf, subleaf),
        Source::Cpu => Ok((rustix::thread::sched_getcpu() as u32).to_ne_bytes().to_vec()),
        Source::Time => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            Ok(now.map_or(0, |d| d.as_secs()).to_ne_bytes().to_vec())
        }
        Source::CounterFrequency => counter_frequency(),
        Source::Architecture => Ok(std::env::consts::ARCH.as_bytes().to_vec()),
    }
}

fn refusal(error: std::io::Error) -> Refusal {
    match error.raw_os_error() {
        Some(number) => Refusal::Errno(Errno(number)),
        None => Refusal::Nonsense(error.to_string()),
    }
}

// The instruction exists on this architecture only; elsewhere the source says so.
#[cfg(target_arch = "x86_64")]
fn cpuid(leaf: u32, subleaf: u32) -> Result<Vec<u8>, Refusal> {
    let out = std::arch::x86_64::__cpuid_count(leaf, subleaf);
    Ok([out.eax, out.ebx, out.ecx, out.edx].iter().flat_map(|word| word.to_ne_bytes()).collect())
}

#[cfg(not(target_arch = "x86_64"))]
fn cpuid(_: u32, _: u32) -> Result<Vec<u8>, Refusal> {
    Err(Refusal::Errno(Errno::ENOSYS))
}

#[cfg(target_arch = "aarch64")]
fn counter_frequency() -> Result<Vec<u8>, Refusal> {
    let hz: u64;
    // SAFETY: CNTFRQ_EL0 is readable in userspace on Linux, and reading it changes nothing.
    unsafe { std::arch::asm!("mrs {}, cntfrq_el0", out(reg) hz, options(nomem, nostack, preserves_flags)) };
    Ok(hz.to_ne_bytes().to_vec())
}

#[cfg(not(target_arch = "aarch64"))]
fn counter_frequency() -> Result<Vec<u8>, Refusal> {
    Err(Refusal::Errno(Errno::ENOSYS))
}
