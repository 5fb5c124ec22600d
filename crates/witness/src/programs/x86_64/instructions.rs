//! Which instructions are executed, also those that CPUID hides: what hides only in CPUID is there all the same.

use std::time::Duration;

use super::registers::{OSFXSR, OSXMMEXCPT, OSXSAVE, set_cr4, set_xcr0};
use crate::Error;
use crate::abi;
use crate::observation::Record;
use crate::probe::{Outcome, Probe, RAX, RBX, RCX, RDI, RDX, RSI};
use crate::programs::plain;
use crate::session::Session;

/// Name and bytes. None with XOP's prefix 8F: an emulated CPU without it was seen to take it for a POP that goes on
/// elsewhere. RSI points at 64 KiB of memory, RDI into the middle of it; the other registers hold 0.
const INSTRUCTIONS: &[(&str, &[u8])] = &[
    ("ud2", &[0x0f, 0x0b]),
    ("cmpxchg8b", &[0x0f, 0xc7, 0x0e]),
    ("cmpxchg16b", &[0x48, 0x0f, 0xc7, 0x0e]),
    ("fninit", &[0xdb, 0xe3]),
    ("fxsave", &[0x0f, 0xae, 0x06]),
    ("xsave", &[0x0f, 0xae, 0x26]),
    ("xsaveopt", &[0x0f, 0xae, 0x36]),
    ("xsavec", &[0x0f, 0xc7, 0x26]),
    ("xsaves", &[0x0f, 0xc7, 0x2e]),
    ("xgetbv", &[0x0f, 0x01, 0xd0]),
    // xor ecx, ecx; inc ecx; xgetbv
    ("xgetbv-1", &[0x31, 0xc9, 0xff, 0xc1, 0x0f, 0x01, 0xd0]),
    ("mmx-movd", &[0x0f, 0x6e, 0xc0]),
    ("3dnow-pfadd", &[0x0f, 0x0f, 0xc1, 0x9e]),
    ("sse-movaps", &[0x0f, 0x28, 0xc1]),
    ("sse2-movdqa", &[0x66, 0x0f, 0x6f, 0xc1]),
    ("sse3-haddps", &[0xf2, 0x0f, 0x7c, 0xc1]),
    ("ssse3-pshufb", &[0x66, 0x0f, 0x38, 0x00, 0xc1]),
    ("sse4a-extrq", &[0x66, 0x0f, 0x79, 0xc1]),
    ("sse4.1-pmulld", &[0x66, 0x0f, 0x38, 0x40, 0xc1]),
    ("sse4.2-crc32", &[0xf2, 0x0f, 0x38, 0xf1, 0xc0]),
    ("aes", &[0x66, 0x0f, 0x38, 0xdc, 0xc1]),
    ("pclmulqdq", &[0x66, 0x0f, 0x3a, 0x44, 0xc1, 0x00]),
    ("sha", &[0x0f, 0x38, 0xc8, 0xc1]),
    ("gfni", &[0x66, 0x0f, 0x38, 0xcf, 0xc1]),
    ("avx-vaddps", &[0xc5, 0xfc, 0x58, 0xc1]),
    ("avx2-vpaddd", &[0xc5, 0xfd, 0xfe, 0xc1]),
    ("fma", &[0xc4, 0xe2, 0x7d, 0x98, 0xc1]),
    ("fma4", &[0xc4, 0xe3, 0xfd, 0x68, 0xc1, 0x20]),
    ("f16c", &[0xc4, 0xe2, 0x7d, 0x13, 0xc1]),
    ("vaes", &[0xc4, 0xe2, 0x7d, 0xdc, 0xc1]),
    ("vpclmulqdq", &[0xc4, 0xe3, 0x7d, 0x44, 0xc1, 0x00]),
    ("avx-vnni", &[0xc4, 0xe2, 0x7d, 0x50, 0xc1]),
    ("avx-ifma", &[0xc4, 0xe2, 0xfd, 0xb4, 0xc1]),
    ("avx512f", &[0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc1]),
    ("avx512vl", &[0x62, 0xf1, 0x7c, 0x08, 0x58, 0xc1]),
    ("avx512bw", &[0x62, 0xf1, 0x7d, 0x48, 0xfc, 0xc1]),
    ("avx512dq", &[0x62, 0xf2, 0xfd, 0x48, 0x40, 0xc1]),
    ("avx512-vbmi", &[0x62, 0xf2, 0x7d, 0x48, 0x8d, 0xc1]),
    ("avx512-vnni", &[0x62, 0xf2, 0x7d, 0x48, 0x50, 0xc1]),
    ("avx512-bitalg", &[0x62, 0xf2, 0x7d, 0x48, 0x54, 0xc1]),
    ("avx512-vpopcntdq", &[0x62, 0xf2, 0x7d, 0x48, 0x55, 0xc1]),
    ("movbe", &[0x0f, 0x38, 0xf0, 0x06]),
    ("popcnt", &[0xf3, 0x0f, 0xb8, 0xc0]),
    ("adx-adcx", &[0x66, 0x0f, 0x38, 0xf6, 0xc0]),
    ("bmi1-andn", &[0xc4, 0xe2, 0x78, 0xf2, 0xc0]),
    ("bmi2-shlx", &[0xc4, 0xe2, 0x79, 0xf7, 0xc0]),
    ("rdrand", &[0x0f, 0xc7, 0xf0]),
    ("rdseed", &[0x0f, 0xc7, 0xf8]),
    ("rdtsc", &[0x0f, 0x31]),
    ("rdtscp", &[0x0f, 0x01, 0xf9]),
    ("rdpid", &[0xf3, 0x0f, 0xc7, 0xf8]),
    ("rdpmc", &[0x0f, 0x33]),
    ("rdpru", &[0x0f, 0x01, 0xfd]),
    ("clflush", &[0x0f, 0xae, 0x3e]),
    ("clflushopt", &[0x66, 0x0f, 0xae, 0x3e]),
    ("clwb", &[0x66, 0x0f, 0xae, 0x36]),
    ("clzero", &[0x48, 0x89, 0xf0, 0x0f, 0x01, 0xfc]),
    ("cldemote", &[0x0f, 0x1c, 0x06]),
    ("wbinvd", &[0x0f, 0x09]),
    ("wbnoinvd", &[0xf3, 0x0f, 0x09]),
    ("invd", &[0x0f, 0x08]),
    ("prefetchw", &[0x0f, 0x0d, 0x0e]),
    ("movdiri", &[0x0f, 0x38, 0xf9, 0x06]),
    ("movdir64b", &[0x66, 0x0f, 0x38, 0xf8, 0x37]),
    ("enqcmd", &[0xf2, 0x0f, 0x38, 0xf8, 0x37]),
    ("serialize", &[0x0f, 0x01, 0xe8]),
    ("hreset", &[0xf3, 0x0f, 0x3a, 0xf0, 0xc0, 0x00]),
    ("pause", &[0xf3, 0x90]),
    ("tpause", &[0x66, 0x0f, 0xae, 0xf1]),
    ("umonitor", &[0xf3, 0x0f, 0xae, 0xf6]),
    ("umwait", &[0xf2, 0x0f, 0xae, 0xf1]),
    // mov rax, rsi; monitor
    ("monitor", &[0x48, 0x89, 0xf0, 0x0f, 0x01, 0xc8]),
    ("monitorx", &[0x48, 0x89, 0xf0, 0x0f, 0x01, 0xfa]),
    ("swapgs-twice", &[0x0f, 0x01, 0xf8, 0x0f, 0x01, 0xf8]),
    ("rdfsbase", &[0xf3, 0x48, 0x0f, 0xae, 0xc0]),
    ("rdpkru", &[0x0f, 0x01, 0xee]),
    ("clac", &[0x0f, 0x01, 0xca]),
    ("stac-clac", &[0x0f, 0x01, 0xcb, 0x0f, 0x01, 0xca]),
    ("invpcid", &[0x66, 0x0f, 0x38, 0x82, 0x06]),
    ("invlpg", &[0x0f, 0x01, 0x3e]),
    ("invlpga", &[0x0f, 0x01, 0xdf]),
    ("invlpgb", &[0x0f, 0x01, 0xfe]),
    ("tlbsync", &[0x0f, 0x01, 0xff]),
    ("sgdt", &[0x0f, 0x01, 0x06]),
    ("sidt", &[0x0f, 0x01, 0x0e]),
    ("sldt", &[0x0f, 0x00, 0xc0]),
    ("str", &[0x0f, 0x00, 0xc8]),
    ("smsw", &[0x0f, 0x01, 0xe0]),
    ("rdsspq", &[0xf3, 0x48, 0x0f, 0x1e, 0xc8]),
    ("wrssq", &[0x48, 0x0f, 0x38, 0xf6, 0x06]),
    ("setssbsy", &[0xf3, 0x0f, 0x01, 0xe8]),
    ("endbr64", &[0xf3, 0x0f, 0x1e, 0xfa]),
    ("xbegin-xend", &[0xc7, 0xf8, 0x03, 0x00, 0x00, 0x00, 0x0f, 0x01, 0xd5]),
    ("xtest", &[0x0f, 0x01, 0xd6]),
    ("bndmk", &[0xf3, 0x0f, 0x1b, 0x06]),
    ("vmxon", &[0xf3, 0x0f, 0xc7, 0x36]),
    ("vmread", &[0x0f, 0x78, 0xc0]),
    ("vmrun", &[0x0f, 0x01, 0xd8]),
    ("vmload", &[0x48, 0x89, 0xf0, 0x0f, 0x01, 0xda]),
    ("stgi", &[0x0f, 0x01, 0xdc]),
    ("skinit", &[0x0f, 0x01, 0xde]),
    ("getsec", &[0x0f, 0x37]),
    ("encls", &[0x0f, 0x01, 0xcf]),
    ("enclv", &[0x0f, 0x01, 0xc0]),
    ("pconfig", &[0x0f, 0x01, 0xc5]),
    ("rsm", &[0x0f, 0xaa]),
    ("tzcnt", &[0xf3, 0x0f, 0xbc, 0xc0]),
    ("lzcnt", &[0xf3, 0x0f, 0xbd, 0xc0]),
    ("rao-aadd", &[0x0f, 0x38, 0xfc, 0x06]),
    ("cmpccxadd", &[0xc4, 0xe2, 0x79, 0xe0, 0x06]),
    ("rdmsrlist", &[0xf2, 0x0f, 0x01, 0xc6]),
    ("wrmsrns", &[0x0f, 0x01, 0xc6]),
    ("uiret-clui", &[0xf3, 0x0f, 0x01, 0xee]),
    ("ptwrite", &[0xf3, 0x0f, 0xae, 0xe0]),
    ("syscall", &[0x0f, 0x05]),
    ("sysenter", &[0x0f, 0x34]),
    // And mov ebx, [rip - 9]: KVM may put the other instruction in the place of the one that was executed.
    ("hypercall-vmcall", &[0x0f, 0x01, 0xc1, 0x8b, 0x1d, 0xf7, 0xff, 0xff, 0xff]),
    ("hypercall-vmmcall", &[0x0f, 0x01, 0xd9, 0x8b, 0x1d, 0xf7, 0xff, 0xff, 0xff]),
];

