//! One question to a guest on arm64, and how it ended.

use evenkeel_surface::{Hex32, Hex64};

use crate::aarch64::abi;
use crate::observation::Saw;

/// A few instructions, and X0 to X5 at their start. They end in X0 to X5, or in an exception.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// X0 to X5.
    pub inputs: [u64; 6],
    /// Instructions; at most [`abi::CODE_MOST`].
    pub code: Vec<u32>,
}

const RET: u32 = 0xd65f_03c0;
/// `HVC #0`.
pub const HVC: u32 = 0xd400_0002;
/// `DSB SY`.
pub const DSB: u32 = 0xd503_3f9f;
/// `ISB`.
pub const ISB: u32 = 0xd503_3fdf;

/// A system register: op0 (2 or 3), op1, CRn, CRm, op2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reg(pub u32, pub u32, pub u32, pub u32, pub u32);

impl Reg {
    fn place(self) -> u32 {
        let Reg(op0, op1, crn, crm, op2) = self;
        op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5
    }

    /// `MRS Xt, <this>`.
    pub fn mrs(self, t: u32) -> u32 {
        0xd520_0000 | self.place() | t
    }

    /// `MSR <this>, Xt`.
    pub fn msr(self, t: u32) -> u32 {
        0xd500_0000 | self.place() | t
    }
}

/// `LDR Wt, [Xn]`.
pub fn ldr_w(t: u32, n: u32) -> u32 {
    0xb940_0000 | n << 5 | t
}

/// `LDR Xt, [Xn]`.
pub fn ldr_x(t: u32, n: u32) -> u32 {
    0xf940_0000 | n << 5 | t
}

/// `STR Wt, [Xn]`.
pub fn str_w(t: u32, n: u32) -> u32 {
    0xb900_0000 | n << 5 | t
}

/// `STR Xt, [Xn]`.
pub fn str_x(t: u32, n: u32) -> u32 {
    0xf900_0000 | n << 5 | t
}

/// `MVN Xd, Xm`.
pub fn mvn(d: u32, m: u32) -> u32 {
    0xaa20_03e0 | m << 16 | d
}

/// `EOR Xd, Xn, Xm`.
pub fn eor(d: u32, n: u32, m: u32) -> u32 {
    0xca00_0000 | m << 16 | n << 5 | d
}

impl Probe {
    /// This code. What is too long is cut off: the test of the programs sees to it that nothing is.
    pub fn new(code: &[u32]) -> Probe {
        Probe { inputs: [0; 6], code: code[..code.len().min(abi::CODE_MOST)].to_vec() }
    }

    /// With registers set, from X0 on.
    #[must_use]
    pub fn with(mut self, inputs: &[u64]) -> Probe {
        for (place, value) in self.inputs.iter_mut().zip(inputs) {
            *place = *value;
        }
        self
    }

    /// Reads a system register to X0.
    pub fn read(register: Reg) -> Probe {
        Probe::new(&[register.mrs(0)])
    }

    /// A call of SMCCC by HVC: its number and arguments.
    pub fn call(function: u32, arguments: &[u64]) -> Probe {
        let mut inputs = vec![u64::from(function)];
        inputs.extend(arguments);
        Probe::new(&[HVC]).with(&inputs)
    }

    /// A load of 32 bits to X0.
    pub fn load(address: u64) -> Probe {
        Probe::new(&[ldr_w(0, 0)]).with(&[address])
    }

    /// A load of 64 bits to X0.
    pub fn load_64(address: u64) -> Probe {
        Probe::new(&[ldr_x(0, 0)]).with(&[address])
    }

    /// As it is in the table.
    pub fn encode(&self) -> [u8; abi::PROBE_BYTES] {
        let mut bytes = [0; abi::PROBE_BYTES];
        for (input, place) in self.inputs.iter().zip(bytes.chunks_exact_mut(8)) {
            place.copy_from_slice(&input.to_le_bytes());
        }
        // RET everywhere behind the code.
        let code = self.code.iter().copied().chain(std::iter::repeat(RET));
        for (word, place) in code.zip(bytes[abi::PROBE_CODE..].chunks_exact_mut(4)) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// How a probe ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It came to its end, with this in X0 to X5.
    Returned([u64; 6]),
    /// It ended in an exception.
    Faulted {
        /// ESR_EL1.
        esr: u32,
        /// FAR_EL1.
        far: u64,
        /// The instruction's offset in the code.
        offset: u64,
        /// The vector that was taken: 4 is a synchronous exception of EL1.
        vector: u64,
    },
    /// It needed something outside of KVM.
    Exited(String),
    /// The guest ended there, and how.
    Ended(String),
    /// There is no result of this run.
    Silent,
}

impl Outcome {
    /// X0 to X5, where it came to its end.
    pub fn registers(&self) -> Option<&[u64; 6]> {
        match self {
            Outcome::Returned(registers) => Some(registers),
            _ => None,
        }
    }

