//! The local APIC, as memory and as MSRs; interrupts; and what becomes of an EOI.

use evenkeel_monitor::{Irqchip, Machine};
use evenkeel_sys::requests::{KVM_GET_TSC_KHZ, KVM_SET_GSI_ROUTING, KVM_SIGNAL_MSI};

use super::msr::write;
use crate::Error;
use crate::abi;
use crate::observation::{Record, Saw};
use crate::probe::{Probe, RAX, RBX, RCX, RDI, RDX, RSI};
use crate::programs::saw;
use crate::session::Session;

/// Where it is as memory.
pub const BASE: u64 = 0xfee0_0000;
const APIC_BASE: u32 = 0x1b;
const EXTENDED: u64 = 1 << 10;
const ENABLED: u64 = 1 << 11;

/// Registers of the page, by offset.
const SPURIOUS: u64 = 0xf0;
const VERSION: u64 = 0x30;
const EOI: u64 = 0xb0;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const INITIAL_COUNT: u64 = 0x380;
const DIVIDE: u64 = 0x3e0;
/// Software-enabled, vector 255.
const ON: u64 = 0x1ff;
/// Suppress EOI broadcasts, of the spurious-interrupt vector register.
const SUPPRESS: u64 = 1 << 12;

/// `mov eax, [rsi]`.
pub fn load32(at: u64) -> Probe {
    Probe::new(&[0x8b, 0x06]).with(RSI, at)
}

/// `mov [rsi], eax`.
pub fn store32(at: u64, value: u64) -> Probe {
    Probe::new(&[0x89, 0x06]).with(RSI, at).with(RAX, value)
}

/// Interrupts on for a moment: `sti; nop; out BREATH, al; nop; cli`. Where KVM emulates ring 0 it does many instructions
/// at once, and looks for interrupts only when the vCPU is entered: so it leaves and comes back.
pub fn window() -> Probe {
    Probe::new(&[0xfb, 0x90, 0xe6, abi::BREATH, 0x90, 0xfa])
}

fn rdmsr(msr: u32) -> Probe {
    Probe::new(&[0x0f, 0x32]).with(RCX, u64::from(msr))
}

/// Looks at it, first as memory, then as MSRs; at the end it is as at the beginning.
///
/// # Errors
/// As [`Session::ask`].
pub fn observe(
    machine: &Machine<'_, '_>,
    session: &mut Session<'_, '_>,
    record: &mut Record,
) -> Result<(), Error> {
    // The reserved ones are left out: KVM gives what its emulator read last.
    let defined = |n: u64| matches!(n, 2 | 3 | 8 | 0xa | 0xd..=0x28 | 0x2f..=0x38 | 0x3e);
    let offsets: Vec<u64> = (0..0x40).filter(|n| defined(*n)).map(|n| n << 4).collect();
    let probes: Vec<Probe> = offsets.iter().map(|at| load32(BASE + at)).collect();
    record.probes += probes.len() as u64;
    for (at, outcome) in offsets.iter().zip(session.ask(&probes)?) {
        if let Some(saw) = saw(&outcome, |r| r[RAX] & 0xffff_ffff) {
            record.saw(format!("xapic.{at:x}"), saw);
        }
    }
    writable(session, record)?;
    self_ipi(session, record)?;
    rate(session, record)?;
    // Bits 31 to 8 of a destination count only where the VMM asked for 32-bit ids; without them this is for APIC 0.
    message(machine, session, record, "apic.message-to-256.arrived", BASE | 0x100 << 32)?;
    extended(machine, session, record)
}

/// A message-signalled interrupt, as a device sends it to this address: whether it arrives.
fn message(
    machine: &Machine<'_, '_>,
    session: &mut Session<'_, '_>,
    record: &mut Record,
    name: &str,
    address: u64,
) -> Result<(), Error> {
    const VECTOR: u8 = 0x61;
    let before = session.arrivals(VECTOR)?;
    session.one(store32(BASE + SPURIOUS, ON))?;
    let mut msi = [0; 32];
    msi[..8].copy_from_slice(&address.to_ne_bytes());
    msi[8..12].copy_from_slice(&u32::from(VECTOR).to_ne_bytes());
    // A destination that nobody has is an error of the call: what counts is what arrives.
    if let Err(e) = machine.vm().set(&KVM_SIGNAL_MSI, &msi)
        && e.errno() == Some(evenkeel_sys::Errno::ENOTTY)
    {
        record.unasked(name, e.to_string());
        return Ok(());
    }
    session.ask(&[window(), end()])?;
    record.probes += 3;
    record.value(name, u64::from(session.arrivals(VECTOR)? - before));
    Ok(())
}

