//! What a kernel has for a VM: asked once, used for every save and restore of it.

use evenkeel_catalog::{MSRS, MsrClass};
use evenkeel_sys::layout::*;
use evenkeel_sys::requests::*;
use evenkeel_sys::{Arg, Errno, Error, Refusal, Request, Vcpu};

use super::groups::fill;
use crate::{Owner, Parts, Refused};

const CAP_NESTED_STATE: u32 = 157;
const CAP_XSAVE2: u32 = 208;
const CAP_ADJUST_CLOCK: u32 = 39;
const CAP_XEN_HVM: u32 = 38;

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
    /// The attribute of the TSC's offset.
    pub(super) tsc_offset: bool,
    /// KVM_GET_CLOCK, and the flags that it knows.
    pub(super) clock: Option<u32>,
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
    /// Asks. It changes nothing. What can be tried is tried rather than believed: an answer to KVM_CHECK_EXTENSION that got lost
    /// would lose a group of state.
    ///
    /// # Errors
    /// The kernel does not answer, contradicts itself, or the VM has no vCPU.
    pub fn ask(parts: &Parts<'_, '_>) -> Result<Host, Refused> {
        let refused = |e: Error| Refused::call(Owner::Vm, "", "the kernel does not say what it has")(e);
        let cap = |number: u32| parts.vm.check_extension(number).map_err(refused);
        let Some(first) = parts.cpus.first() else {
            return Err(
                Refused::new(Owner::Vm, "", "it has no vCPU").hint("state is saved of VMs that can run")
            );
        };
        let vcpu = first.vcpu;
        let tried = |get: &Request, size: usize| {
            let mut bytes = vec![0; size];
            present(fill(vcpu, get, &mut bytes, 0)).map_err(refused)
        };
        let lapic = tried(&KVM_GET_LAPIC, X86_LAPIC)?;
        let mut clock = [0; X86_CLOCK];
        let clocks = present(fill(parts.vm, &KVM_GET_CLOCK, &mut clock, 0)).map_err(refused)?;
        let size = |number: u32| cap(number).map(|size| usize::try_from(size).unwrap_or(0));
        let (xsave2, nested) = (size(CAP_XSAVE2)?, size(CAP_NESTED_STATE)?);
        let nothing = "KVM_CHECK_EXTENSION denies what there is";
        if xsave2 == 0 && tried(&KVM_GET_XSAVE2, X86_XSAVE)? {
            return Err(Refused::new(Owner::Vcpu(0), "xsave2", nothing));
        }
        if nested == 0 && has_nested(vcpu).map_err(refused)? {
            return Err(Refused::new(Owner::Vcpu(0), "nested-state", nothing));
        }
        Ok(Host {
            sregs2: tried(&KVM_GET_SREGS2, X86_SREGS2)?,
            xsave: xsave2 > 0 || tried(&KVM_GET_XSAVE, X86_XSAVE)?,
            xsave2,
            xcrs: tried(&KVM_GET_XCRS, X86_XCRS)?,
            debugregs: tried(&KVM_GET_DEBUGREGS, X86_DEBUGREGS)?,
            nested,
            one_reg: present(vcpu.reg_list()).map_err(refused)?,
            tsc_khz: present(vcpu.int(&KVM_GET_TSC_KHZ, 0)).map_err(refused)?,
            tsc_offset: present(vcpu.has_attr(TSC_OFFSET.0, TSC_OFFSET.1)).map_err(refused)?,
            // A VM that never ran tells no time yet, and takes it all the same.
            clock: if clocks {
                Some(word(&clock, X86_CLOCK_FLAGS) | cap(CAP_ADJUST_CLOCK)?.cast_unsigned())
            } else {
                None
            },
            xen: cap(CAP_XEN_HVM)?.cast_unsigned(),
            lapic,
            irqchip: lapic && present(parts.vm.irqchip(2)).map_err(refused)?,
            pit: lapic && present(parts.vm.get(&KVM_GET_PIT2, 0)).map_err(refused)?,
            msrs: known_msrs(parts, vcpu).map_err(refused)?,
        })
    }
}

/// The guest is shown Hyper-V's interface, with SynIC.
fn has_synic(cpuid: &[CpuidEntry]) -> bool {
    let eax = |leaf: u32| cpuid.iter().find(|e| e.function == leaf).map_or(0, |e| e.output[0]);
    eax(0x4000_0001) == HYPERV_SIGNATURE && eax(0x4000_0003) >> 2 & 1 != 0
}

/// HYPERV_CPUID_SIGNATURE_EAX: "Hv#1".
const HYPERV_SIGNATURE: u32 = 0x3123_7648;

/// The MSRs that this vCPU has. Refusals are asked about twice.
fn known_msrs(parts: &Parts<'_, '_>, vcpu: &Vcpu<'_>) -> Result<Vec<u32>, Error> {
    let list = |request: &Request| -> Result<Vec<u32>, Error> {
        let numbers = parts.system.msr_list(request)?;
        if numbers.is_empty() || numbers.contains(&0) {
            let why = Refusal::Nonsense("it succeeded and told nothing".to_owned());
            return Err(parts.system.error(request, "", why));
        }
        Ok(numbers)
    };
    let mut msrs = list(&KVM_GET_MSR_INDEX_LIST)?;
    match list(&KVM_GET_MSR_FEATURE_INDEX_LIST) {
        Ok(features) => msrs.extend(features),
        Err(error) if error.errno() == Some(Errno::ENOTTY) => {}
        Err(error) => return Err(error),
    }
    // Most of SynIC's are listed by no kernel; without SynIC they hold nothing, and cannot be set.
    let synic = has_synic(&vcpu.cpuid()?);
    let hidden = |m: &&evenkeel_catalog::Msr| synic && m.class == MsrClass::Hyperv && m.unsaved.is_empty();
    msrs.extend(MSRS.iter().filter(|m| m.ask || hidden(m)).flat_map(|m| m.msr..=m.last.unwrap_or(m.msr)));
    msrs.sort_unstable();
    msrs.dedup();
    let mut known = Vec::with_capacity(msrs.len());
    for _ in 0..2 {
        let answers = vcpu.msrs().get(&msrs);
        let mut refused = Vec::new();
        for (msr, answer) in msrs.into_iter().zip(answers) {
            match answer {
                Ok(_) => known.push(msr),
                Err(Error { why: Refusal::NotProcessed, .. }) => refused.push(msr),
                Err(error) => return Err(error),
            }
        }
        msrs = refused;
    }
    known.sort_unstable();
    Ok(known)
}

/// KVM_GET_NESTED_STATE with room for nothing but its header: E2BIG says that there would be more.
fn has_nested(vcpu: &Vcpu<'_>) -> Result<bool, Error> {
    let mut head = [0; X86_NESTED_STATE];
    head[4..8].copy_from_slice(&(X86_NESTED_STATE as u32).to_ne_bytes());
    match vcpu.call(&KVM_GET_NESTED_STATE, Arg::Out(&mut head), "") {
        Err(error) if error.errno() == Some(Errno::E2BIG) => Ok(true),
        answer => present(answer),
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
