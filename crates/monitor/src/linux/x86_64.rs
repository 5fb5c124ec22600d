//! The 64-bit boot protocol of x86 (Documentation/arch/x86/boot.rst).

use std::io::Seek;

use crate::View;
use evenkeel_sys::requests::{KVM_GET_REGS, KVM_SET_REGS};
use evenkeel_sys::{Ram, Vcpu, layout::X86_REGS};
use linux_loader::configurator::{BootConfigurator, BootParams, linux::LinuxBootConfigurator};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{BzImage, Cmdline, Elf, KernelLoader, load_cmdline};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::Boot;
use crate::Error;
use crate::x86_64::Tables;

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

/// Puts the kernel and what it is told into memory; returns its entry. `acpi` is where the root pointer of ACPI is.
///
/// # Errors
/// The image is none, or something does not fit.
pub fn load(memory: &View, ram: &Ram, boot: &mut Boot, acpi: u64) -> Result<u64, Error> {
    let wrong = |what: &str, e: &dyn std::fmt::Display| Error::Image(format!("{what}: {e}"));
    let start = Some(GuestAddress(HIGH));
    let bz = BzImage::load(memory, None, &mut boot.kernel, start);
    let (loaded, entry) = match bz {
        Ok(loaded) => (loaded, loaded.kernel_load.0 + ENTRY_64),
        Err(bz) => {
            boot.kernel.rewind().map_err(|e| wrong("kernel", &e))?;
            // It says itself where it belongs.
            let elf = Elf::load(memory, None, &mut boot.kernel, None);
            let elf = elf.map_err(|e| Error::Image(format!("neither a bzImage ({bz}) nor ELF ({e})")))?;
            (elf, elf.kernel_load.0)
        }
    };
    let mut params = boot_params { hdr: loaded.setup_header.unwrap_or_default(), ..boot_params::default() };
    params.hdr.type_of_loader = 0xff;
    params.hdr.boot_flag = 0xaa55;
    params.hdr.header = 0x5372_6448;
    params.acpi_rsdp_addr = acpi;
    params.hdr.kernel_alignment = 0x0100_0000;

    let mut line = Cmdline::new(COMMAND_LINE_MOST).map_err(|e| wrong("command line", &e))?;
    line.insert_str(&boot.command_line).map_err(|e| wrong("command line", &e))?;
    load_cmdline(memory, GuestAddress(COMMAND_LINE), &line).map_err(|e| wrong("command line", &e))?;
    params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    params.hdr.cmdline_size = boot.command_line.len() as u32;

    let end = memory.last_addr().0 + 1;
    if let Some(archive) = &boot.initramfs {
        let at = end.checked_sub(archive.len() as u64).map(|at| at & !0xfff);
        let at = at.filter(|at| *at > loaded.kernel_end);
        let at = at.ok_or_else(|| Error::Image("the initramfs does not fit into memory".to_owned()))?;
        memory.write_slice(archive, GuestAddress(at)).map_err(|e| wrong("initramfs", &e))?;
        params.hdr.ramdisk_image = at as u32;
        params.hdr.ramdisk_size = archive.len() as u32;
    }
    let ranges = [(0, LOW_END), (HIGH, end - HIGH)];
    for (place, (addr, size)) in params.e820_table.iter_mut().zip(ranges) {
        *place = boot_e820_entry { addr, size, r#type: E820_RAM };
    }
    params.e820_entries = ranges.len() as u8;
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&params, GuestAddress(ZERO_PAGE)), memory)
        .map_err(|e| wrong("boot parameters", &e))?;
    TABLES.write(ram, 0, 16, STACK)?;
    Ok(entry)
}

/// Puts the first vCPU at the kernel's entry.
///
/// # Errors
/// As the kernel says.
pub fn enter(vcpu: &Vcpu<'_>, entry: u64) -> Result<(), Error> {
    TABLES.enter(vcpu, entry, STACK)?;
    let mut regs = vcpu.get(&KVM_GET_REGS, X86_REGS)?;
    // RSI: the boot parameters.
    regs[32..40].copy_from_slice(&ZERO_PAGE.to_ne_bytes());
    vcpu.set(&KVM_SET_REGS, &regs)?;
    Ok(())
}
