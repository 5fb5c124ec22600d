//! A guest that goes round and round on each of its vCPUs, and keeps books of its timers, interrupts, clocks and registers.
//!
//! A turn: a one-shot timer, a deadline timer, an interrupt for the next vCPU (if that one had the last), a look at the TSC, at
//! kvmclock, and at registers that hold what only this vCPU was given; then a port write. An interrupt that is lost leaves the
//! vCPU halted for ever, one that comes twice leaves one more arrival than turns.

use evenkeel_sys::Ram;
use evenkeel_witness::abi;

use crate::asm::{Asm, results};

/// The vectors of a turn: of one class of priority, so that none interrupts another before its end.
pub const ONE_SHOT: u8 = 0x61;
pub const DEADLINE: u8 = 0x62;
pub const FROM_ANOTHER: u8 = 0x63;

/// Where the books are, behind a vCPU's results.
pub const TURNS: u32 = 0;
pub const TSC: u32 = 8;
pub const TSC_BACK: u32 = 16;
pub const CLOCK: u32 = 24;
pub const CLOCK_BACK: u32 = 32;
pub const SENT: u32 = 40;
pub const OTHER: u32 = 48;
/// Where the hypervisor writes its clock.
const PAGE: u32 = 0x800;

/// MSR_KVM_SYSTEM_TIME_NEW.
const SYSTEM_TIME: u32 = 0x4b56_4d01;
/// X2APIC's EOI.
const EOI: u32 = 0x80b;

/// MSRs that keep what vCPU `n` puts there: SYSENTER_CS and SYSENTER_ESP, STAR, KERNEL_GS_BASE, PAT.
pub fn held(n: u32) -> [(u32, u64); 5] {
    let n = u64::from(n);
    [
        (0x174, 0x10 + 8 * n),
        (0x175, 0xffff_8000_0000_1000 + n),
        (0xc000_0081, (0x0023_0010 + (n << 24)) << 32),
        (0xc000_0102, 0xffff_8000_7654_3000 + n),
        (0x277, 0x0007_0106_0007_0406),
    ]
}

/// DR0 of vCPU `n`.
fn watched(n: u32) -> u32 {
    0x1234_5000 + n
}

fn arrivals(n: u32, vector: u8) -> u32 {
    abi::AREA + n * abi::AREA_BYTES + abi::ARRIVALS + 4 * u32::from(vector)
}

impl Asm {
    fn len(&self) -> i64 {
        self.0.len() as i64
    }

    /// Waits until this interrupt came once more than there were turns. Interrupts are let in one at a time, and only here.
    fn wait(self, n: u32, vector: u8) -> Asm {
        // l: mov eax, [arrivals]; cmp eax, [turns]; ja out; sti; hlt; cli; EOI; jmp l
        let ask = Asm::new().mov(7, arrivals(n, vector)).bytes(&[0x8b, 0x07]).mov(7, results(n) + TURNS);
        let ask = ask.bytes(&[0x3b, 0x07]);
        let sleep = Asm::new().sti().hlt().cli().wrmsr(EOI, 0);
        let back = -(ask.len() + 2 + sleep.len() + 2);
        let over = (sleep.len() + 2) as u8;
        self.bytes(&ask.0).bytes(&[0x77, over]).bytes(&sleep.0).bytes(&[0xeb, back as i8 as u8])
    }

    /// RAX is the newest of a clock: remembers it, and counts if it is before the one of last time.
    fn later(self, last: u32, back: u32) -> Asm {
        // mov edi, last; cmp rax, [rdi]; jae +(5 + 3); mov esi, back; inc qword [rsi]; mov [rdi], rax
        let asm = self.mov(7, last).bytes(&[0x48, 0x3b, 0x07, 0x73, 0x08]).mov(6, back);
        asm.bytes(&[0x48, 0xff, 0x06, 0x48, 0x89, 0x07])
    }

    /// RAX: nanoseconds of kvmclock, as its documentation says that they are worked out.
    fn kvmclock(self, page: u32) -> Asm {
        self.mov(7, page).bytes(&[
            0x8b, 0x1f, // again: mov ebx, [rdi]
            0xf6, 0xc3, 0x01, // test bl, 1
            0x75, 0xf9, // jnz again
            0x0f, 0x31, // rdtsc
            0x48, 0xc1, 0xe2, 0x20, // shl rdx, 32
            0x48, 0x09, 0xd0, // or rax, rdx
            0x48, 0x2b, 0x47, 0x08, // sub rax, [rdi + 8]
            0x0f, 0xbe, 0x4f, 0x1c, // movsx ecx, byte [rdi + 28]
            0x84, 0xc9, // test cl, cl
            0x78, 0x05, // js right
            0x48, 0xd3, 0xe0, // shl rax, cl
            0xeb, 0x05, // jmp shifted
            0xf6, 0xd9, // right: neg cl
            0x48, 0xd3, 0xe8, // shr rax, cl
            0x8b, 0x57, 0x18, // shifted: mov edx, [rdi + 24]
            0x48, 0xf7, 0xe2, // mul rdx
            0x48, 0x0f, 0xac, 0xd0, 0x20, // shrd rax, rdx, 32
            0x48, 0x03, 0x47, 0x10, // add rax, [rdi + 16]
            0x3b, 0x1f, // cmp ebx, [rdi]
            0x75, 0xc7, // jne again
        ])
    }

