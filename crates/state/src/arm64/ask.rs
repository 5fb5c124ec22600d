//! Reading, so that an answer that never came is not taken for zeroes.

use evenkeel_sys::layout::{DEVICE_ATTR, ONE_REG};
use evenkeel_sys::requests::{KVM_GET_DEVICE_ATTR, KVM_GET_ONE_REG};
use evenkeel_sys::{Arg, Errno, Error as CallError, Fd, Refusal, Request, Vcpu};

use crate::pack::register_size;

/// Asks with a buffer that is filled with a pattern, and where the pattern is what comes back, once more with another.
fn filled(
    fd: &Fd<'_>,
    request: &Request,
    shown: &str,
    length: usize,
    ask: impl Fn(&mut [u8]) -> Result<i32, CallError>,
) -> Result<Vec<u8>, CallError> {
    for pattern in [0xa5, 0x5a] {
        let mut bytes = vec![pattern; length];
        ask(&mut bytes)?;
        if length == 0 || bytes.iter().any(|byte| *byte != pattern) {
            return Ok(bytes);
        }
    }
    Err(fd.error(request, shown, Refusal::Nonsense("it succeeded, and wrote no answer".to_owned())))
}

/// KVM_GET_ONE_REG.
pub(super) fn register(vcpu: &Vcpu<'_>, id: u64) -> Result<Vec<u8>, CallError> {
    let shown = format!("{id:#x}");
    let Some(size) = register_size(id) else {
        return Err(vcpu.error(&KVM_GET_ONE_REG, shown, Refusal::Nonsense("it has no size".to_owned())));
    };
    let mut head = [0; ONE_REG];
    head[..8].copy_from_slice(&id.to_ne_bytes());
    filled(vcpu, &KVM_GET_ONE_REG, &shown, size, |payload| {
        vcpu.call(&KVM_GET_ONE_REG, Arg::Pointing { head: &head, payload }, &shown)
    })
}

/// KVM_GET_DEVICE_ATTR.
pub(super) fn attribute(fd: &Fd<'_>, group: u32, attr: u64, length: usize) -> Result<Vec<u8>, CallError> {
    let shown = format!("{}, group {group}, attr {attr:#x}", fd.kind().name());
    let mut head = [0; DEVICE_ATTR];
    head[4..8].copy_from_slice(&group.to_ne_bytes());
    head[8..16].copy_from_slice(&attr.to_ne_bytes());
    filled(fd, &KVM_GET_DEVICE_ATTR, &shown, length, |payload| {
        fd.call(&KVM_GET_DEVICE_ATTR, Arg::Pointing { head: &head, payload }, &shown)
    })
}

/// A structure.
pub(super) fn structure(fd: &Fd<'_>, request: &Request) -> Result<Vec<u8>, CallError> {
    filled(fd, request, "", request.size(), |bytes| fd.call(request, Arg::Out(bytes), ""))
}

/// `None` where the kernel says that there is no such thing.
pub(super) fn if_there<T>(answer: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.errno(), Some(Errno::ENXIO | Errno::ENOENT | Errno::EINVAL)) => Ok(None),
        Err(error) => Err(error),
    }
}
