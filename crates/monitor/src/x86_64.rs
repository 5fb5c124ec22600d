//! Long mode on x86: tables in the guest's memory, and a vCPU that starts in it.
//!
//! Offsets are those of `struct kvm_sregs` and `struct kvm_regs` (`arch/x86/include/uapi/asm/kvm.h`).

use evenkeel_sys::layout::{X86_REGS, X86_SREGS};
use evenkeel_sys::requests::{KVM_GET_REGS, KVM_GET_SREGS, KVM_SET_REGS, KVM_SET_SREGS};
#[cfg(target_arch = "x86_64")]
use evenkeel_sys::{
    Errno, Vm,
    requests::{KVM_SET_IDENTITY_MAP_ADDR, KVM_SET_TSS_ADDR},
};
use evenkeel_sys::{Outside, Ram, Vcpu};

use crate::Error;

/// Pages below 4 GiB that Intel hosts use in real mode: out of the way of memory, APICs and firmware.
#[cfg(target_arch = "x86_64")]
const REAL_MODE_TSS: u64 = 0xfffb_d000;
#[cfg(target_arch = "x86_64")]
const IDENTITY_MAP: u64 = 0xfffb_c000;

/// Selector of the 64-bit code segment.
pub const CODE: u16 = 0x08;
/// Selector of the data segment.
pub const DATA: u16 = 0x10;
/// Selector of the TSS.
pub const TSS: u16 = 0x18;
/// Length of the table that [`Tables::write`] makes.
pub const GDT_BYTES: u16 = 0x28;

/// CR0: PE, MP, ET, NE, WP, PG.
pub const CR0: u64 = 0x8001_0033;
/// CR0 without paging: PE, ET.
const CR0_FLAT: u64 = 0x11;
/// CR4: PAE.
pub const CR4: u64 = 0x20;
/// EFER: LME, LMA.
pub const EFER: u64 = 0x500;

/// What Intel hosts without unrestricted guests need of a VM; others have no use for it and some do not have it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn reserve(vm: &Vm<'_>) -> Result<(), Error> {
    let absent = |e: &evenkeel_sys::Error| matches!(e.errno(), Some(Errno::EINVAL | Errno::ENOTTY));
    let identity = vm.set(&KVM_SET_IDENTITY_MAP_ADDR, &IDENTITY_MAP.to_ne_bytes()).map(drop);
    let tss = vm.int(&KVM_SET_TSS_ADDR, REAL_MODE_TSS).map(drop);
    for done in [identity, tss] {
        done.or_else(|e| if absent(&e) { Ok(()) } else { Err(e) })?;
    }
    Ok(())
}

/// Where the tables are in guest memory; each on a page of its own.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// The global descriptors.
    pub gdt: u32,
    /// The interrupt descriptors.
    pub idt: u32,
    /// The task state.
    pub tss: u32,
    /// Six pages: PML4, PDPT, four page directories.
    pub pages: u32,
}

impl Tables {
    /// Writes them: descriptors, 4 GiB mapped one to one in pages of 2 MiB for ring 0 (uncached where the APICs are), and 256
    /// interrupt gates to `stubs`, `stride` bytes apart. `stack` is where a stack for faults outside ring 0 would be.
    ///
    /// # Errors
    /// They are not within the memory.
    pub fn write(&self, ram: &Ram, stubs: u32, stride: u32, stack: u64) -> Result<(), Outside> {
        let put =
            |at: u32, index: usize, value: u64| ram.write(at as usize + 8 * index, &value.to_le_bytes());
        // Accessed code and data, and a busy TSS of 104 bytes.
        put(self.gdt, 1, 0x00af_9b00_0000_ffff)?;
        put(self.gdt, 2, 0x00cf_9300_0000_ffff)?;
        let tss = u64::from(self.tss);
        put(self.gdt, 3, 0x0000_8b00_0000_0067 | (tss & 0xff_ffff) << 16 | (tss >> 24) << 56)?;
        put(self.gdt, 4, 0)?;
        ram.write(self.tss as usize + 4, &stack.to_le_bytes())?;
        // No I/O bitmap.
        ram.write(self.tss as usize + 102, &0x68_u16.to_le_bytes())?;
        for vector in 0..256 {
            let to = u64::from(stubs) + u64::from(stride) * vector as u64;
            let low = to & 0xffff | u64::from(CODE) << 16 | 0x8e00 << 32 | (to >> 16 & 0xffff) << 48;
            put(self.idt, 2 * vector, low)?;
            put(self.idt, 2 * vector + 1, to >> 32)?;
        }
        let pages = u64::from(self.pages);
        put(self.pages, 0, (pages + 0x1000) | 3)?;
        for directory in 0..4_u64 {
            put(self.pages + 0x1000, directory as usize, (pages + 0x2000 + 0x1000 * directory) | 3)?;
        }
        for page in 0..2048_u64 {
            let address = page << 21;
            let uncached = if address >= 0xfec0_0000 { 0x18 } else { 0 };
            put(self.pages + 0x2000, page as usize, address | 0x83 | uncached)?;
        }
        Ok(())
    }