/// An EOI in either mode: the one that is not in force does nothing, or faults.
fn end() -> Probe {
    // mov ecx, APIC_BASE; rdmsr; test eax, EXTENDED; jz 1f; mov ecx, 0x80b; xor eax, eax; xor edx, edx; wrmsr; ret
    // 1: xor eax, eax; mov [rsi], eax
    Probe::new(&[
        0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0xa9, 0, 0x04, 0, 0, 0x74, 0x0c, 0xb9, 0x0b, 0x08, 0, 0, 0x31, 0xc0,
        0x31, 0xd2, 0x0f, 0x30, 0xc3, 0x31, 0xc0, 0x89, 0x06,
    ])
    .with(RSI, BASE + EOI)
}

/// How long a tick of the timer is, against the TSC.
fn rate(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    const NAME: &str = "apic.timer.ns-per-tick";
    let khz = match session.vcpu().int(&KVM_GET_TSC_KHZ, 0) {
        Ok(khz) if khz > 0 => khz as u64,
        _ => {
            record.unasked(NAME, "nobody knows the rate of the TSC");
            return Ok(());
        }
    };
    // One-shot, masked, undivided. Then: mov ebx, [rsi]; rdtsc; mov edi, eax; 1: rdtsc; sub eax, edi; cmp eax, ecx; jb 1b;
    // mov edx, [rsi]
    let outcomes = session.ask(&[
        store32(BASE + DIVIDE, 0xb),
        store32(BASE + LVT_TIMER, 0x1_0042),
        store32(BASE + INITIAL_COUNT, 0xffff_ffff),
        Probe::new(&[
            0x8b, 0x1e, 0x0f, 0x31, 0x89, 0xc7, 0x0f, 0x31, 0x29, 0xf8, 0x39, 0xc8, 0x72, 0xf8, 0x8b, 0x16,
        ])
        .with(RSI, BASE + 0x390)
        .with(RCX, (khz * 4).min(0x7fff_ffff)),
        store32(BASE + INITIAL_COUNT, 0),
    ])?;
    record.probes += outcomes.len() as u64;
    match outcomes[3].registers() {
        Some(r) => {
            let ticks = (r[RBX] & 0xffff_ffff).saturating_sub(r[RDX] & 0xffff_ffff);
            let ns = (r[RAX] & 0xffff_ffff) * 1_000_000 / khz;
            // To the next power of 4: what else happens meanwhile does not count.
            let mut told = 1;
            while ticks > 0 && told < 1 << 20 && ns / ticks >= told * 2 {
                told *= 4;
            }
            record.value(NAME, if ticks == 0 { 0 } else { told });
        }
        None => record.unasked(NAME, "the timer cannot be read"),
    }
    Ok(())
}

/// Bits of registers that a guest can set. The APIC's id is not among them: a changed id ends the hardware's part in the
/// APIC (APICV_INHIBIT_REASON_APIC_ID_MODIFIED), in 6.1 for as long as the VM lives, and what is looked at behind it
/// would be another APIC.
fn writable(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    let registers = [0x80, 0xd0, 0xe0, SPURIOUS, 0x2f0, LVT_TIMER, 0x330, 0x340, 0x350, 0x360, 0x370, DIVIDE];
    ones(session, record, &registers)
}

/// Bits of the APIC's id that a guest can set, in a machine that nothing else is looked at in afterwards.
///
/// # Errors
/// As [`Session::ask`].
pub fn id(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    ones(session, record, &[0x20])
}

fn ones(session: &mut Session<'_, '_>, record: &mut Record, registers: &[u64]) -> Result<(), Error> {
    // xchg does both: mov ebx, [rsi]; mov [rsi], eax; mov ecx, [rsi]; mov [rsi], ebx
    let all = |at: u64| {
        Probe::new(&[0x8b, 0x1e, 0x89, 0x06, 0x8b, 0x0e, 0x89, 0x1e])
            .with(RSI, BASE + at)
            .with(RAX, 0xffff_ffff)
    };
    let probes: Vec<Probe> = registers.iter().map(|at| all(*at)).collect();
    record.probes += probes.len() as u64;
    for (at, outcome) in registers.iter().zip(session.ask(&probes)?) {
        if let Some(saw) = saw(&outcome, |r| r[RCX] & 0xffff_ffff) {
            record.saw(format!("xapic.{at:x}.writable"), saw);
        }
    }
    Ok(())
}

