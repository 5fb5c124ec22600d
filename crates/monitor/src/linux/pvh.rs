//! The PVH boot protocol (Xen's docs/misc/pvh.pandoc, `include/xen/interface/hvm/start_info.h`): an ELF file with a note says where it
//! begins in 32-bit mode without paging, and finds there all that it is told.

use linux_loader::configurator::{BootConfigurator, BootParams, pvh::PvhBootConfigurator};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::GuestAddress;

use super::x86_64::Told;
use crate::{Error, View};

/// Where the start info is; its lists follow, and nothing else is on that page.
pub const START_INFO: u32 = 0x9000;
const MODULES: u64 = 0x9100;
const MEMORY_MAP: u64 = 0x9200;
/// XEN_HVM_START_MAGIC_VALUE.
const MAGIC: u32 = 0x336e_c578;
/// The version that has a memory map.
const VERSION: u32 = 1;
/// XEN_HVM_MEMMAP_TYPE_RAM: as in E820.
const RAM: u32 = 1;

/// Tells a kernel what there is.
///
/// # Errors
/// Memory ends before it.
pub(super) fn put_start_info(memory: &View, command_line: u64, told: &Told) -> Result<(), Error> {
    let map = told.ranges.map(|(addr, size)| hvm_memmap_table_entry { addr, size, type_: RAM, reserved: 0 });
    let module = told.initramfs.map(|(paddr, size)| hvm_modlist_entry { paddr, size, ..Default::default() });
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: module.iter().len() as u32,
        modlist_paddr: module.map_or(0, |_| MODULES),
        cmdline_paddr: command_line,
        rsdp_paddr: told.acpi,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(START_INFO.into()));
    params.set_sections(&map, GuestAddress(MEMORY_MAP));
    if let Some(module) = module {
        params.set_modules(&[module], GuestAddress(MODULES));
    }
    PvhBootConfigurator::write_bootparams(&params, memory)
        .map_err(|e| Error::Image(format!("start info: {e}")))
}
