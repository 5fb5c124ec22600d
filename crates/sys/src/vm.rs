//! A VM.

use std::ops::Deref;
use std::sync::Arc;

use crate::layout::{
    ARM_FEATURE_ID_RANGE, ARM_REG_MASK_RANGE, ARM_VCPU_INIT, CREATE_DEVICE, X86_IRQCHIP, X86_PIT_CONFIG,
    long, word,
};
use crate::requests::*;
use crate::{Arg, Backend, Device, Error, Fd, FdKind, Handle, Ram, Slot, Vcpu};

const CAP_MANUAL_DIRTY_LOG_PROTECT2: u32 = 168;

/// Bytes of the bitmap of so much memory: a bit a page of 4096 bytes, which are the smallest there are.
pub(crate) fn dirty_bytes(length: u64) -> usize {
    length.div_ceil(4096).div_ceil(64) as usize * 8
}

/// A VM. It lives as long as this or one of its vCPUs and devices does.
#[derive(Debug)]
pub struct Vm<'b>(Fd<'b>);

impl<'b> Vm<'b> {
    /// A VM that the backend has already: one that another VMM lent with [`crate::Live::lend`].
    pub fn of(backend: &'b dyn Backend, handle: Handle) -> Self {
        Vm(Fd::of(backend, handle, FdKind::Vm))
    }

    pub(crate) fn new(fd: Fd<'b>) -> Self {
        Vm(fd)
    }

    /// KVM_CREATE_VCPU.
    pub fn create_vcpu(&self, id: u64) -> Result<Vcpu<'b>, Error> {
        let number = self.int(&KVM_CREATE_VCPU, id)?;
        Ok(Vcpu::new(self.adopt(number, FdKind::Vcpu)))
    }

    /// KVM_CREATE_DEVICE, of a KVM_DEV_TYPE_*.
    pub fn create_device(&self, kind: u32) -> Result<Device<'b>, Error> {
        let mut bytes = [0u8; CREATE_DEVICE];
        bytes[..4].copy_from_slice(&kind.to_ne_bytes());
        self.call(&KVM_CREATE_DEVICE, Arg::Out(&mut bytes), kind)?;
        Ok(Device::new(self.adopt(word(&bytes, 4) as i32, FdKind::Device)))
    }

    /// KVM_SET_USER_MEMORY_REGION: gives the VM this memory, from the first byte to the last, at a guest-physical address.
    pub fn set_memory(&self, number: u32, guest: u64, ram: &Arc<Ram>) -> Result<(), Error> {
        let slot = Slot { number, flags: 0, guest, offset: 0, length: ram.len() as u64 };
        self.set_slot(slot, Some(ram))
    }

    /// KVM_SET_USER_MEMORY_REGION in full: a slot of a part of some memory, or an empty one.
    pub fn set_slot(&self, slot: Slot, ram: Option<&Arc<Ram>>) -> Result<(), Error> {
        let shown = format_args!("slot {}, {:#x} bytes at {:#x}", slot.number, slot.length, slot.guest);
        self.backend()
            .set_memory(self.handle(), slot, ram)
            .map_err(|why| self.error(&KVM_SET_USER_MEMORY_REGION, shown, why))
    }

    /// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, turned on: from now on the dirty log is protected anew only by [`Vm::clear_dirty`], a part at a
    /// time. Gives false where the kernel does not have it.
    pub fn manual_dirty_log(&self) -> Result<bool, Error> {
        if self.check_extension(CAP_MANUAL_DIRTY_LOG_PROTECT2)? & 1 == 0 {
            return Ok(false);
        }
        self.enable_cap(CAP_MANUAL_DIRTY_LOG_PROTECT2, [1, 0, 0, 0]).map(|_| true)
    }

    /// KVM_GET_DIRTY_LOG: the pages that the guest wrote to in a slot of this memory, a bit each, in words of 64. What this process
    /// wrote is not among them.
    pub fn dirty_log(&self, slot: u32, ram: &Ram) -> Result<Vec<u64>, Error> {
        let mut payload = vec![0; dirty_bytes(ram.len() as u64)];
        let mut head = [0; 16];
        head[..4].copy_from_slice(&slot.to_ne_bytes());
        let arg = Arg::Pointing { head: &head, payload: &mut payload };
        self.call(&KVM_GET_DIRTY_LOG, arg, format_args!("slot {slot}"))?;
        Ok(payload.chunks_exact(8).map(|bytes| long(bytes, 0)).collect())
    }

    /// KVM_CLEAR_DIRTY_LOG: the pages with a bit in `words`, from page `first` on, are clean again, and their next write is told.
    /// `first` is a multiple of 64; `pages` is one too, or ends the slot.
    pub fn clear_dirty(&self, slot: u32, first: u64, pages: u32, words: &[u64]) -> Result<(), Error> {
        let mut payload: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut head = [0; 24];
        head[..4].copy_from_slice(&slot.to_ne_bytes());
        head[4..8].copy_from_slice(&pages.to_ne_bytes());
        head[8..16].copy_from_slice(&first.to_ne_bytes());
        let arg = Arg::Pointing { head: &head, payload: &mut payload };
        self.call(&KVM_CLEAR_DIRTY_LOG, arg, format_args!("slot {slot}, {pages} pages from {first}"))
            .map(drop)
    }

    /// KVM_CREATE_IRQCHIP (x86): PIC, IOAPIC and local APICs in the kernel.
    pub fn create_irqchip(&self) -> Result<(), Error> {
        self.int(&KVM_CREATE_IRQCHIP, 0).map(drop)
    }

    /// KVM_CREATE_PIT2 (x86) with these flags.
    pub fn create_pit2(&self, flags: u32) -> Result<(), Error> {
        let mut bytes = [0u8; X86_PIT_CONFIG];
        bytes[..4].copy_from_slice(&flags.to_ne_bytes());
        self.set(&KVM_CREATE_PIT2, &bytes).map(drop)
    }

    /// KVM_GET_IRQCHIP (x86): 0 and 1 are the PICs, 2 the IOAPIC.
    pub fn irqchip(&self, chip: u32) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0u8; X86_IRQCHIP];
        bytes[..4].copy_from_slice(&chip.to_ne_bytes());
        self.call(&KVM_GET_IRQCHIP, Arg::Out(&mut bytes), chip)?;
        Ok(bytes)
    }

    /// KVM_ARM_PREFERRED_TARGET (arm64): the target word.
    pub fn preferred_target(&self) -> Result<u32, Error> {
        self.get(&KVM_ARM_PREFERRED_TARGET, ARM_VCPU_INIT).map(|bytes| word(&bytes, 0))
    }

    /// KVM_ARM_GET_REG_WRITABLE_MASKS (arm64): 192 masks, by `op1 << 6 | crm << 3 | op2`, where op1 = 3 counts as 2.
    pub fn writable_masks(&self) -> Result<Vec<u64>, Error> {
        let head = [0u8; ARM_REG_MASK_RANGE];
        let mut payload = vec![0u8; ARM_FEATURE_ID_RANGE * 8];
        self.call(&KVM_ARM_GET_REG_WRITABLE_MASKS, Arg::Pointing { head: &head, payload: &mut payload }, "")?;
        Ok(payload.chunks_exact(8).map(|b| long(b, 0)).collect())
    }
}

impl<'b> From<Vm<'b>> for Fd<'b> {
    fn from(it: Vm<'b>) -> Fd<'b> {
        it.0
    }
}

impl<'b> Deref for Vm<'b> {
    type Target = Fd<'b>;
    fn deref(&self) -> &Fd<'b> {
        &self.0
    }
}