    /// Counts if EDX:EAX is not this.
    fn expect(self, value: u64, wrong: u32) -> Asm {
        let inc = Asm::new().mov(6, wrong).bytes(&[0x48, 0xff, 0x06]);
        // cmp eax, low; jne wrong; cmp edx, high; je right; wrong: inc
        let high = ((value >> 32) as u32).to_le_bytes();
        let asm = self.bytes(&[0x3d]).bytes(&(value as u32).to_le_bytes()).bytes(&[0x75, 8, 0x81, 0xfa]);
        asm.bytes(&high).bytes(&[0x74, inc.len() as u8]).bytes(&inc.0)
    }
}

/// What vCPU `n` of `cpus` executes. Without kvmclock it keeps no books of it.
pub fn program(n: u32, cpus: u32, clock: bool) -> Asm {
    let r = results(n);
    let mut start = Asm::new().x2apic_on().wrmsr(0x83e, 0xb);
    for (msr, value) in held(n) {
        start = start.wrmsr(msr, value);
    }
    if clock {
        start = start.wrmsr(SYSTEM_TIME, u64::from(r + PAGE) | 1);
    }
    // mov dr0, rax
    start = start.mov(0, watched(n)).bytes(&[0x0f, 0x23, 0xc0]);
    let begin = start.len();
    let turn = start.wrmsr(0x832, ONE_SHOT.into()).wrmsr(0x838, 20_000).wait(n, ONE_SHOT);
    let mut turn = turn.wrmsr(0x832, 0x4_0000 | u64::from(DEADLINE)).deadline_in(50_000).wait(n, DEADLINE);
    if cpus > 1 {
        let next = (n + 1) % cpus;
        let send =
            Asm::new().bytes(&[0xff, 0x07]).wrmsr(0x830, u64::from(next) << 32 | u64::from(FROM_ANOTHER));
        // mov edi, sent; mov eax, [rdi]; mov esi, arrivals; cmp eax, [rsi]; jne over; inc dword [rdi]; send
        turn = turn.mov(7, r + SENT).bytes(&[0x8b, 0x07]).mov(6, arrivals(next, FROM_ANOTHER));
        turn = turn.bytes(&[0x3b, 0x06, 0x75, send.len() as u8]).bytes(&send.0);
    }
    // rdtsc; shl rdx, 32; or rax, rdx
    turn = turn.bytes(&[0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0]).later(r + TSC, r + TSC_BACK);
    if clock {
        turn = turn.kvmclock(r + PAGE).later(r + CLOCK, r + CLOCK_BACK);
    }
    for (msr, value) in held(n) {
        turn = turn.mov(1, msr).bytes(&[0x0f, 0x32]).expect(value, r + OTHER);
    }
    // mov rax, dr0; xor edx, edx
    turn = turn.bytes(&[0x0f, 0x21, 0xc0, 0x31, 0xd2]).expect(watched(n).into(), r + OTHER);
    // inc qword [turns]
    turn = turn.mov(7, r + TURNS).bytes(&[0x48, 0xff, 0x07]).out(abi::BREATH);
    let back = begin - (turn.len() + 5);
    turn.bytes(&[0xe9]).bytes(&(back as i32).to_le_bytes())
}

/// The books of a guest that stands still.
pub struct Books<'r> {
    pub ram: &'r Ram,
    pub cpus: u32,
    pub clock: bool,
}

impl Books<'_> {
    fn read<const N: usize>(&self, at: u32) -> [u8; N] {
        let mut bytes = [0; N];
        self.ram.read(at as usize, &mut bytes).unwrap();
        bytes
    }

    pub fn word(&self, n: u32, at: u32) -> u64 {
        u64::from_le_bytes(self.read(results(n) + at))
    }

    fn arrived(&self, n: u32, vector: u8) -> u64 {
        u32::from_le_bytes(self.read(arrivals(n, vector))).into()
    }

    /// What is not as it must be, wherever the guest was stopped.
    pub fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for n in 0..self.cpus {
            let turns = self.word(n, TURNS);
            let (one, two) = (self.arrived(n, ONE_SHOT), self.arrived(n, DEADLINE));
            // In each turn one of each; the turn at hand may have had its own.
            if !(turns..=turns + 1).contains(&one) || !(turns..=turns + 1).contains(&two) || two > one {
                wrong.push(format!("vcpu.{n}: {one} and {two} interrupts of timers in {turns} turns"));
            }
            let (sent, came) = (self.word(n, SENT), self.arrived((n + 1) % self.cpus, FROM_ANOTHER));
            if self.cpus > 1 && !(came..=came + 1).contains(&sent) {
                wrong.push(format!("vcpu.{n}: {sent} interrupts sent, {came} came"));
            }
            for (at, what) in [
                (TSC_BACK, "the TSC went back"),
                (CLOCK_BACK, "kvmclock went back"),
                (OTHER, "a register changed"),
            ] {
                if self.word(n, at) != 0 {
                    wrong.push(format!("vcpu.{n}: {what} {} times", self.word(n, at)));
                }
            }
            let clock = self.word(n, CLOCK);
            if self.clock && turns > 0 && (clock == 0 || clock >> 52 != 0) {
                wrong.push(format!("vcpu.{n}: kvmclock says {clock}"));
            }
        }
        wrong
    }

    pub fn sent(&self) -> u64 {
        (0..self.cpus).map(|n| self.word(n, SENT)).sum()
    }
}