/// An interrupt that the guest sends to itself, and one of the timer.
fn self_ipi(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    let before = [session.arrivals(0x41)?, session.arrivals(0x42)?];
    let counter = u64::from(abi::AREA + abi::ARRIVALS + 4 * 0x42);
    let outcomes = session.ask(&[
        store32(BASE + SPURIOUS, ON),
        store32(BASE + ICR_LOW, 0x4_0041),
        window(),
        load32(BASE + 0x120),
        store32(BASE + EOI, 0),
        load32(BASE + 0x120),
        store32(BASE + DIVIDE, 0xb),
        store32(BASE + LVT_TIMER, 0x42),
        store32(BASE + INITIAL_COUNT, 1),
        // Until it has arrived, twenty times at most: sti; 1: out BREATH, al; cmp ebx, [rdi]; loope 1b; cli
        Probe::new(&[0xfb, 0xe6, abi::BREATH, 0x3b, 0x1f, 0xe1, 0xfa, 0xfa])
            .with(RCX, 20)
            .with(RBX, before[1].into())
            .with(RDI, counter),
        store32(BASE + EOI, 0),
        store32(BASE + LVT_TIMER, 0x1_0000),
    ])?;
    record.value("apic.self-ipi.arrived", u64::from(session.arrivals(0x41)? - before[0]));
    for (name, outcome) in [("in-service", &outcomes[3]), ("in-service-after-eoi", &outcomes[5])] {
        if let Some(saw) = saw(outcome, |r| r[RAX] & 0xffff_ffff) {
            record.saw(format!("apic.self-ipi.{name}"), saw);
        }
    }
    record.value("apic.timer.arrived", u64::from(session.arrivals(0x42)? - before[1]));
    record.probes += outcomes.len() as u64;
    Ok(())
}

/// x2APIC mode: what can be read, and what is said of reserved bits.
fn extended(
    machine: &Machine<'_, '_>,
    session: &mut Session<'_, '_>,
    record: &mut Record,
) -> Result<(), Error> {
    let base = session.one(rdmsr(APIC_BASE))?.edx_eax().unwrap_or(BASE | ENABLED);
    let on = session.one(write(APIC_BASE, base | ENABLED | EXTENDED))?;
    record.probes += 2;
    if on.registers().is_none() {
        if let Some(saw) = crate::programs::plain(&on) {
            record.saw("x2apic.enable", saw);
        }
        return Ok(());
    }
    record.saw("x2apic.enable", Saw::Executes);
    let probes: Vec<Probe> = (0x800..0x900).map(rdmsr).collect();
    record.probes += probes.len() as u64;
    for (msr, outcome) in (0x800..0x900_u32).zip(session.ask(&probes)?) {
        let Some(saw) = saw(&outcome, |_| outcome.edx_eax().unwrap_or_default()) else { continue };
        let name = format!("x2apic.{msr:x}");
        if msr == 0x839 && matches!(saw, Saw::Value(_)) {
            record.runs(name, saw)
        } else {
            record.saw(name, saw)
        }
    }
    // Where the registers were as memory; and 0xff in a message, which is everybody only with a quirk.
    if let Some(saw) = saw(&session.one(load32(BASE + VERSION))?, |r| r[RAX] & 0xffff_ffff) {
        record.saw("x2apic.as-memory", saw);
    }
    message(machine, session, record, "x2apic.message-to-255.arrived", BASE | 0xff << 12)?;
    // Nobody has the APIC id 0x55, so nobody gets these. Bits 31 to 20, 17, 16 and 13 of the ICR are reserved.
    let asked = [
        ("x2apic.icr.plain", write(0x830, 0x55_0000_0041)),
        ("x2apic.icr.reserved-bits", write(0x830, 0x55_0010_0041)),
        ("x2apic.icr.reserved-bit-13", write(0x830, 0x55_0000_2041)),
        ("x2apic.icr.busy-bit-12", write(0x830, 0x55_0000_1041)),
        ("x2apic.tpr.high-bits", write(0x808, 1 << 32)),
        ("x2apic.eoi.non-zero", write(0x80b, 1)),
        ("x2apic.self-ipi.reserved-bits", write(0x83f, 0x100)),
        ("x2apic.id.write", write(0x802, 0)),
        ("x2apic.dfr.write", write(0x80e, 0)),
    ];
    let probes: Vec<Probe> = asked.iter().map(|(_, p)| p.clone()).collect();
    record.probes += probes.len() as u64;
    for ((name, _), outcome) in asked.iter().zip(session.ask(&probes)?) {
        if let Some(saw) = crate::programs::plain(&outcome) {
            record.saw(*name, saw);
        }
    }
    // From x2APIC mode back it goes only through the APIC off; both illegal changes are tried.
    let asked = [
        ("x2apic.to-xapic", write(APIC_BASE, base | ENABLED)),
        ("x2apic.off", write(APIC_BASE, base & !(ENABLED | EXTENDED))),
        ("x2apic.off-to-x2apic", write(APIC_BASE, base & !ENABLED | EXTENDED)),
        ("x2apic.off-to-xapic", write(APIC_BASE, base | ENABLED)),
    ];
    let probes: Vec<Probe> = asked.iter().map(|(_, p)| p.clone()).collect();
    record.probes += probes.len() as u64 + 1;
    for ((name, _), outcome) in asked.iter().zip(session.ask(&probes)?) {
        if let Some(saw) = crate::programs::plain(&outcome) {
            record.saw(*name, saw);
        }
    }
    session.one(store32(BASE + SPURIOUS, ON))?;
    Ok(())
}

