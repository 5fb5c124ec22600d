//! The second vCPU, which the first one starts, and a reboot: what is found in the registers then.

use std::time::Duration;

use evenkeel_sys::layout::X86_LAPIC;
use evenkeel_sys::requests::{KVM_GET_LAPIC, KVM_SET_LAPIC};

use super::{ForVcpu, NOP, apic, cpuid, msr};
use crate::Error;
use crate::abi;
use crate::observation::{Record, Saw};
use crate::probe::{Probe, RCX};
use crate::session::Session;

const XSS: u32 = 0xda0;
/// When it is given up on: a busy machine, and a host that is emulated, take their time.
const ARRIVES: Duration = Duration::from_secs(2);
/// The words at [`abi::ARRIVAL`]; the one without a name is not written.
const WORDS: [&str; abi::ARRIVAL_WORDS] =
    ["edx", "eax", "cr0", "cr4", "efer", "efer-high", "", "cs", "ds", "ss", "ebx", "ecx"];

/// The number of a vCPU that is made later.
pub const LATE: u64 = 2;

/// Starts it twice: from power-on, and when it has run. `ran` is told when it has first run.
///
/// # Errors
/// As [`Session::ask`].
pub fn observe(
    first: &mut Session<'_, '_>,
    second: &mut Session<'_, '_>,
    ran: &ForVcpu<'_>,
    record: &mut Record,
) -> Result<(), Error> {
    if !start(first, second, 1, "second", record)? {
        return Ok(());
    }
    ran(second.vcpu(), 1)?;
    arrival(second, record, "second")?;
    // Seen from there: CPUID, and the MSRs that INIT is about.
    cpuid::observe(second, record, "@second")?;
    msr::read_again(second, record, "@second")?;
    // A bit of XSS that can be set.
    let xss = record.number("msr.da0.writable").unwrap_or_default();
    let bit = xss & xss.wrapping_neg();
    let set = bit != 0 && second.one(msr::write(XSS, bit))?.registers().is_some();
    first.ask(&apic::wake(1, (abi::TRAMPOLINE >> 12) as u8))?;
    record.probes += 6;
    let limit = std::mem::replace(&mut second.limit, ARRIVES);
    let read = second.ask(&[Probe::new(&[0x0f, 0x32]).with(RCX, XSS.into())]);
    second.limit = limit;
    let Ok(outcomes) = read else {
        record.saw("second.again", Saw::Ends("it did not arrive".to_owned()));
        return Ok(());
    };
    arrival(second, record, "second.again")?;
    if let (true, Some(value)) = (set, outcomes[0].edx_eax()) {
        record.value("second.again.xss-kept", u64::from(value == bit));
    } else {
        record.unasked("second.again.xss-kept", "no bit of XSS can be set");
    }
    // What the second sees as the first does is not worth telling twice.
    record.drop_like("@second");
    Ok(())
}

/// Brings it up. Returns whether it arrived.
fn start(
    first: &mut Session<'_, '_>,
    other: &mut Session<'_, '_>,
    id: u32,
    name: &str,
    record: &mut Record,
) -> Result<bool, Error> {
    // It may never arrive; once it has, a busy host may take its time.
    let limit = std::mem::replace(&mut other.limit, ARRIVES);
    first.ask(&apic::wake(id, (abi::TRAMPOLINE >> 12) as u8))?;
    record.probes += 5;
    let arrived = match other.one(Probe::new(NOP)) {
        Ok(_) => true,
        Err(Error::Lost { .. }) => false,
        Err(e) => return Err(e),
    };
    other.limit = limit;
    let saw = if arrived { Saw::Executes } else { Saw::Ends("it did not arrive".to_owned()) };
    record.saw(format!("{name}.start"), saw);
    Ok(arrived)
}

/// Starts a vCPU that was made when the guest had been running for a while, and looks at CPUID and MSRs from there.
///
/// # Errors
/// As [`Session::ask`].
pub fn late(
    first: &mut Session<'_, '_>,
    late: &mut Session<'_, '_>,
    ran: &ForVcpu<'_>,
    record: &mut Record,
) -> Result<(), Error> {
    // KVM looks in a map for whom an IPI is for, and makes it anew when the state of an APIC is set: whoever plugs a vCPU in
    // sets it.
    let apic = late.vcpu().get(&KVM_GET_LAPIC, X86_LAPIC)?;
    late.vcpu().set(&KVM_SET_LAPIC, &apic)?;
    if start(first, late, LATE as u32, "late", record)? {
        ran(late.vcpu(), LATE as u32)?;
        cpuid::observe(late, record, "@late")?;
        msr::read_again(late, record, "@late")?;
        record.drop_like("@late");
    }
    Ok(())
}

fn arrival(second: &Session<'_, '_>, record: &mut Record, name: &str) -> Result<(), Error> {
    for (n, word) in WORDS.iter().enumerate().filter(|(_, word)| !word.is_empty()) {
        record.value(format!("{name}.{word}"), second.word(abi::ARRIVAL + 4 * n as u32)?.into());
    }
    Ok(())
}

/// A triple fault.
///
/// # Errors
/// As [`Session::ask`].
pub fn crash(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    // push 0; push 0; lidt [rsp]; int3
    let fault = session.one(Probe::new(&[0x6a, 0x00, 0x6a, 0x00, 0x0f, 0x01, 0x1c, 0x24, 0xcc]))?;
    record.probes += 1;
    if let Some(saw) = crate::programs::plain(&fault) {
        record.saw("reboot.triple-fault", saw);
    }
    Ok(())
}

/// What is there after the host half has started the guest again.
///
/// # Errors
/// As [`Session::ask`].
pub fn reboot(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    session.start()?;
    cpuid::observe(session, record, "@reboot")?;
    msr::read_again(session, record, "@reboot")?;
    record.drop_like("@reboot");
    Ok(())
}
