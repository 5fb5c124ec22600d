//! The groups of state that are one structure with an ioctl to read it and one to set it.

use evenkeel_sys::layout::*;
use evenkeel_sys::requests::*;
use evenkeel_sys::{Arg, Error, Fd, Refusal, Request};

use super::host::Host;

/// A group.
pub(super) struct Group {
    /// The section's name in the catalog.
    pub name: &'static str,
    /// It belongs to a vCPU.
    pub vcpu: bool,
    /// What reads it.
    pub get: &'static Request,
    /// What sets it.
    pub set: &'static Request,
    /// Its length in bytes; 0: this VM or this kernel does not have it.
    pub size: fn(&Host) -> usize,
}

macro_rules! groups {
    ($($name:literal $vcpu:literal $get:ident $set:ident $size:expr;)*) => {
        &[$(Group { name: $name, vcpu: $vcpu, get: &$get, set: &$set, size: $size }),*]
    };
}

const fn if_(there: bool, size: usize) -> usize {
    if there { size } else { 0 }
}

/// All of them. Where one stands in for another, only one has a length.
pub(super) const GROUPS: &[Group] = groups! {
    "regs" true KVM_GET_REGS KVM_SET_REGS |_| X86_REGS;
    "sregs" true KVM_GET_SREGS KVM_SET_SREGS |h| if_(!h.sregs2, X86_SREGS);
    "sregs2" true KVM_GET_SREGS2 KVM_SET_SREGS2 |h| if_(h.sregs2, X86_SREGS2);
    "fpu" true KVM_GET_FPU KVM_SET_FPU |h| if_(!h.xsave, X86_FPU);
    "xcrs" true KVM_GET_XCRS KVM_SET_XCRS |h| if_(h.xcrs, X86_XCRS);
    "xsave" true KVM_GET_XSAVE KVM_SET_XSAVE |h| if_(h.xsave && h.xsave2 == 0, X86_XSAVE);
    "xsave2" true KVM_GET_XSAVE2 KVM_SET_XSAVE |h| h.xsave2;
    "debugregs" true KVM_GET_DEBUGREGS KVM_SET_DEBUGREGS |h| if_(h.debugregs, X86_DEBUGREGS);
    "vcpu-events" true KVM_GET_VCPU_EVENTS KVM_SET_VCPU_EVENTS |_| VCPU_EVENTS;
    "mp-state" true KVM_GET_MP_STATE KVM_SET_MP_STATE |_| MP_STATE;
    "lapic" true KVM_GET_LAPIC KVM_SET_LAPIC |h| if_(h.lapic, X86_LAPIC);
    "pit2" false KVM_GET_PIT2 KVM_SET_PIT2 |h| if_(h.pit, X86_PIT2);
    "clock" false KVM_GET_CLOCK KVM_SET_CLOCK |h| if_(h.clock.is_some(), X86_CLOCK);
};

/// The group of this name.
pub(super) fn by_name(name: &str) -> Option<&'static Group> {
    GROUPS.iter().find(|group| group.name == name)
}

/// What a buffer holds before the kernel fills it: a call that claims success and wrote nothing is found by it.
pub(super) const UNTOUCHED: u8 = 0xa5;

/// Reads a structure of which the kernel fills every byte from `from` on.
pub(super) fn fill(fd: &Fd<'_>, get: &Request, bytes: &mut [u8], from: usize) -> Result<(), Error> {
    bytes[from..].fill(UNTOUCHED);
    fd.call(get, Arg::Out(bytes), "")?;
    if bytes[from..].iter().all(|b| *b == UNTOUCHED) {
        let why = Refusal::Nonsense("it succeeded and told nothing".to_owned());
        return Err(fd.error(get, "", why));
    }
    Ok(())
}