/// A level-triggered interrupt through a split irqchip, whose EOI goes to the IOAPIC, which is ours: `SUFFIX` tells how
/// the VM was configured. What is noted: whether the version register claims that EOI broadcasts can be suppressed,
/// whether the bit that does it can be set, and whether the EOI came all the same.
///
/// # Errors
/// As [`Session::ask`], and when the kernel refuses the route.
pub fn eoi(
    machine: &Machine<'_, '_>,
    session: &mut Session<'_, '_>,
    record: &mut Record,
    suffix: &str,
) -> Result<(), Error> {
    const VECTOR: u8 = 0x51;
    let outcomes = session.ask(&[
        load32(BASE + VERSION),
        store32(BASE + SPURIOUS, ON | SUPPRESS),
        load32(BASE + SPURIOUS),
    ])?;
    let register = |n: usize| outcomes[n].registers().map(|r| r[RAX]);
    if let (Some(version), Some(spurious)) = (register(0), register(2)) {
        record.value(format!("apic.suppress-eoi.claimed{suffix}"), version >> 24 & 1);
        record.value(format!("apic.suppress-eoi.settable{suffix}"), spurious >> 12 & 1);
    }
    record.probes += 6;
    if machine.shape().irqchip != Irqchip::Split {
        return Ok(());
    }
    // One route: pin 4 is a message of this vector to APIC 0, level-triggered and asserted.
    let (address, data) = (BASE as u32, 0xc000 | u32::from(VECTOR));
    let mut routes = vec![0; 8 + 48];
    // kvm_irq_routing: nr, flags; an entry: gsi, type (MSI), flags, padding, address_lo, address_hi, data
    for (at, word) in [(0, 1), (8, 4), (12, 2), (24, address), (32, data)] {
        routes[at..at + 4].copy_from_slice(&u32::to_ne_bytes(word));
    }
    machine.vm().set(&KVM_SET_GSI_ROUTING, &routes)?;
    session.ended.clear();
    let before = session.arrivals(VECTOR)?;
    // The guest runs once more, so that KVM takes note of the route before the interrupt is there.
    session.one(Probe::new(&[0x90]))?;
    let mut msi = [0; 32];
    for (at, word) in [(0, address), (8, data)] {
        msi[at..at + 4].copy_from_slice(&u32::to_ne_bytes(word));
    }
    machine.vm().set(&KVM_SIGNAL_MSI, &msi)?;
    // The exit comes with the entry that follows the EOI: a window leaves and enters.
    session.ask(&[window(), store32(BASE + EOI, 0), window()])?;
    let arrived = session.arrivals(VECTOR)? - before;
    record.value(format!("apic.suppress-eoi.level-interrupt{suffix}"), u64::from(arrived));
    if arrived == 0 {
        record.unasked(format!("apic.suppress-eoi.broadcast{suffix}"), "the interrupt did not arrive");
        return Ok(());
    }
    let told = session.ended.iter().filter(|vector| **vector == VECTOR).count();
    record.value(format!("apic.suppress-eoi.broadcast{suffix}"), told as u64);
    session.one(store32(BASE + SPURIOUS, ON))?;
    Ok(())
}

/// How an INIT and a SIPI are sent to the APIC with this id.
pub fn wake(id: u32, page: u8) -> [Probe; 4] {
    let to = u64::from(id) << 24;
    [
        store32(BASE + ICR_HIGH, to),
        store32(BASE + ICR_LOW, 0x4500),
        store32(BASE + ICR_HIGH, to),
        store32(BASE + ICR_LOW, 0x4600 | u64::from(page)),
    ]
}
