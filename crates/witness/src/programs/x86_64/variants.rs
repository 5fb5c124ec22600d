//! Machines of their own: what a guest sees when a VMM asks for something else than the plain configuration.

use evenkeel_monitor::{Irqchip, Machine, Shape};
use evenkeel_sys::layout::{CpuidEntry, X86_XEN_HVM_CONFIG};
use evenkeel_sys::requests::KVM_XEN_HVM_CONFIG;
use evenkeel_sys::{Deadline, System};

use super::{apic, cpuid, msr, offered_cpuid};
use crate::observation::Record;
use crate::probe::{Probe, RCX};
use crate::programs::{plain, saw};
use crate::session::{Session, load};
use crate::{Error, abi, guests};

const CAP_X2APIC_API: u32 = 129;
const CAP_ENFORCE_PV_FEATURE_CPUID: u32 = 190;
/// KVM's own MSRs, by both of their number ranges.
const PV_MSRS: [u32; 11] = [
    0x11,
    0x12,
    0x4b56_4d00,
    0x4b56_4d01,
    0x4b56_4d02,
    0x4b56_4d03,
    0x4b56_4d04,
    0x4b56_4d05,
    0x4b56_4d06,
    0x4b56_4d07,
    0x4b56_4d08,
];

/// What is asked for besides.
#[derive(Clone, Copy)]
enum Enable {
    Nothing,
    /// KVM's side of Xen's interface, hypercalls to userspace.
    Xen,
    /// A capability of the VM, and its argument.
    Vm(u32, u64),
}

