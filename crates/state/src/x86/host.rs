//! What a kernel has for a VM: asked once, used for every save and restore of it.

use evenkeel_catalog::MSRS;
use evenkeel_sys::requests::*;
use evenkeel_sys::{Errno, Error, Refusal};

use crate::{Owner, Parts, Refused};

const CAP_NESTED_STATE: u32 = 157;
const CAP_SREGS2: u32 = 200;
const CAP_XSAVE: u32 = 55;
const CAP_XSAVE2: u32 = 208;
const CAP_XCRS: u32 = 56;
const CAP_DEBUGREGS: u32 = 50;
const CAP_TSC_CONTROL: u32 = 60;
const CAP_GET_TSC_KHZ: u32 = 61;
const CAP_XEN_HVM: u32 = 38;
const CAP_ONE_REG: u32 = 70;
const CAP_ADJUST_CLOCK: u32 = 39;

/// KVM_VCPU_TSC_CTRL and KVM_VCPU_TSC_OFFSET.
pub(super) const TSC_OFFSET: (u32, u64) = (0, 0);

/// What the kernel has for one VM.
#[derive(Clone, Debug)]
pub struct Host {
    /// KVM_GET_SREGS2.
    pub(super) sregs2: bool,
    /// KVM_GET_XSAVE; without it there is KVM_GET_FPU.
    pub(super) xsave: bool,
    /// Bytes of KVM_GET_XSAVE2; 0 without it.
    pub(super) xsave2: usize,
    /// KVM_GET_XCRS.
    pub(super) xcrs: bool,
    /// KVM_GET_DEBUGREGS.
    pub(super) debugregs: bool,
    /// The most bytes of nested state; 0 without it.
    pub(super) nested: usize,
    /// KVM_GET_REG_LIST, KVM_GET_ONE_REG.
    pub(super) one_reg: bool,
    /// KVM_GET_TSC_KHZ.
    pub(super) tsc_khz: bool,
    /// KVM_SET_TSC_KHZ takes any rate.
    pub(super) tsc_control: bool,
    /// The attribute of the TSC's offset.
    pub(super) tsc_offset: bool,
    /// KVM_CAP_ADJUST_CLOCK: flags that KVM_GET_CLOCK and KVM_SET_CLOCK know.
    pub(super) clock: u32,
    /// KVM_CAP_XEN_HVM's flags.
    pub(super) xen: u32,
    /// Local APICs are in the kernel.
    pub(super) lapic: bool,
    /// PICs and IOAPIC are in the kernel.
    pub(super) irqchip: bool,
    /// The PIT is in the kernel.
    pub(super) pit: bool,
    /// MSRs that can be read: those that the kernel lists, and those that it has without listing them. Ascending.
    pub(super) msrs: Vec<u32>,
}

impl Host {
    /// Asks. It changes nothing.
    ///
    /// # Errors
    /// The kernel does not answer, or the VM has no vCPU.
    pub fn ask(parts: &Parts<'_, '_>) -> Result<Host, Refused> {
        let refused = |e: Error| Refused::call(Owner::Vm, "", "the kernel does not say what it has")(e);
        let cap = |number: u32| parts.vm.check_extension(number).map_err(refused);
        let Some(first) = parts.cpus.first() else {
            return Err(
                Refused::new(Owner::Vm, "", "it has no vCPU").hint("state is saved of VMs that can run")
            );
        };
        let vcpu = first.vcpu;
        let mut msrs = parts.system.msr_list(&KVM_GET_MSR_INDEX_LIST).map_err(refused)?;
        msrs.extend(parts.system.msr_list(&KVM_GET_MSR_FEATURE_INDEX_LIST).unwrap_or_default());
        msrs.extend(MSRS.iter().filter(|m| m.ask).flat_map(|m| m.msr..=m.last.unwrap_or(m.msr)));
        msrs.sort_unstable();
        msrs.dedup();
        let answers = vcpu.msrs().get(&msrs);
        let mut known = Vec::with_capacity(msrs.len());
        for (msr, answer) in msrs.into_iter().zip(answers) {
            match answer {
                Ok(_) => known.push(msr),
                Err(Error { why: Refusal::NotProcessed, .. }) => {}
                Err(error) => return Err(refused(error)),
            }
        }
        let has_lapic = present(vcpu.get(&KVM_GET_LAPIC, 0)).map_err(refused)?;
        Ok(Host {
            sregs2: cap(CAP_SREGS2)? > 0,
            xsave: cap(CAP_XSAVE)? > 0,
            xsave2: usize::try_from(cap(CAP_XSAVE2)?).unwrap_or(0),
            xcrs: cap(CAP_XCRS)? > 0,
            debugregs: cap(CAP_DEBUGREGS)? > 0,
            nested: usize::try_from(cap(CAP_NESTED_STATE)?).unwrap_or(0),
            one_reg: cap(CAP_ONE_REG)? > 0,
            tsc_khz: cap(CAP_GET_TSC_KHZ)? > 0,
            tsc_control: cap(CAP_TSC_CONTROL)? > 0,
            tsc_offset: present(vcpu.has_attr(TSC_OFFSET.0, TSC_OFFSET.1)).map_err(refused)?,
            clock: cap(CAP_ADJUST_CLOCK)?.cast_unsigned(),
            xen: cap(CAP_XEN_HVM)?.cast_unsigned(),
            lapic: has_lapic,
            irqchip: has_lapic && present(parts.vm.irqchip(2)).map_err(refused)?,
            pit: has_lapic && present(parts.vm.get(&KVM_GET_PIT2, 0)).map_err(refused)?,
            msrs: known,
        })
    }
}

/// Whether the kernel has it: the errors that say that it has not are no errors.
fn present<T>(answer: Result<T, Error>) -> Result<bool, Error> {
    match answer {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.errno(), Some(Errno::EINVAL | Errno::ENXIO | Errno::ENOTTY | Errno::EPERM)) => {
            Ok(false)
        }
        Err(e) => Err(e),
    }
}
