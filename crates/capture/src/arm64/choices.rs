//! Facets with a few values, each of which is set and read back: that a set succeeds is no proof.

use evenkeel_sys::{Device, Error as CallError, Vcpu};

use crate::Parts;
use crate::registers::value;

/// KVM_REG_ARM_PSCI_VERSION, and the versions that there are: 0.2, 1.0, 1.1, 1.2 and 1.3.
const PSCI_VERSION: u64 = 0x6030_0000_0014_0000;
const PSCI_VERSIONS: [u64; 5] = [0x2, 0x1_0000, 0x1_0001, 0x1_0002, 0x1_0003];

/// KVM_DEV_ARM_VGIC_GRP_DIST_REGS, GICD_IIDR and the place of the revision in it.
const DIST_REGS: u32 = 1;
const GICD_IIDR: u64 = 0x8;
const REVISION: u32 = 0xf << 12;

/// The PSCI version of a vCPU.
pub(super) fn psci(vcpu: &Vcpu<'_>, shape: u8, name: &str, parts: &mut Parts) {
    let get = || vcpu.one_reg(PSCI_VERSION).map(|bytes| value(&bytes).unwrap_or(0));
    let Some(default) = parts.book.ask_in("arm64.psci.version", get(), name) else { return };
    let (mut accepts, mut refuses) = (Vec::new(), Vec::new());
    for version in PSCI_VERSIONS {
        let tried = vcpu.set_one_reg(PSCI_VERSION, &version.to_ne_bytes()).and_then(|()| get());
        judge("arm64.psci.version", version, tried, &mut accepts, &mut refuses, parts);
    }
    // The vCPU goes on as it was; a refusal would have shown above.
    let back = vcpu.set_one_reg(PSCI_VERSION, &default.to_ne_bytes());
    parts.book.ask_in("arm64.psci.version", back, name);
    parts.measured_choice("arm64.psci.version", Some(shape), default, accepts, refuses);
}

/// The revision of the interrupt controller's implementation, which says how it behaves.
pub(super) fn gic_revision(gic: &Device<'_>, parts: &mut Parts) {
    let get = || gic.get_attr::<4>(DIST_REGS, GICD_IIDR).map(u32::from_ne_bytes);
    let Some(default) = parts.book.ask("arm64.vgic.iidr", get()) else { return };
    let (mut accepts, mut refuses) = (Vec::new(), Vec::new());
    for revision in 1..=3 {
        let iidr = default & !REVISION | revision << 12;
        let tried = gic.set_attr(DIST_REGS, GICD_IIDR, &iidr.to_ne_bytes()).and_then(|()| get());
        let tried = tried.map(u64::from);
        judge("arm64.vgic.iidr", iidr.into(), tried, &mut accepts, &mut refuses, parts);
    }
    parts.measured_choice("arm64.vgic.iidr", None, default.into(), accepts, refuses);
}

/// Kept, or refused in one of two ways; anything else is a note.
fn judge(
    facet: &str,
    wanted: u64,
    got: Result<u64, CallError>,
    accepts: &mut Vec<u64>,
    refuses: &mut Vec<u64>,
    parts: &mut Parts,
) {
    use evenkeel_sys::Errno;
    match got {
        Ok(got) if got == wanted => accepts.push(wanted),
        Ok(_) => refuses.push(wanted),
        Err(error)
            if matches!(error.errno(), Some(Errno::EINVAL | Errno::EPERM | Errno::EACCES | Errno::EBUSY)) =>
        {
            refuses.push(wanted);
        }
        Err(error) => parts.book.note(facet, &error),
    }
}
