//! What the host is made of: kernel, CPU and boot.

use evenkeel_surface::{Arch, CpuidEntry, Hex64, Setting};
use evenkeel_sys::{Backend, Refusal, Source};

use crate::{Error, Parts, book::Book, number, x86};

/// The architecture of the host behind a backend.
pub(crate) fn architecture(backend: &dyn Backend) -> Result<Arch, Error> {
    let fail = |why| {
        let cause = evenkeel_sys::Error { ioctl: "read", argument: Source::Architecture.to_string(), why };
        Error::new("architecture", cause)
    };
    let name = backend.read(Source::Architecture).map_err(fail)?;
    match name.as_slice() {
        b"x86_64" => Ok(Arch::X86_64),
        b"aarch64" => Ok(Arch::Aarch64),
        other => {
            Err(fail(Refusal::Nonsense(format!("{} is not known here", String::from_utf8_lossy(other)))))
        }
    }
}

/// KVM's modules. A back-end that is built in has a folder too, used or not.
const BACKENDS: [&str; 3] = ["kvm_intel", "kvm_amd", "kvm_pvm"];

/// Fills in the provenance and the volatile part.
pub(crate) fn provenance(backend: &dyn Backend, arch: Arch, parts: &mut Parts) {
    let Parts { provenance, volatile, book, .. } = parts;

    let uname = text(book.read(backend, Source::Uname, "kernel.release"));
    let mut lines = uname.lines();
    provenance.kernel.release = lines.next().unwrap_or_default().to_owned();
    provenance.kernel.version = lines.next().unwrap_or_default().to_owned();
    provenance.kernel.cmdline = file(backend, book, "/proc/cmdline", "kernel.cmdline");

    let cpuinfo = file(backend, book, "/proc/cpuinfo", "cpu.name");
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    match arch {
        Arch::X86_64 => {
            provenance.cpu.vendor = field("vendor_id");
            provenance.cpu.name = field("model name");
            provenance.cpu.microcode = field("microcode");
            provenance.cpu.raw = raw_cpuid(backend, book);
            let version = provenance.cpu.raw.iter().find(|e| (e.leaf.0, e.subleaf.0) == (1, 0));
            provenance.cpu.id = Hex64(version.map_or(0, |e| e.eax.0.into()));
        }
        Arch::Aarch64 => {
            let path = "/sys/devices/system/cpu/cpu0/regs/identification/midr_el1";
            let midr = file(backend, book, path, "cpu.id");
            let id = u64::from_str_radix(midr.trim_start_matches("0x"), 16).unwrap_or(0);
            provenance.cpu.id = Hex64(id);
            provenance.cpu.vendor = implementer(id).to_owned();
        }
    }

    let mut present = Vec::new();
    for module in ["kvm"].into_iter().chain(BACKENDS) {
        let folder = format!("/sys/module/{module}/parameters");
        // A module without parameters has no such folder: then there is nothing to tell of it.
        let Some(names) = book.read_if_any(backend, Source::Names(&folder), "parameters") else { continue };
        present.push(module);
        for name in text(Some(names)).lines() {
            let path = format!("{folder}/{name}");
            let what = format!("parameters.{module}.{name}");
            // Some are readable by root only, some for writing alone.
            if let Some(value) = book.read(backend, Source::File(&path), &what) {
                let value = text(Some(value));
                provenance.parameters.push(Setting { name: format!("{module}.{name}"), value });
            }
        }
    }
    provenance.parameters.sort();
    let vendor = provenance.cpu.vendor.as_str();
    let fits = |module: &str| match module {
        "kvm_intel" => vendor == "GenuineIntel",
        "kvm_amd" => matches!(vendor, "AuthenticAMD" | "HygonGenuine"),
        _ => module == "kvm_pvm",
    };
    // The one that is least likely to be there by chance comes first.
    let backend_module = present.iter().rev().find(|module| fits(module));
    provenance.kernel.backend = backend_module.map(|m| (*m).to_owned()).unwrap_or_default();

    let folder = "/sys/devices/system/cpu/vulnerabilities";
    let names = text(book.read_if_any(backend, Source::Names(folder), "mitigations"));
    for name in names.lines() {
        let value = file(backend, book, &format!("{folder}/{name}"), &format!("mitigations.{name}"));
        provenance.mitigations.push(Setting { name: name.to_owned(), value });
    }
    provenance.mitigations.sort();

    volatile.captured_at = number(backend, Source::Time, book, "captured_at").unwrap_or(0);
    volatile.ran_on_cpu = number(backend, Source::Cpu, book, "ran_on_cpu").map(|cpu| cpu as u32);
    volatile.cpus_online = count(&file(backend, book, "/sys/devices/system/cpu/online", "cpus_online"));
}

