//! The boot protocols of x86: the 64-bit one (Documentation/arch/x86/boot.rst) of a bzImage, and of an ELF file without a note of
//! another; [PVH](super::pvh) of an ELF file whose note has an entry for it.

use std::io::Seek;

use crate::View;
use evenkeel_sys::requests::{KVM_GET_REGS, KVM_SET_REGS};
use evenkeel_sys::{Ram, Vcpu, layout::X86_REGS};
use linux_loader::configurator::{BootConfigurator, BootParams, linux::LinuxBootConfigurator};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Cmdline, Elf, KernelLoader, load_cmdline};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{Boot, pvh};
use crate::Error;
use crate::x86_64::{self, Tables};

/// Where things are below 1 MiB.
const TABLES: Tables = Tables { gdt: 0x1000, idt: 0x2000, tss: 0x3000, pages: 0x1_0000 };
const STACK: u64 = 0x8000;
const ZERO_PAGE: u64 = 0x9000;
const COMMAND_LINE: u64 = 0x2_0000;
/// The longest command line: the kernel's COMMAND_LINE_SIZE.
const COMMAND_LINE_MOST: usize = 2048;
/// Where the extended BIOS data area would be.
const LOW_END: u64 = 0x9_fc00;
const HIGH: u64 = 0x10_0000;
/// From a bzImage's load address to its 64-bit entry.
const ENTRY_64: u64 = 0x200;
const E820_RAM: u32 = 1;

/// Where a kernel begins, and by which protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit mode, 4 GiB mapped one to one, RSI at the boot parameters.
    Long(u64),
    /// 32-bit mode without paging, EBX at the start info.
    Pvh(u32),
}

/// Where what a kernel is told of lies, whatever the protocol that tells it.
pub(super) struct Told {
    /// The initial file system: where it begins, and its length.
    pub initramfs: Option<(u64, u64)>,
    /// The ranges of memory that are the guest's: where each begins, and its length.
    pub ranges: [(u64, u64); 2],
    /// ACPI's root pointer.
    pub acpi: u64,
}

fn wrong(what: &str, e: &dyn std::fmt::Display) -> Error {
    Error::Image(format!("{what}: {e}"))
}

/// A kernel in memory.
struct Loaded {
    entry: Entry,
    /// Behind the last byte that it takes.
    end: u64,
    /// A bzImage's own header.
    header: setup_header,
}

/// Puts the kernel into memory. The file is whoever's: nothing in it is believed before it was compared with the memory.
fn load_kernel(memory: &View, boot: &mut Boot) -> Result<Loaded, Error> {
    let bz = BzImage::load(memory, None, &mut boot.kernel, Some(GuestAddress(HIGH)));
    let loaded = match bz {
        Ok(it) => {
            let entry = it.kernel_load.0.saturating_add(ENTRY_64);
            Loaded {
                entry: Entry::Long(entry),
                end: it.kernel_end,
                header: it.setup_header.unwrap_or_default(),
            }
        }
        Err(bz) => {
            boot.kernel.rewind().map_err(|e| wrong("kernel", &e))?;
            // It says itself where it belongs.
            let elf = Elf::load(memory, None, &mut boot.kernel, None);
            let elf = elf.map_err(|e| Error::Image(format!("neither a bzImage ({bz}) nor ELF ({e})")))?;
            let entry = match elf.pvh_boot_cap {
                PvhBootCapability::PvhEntryPresent(at) => {
                    let at = u32::try_from(at.0)
                        .map_err(|_| Error::Image(format!("kernel: a PVH entry at {:#x}", at.0)))?;
                    Entry::Pvh(at)
                }
                _ => Entry::Long(elf.kernel_load.0),
            };
            Loaded { entry, end: elf.kernel_end, header: setup_header::default() }
        }
    };
    let entry = match loaded.entry {
        Entry::Long(at) => at,
        Entry::Pvh(at) => at.into(),
    };
    if loaded.end > memory.last_addr().0 + 1 {
        return Err(Error::Image("the kernel does not fit into memory".to_owned()));
    }
    if entry >= loaded.end {
        return Err(Error::Image(format!(
            "kernel: its entry {entry:#x} is behind its end {:#x}",
            loaded.end
        )));
    }
    Ok(loaded)
}

