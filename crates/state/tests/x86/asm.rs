//! Programs for guests, byte by byte: nothing that a kernel without hardware help could not execute.

use evenkeel_witness::abi;

/// Machine code in the making.
#[derive(Clone, Default)]
pub struct Asm(pub Vec<u8>);

/// Where vCPU `n` has its program, and a page of results behind it.
pub fn place(n: u32) -> u32 {
    abi::SCRATCH + 0x2000 * n
}

/// Where vCPU `n` has its results.
pub fn results(n: u32) -> u32 {
    place(n) + 0x1000
}

impl Asm {
    pub fn new() -> Asm {
        Asm::default()
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Asm {
        self.0.extend_from_slice(bytes);
        self
    }

    /// `mov reg, imm32` of EAX, ECX, EDX, EBX, RSP …, RDI by number.
    pub fn mov(mut self, register: u8, value: u32) -> Asm {
        self.0.push(0xb8 + register);
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn wrmsr(self, msr: u32, value: u64) -> Asm {
        self.mov(1, msr).mov(0, value as u32).mov(2, (value >> 32) as u32).bytes(&[0x0f, 0x30])
    }

    /// Writes EDX:EAX = TSC + ticks to the deadline MSR.
    pub fn deadline_in(self, ticks: u32) -> Asm {
        // rdtsc; add eax, ticks; adc edx, 0; mov ecx, 0x6e0; wrmsr
        let rdtsc = self.bytes(&[0x0f, 0x31, 0x05]);
        rdtsc.bytes(&ticks.to_le_bytes()).bytes(&[0x83, 0xd2, 0x00]).mov(1, 0x6e0).bytes(&[0x0f, 0x30])
    }

    /// The same, for a moment that is never reached here.
    pub fn deadline_far(self) -> Asm {
        // rdtsc; add edx, 64; mov ecx, 0x6e0; wrmsr
        self.bytes(&[0x0f, 0x31, 0x83, 0xc2, 0x40]).mov(1, 0x6e0).bytes(&[0x0f, 0x30])
    }

    /// `mov edi, address; mov dword ptr [rdi], value`.
    pub fn store(self, address: u32, value: u32) -> Asm {
        self.mov(7, address).bytes(&[0xc7, 0x07]).bytes(&value.to_le_bytes())
    }

    /// `mov edi, address; mov eax, [rdi]`.
    pub fn load(self, address: u32) -> Asm {
        self.mov(7, address).bytes(&[0x8b, 0x07])
    }

    /// Stores RAX at a place of 8 bytes.
    pub fn keep(self, address: u32) -> Asm {
        self.mov(7, address).bytes(&[0x48, 0x89, 0x07])
    }

    pub fn out(self, port: u8) -> Asm {
        self.bytes(&[0xe6, port])
    }

    /// `in eax, port`.
    pub fn input(self, port: u8) -> Asm {
        self.bytes(&[0xe5, port])
    }

    pub fn sti(self) -> Asm {
        self.bytes(&[0xfb])
    }

    pub fn cli(self) -> Asm {
        self.bytes(&[0xfa])
    }

    pub fn hlt(self) -> Asm {
        self.bytes(&[0xf4])
    }

    /// Lets pending interrupts in: `sti; nop; out BREATH, al; nop` some times, then `cli`.
    pub fn window(mut self, times: u32) -> Asm {
        self = self.sti().mov(1, times);
        // l: nop; out BREATH, al; nop; loop l
        self.bytes(&[0x90, 0xe6, abi::BREATH, 0x90, 0xe2, 0xfa]).cli()
    }

    /// In xAPIC mode: writes a register.
    pub fn apic(self, register: u32, value: u32) -> Asm {
        self.store(0xfee0_0000 + register, value)
    }

    /// Software-enables the APIC, all vectors accepted.
    pub fn apic_on(self) -> Asm {
        self.apic(0xf0, 0x1ff)
    }

    /// Switches to x2APIC mode, and enables.
    pub fn x2apic_on(self) -> Asm {
        // mov ecx, 0x1b; rdmsr; or eax, 0x400; wrmsr
        let asm = self.mov(1, 0x1b).bytes(&[0x0f, 0x32, 0x0d, 0, 4, 0, 0, 0x0f, 0x30]);
        asm.wrmsr(0x80f, 0x1ff)
    }

    /// The end: tells the host, for ever.
    pub fn done(self) -> Asm {
        // l: mov eax, DONE; out PORT, eax; jmp l
        self.mov(0, abi::DONE).bytes(&[0xe7, abi::PORT, 0xeb, 0xf7])
    }
}
