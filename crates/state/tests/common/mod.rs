//! A made-up arm64 KVM: as many registers as it takes to show every way in which one is not kept.
#![allow(dead_code)] // Each test file uses a part.

use std::collections::BTreeMap;
use std::sync::Mutex;

use evenkeel_sys::{Arg, Backend, Errno, FdKind, Handle, Refusal, Request, Source};

pub const PFR0: u64 = 0x6030_0000_0013_c020;
pub const PSCI: u64 = 0x6030_0000_0014_0000;
pub const SCTLR: u64 = 0x6030_0000_0013_c080;
pub const TCR: u64 = 0x6030_0000_0013_c102;
pub const FPMR: u64 = 0x6030_0000_0013_da22;
pub const SET: u64 = 0x6030_0000_0013_c4f1;
pub const CLEAR: u64 = 0x6030_0000_0013_c4f2;
pub const COUNTER: u64 = 0x6030_0000_0013_df1a;
pub const VECTOR: u64 = 0x6080_0000_0015_0000;

/// How a register takes values.
#[derive(Clone, Copy, Debug)]
pub enum How {
    /// As they are.
    Stores,
    /// Not at all.
    Refuses,
    /// These bits of them.
    Masks(u64),
    /// The bits that are set are cleared here and in another register, which this one shows.
    Clears(u64),
    /// Goes on by itself.
    Runs,
    /// As they are; FPMR is there while the value is not 0.
    Decides,
    /// It cannot be read.
    Hides,
}

/// The registers of every vCPU of this host, with their values when one is made.
pub struct Fake {
    registers: Vec<(u64, How, u64)>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    values: BTreeMap<u64, Vec<u8>>,
    kinds: Vec<FdKind>,
    iidr: u32,
}

impl Fake {
    pub fn new(registers: &[(u64, How, u64)]) -> Fake {
        Fake { registers: registers.to_vec(), state: Mutex::default() }
    }

    /// A host with one register of each sort, all of which take their own values back.
    pub fn plain() -> Fake {
        Fake::new(&[
            (SCTLR, How::Stores, 0x30d0_0800),
            (TCR, How::Stores, 7),
            (PFR0, How::Decides, 0x11),
            (SET, How::Stores, 0x1e),
            (FPMR, How::Stores, 3),
            (PSCI, How::Stores, 0x1_0001),
            (COUNTER, How::Runs, 1000),
            (VECTOR, How::Stores, 0xabcd),
        ])
    }

    fn how(&self, id: u64) -> How {
        self.registers.iter().find(|r| r.0 == id).map_or(How::Refuses, |r| r.1)
    }

    fn listed(&self, state: &State) -> Vec<u64> {
        let decided = self.registers.iter().any(|r| matches!(r.1, How::Decides));
        let on = !decided || state.values.get(&PFR0).is_some_and(|v| v.iter().any(|b| *b != 0));
        self.registers.iter().map(|r| r.0).filter(|id| *id != FPMR || on).collect()
    }
}

fn size(id: u64) -> usize {
    1 << (id >> 52 & 0xf)
}

fn bytes(id: u64, value: u64) -> Vec<u8> {
    let mut bytes = value.to_le_bytes().to_vec();
    bytes.resize(size(id), 0);
    bytes
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

impl Backend for Fake {
    fn open(&self, _: &str, kind: FdKind) -> Result<Handle, Refusal> {
        let mut state = self.state.lock().unwrap();
        state.kinds.push(kind);
        Ok(Handle(state.kinds.len() as u32 - 1))
    }

    fn call(&self, _: Handle, request: &Request, arg: Arg<'_>) -> Result<i32, Refusal> {
        let mut guard = self.state.lock().unwrap();
        let state = &mut *guard;
        let mut create = |kind| {
            state.kinds.push(kind);
            state.kinds.len() as i32 - 1
        };
        match (request.name, arg) {
            ("KVM_CHECK_EXTENSION", _) => Ok(1),
            ("KVM_CREATE_VM", _) => Ok(create(FdKind::Vm)),
            ("KVM_CREATE_VCPU", _) => {
                let made = create(FdKind::Vcpu);
                state.values = self.registers.iter().map(|(id, _, v)| (*id, bytes(*id, *v))).collect();
                state.iidr = 0x4b00_343b;
                Ok(made)
            }
            ("KVM_CREATE_DEVICE", Arg::Out(out)) => {
                let made = create(FdKind::Device);
                out[4..8].copy_from_slice(&made.to_ne_bytes());
                Ok(0)
            }
            ("KVM_GET_REG_LIST", Arg::Out(out)) => {
                let ids = self.listed(state);
                out[..8].copy_from_slice(&(ids.len() as u64).to_ne_bytes());
                for (id, place) in ids.iter().zip(out[8..].chunks_exact_mut(8)) {
                    place.copy_from_slice(&id.to_ne_bytes());
                }
                Ok(0)
            }
            (name @ ("KVM_GET_ONE_REG" | "KVM_SET_ONE_REG"), Arg::Pointing { head, payload }) => {
                let id = number(&head[..8]);
                if !self.listed(state).contains(&id) {
                    return Err(Errno::ENOENT.into());
                }
                let get = name == "KVM_GET_ONE_REG";
                match (get, self.how(id)) {
                    (true, How::Hides) => return Err(Errno::EINVAL.into()),
                    (true, How::Runs) => {
                        let now = number(&state.values[&id]) + 10;
                        state.values.insert(id, bytes(id, now));
                        payload.copy_from_slice(&bytes(id, now));
                    }
                    (true, How::Clears(of)) => payload.copy_from_slice(&state.values[&of]),
                    (true, _) => payload.copy_from_slice(&state.values[&id]),
                    (false, How::Refuses) => return Err(Errno::EINVAL.into()),
                    (false, How::Masks(mask)) => {
                        state.values.insert(id, bytes(id, number(payload) & mask));
                    }
                    (false, How::Clears(of)) => {
                        let left = number(&state.values[&of]) & !number(payload);
                        state.values.insert(of, bytes(of, left));
                    }
                    (false, _) => drop(state.values.insert(id, payload.to_vec())),
                }
                Ok(0)
            }
            ("KVM_GET_DEVICE_ATTR", Arg::Pointing { payload, .. }) => {
                payload.copy_from_slice(&state.iidr.to_ne_bytes());
                Ok(0)
            }
            // Revisions are accepted and ignored.
            ("KVM_SET_DEVICE_ATTR", _) => Ok(0),
            ("KVM_ARM_PREFERRED_TARGET" | "KVM_ARM_VCPU_INIT" | "KVM_ARM_VCPU_FINALIZE", _) => Ok(0),
            (name, _) => panic!("nobody asked for {name} before"),
        }
    }

    fn read(&self, source: Source<'_>) -> Result<Vec<u8>, Refusal> {
        match source {
            Source::Architecture => Ok(b"aarch64".to_vec()),
            Source::Uname => Ok(b"6.1.0-fake\n#1\naarch64\n".to_vec()),
            _ => Err(Errno::ENOENT.into()),
        }
    }

    fn close(&self, _: Handle) {}
}