/// SYSCALL and SYSENTER go elsewhere when they are executed: the one to the fault's stub, as LSTAR has no value that the
/// guest gave it. They are tried only where they fault.
fn leaves(name: &str) -> bool {
    matches!(
        name,
        "syscall" | "sysenter" | "skinit" | "getsec" | "rsm" | "vmrun" | "wrmsrns" | "rdmsrlist" | "invd"
    )
}

/// LZCNT and TZCNT are never #UD: without the feature they are BSR and BSF, whose result for 1 << 40 is another one.
fn counts(name: &str) -> bool {
    matches!(name, "lzcnt" | "tzcnt")
}

/// Hypercalls never come back where KVM has no number for them and starts them again and again (seen on kvm_pvm). Each is
/// one exit, so they need little time.
fn hangs(name: &str) -> bool {
    name.starts_with("hypercall")
}

/// How long a batch of instructions may take.
const PATIENCE: Duration = Duration::from_millis(400);

fn probe(code: &[u8]) -> Probe {
    let scratch = u64::from(abi::SCRATCH);
    Probe::new(code).with(RSI, scratch).with(RDI, scratch + 0x8000)
}

/// One that hangs costs all of the time that there is: those that may, get little, and a second chance on a machine that
/// had something else to do.
fn ask(
    session: &mut Session<'_, '_>,
    chosen: &[&(&str, &[u8])],
    probes: &[Probe],
) -> Result<Vec<Outcome>, Error> {
    let (rest, calls) = probes.split_at(chosen.partition_point(|(name, _)| !hangs(name)));
    session.limit = PATIENCE;
    let mut outcomes = session.ask(rest)?;
    for (probe, outcome) in rest.iter().zip(&mut outcomes) {
        // Or it was the last of a batch that took all of the time.
        if matches!(outcome, Outcome::Ended(_)) {
            *outcome = session.one(probe.clone())?;
        }
    }
    session.limit = PATIENCE / 4;
    for probe in calls {
        let mut outcome = session.one(probe.clone())?;
        if matches!(outcome, Outcome::Ended(_)) {
            outcome = session.one(probe.clone())?;
        }
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// Whether any of them is cut off by the table: for the test.
#[cfg(test)]
pub fn longest() -> usize {
    INSTRUCTIONS.iter().map(|(_, code)| code.len()).max().unwrap_or(0)
}

/// Tries all of them. Control registers are put as an operating system has them.
///
/// # Errors
/// As [`Session::ask`].
pub fn observe(session: &mut Session<'_, '_>, record: &mut Record) -> Result<(), Error> {
    let offered = record.number("cpuid.d.0.eax").unwrap_or_default();
    session.ask(&[set_cr4(OSFXSR | OSXMMEXCPT), set_cr4(OSXSAVE), set_xcr0(offered)])?;
    let mut chosen: Vec<_> = INSTRUCTIONS.iter().filter(|(name, _)| !leaves(name)).collect();
    chosen.sort_by_key(|(name, _)| hangs(name));
    let probes: Vec<Probe> = chosen
        .iter()
        .map(|(name, code)| {
            let probe = probe(code);
            // An INVPCID of type 0 with an all-zero descriptor; hypercall numbers that nobody has.
            match *name {
                "lzcnt" | "tzcnt" => probe.with(RAX, 1 << 40),
                "hypercall-vmcall" | "hypercall-vmmcall" => probe.with(RAX, 0x7fff_0000),
                _ => probe.with(RAX, 0).with(RBX, 0).with(RCX, 0).with(RDX, 0),
            }
        })
        .collect();
    record.probes += probes.len() as u64 + 3;
    let limit = session.limit;
    let outcomes = ask(session, &chosen, &probes);
    session.limit = limit;
    for ((name, _), outcome) in chosen.iter().zip(outcomes?) {
        let name = format!("insn.{name}");
        match &outcome {
            Outcome::Returned { registers, .. } if counts(&name[5..]) => {
                record.value(name, registers[RAX] & 0xffff_ffff);
            }
            // KVM_ENOSYS, or whatever it says to an unknown number.
            Outcome::Returned { registers, .. } if hangs(&name[5..]) => {
                // Byte by byte: 0f01c1 is VMCALL, 0f01d9 is VMMCALL.
                let bytes = (registers[RBX] as u32).swap_bytes() >> 8;
                record.value(format!("{name}.bytes"), bytes.into());
                record.value(name, registers[RAX]);
            }
            outcome => {
                if let Some(saw) = plain(outcome) {
                    record.saw(name, saw);
                }
            }
        }
    }
    // vmovups [rsi], ymm0, where there is no memory: the access comes to the host half when KVM's emulator knows it.
    let outcome = session.one(Probe::new(&[0xc5, 0xfc, 0x11, 0x06]).with(RSI, 0xd000_0000))?;
    record.probes += 1;
    if let Some(saw) = plain(&outcome) {
        record.saw("insn.avx-mmio", saw);
    }
    for (name, _) in INSTRUCTIONS.iter().filter(|(name, _)| leaves(name)) {
        record.unasked(format!("insn.{name}"), "it goes elsewhere, or drops memory, when it is executed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_instruction_fits_into_a_probe() {
        assert!(super::longest() <= crate::abi::CODE_MOST);
    }
}
