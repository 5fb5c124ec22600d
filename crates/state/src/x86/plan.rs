//! Which groups there are, and how each is read.

use evenkeel_sys::layout::{X86_CPUID_ENTRY, X86_IRQCHIP, X86_NESTED_STATE, word};
use evenkeel_sys::requests::*;
use evenkeel_sys::{Arg, Error, Refusal, Vcpu};

use super::groups::{self, GROUPS};
use super::host::{Host, TSC_OFFSET};
use super::{msrs, xen};
use crate::order::Order;
use crate::{Owner, Parts};

/// Groups that are more than one structure, and to whom they belong.
const OTHERS: &[(&str, bool)] = &[
    ("cpuid", true),
    ("mce", true),
    ("msrs", true),
    ("nested-state", true),
    ("ssp", true),
    ("tsc-khz", true),
    ("tsc-offset", true),
    ("xen-vcpu", true),
    ("irqchip", false),
    ("xen-vm", false),
];

/// All groups of a VM with this many vCPUs, in this order.
pub(super) fn all(order: &Order, vcpus: usize) -> Vec<(Owner, &'static str)> {
    let names = GROUPS.iter().map(|g| (g.name, g.vcpu)).chain(OTHERS.iter().copied());
    let mut all: Vec<(u32, Owner, &'static str)> = Vec::new();
    for (name, vcpu) in names {
        let rank = order.rank(name);
        if vcpu {
            all.extend((0..vcpus as u32).map(|index| (rank, Owner::Vcpu(index), name)));
        } else {
            all.push((rank, Owner::Vm, name));
        }
    }
    all.sort_by_key(|(rank, owner, _)| (*rank, *owner));
    all.into_iter().map(|(_, owner, name)| (owner, name)).collect()
}

/// Whether it is a group, and whether it belongs to a vCPU.
pub(super) fn belongs(name: &str) -> Option<bool> {
    let other = OTHERS.iter().find(|(n, _)| *n == name).map(|(_, vcpu)| *vcpu);
    other.or_else(|| groups::by_name(name).map(|g| g.vcpu))
}

/// What reading a group gave.
pub(super) enum Read {
    /// Its payload.
    Bytes(Vec<u8>),
    /// There is no such group here, and why.
    Absent(&'static str),
}

/// Reads a group. `wanted` names the MSRs to read; all that the host has where it is none.
pub(super) fn read(
    parts: &Parts<'_, '_>,
    host: &Host,
    owner: Owner,
    name: &str,
    wanted: Option<&[u32]>,
) -> Result<Read, Error> {
    if let Some(group) = groups::by_name(name) {
        let size = (group.size)(host);
        if size == 0 {
            return Ok(Read::Absent("this VM, or this kernel, does not have it"));
        }
        let fd = match owner {
            Owner::Vm => &**parts.vm,
            Owner::Vcpu(index) => &**parts.cpus[index as usize].vcpu,
        };
        let mut bytes = vec![0; size];
        groups::fill(fd, group.get, &mut bytes, 0)?;
        return Ok(Read::Bytes(bytes));
    }
    let Owner::Vcpu(index) = owner else {
        return match name {
            "irqchip" => irqchips(parts, host),
            _ => xen::read_vm(parts.vm, host),
        };
    };
    let vcpu = parts.cpus[index as usize].vcpu;
    let bytes = match name {
        "cpuid" => return cpuid(vcpu),
        "mce" if !host.msrs.contains(&msrs::MCG_CAP) => {
            return Ok(Read::Absent("no machine checks in this kernel"));
        }
        "mce" => match vcpu.msrs().get(&[msrs::MCG_CAP]).remove(0) {
            Ok(cap) => cap.to_ne_bytes().to_vec(),
            Err(error) => return Err(error),
        },
        "msrs" => {
            let numbers = wanted.unwrap_or(&host.msrs);
            let values: Result<Vec<u64>, Error> = vcpu.msrs().get(numbers).into_iter().collect();
            let pairs: Vec<(u32, u64)> = numbers.iter().copied().zip(values?).collect();
            msrs::pack(&pairs)
        }
        "nested-state" => return nested(parts, host, index),
        "ssp" => return one_regs(parts, host, index),
        "tsc-khz" => {
            if !host.tsc_khz {
                return Ok(Read::Absent("this kernel does not have it"));
            }
            let khz = vcpu.int(&KVM_GET_TSC_KHZ, 0)?;
            if khz <= 0 {
                let why = Refusal::Nonsense(format!("{khz} kHz"));
                return Err(vcpu.error(&KVM_GET_TSC_KHZ, "", why));
            }
            khz.to_ne_bytes().to_vec()
        }
        "tsc-offset" => {
            if !host.tsc_offset {
                return Ok(Read::Absent("this kernel does not have the attribute"));
            }
            vcpu.get_attr::<8>(TSC_OFFSET.0, TSC_OFFSET.1)?.to_vec()
        }
        _ => return xen::read_vcpu(vcpu, host),
    };
    Ok(Read::Bytes(bytes))
}

/// The table as KVM holds it.
fn cpuid(vcpu: &Vcpu<'_>) -> Result<Read, Error> {
    const HEAD: usize = 8;
    let mut bytes = vec![0; HEAD + MOST_CPUID * X86_CPUID_ENTRY];
    bytes[..4].copy_from_slice(&(MOST_CPUID as u32).to_ne_bytes());
    bytes[HEAD..].fill(groups::UNTOUCHED);
    vcpu.call(&KVM_GET_CPUID2, Arg::Out(&mut bytes), "")?;
    let count = (word(&bytes, 0) as usize).min(MOST_CPUID);
    let mut table = bytes.split_off(HEAD);
    table.truncate(count * X86_CPUID_ENTRY);
    // Kernels up to 6.1 leave the count as it was given.
    let used = table.iter().rposition(|b| *b != groups::UNTOUCHED).map_or(0, |at| at + 1);
    table.truncate(used.next_multiple_of(X86_CPUID_ENTRY).min(table.len()));
    match (table.is_empty(), count) {
        (false, _) => Ok(Read::Bytes(table)),
        (true, 0) => Ok(Read::Absent("no table was set")),
        (true, _) => {
            let why = Refusal::Nonsense("it succeeded and told nothing".to_owned());
            Err(vcpu.error(&KVM_GET_CPUID2, "", why))
        }
    }
}

/// KVM_MAX_CPUID_ENTRIES.
const MOST_CPUID: usize = 256;

/// Both PICs and the IOAPIC, one behind the other.
fn irqchips(parts: &Parts<'_, '_>, host: &Host) -> Result<Read, Error> {
    if !host.irqchip {
        return Ok(Read::Absent("no PICs and no IOAPIC in the kernel"));
    }
    let mut bytes = vec![0; 3 * X86_IRQCHIP];
    for (chip, place) in (0_u32..).zip(bytes.chunks_exact_mut(X86_IRQCHIP)) {
        place[..4].copy_from_slice(&chip.to_ne_bytes());
        groups::fill(parts.vm, &KVM_GET_IRQCHIP, place, 8)?;
        // The kernel fills what the chip has; what lies behind is as it was given.
        let rest = if chip == 2 { 8 + IOAPIC } else { 8 + PIC };
        place[4..8].fill(0);
        place[rest..].fill(0);
    }
    Ok(Read::Bytes(bytes))
}

/// `struct kvm_pic_state` and `struct kvm_ioapic_state`.
const PIC: usize = 16;
const IOAPIC: usize = 216;

fn nested(parts: &Parts<'_, '_>, host: &Host, index: u32) -> Result<Read, Error> {
    if host.nested == 0 {
        return Ok(Read::Absent("no nested guests on this host"));
    }
    let vcpu = parts.cpus[index as usize].vcpu;
    let mut bytes = vec![0; host.nested.max(X86_NESTED_STATE)];
    let room = bytes.len() as u32;
    bytes[4..8].copy_from_slice(&room.to_ne_bytes());
    vcpu.call(&KVM_GET_NESTED_STATE, Arg::Out(&mut bytes), "")?;
    let size = word(&bytes, 4);
    if size as usize > bytes.len() || (size as usize) < X86_NESTED_STATE {
        let why = Refusal::Nonsense(format!("{size} bytes in room for {room}"));
        return Err(vcpu.error(&KVM_GET_NESTED_STATE, "", why));
    }
    bytes.truncate(size as usize);
    Ok(Read::Bytes(bytes))
}

/// Registers that KVM_GET_REG_LIST names, each as id and value.
fn one_regs(parts: &Parts<'_, '_>, host: &Host, index: u32) -> Result<Read, Error> {
    if !host.one_reg {
        return Ok(Read::Absent("this kernel has no registers by id"));
    }
    let vcpu = parts.cpus[index as usize].vcpu;
    let mut bytes = Vec::new();
    for id in vcpu.reg_list()? {
        bytes.extend(id.to_ne_bytes());
        let value = vcpu.one_reg(id)?;
        bytes.extend(&value);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    if bytes.is_empty() {
        return Ok(Read::Absent("the guest has none: it is not shown shadow stacks"));
    }
    Ok(Read::Bytes(bytes))
}