/// Puts the kernel and what it is told into memory; returns where it begins. `acpi` is where the root pointer of ACPI is.
///
/// # Errors
/// The image is none, or something does not fit.
pub fn load(memory: &View, ram: &Ram, boot: &mut Boot, acpi: u64) -> Result<Entry, Error> {
    let loaded = load_kernel(memory, boot)?;
    let mut line = Cmdline::new(COMMAND_LINE_MOST).map_err(|e| wrong("command line", &e))?;
    line.insert_str(&boot.command_line).map_err(|e| wrong("command line", &e))?;
    load_cmdline(memory, GuestAddress(COMMAND_LINE), &line).map_err(|e| wrong("command line", &e))?;

    let end = memory.last_addr().0 + 1;
    let mut told = Told { initramfs: None, ranges: [(0, LOW_END), (HIGH, end.saturating_sub(HIGH))], acpi };
    if let Some(archive) = &boot.initramfs {
        let at = end.checked_sub(archive.len() as u64).map(|at| at & !0xfff);
        let at = at.filter(|at| *at >= loaded.end.max(HIGH));
        let at = at.ok_or_else(|| Error::Image("the initramfs does not fit into memory".to_owned()))?;
        memory.write_slice(archive, GuestAddress(at)).map_err(|e| wrong("initramfs", &e))?;
        told.initramfs = Some((at, archive.len() as u64));
    }
    match loaded.entry {
        Entry::Long(_) => {
            TABLES.write(ram, 0, 16, STACK)?;
            put_parameters(memory, loaded.header, boot.command_line.len(), &told)?;
        }
        Entry::Pvh(_) => pvh::put_start_info(memory, COMMAND_LINE, &told)?,
    }
    Ok(loaded.entry)
}

/// The boot parameters of the 64-bit protocol.
fn put_parameters(memory: &View, header: setup_header, line: usize, told: &Told) -> Result<(), Error> {
    let mut params = boot_params { hdr: header, ..boot_params::default() };
    params.hdr.type_of_loader = 0xff;
    params.hdr.boot_flag = 0xaa55;
    params.hdr.header = 0x5372_6448;
    params.hdr.kernel_alignment = 0x0100_0000;
    params.acpi_rsdp_addr = told.acpi;
    params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    params.hdr.cmdline_size = line as u32;
    if let Some((at, length)) = told.initramfs {
        (params.hdr.ramdisk_image, params.hdr.ramdisk_size) = (at as u32, length as u32);
    }
    for (place, (addr, size)) in params.e820_table.iter_mut().zip(told.ranges) {
        *place = boot_e820_entry { addr, size, r#type: E820_RAM };
    }
    params.e820_entries = told.ranges.len() as u8;
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&params, GuestAddress(ZERO_PAGE)), memory)
        .map_err(|e| wrong("boot parameters", &e))
}

/// Puts the first vCPU at the kernel's entry.
///
/// # Errors
/// As the kernel says.
pub fn enter(vcpu: &Vcpu<'_>, entry: Entry) -> Result<(), Error> {
    let entry = match entry {
        Entry::Long(entry) => entry,
        Entry::Pvh(entry) => return x86_64::enter_flat(vcpu, entry, pvh::START_INFO),
    };
    TABLES.enter(vcpu, entry, STACK)?;
    let mut regs = vcpu.get(&KVM_GET_REGS, X86_REGS)?;
    // RSI: the boot parameters.
    regs[32..40].copy_from_slice(&ZERO_PAGE.to_ne_bytes());
    vcpu.set(&KVM_SET_REGS, &regs)?;
    Ok(())
}