    /// Puts a vCPU into 64-bit mode at `entry`, with this stack and interrupts off. What the kernel keeps in SREGS
    /// besides (the APIC's base) stays.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn enter(&self, vcpu: &Vcpu<'_>, entry: u64, stack: u64) -> Result<(), Error> {
        let mut sregs = vcpu.get(&KVM_GET_SREGS, X86_SREGS)?;
        let mut segment = |at, base, limit, selector, kind, flags| {
            put_segment(&mut sregs, at, (base, limit), selector, kind, flags);
        };
        segment(0, 0, u32::MAX, CODE, 11, [1, 0, 1, 1, 1, 0]);
        for n in 1..6 {
            segment(24 * n, 0, u32::MAX, DATA, 3, [1, 1, 1, 0, 1, 0]);
        }
        segment(144, u64::from(self.tss), 0x67, TSS, 11, [1, 0, 0, 0, 0, 0]);
        segment(168, 0, 0, 0, 2, [0, 0, 0, 0, 0, 1]);
        let mut table = |at: usize, base: u32, limit: u16| {
            sregs[at..at + 8].copy_from_slice(&u64::from(base).to_ne_bytes());
            sregs[at + 8..at + 10].copy_from_slice(&limit.to_ne_bytes());
        };
        table(192, self.gdt, GDT_BYTES - 1);
        table(208, self.idt, 0xfff);
        for (at, value) in [(224, CR0), (240, u64::from(self.pages)), (248, CR4), (264, EFER)] {
            sregs[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        }
        vcpu.set(&KVM_SET_SREGS, &sregs)?;
        let mut regs = vec![0; X86_REGS];
        for (at, value) in [(48, stack), (128, entry), (136, 2)] {
            regs[at..at + 8].copy_from_slice(&u64::to_ne_bytes(value));
        }
        vcpu.set(&KVM_SET_REGS, &regs)?;
        Ok(())
    }
}

/// A segment in SREGS; `flags` are present, db, s, l, g and unusable.
fn put_segment(sregs: &mut [u8], at: usize, place: (u64, u32), selector: u16, kind: u8, flags: [u8; 6]) {
    let s = &mut sregs[at..at + 24];
    s[..8].copy_from_slice(&place.0.to_ne_bytes());
    s[8..12].copy_from_slice(&place.1.to_ne_bytes());
    s[12..14].copy_from_slice(&selector.to_ne_bytes());
    // type, present, dpl, db, s, l, g, avl, unusable
    let [present, db, s_bit, l, g, unusable] = flags;
    s[14..23].copy_from_slice(&[kind, present, 0, db, s_bit, l, g, 0, unusable]);
}

/// Puts a vCPU into 32-bit protected mode at `entry` as PVH has it: flat segments, no paging, interrupts off, no tables, EBX as given.
///
/// # Errors
/// As the kernel says.
pub fn enter_flat(vcpu: &Vcpu<'_>, entry: u32, ebx: u32) -> Result<(), Error> {
    let mut sregs = vcpu.get(&KVM_GET_SREGS, X86_SREGS)?;
    put_segment(&mut sregs, 0, (0, u32::MAX), CODE, 11, [1, 1, 1, 0, 1, 0]);
    for n in 1..6 {
        put_segment(&mut sregs, 24 * n, (0, u32::MAX), DATA, 3, [1, 1, 1, 0, 1, 0]);
    }
    put_segment(&mut sregs, 144, (0, 0x67), TSS, 11, [1, 0, 0, 0, 0, 0]);
    put_segment(&mut sregs, 168, (0, 0), 0, 2, [0, 0, 0, 0, 0, 1]);
    // CR0, CR3, CR4, EFER.
    for (at, value) in [(224, CR0_FLAT), (240, 0), (248, 0), (264, 0)] {
        sregs[at..at + 8].copy_from_slice(&u64::to_ne_bytes(value));
    }
    vcpu.set(&KVM_SET_SREGS, &sregs)?;
    let mut regs = vec![0; X86_REGS];
    // RBX, RIP, RFLAGS.
    for (at, value) in [(8, ebx.into()), (128, entry.into()), (136, 2)] {
        regs[at..at + 8].copy_from_slice(&u64::to_ne_bytes(value));
    }
    vcpu.set(&KVM_SET_REGS, &regs)?;
    Ok(())
}

/// Sets the instruction pointer, and nothing else.
///
/// # Errors
/// As the kernel says.
pub fn jump(vcpu: &Vcpu<'_>, to: u64) -> Result<(), Error> {
    let mut regs = vcpu.get(&KVM_GET_REGS, X86_REGS)?;
    regs[128..136].copy_from_slice(&to.to_ne_bytes());
    vcpu.set(&KVM_SET_REGS, &regs)?;
    Ok(())
}