    /// What it is to somebody who looked for a value in a register.
    pub fn saw(&self, register: usize) -> Option<Saw> {
        match self {
            Outcome::Returned(registers) => Some(Saw::Value(Hex64(registers[register]))),
            other => other.plain(),
        }
    }

    /// What it is to somebody who looked whether something can be done.
    pub fn plain(&self) -> Option<Saw> {
        match self {
            Outcome::Returned(_) => Some(Saw::Executes),
            Outcome::Faulted { esr, .. } => {
                Some(Saw::Exception { class: (esr >> 26) as u8, iss: Hex32(esr & 0x1ff_ffff) })
            }
            Outcome::Exited(what) => Some(Saw::Exit(what.clone())),
            Outcome::Ended(how) => Some(Saw::Ends(how.clone())),
            Outcome::Silent => None,
        }
    }

    /// Reads the result with this index. Whatever is in guest memory, the answer is one of the outcomes: a result that
    /// does not carry this run's nonce, or makes no sense, is [`Outcome::Silent`].
    pub fn decode(bytes: &[u8], nonce: u64, index: u32) -> Outcome {
        let long = |at: usize| {
            bytes
                .get(at..at + 8)
                .map_or(0, |b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
        };
        if long(abi::TAG) != nonce ^ u64::from(index) {
            return Outcome::Silent;
        }
        match long(abi::KIND) {
            abi::RETURNED => Outcome::Returned(std::array::from_fn(|n| long(8 * n))),
            abi::FAULTED if long(abi::VECTOR) < 16 => Outcome::Faulted {
                esr: long(abi::ESR) as u32,
                far: long(abi::FAR),
                offset: long(abi::OFFSET),
                vector: long(abi::VECTOR),
            },
            _ => Outcome::Silent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words are those of an assembler.
    #[test]
    fn instructions_are_encoded() {
        // mrs x0, midr_el1; mrs x3, pmcr_el0; msr pmcr_el0, x1; mrs x0, oslsr_el1; msr oslar_el1, x2
        assert_eq!(Reg(3, 0, 0, 0, 0).mrs(0), 0xd538_0000);
        assert_eq!(Reg(3, 3, 9, 12, 0).mrs(3), 0xd53b_9c03);
        assert_eq!(Reg(3, 3, 9, 12, 0).msr(1), 0xd51b_9c01);
        assert_eq!(Reg(2, 0, 1, 1, 4).mrs(0), 0xd530_1180);
        assert_eq!(Reg(2, 0, 1, 0, 4).msr(2), 0xd510_1082);
        // ldr w1, [x0]; ldr x3, [x2]; str w2, [x0]; mvn x2, x1; eor x0, x1, x3
        assert_eq!(
            [ldr_w(1, 0), ldr_x(3, 2), str_w(2, 0), str_x(1, 0), mvn(2, 1), eor(0, 1, 3)],
            [0xb940_0001, 0xf940_0043, 0xb900_0002, 0xf900_0001, 0xaa21_03e2, 0xca03_0020]
        );
    }

    #[test]
    fn a_probe_is_followed_by_returns() {
        let bytes = Probe::call(0x8400_0000, &[7]).encode();
        assert_eq!(bytes[..16], [0, 0, 0, 0x84, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[48..56], [2, 0, 0, 0xd4, 0xc0, 3, 0x5f, 0xd6]);
        assert_eq!(bytes[124..], RET.to_le_bytes());
        assert_eq!(Probe::new(&[1; 99]).encode()[124..], RET.to_le_bytes());
    }

    #[test]
    fn results_need_the_nonce_of_their_run() {
        let mut bytes = [0; abi::RESULT_BYTES];
        let mut put = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(8, 5);
        put(abi::KIND, abi::RETURNED);
        put(abi::TAG, 0x1234 ^ 3);
        assert_eq!(Outcome::decode(&bytes, 0x1234, 3), Outcome::Returned([0, 5, 0, 0, 0, 0]));
        assert_eq!(Outcome::decode(&bytes, 0x1234, 2), Outcome::Silent);
        assert_eq!(Outcome::decode(&bytes, 0x1235, 3), Outcome::Silent);
        assert_eq!(Outcome::decode(&bytes[..40], 0x1234, 3), Outcome::Silent);
        let mut put = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(abi::KIND, abi::FAULTED);
        put(abi::ESR, 0x6230_1234);
        put(abi::VECTOR, 4);
        let outcome = Outcome::decode(&bytes, 0x1234, 3);
        assert_eq!(outcome.saw(0), Some(Saw::Exception { class: 0x18, iss: Hex32(0x30_1234) }));
        let mut put = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(abi::VECTOR, 16);
        assert_eq!(Outcome::decode(&bytes, 0x1234, 3), Outcome::Silent);
    }
}
