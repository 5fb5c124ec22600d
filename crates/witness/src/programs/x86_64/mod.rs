//! The programs for x86.

pub mod apic;
pub mod bits;
pub mod choices;
pub mod cpuid;
pub mod instructions;
pub mod msr;
pub mod platform;
pub mod registers;
pub mod second;
pub mod time;
pub mod variants;

use std::time::Instant;

use evenkeel_monitor::{Irqchip, Machine, Shape};
use evenkeel_surface::Arch;
use evenkeel_sys::layout::CpuidEntry;
use evenkeel_sys::requests::KVM_GET_SUPPORTED_CPUID;
use evenkeel_sys::{Deadline, System, Vcpu, Vm};

use crate::observation::{Observation, Phase, Record, Volatile};
use crate::probe::Probe;
use crate::session::{Session, load};
use crate::{Error, abi, guests};

/// What is done with a vCPU and its number.
pub type ForVcpu<'c> = dyn Fn(&Vcpu<'_>, u32) -> Result<(), evenkeel_sys::Error> + 'c;

/// What is done to a VM before it has vCPUs, and to each vCPU before it runs, and when.
pub struct Configure<'c> {
    /// To the VM, after its irqchip is chosen.
    pub vm: &'c dyn Fn(&Vm<'_>) -> Result<(), evenkeel_sys::Error>,
    /// To a vCPU with this number, before it runs.
    pub vcpu: &'c ForVcpu<'c>,
    /// To a vCPU after its first KVM_RUN.
    pub ran: &'c ForVcpu<'c>,
    /// To a vCPU when the guest is reset.
    pub reset: &'c ForVcpu<'c>,
    /// A third vCPU is made when the guest has been running for a while.
    pub later: bool,
}

const NOP: &[u8] = &[0x90];

/// The CPUID that KVM offers, for the vCPU with this APIC id: what a VMM gives a guest that passes everything on.
///
/// # Errors
/// As the kernel says.
pub fn offered_cpuid(system: &System<'_>, id: u32) -> Result<Vec<CpuidEntry>, evenkeel_sys::Error> {
    let mut table = system.cpuid(&KVM_GET_SUPPORTED_CPUID)?;
    for entry in &mut table {
        let [eax, ebx, ecx, edx] = &mut entry.output;
        // KVM answers with the id of the CPU that ran the ioctl.
        match entry.function {
            1 => *ebx = *ebx & 0x00ff_ffff | id << 24,
            0xb | 0x1f => *edx = id,
            0x8000_001e => {
                *eax = id;
                *ebx &= !0xff;
                *ecx &= !0xff;
            }
            _ => {}
        }
    }
    Ok(table)
}

/// Looks at everything, in a machine of this shape.
///
/// # Errors
/// There is no machine of this shape, or the guest does not come to its end.
pub fn observe(
    system: &System<'_>,
    irqchip: Irqchip,
    configure: &Configure<'_>,
    volatile: Volatile,
) -> Result<Observation, Error> {
    let start = Instant::now();
    let mut record = Record::default();
    let deadline = Deadline::new();
    let shape = Shape { irqchip, pit: irqchip == Irqchip::Kernel, memory: abi::MEMORY };
    let machine = Machine::new(system, shape)?;
    (configure.vm)(machine.vm())?;
    load(machine.ram(), guests::image())?;
    let vcpu = machine.vcpu(0)?;
    (configure.vcpu)(&vcpu, 0)?;
    let other = machine.vcpu(1)?;
    (configure.vcpu)(&other, 1)?;
    let mut session = Session::new(&machine, &vcpu, 0, &deadline)?;
    session.start()?;
    // The plainest thing that a guest can do: its first KVM_RUN.
    session.one(Probe::new(NOP))?;
    (configure.ran)(&vcpu, 0)?;

    let mut timer = Timer { last: start, phases: Vec::new() };
    let record = &mut record;
    cpuid::observe(&mut session, record, "")?;
    timer.phase("cpuid");
    msr::observe(&mut session, record)?;
    timer.phase("msr");
    registers::observe(&mut session, record)?;
    timer.phase("registers");
    instructions::observe(&mut session, record)?;
    timer.phase("instructions");
    if irqchip != Irqchip::None {
        apic::observe(&mut session, record)?;
        apic::eoi(&machine, &mut session, record, "")?;
        timer.phase("apic");
    }
    platform::observe(&mut session, record)?;
    timer.phase("platform");
    time::observe(&mut session, record)?;
    timer.phase("time");
    if irqchip != Irqchip::None {
        let mut second = Session::new(&machine, &other, 1, &deadline)?;
        second::observe(&mut session, &mut second, configure.ran, record)?;
        timer.phase("second");
    }
    let third = if configure.later { Some(machine.vcpu(second::LATE)?) } else { None };
    if let Some(third) = &third {
        (configure.vcpu)(third, second::LATE as u32)?;
        if irqchip == Irqchip::None {
            record.unasked("late.start", "without a local APIC in the kernel nothing starts it");
        } else {
            let mut late = Session::new(&machine, third, second::LATE as u32, &deadline)?;
            second::late(&mut session, &mut late, configure.ran, record)?;
        }
        timer.phase("late");
    }
    second::crash(&mut session, record)?;
    for (number, vcpu) in [&vcpu, &other].into_iter().chain(&third).enumerate() {
        (configure.reset)(vcpu, number as u32)?;
    }
    second::reboot(&mut session, record)?;
    timer.phase("reboot");
    if irqchip == Irqchip::Split {
        variants::suppress_eoi(system, record)?;
    }
    variants::hidden(system, irqchip, record)?;
    variants::xen(system, irqchip, record)?;
    timer.phase("variants");
    choices::settle(record, irqchip.name());
    let record = std::mem::take(record);

    let volatile = Volatile { took_ms: milliseconds(start), phases: timer.phases, ..volatile };
    Ok(record.finish(Arch::X86_64, irqchip.name(), volatile))
}

/// How long each program took.
struct Timer {
    last: Instant,
    phases: Vec<Phase>,
}

impl Timer {
    fn phase(&mut self, name: &str) {
        self.phases.push(Phase { name: name.to_owned(), ms: milliseconds(self.last) });
        self.last = Instant::now();
    }
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