fn text(bytes: Option<Vec<u8>>) -> String {
    bytes.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()).unwrap_or_default()
}

fn file(backend: &dyn Backend, book: &mut Book, path: &str, what: &str) -> String {
    text(book.read(backend, Source::File(path), what))
}

/// CPUs in a list such as `0-3,8`; `None` when it is not one.
fn count(list: &str) -> Option<u32> {
    let mut cpus = 0u32;
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        cpus = cpus.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(cpus)
}

/// The implementer of an Arm CPU, from the upper byte of MIDR_EL1.
fn implementer(midr: u64) -> &'static str {
    match midr >> 24 & 0xff {
        0x41 => "ARM",
        0x42 => "Broadcom",
        0x43 => "Cavium",
        0x46 => "Fujitsu",
        0x48 => "HiSilicon",
        0x4e => "NVIDIA",
        0x50 => "APM",
        0x51 => "Qualcomm",
        0x53 => "Samsung",
        0x61 => "Apple",
        0x69 => "Intel",
        0x6d => "Microsoft",
        0xc0 => "Ampere",
        _ => "",
    }
}

/// Leaves of the CPUID instruction that hold features, with the number of subleaves that are looked at.
const RAW: [(u32, u32); 14] = [
    (0, 1),
    (1, 1),
    (6, 1),
    (7, 3),
    (0xd, 2),
    (0x14, 1),
    (0x19, 1),
    (0x8000_0000, 1),
    (0x8000_0001, 1),
    (0x8000_0007, 1),
    (0x8000_0008, 1),
    (0x8000_000a, 1),
    (0x8000_001f, 1),
    (0x8000_0021, 1),
];

/// Performance monitoring, version 2, of AMD: the last feature leaf that is looked at.
const RAW_LAST: (u32, u32) = (0x8000_0022, 1);

fn raw_cpuid(backend: &dyn Backend, book: &mut Book) -> Vec<CpuidEntry> {
    let mut entries: Vec<CpuidEntry> = Vec::new();
    for (leaf, subleaves) in RAW.into_iter().chain([RAW_LAST]) {
        let top = entries.iter().find(|e| e.leaf.0 == leaf & 0x8000_0000).map(|e| e.eax.0);
        if top.is_some_and(|top| leaf > top) {
            continue;
        }
        for subleaf in 0..subleaves {
            let what = format!("raw.cpuid.{leaf:x}.{subleaf}");
            let Some(bytes) = book.read(backend, Source::Cpuid { leaf, subleaf }, &what) else { continue };
            let word = |at: usize| evenkeel_sys::layout::word(&bytes, at);
            let mut entry = evenkeel_sys::layout::CpuidEntry {
                function: leaf,
                index: subleaf,
                flags: u32::from(subleaves > 1),
                output: [word(0), word(4), word(8), word(12)],
            };
            x86::cpuid::clear_per_cpu(&mut entry);
            x86::cpuid::clear_runtime(&mut entry);
            entries.push(x86::cpuid::document(&entry));
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_counted() {
        assert_eq!(count("0"), Some(1));
        assert_eq!(count("0-3,8"), Some(5));
        for bad in ["", "x", "3-1", "0-4294967295,1"] {
            assert_eq!(count(bad), None, "{bad}");
        }
    }
}
