//! Control and debug registers, XCR0: what is in them, and which bits can be changed.

use super::bits::{self, Word};
use crate::Error;
use crate::observation::Record;
use crate::probe::{Probe, RAX, RCX, RDX};
use crate::programs::saw;
use crate::session::Session;

/// CR4.OSFXSR, OSXMMEXCPT and OSXSAVE.
pub const OSFXSR: u64 = 1 << 9;
/// CR4.OSXMMEXCPT.
pub const OSXMMEXCPT: u64 = 1 << 10;
/// CR4.OSXSAVE.
pub const OSXSAVE: u64 = 1 << 18;

/// CR0.PE and CR0.PG. 5.10 lets a guest turn paging off in 64-bit mode, and it is lost then (seen on 5.10.0-46).
const MODE: u64 = 1 << 31 | 1;

/// `mov rax, REG; mov rsi, rax; xor rax, rbx; mov REG, rax; mov rdx, REG; mov rax, rsi; mov REG, rax; mov rax, rdx`,
/// where the opcode is of control (0x20) or debug registers (0x21).
fn flip(opcode: u8, register: u8) -> Probe {
    let rax = 0xc0 | register << 3;
    Probe::new(&[
        0x0f,
        opcode,
        rax,
        0x48,
        0x89,
        0xc6,
        0x48,
        0x31,
        0xd8,
        0x0f,
        opcode + 2,
        rax,
        0x0f,
        opcode,
        rax | 2,
        0x48,
        0x89,
        0xf0,
        0x0f,
        opcode + 2,
        rax,
        0x48,
        0x89,
        0xd0,
    ])
}

/// A read of a control (0x20) or debug register (0x21).
fn read(opcode: u8, register: u8) -> Probe {
    Probe::new(&[0x0f, opcode, 0xc0 | register << 3])
}

/// Sets bits of CR4.
pub fn set_cr4(bits: u64) -> Probe {
    // mov rax, cr4; or rax, rcx; mov cr4, rax
    Probe::new(&[0x0f, 0x20, 0xe0, 0x48, 0x09, 0xc8, 0x0f, 0x22, 0xe0]).with(RCX, bits)
}

/// XSETBV of XCR0.
pub fn set_xcr0(value: u64) -> Probe {
    Probe::new(&[0x0f, 0x01, 0xd1]).with(RAX, value & 0xffff_ffff).with(RDX, value >> 32)
}

/// Looks at them.
///
/// # Errors
/// As [`Session::ask`].
pub fn observe(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    let plain = [
        ("cr0", 0x20, 0),
        ("cr4", 0x20, 4),
        ("cr8", 0x20, 8),
        ("dr0", 0x21, 0),
        ("dr6", 0x21, 6),
        ("dr7", 0x21, 7),
    ];
    // CR8 takes a REX prefix.
    let code = |probe: Probe, register: u8| match register {
        8 => rex(probe),
        _ => probe,
    };
    let reads: Vec<Probe> = plain.iter().map(|(_, op, r)| code(read(*op, *r & 7), *r)).collect();
    record.probes += reads.len() as u64;
    for ((name, ..), outcome) in plain.iter().zip(session.ask(&reads)?) {
        if let Some(saw) = saw(&outcome, |r| r[RAX]) {
            record.saw(*name, saw);
        }
    }
    let words: Vec<Word> = plain
        .iter()
        .map(|(name, op, r)| Word {
            name: (*name).to_owned(),
            flip: bits::by_rbx(code(flip(*op, *r & 7), *r)),
            bits: 64,
            restore: if *r == 8 { 21 } else { 18 },
            but: if *name == "cr0" { MODE } else { 0 },
        })
        // A debug register that the guest watches changes what follows: GD is in bit 13.
        .map(|w| if w.name == "dr7" { Word { bits: 13, ..w } } else { w })
        .collect();
    bits::observe(session, record, &words)?;
    record.unasked("cr0.writable.pe-and-pg", "where it is not refused, the guest is lost");
    xcr0(session, record)
}

/// The same code with CR8 for CR0.
fn rex(probe: Probe) -> Probe {
    let mut code = Vec::new();
    let mut bytes = probe.code.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte == 0x0f && matches!(bytes.peek(), Some(0x20 | 0x22)) {
            code.push(0x44);
        }
        code.push(byte);
    }
    Probe { code, ..probe }
}

fn xcr0(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    record.probes += 2;
    let on = session.one(set_cr4(OSXSAVE))?;
    // xgetbv with ECX = 0
    let outcome = session.one(Probe::new(&[0x0f, 0x01, 0xd0]))?;
    if on.registers().is_none() || outcome.registers().is_none() {
        if let Some(saw) = saw(&outcome, |_| 0) {
            record.saw("xcr0", saw);
        }
        record.unasked("xcr0.writable", "XGETBV cannot be executed here");
        return Ok(());
    }
    record.value("xcr0", outcome.edx_eax().unwrap_or_default());
    let flip = Probe::new(&[
        0x31, 0xc9, // xor ecx, ecx
        0x0f, 0x01, 0xd0, // xgetbv
        0x89, 0xc6, // mov esi, eax
        0x89, 0xd7, // mov edi, edx
        0x31, 0xd8, // xor eax, ebx
        0x48, 0xc1, 0xeb, 0x20, // shr rbx, 32
        0x31, 0xda, // xor edx, ebx
        0x0f, 0x01, 0xd1, // xsetbv
        0x0f, 0x01, 0xd0, // xgetbv
        0x89, 0xc3, // mov ebx, eax
        0x41, 0x89, 0xd0, // mov r8d, edx
        0x89, 0xf0, // mov eax, esi
        0x89, 0xfa, // mov edx, edi
        0x0f, 0x01, 0xd1, // xsetbv
        0x89, 0xd8, // mov eax, ebx
        0x44, 0x89, 0xc2, // mov edx, r8d
        0x48, 0xc1, 0xe2, 0x20, // shl rdx, 32
        0x48, 0x09, 0xd0, // or rax, rdx
        0x48, 0xc1, 0xe7, 0x20, // shl rdi, 32
        0x48, 0x09, 0xfe, // or rsi, rdi
    ]);
    bits::observe(
        session,
        record,
        &[Word { name: "xcr0".to_owned(), flip: bits::by_rbx(flip), bits: 64, restore: 32, but: 0 }],
    )?;
    // Some components are only taken together: all that CPUID offers.
    let offered = record.number("cpuid.d.0.eax").unwrap_or_default();
    let outcome = session.one(set_xcr0(offered))?;
    record.probes += 1;
    if let Some(saw) = crate::programs::plain(&outcome) {
        record.saw("xcr0.all-offered", saw);
    }
    Ok(())
}
