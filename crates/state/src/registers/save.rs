//! Every register of a fresh vCPU.

use evenkeel_surface::{Arch, Hex64};
use evenkeel_sys::{Backend, System, Vcpu};

use super::document::{FILE_SCHEMA, RegisterFile, Saved, VcpuRegisters};
use super::error::Error;
use super::order::{Group, group};
use super::shape::{Guest, Shape, open, release};
use super::value::Value;

/// Saves the registers of a fresh vCPU of each shape; with `fill`, of a second one of each shape whose registers were
/// first given other values, as far as they take them.
///
/// A register that is listed and cannot be read is saved with the reason.
///
/// # Errors
/// There is no KVM, or no vCPU can be made.
pub fn save(backend: &dyn Backend, shapes: &[Shape], fill: bool) -> Result<RegisterFile, Error> {
    let system = open(backend)?;
    let mut vcpus = Vec::new();
    for &shape in shapes {
        vcpus.push(save_one(&system, shape, false)?);
        if fill {
            vcpus.push(save_one(&system, shape, true)?);
        }
    }
    Ok(RegisterFile { schema: FILE_SCHEMA.to_owned(), arch: Arch::Aarch64, kernel: release(&system)?, vcpus })
}

fn save_one(system: &System<'_>, shape: Shape, filled: bool) -> Result<VcpuRegisters, Error> {
    let guest = Guest::make(system, shape, |_| ())?;
    let ids = guest.vcpu.reg_list().map_err(Error::call("the list of registers"))?;
    if filled {
        for &id in &ids {
            fill(&guest.vcpu, id);
        }
    }
    let registers = ids
        .iter()
        .map(|&id| match guest.vcpu.one_reg(id) {
            Ok(bytes) => Saved { id: Hex64(id), value: Some(Value::from_bytes(&bytes)), unread: None },
            Err(error) => Saved { id: Hex64(id), value: None, unread: Some(error.why.short()) },
        })
        .collect();
    Ok(VcpuRegisters { shape, features: guest.features.clone(), filled, registers })
}

/// Writes a pattern of its own into a register that is neither identity nor firmware nor a counter. What the kernel
/// refuses stays as it was: the pattern is there to see what becomes of values, not to test the kernel.
fn fill(vcpu: &Vcpu<'_>, id: u64) {
    if group(id) != Group::Plain {
        return;
    }
    let size = 1usize << (id >> 52 & 0xf).min(8);
    // A different pattern for each register, so that two that show one state are seen to.
    let mut word = id;
    let bytes: Vec<u8> = (0..size.div_ceil(8))
        .flat_map(|_| {
            word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (mixed ^ mixed >> 27).to_le_bytes()
        })
        .take(size)
        .collect();
    let _ = vcpu.set_one_reg(id, &bytes);
}