/// A guest in a machine of its own. Where the kernel does not take what is asked for, that is noted as why not.
fn guest(
    system: &System<'_>,
    irqchip: Irqchip,
    enable: Enable,
    table: &[CpuidEntry],
    work: impl FnOnce(&Machine<'_, '_>, &mut Session<'_, '_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let machine = Machine::new(system, Shape { irqchip, pit: false, memory: abi::MEMORY })?;
    if let Enable::Vm(cap, argument) = enable {
        machine.vm().enable_cap(cap, [argument, 0, 0, 0])?;
    }
    if let Enable::Xen = enable {
        // flags: KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL; msr: that of Xen's hypercall page
        let mut config = [0; X86_XEN_HVM_CONFIG];
        config[..8].copy_from_slice(&0x4000_0000_0000_0002_u64.to_ne_bytes());
        machine.vm().set(&KVM_XEN_HVM_CONFIG, &config)?;
    }
    load(machine.ram(), guests::image())?;
    let vcpu = machine.vcpu(0)?;
    vcpu.set_cpuid(table)?;
    let deadline = Deadline::new();
    let mut session = Session::new(&machine, &vcpu, 0, &deadline)?;
    session.start()?;
    work(&machine, &mut session)
}

/// Suppressed EOI broadcasts, with each of the two flags that choose it.
///
/// # Errors
/// As [`Session::ask`].
pub fn suppress_eoi(system: &System<'_>, record: &mut Record) -> Result<(), Error> {
    let table = offered_cpuid(system, 0)?;
    for (flag, suffix) in [(4, "@suppress-eoi-enabled"), (8, "@suppress-eoi-disabled")] {
        let enable = Enable::Vm(CAP_X2APIC_API, flag);
        let done = guest(system, Irqchip::Split, enable, &table, |machine, session| {
            apic::eoi(machine, session, record, suffix)
        });
        let names = ["claimed", "settable", "level-interrupt", "broadcast"];
        refused(done, record, &names.map(|name| format!("apic.suppress-eoi.{name}{suffix}")))?;
    }
    Ok(())
}

/// A refusal of the kernel is no failure, but the reason why something is not asked.
fn refused(done: Result<(), Error>, record: &mut Record, names: &[String]) -> Result<(), Error> {
    match done {
        Err(Error::Monitor(evenkeel_monitor::Error::Call(e))) => {
            for name in names {
                record.unasked(name.clone(), e.to_string());
            }
            Ok(())
        }
        other => other,
    }
}

/// KVM's MSRs in a guest whose CPUID shows none of KVM's features: enforced, and not.
///
/// # Errors
/// As [`Session::ask`].
pub fn hidden(system: &System<'_>, irqchip: Irqchip, record: &mut Record) -> Result<(), Error> {
    let mut table = offered_cpuid(system, 0)?;
    for entry in table.iter_mut().filter(|e| e.function == 0x4000_0001) {
        entry.output = [0; 4];
    }
    // One machine for both: enforcement is a switch of a vCPU that runs.
    guest(system, irqchip, Enable::Nothing, &table, |_, session| {
        pv(session, record, "@pv-hidden")?;
        let enforced = session.vcpu().enable_cap(CAP_ENFORCE_PV_FEATURE_CPUID, [1, 0, 0, 0]);
        let done = enforced.map_err(Error::from).and_then(|_| pv(session, record, "@pv-enforced"));
        if irqchip != Irqchip::None {
            apic::id(session, record)?;
        }
        let names = ["", ".write"].map(|what| PV_MSRS.map(|msr| format!("msr.{msr:x}{what}@pv-enforced")));
        refused(done, record, names.as_flattened())
    })
}

/// Reads KVM's own MSRs, and writes what they hold in a guest that has just begun: nothing is switched on by it.
///
/// # Errors
/// As [`Session::ask`].
pub fn pv(session: &mut Session<'_, '_>, record: &mut Record, suffix: &str) -> Result<(), Error> {
    let probes: Vec<Probe> = PV_MSRS
        .iter()
        .flat_map(|msr| {
            let usual = record.number(&format!("msr.{msr:x}")).unwrap_or_default();
            [Probe::new(&[0x0f, 0x32]).with(RCX, u64::from(*msr)), msr::write(*msr, usual)]
        })
        .collect();
    record.probes += probes.len() as u64;
    for (msr, outcomes) in PV_MSRS.iter().zip(session.ask(&probes)?.chunks_exact(2)) {
        if let Some(saw) = saw(&outcomes[0], |_| outcomes[0].edx_eax().unwrap_or_default()) {
            record.saw(format!("msr.{msr:x}{suffix}"), saw);
        }
        if let Some(saw) = plain(&outcomes[1]) {
            record.saw(format!("msr.{msr:x}.write{suffix}"), saw);
        }
    }
    Ok(())
}

/// A guest that is shown Xen's leaves, with nothing in the one of the TSC.
///
/// # Errors
/// As [`Session::ask`].
pub fn xen(system: &System<'_>, irqchip: Irqchip, record: &mut Record) -> Result<(), Error> {
    let mut table = offered_cpuid(system, 0)?;
    table.retain(|e| e.function >> 28 != 4);
    let entry = |function: u32, index: u32, output: [u32; 4]| CpuidEntry {
        function,
        index,
        flags: u32::from(function == 0x4000_0003),
        output,
    };
    // XenVMMXenVMM
    table.push(entry(0x4000_0000, 0, [0x4000_0004, 0x566e_6558, 0x6558_4d4d, 0x4d4d_566e]));
    table.extend((0..3).map(|index| entry(0x4000_0003, index, [0; 4])));
    let done = guest(system, irqchip, Enable::Xen, &table, |_, session| {
        // Twice: the leaf is filled in when the vCPU is entered.
        let probes = [0, 1, 2, 0, 1, 2].map(|subleaf| cpuid::probe(0x4000_0003, subleaf));
        record.probes += probes.len() as u64;
        let outcomes = session.ask(&probes)?;
        let filled =
            outcomes[3..].iter().filter_map(|o| o.registers()).any(|r| r[..4].iter().any(|w| *w != 0));
        record.value("xen.tsc-leaf.filled", u64::from(filled));
        Ok(())
    });
    refused(done, record, &["xen.tsc-leaf.filled".to_owned()])
}
