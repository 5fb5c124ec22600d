//! Probes and their results, as the host half sees them.

use crate::abi;

/// A few instructions, and the registers that they start with: RAX, RBX, RCX, RDX, RSI, RDI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// The registers.
    pub inputs: [u64; 6],
    /// Machine code, without the RET that ends it; at most [`abi::CODE_MOST`] bytes.
    pub code: Vec<u8>,
}

/// Index of RAX among a probe's registers.
pub const RAX: usize = 0;
/// Index of RBX.
pub const RBX: usize = 1;
/// Index of RCX.
pub const RCX: usize = 2;
/// Index of RDX.
pub const RDX: usize = 3;
/// Index of RSI.
pub const RSI: usize = 4;
/// Index of RDI.
pub const RDI: usize = 5;

impl Probe {
    /// This code. What is too long is cut off: the test of the programs sees to it that nothing is.
    pub fn new(code: &[u8]) -> Probe {
        Probe { inputs: [0; 6], code: code[..code.len().min(abi::CODE_MOST)].to_vec() }
    }

    /// With a register set.
    #[must_use]
    pub fn with(mut self, register: usize, value: u64) -> Probe {
        self.inputs[register] = value;
        self
    }

    /// As it is in the table.
    pub fn encode(&self) -> [u8; abi::PROBE_BYTES] {
        // RET everywhere behind the code.
        let mut bytes = [0xc3; abi::PROBE_BYTES];
        for (input, place) in self.inputs.iter().zip(bytes.chunks_exact_mut(8)) {
            place.copy_from_slice(&input.to_le_bytes());
        }
        bytes[abi::PROBE_CODE..abi::PROBE_CODE + self.code.len()].copy_from_slice(&self.code);
        bytes
    }
}

/// How a probe ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It came to its end.
    Returned {
        /// RAX, RBX, RCX, RDX, RSI, RDI.
        registers: [u64; 6],
        /// RFLAGS.
        flags: u64,
    },
    /// It ended in an exception.
    Faulted {
        /// The vector.
        vector: u8,
        /// The error code; 0 for vectors that have none.
        error: u32,
        /// The instruction's offset in the code.
        offset: u64,
    },
    /// KVM could not execute it.
    Stopped,
    /// It needed something outside of KVM: the guest's access came to the host half.
    Exited(String),
    /// The guest ended there, and how: the host half started it again behind it.
    Ended(String),
    /// There is no result of this run.
    Silent,
}

impl Outcome {
    /// The registers, where it came to its end.
    pub fn registers(&self) -> Option<&[u64; 6]> {
        match self {
            Outcome::Returned { registers, .. } => Some(registers),
            _ => None,
        }
    }

    /// EDX:EAX, where it came to its end.
    pub fn edx_eax(&self) -> Option<u64> {
        self.registers().map(|r| r[RDX] << 32 | r[RAX] & 0xffff_ffff)
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
            abi::RETURNED => {
                let mut registers = [0; 6];
                for (n, register) in registers.iter_mut().enumerate() {
                    *register = long(abi::OUTPUTS + 8 * n);
                }
                Outcome::Returned { registers, flags: long(abi::FLAGS) }
            }
            abi::FAULTED => match (u8::try_from(long(abi::VECTOR)), u32::try_from(long(abi::ERROR))) {
                (Ok(vector @ 0..32), Ok(error)) => {
                    Outcome::Faulted { vector, error, offset: long(abi::OFFSET) }
                }
                _ => Outcome::Silent,
            },
            abi::STOPPED => Outcome::Stopped,
            _ => Outcome::Silent,
        }
    }
}
