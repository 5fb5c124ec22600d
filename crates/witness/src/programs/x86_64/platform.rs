//! PICs, PIT and IOAPIC, where the kernel has them; MWAIT.

use std::time::Duration;

use super::apic::{load32, store32};
use crate::Error;
use crate::observation::Record;
use crate::probe::{Probe, RAX, RDX, RSI};
use crate::programs::{plain, saw};
use crate::session::Session;

const IOAPIC: u64 = 0xfec0_0000;

/// `in al, dx`.
fn input(port: u16) -> Probe {
    Probe::new(&[0xec]).with(RDX, u64::from(port))
}

/// `out dx, al`.
fn out(port: u16, value: u8) -> Probe {
    Probe::new(&[0xee]).with(RDX, u64::from(port)).with(RAX, u64::from(value))
}

/// All ones to a register, which is read and gets its value back: `in al, dx; mov bl, al; mov al, 0xff; out dx, al;
/// in al, dx; mov cl, al; mov al, bl; out dx, al; mov al, cl`.
fn all_ones(port: u16) -> Probe {
    Probe::new(&[0xec, 0x88, 0xc3, 0xb0, 0xff, 0xee, 0xec, 0x88, 0xc1, 0x88, 0xd8, 0xee, 0x88, 0xc8])
        .with(RDX, u64::from(port))
}

/// Looks at them.
///
/// # Errors
/// As [`Session::ask`].
pub fn observe(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    let ports = [
        ("pic.master.mask", vec![], 0x21),
        ("pic.slave.mask", vec![], 0xa1),
        ("pic.master.irr", vec![out(0x20, 0x0a)], 0x20),
        ("pic.master.isr", vec![out(0x20, 0x0b)], 0x20),
        ("pic.master.elcr", vec![], 0x4d0),
        ("pic.slave.elcr", vec![], 0x4d1),
        // ELCR bits 0 to 2 are of the timer, the keyboard and the cascade: they cannot be set.
        ("pic.master.elcr.writable", vec![out(0x4d0, 0xff)], 0x4d0),
        ("pic.slave.elcr.writable", vec![out(0x4d1, 0xff)], 0x4d1),
        // Mode 2 of channel 0, and its status by the read-back command.
        ("pit.0.status", vec![out(0x43, 0x34), out(0x40, 0), out(0x40, 0), out(0x43, 0xe2)], 0x40),
        ("pit.1.status", vec![out(0x43, 0x54), out(0x41, 18), out(0x43, 0xe4)], 0x41),
        ("pit.2.status", vec![out(0x43, 0xb0), out(0x42, 1), out(0x42, 0), out(0x43, 0xe8)], 0x42),
        ("pit.speaker", vec![out(0x61, 0)], 0x61),
    ];
    let mut probes = Vec::new();
    let mut asked = Vec::new();
    for (name, before, port) in ports {
        probes.extend(before);
        asked.push((name, port, probes.len()));
        probes.push(input(port));
    }
    probes.extend([out(0x4d0, 0), out(0x4d1, 0)]);
    for (name, port) in [("pic.master.mask.writable", 0x21), ("pic.slave.mask.writable", 0xa1)] {
        asked.push((name, port, probes.len()));
        probes.push(all_ones(port));
    }
    record.probes += probes.len() as u64;
    let outcomes = session.ask(&probes)?;
    for (name, port, at) in asked {
        // The refresh bit of the speaker's port toggles.
        let mask = if port == 0x61 { 0xef } else { 0xff };
        if let Some(saw) = saw(&outcomes[at], |r| r[RAX] & mask) {
            record.saw(name, saw);
        }
    }
    ioapic(session, record)?;
    mwait(session, record)
}

fn ioapic(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    // mov [rsi], eax; mov eax, [rsi + 16]
    let read =
        |index: u8| Probe::new(&[0x89, 0x06, 0x8b, 0x46, 0x10]).with(RSI, IOAPIC).with(RAX, index.into());
    let indices: Vec<u8> = (0..=3).chain(0x10..0x40).collect();
    let probes: Vec<Probe> = indices.iter().map(|index| read(*index)).collect();
    record.probes += probes.len() as u64;
    for (index, outcome) in indices.iter().zip(session.ask(&probes)?) {
        if let Some(saw) = saw(&outcome, |r| r[RAX] & 0xffff_ffff) {
            record.saw(format!("ioapic.{index:x}"), saw);
        }
    }
    // A redirection entry, all ones but masked: which bits stay.
    let outcomes = session.ask(&[
        store32(IOAPIC, 0x3e),
        store32(IOAPIC + 0x10, 0xffff_ffff),
        load32(IOAPIC + 0x10),
        store32(IOAPIC + 0x10, 0x1_0000),
        store32(IOAPIC, 0x3f),
        store32(IOAPIC + 0x10, 0xffff_ffff),
        load32(IOAPIC + 0x10),
        store32(IOAPIC + 0x10, 0),
        store32(IOAPIC, 0),
        store32(IOAPIC + 0x10, 0xffff_ffff),
        load32(IOAPIC + 0x10),
        store32(IOAPIC + 0x10, 0),
    ])?;
    record.probes += outcomes.len() as u64;
    for (name, at) in [("ioapic.entry.low", 2), ("ioapic.entry.high", 6), ("ioapic.id", 10)] {
        if let Some(saw) = saw(&outcomes[at], |r| r[RAX] & 0xffff_ffff) {
            record.saw(format!("{name}.writable"), saw);
        }
    }
    Ok(())
}

/// MWAIT, which may wait: with less time than usual.
fn mwait(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    let limit = std::mem::replace(&mut session.limit, Duration::from_secs(1));
    let scratch = u64::from(crate::abi::SCRATCH);
    // mov rax, rsi; monitor; mov [rsi], eax; xor eax, eax; mwait: armed, and written to
    let probe = Probe::new(&[0x48, 0x89, 0xf0, 0x0f, 0x01, 0xc8, 0x89, 0x06, 0x31, 0xc0, 0x0f, 0x01, 0xc9]);
    let outcome = session.one(probe.with(RSI, scratch));
    session.limit = limit;
    record.probes += 1;
    if let Some(saw) = plain(&outcome?) {
        record.saw("insn.mwait", saw);
    }
    Ok(())
}
