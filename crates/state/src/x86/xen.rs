//! Xen's interface for guests, where the kernel has it. The payload holds the attributes that could be read, each as the
//! kernel's structure of 72 bytes.

use evenkeel_sys::layout::{X86_XEN_ATTR, word};
use evenkeel_sys::requests::*;
use evenkeel_sys::{Arg, Errno, Error, Fd, Request};

use super::host::Host;
use super::plan::Read;

/// KVM_XEN_ATTR_TYPE_*: LONG_MODE, SHARED_INFO (a frame number), UPCALL_VECTOR, XEN_VERSION, RUNSTATE_UPDATE_FLAG.
const OF_VM: &[u16] = &[0, 1, 2, 4, 5];
/// KVM_XEN_VCPU_ATTR_TYPE_*, the id before the timer: VCPU_ID, VCPU_INFO, VCPU_TIME_INFO, RUNSTATE_ADDR, RUNSTATE_DATA,
/// TIMER, UPCALL_VECTOR.
const OF_VCPU: &[u16] = &[6, 0, 1, 2, 4, 7, 8];

/// The VM's attributes.
pub(super) fn read_vm(vm: &Fd<'_>, host: &Host) -> Result<Read, Error> {
    read(vm, host, &KVM_XEN_HVM_GET_ATTR, OF_VM)
}

/// A vCPU's attributes.
pub(super) fn read_vcpu(vcpu: &Fd<'_>, host: &Host) -> Result<Read, Error> {
    read(vcpu, host, &KVM_XEN_VCPU_GET_ATTR, OF_VCPU)
}

fn read(fd: &Fd<'_>, host: &Host, get: &Request, kinds: &[u16]) -> Result<Read, Error> {
    if host.xen == 0 {
        return Ok(Read::Absent("no Xen interface in this kernel"));
    }
    let mut bytes = Vec::new();
    for kind in kinds {
        let mut attr = [0; X86_XEN_ATTR];
        attr[..2].copy_from_slice(&kind.to_ne_bytes());
        match fd.call(get, Arg::Out(&mut attr), format_args!("attribute {kind}")) {
            Ok(_) => bytes.extend(attr),
            // Kernels know more of them as they get younger, and some belong to what is not enabled.
            Err(e)
                if matches!(
                    e.errno(),
                    Some(Errno::EINVAL | Errno::ENOENT | Errno::ENOTTY | Errno::EOPNOTSUPP)
                ) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(if bytes.is_empty() { Read::Absent("Xen's interface is not in use") } else { Read::Bytes(bytes) })
}

/// Sets the attributes of a payload.
pub(super) fn set(fd: &Fd<'_>, vcpu: bool, bytes: &[u8]) -> Result<(), Error> {
    let set = if vcpu { &KVM_XEN_VCPU_SET_ATTR } else { &KVM_XEN_HVM_SET_ATTR };
    for attr in bytes.chunks_exact(X86_XEN_ATTR) {
        fd.call(set, Arg::In(attr), format_args!("attribute {}", word(attr, 0) & 0xffff))?;
    }
    Ok(())
}
