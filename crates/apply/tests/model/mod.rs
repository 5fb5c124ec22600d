//! A kernel of our own that keeps what it is given, made from a bundled capture: no /dev/kvm is needed.
#![allow(dead_code, reason = "each test uses its part")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use evenkeel_apply::{Plan, Setup, Topology};
use evenkeel_contract::baseline::baseline;
use evenkeel_contract::{Contract, View};
use evenkeel_hosts::{Host, load};
use evenkeel_surface::Surface;
use evenkeel_sys::layout::{long, word};
use evenkeel_sys::{Arg, Backend, Creates, Errno, FdKind, Handle, Refusal, Request, Source};

/// What is in force, by file descriptor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    next: u32,
    kinds: BTreeMap<u32, FdKind>,
    irqchip: bool,
    split: bool,
    /// KVM_ENABLE_CAP, by file descriptor and capability.
    pub caps: BTreeMap<(u32, u32), u64>,
    /// KVM_SET_CPUID2, as it was given.
    pub cpuid: BTreeMap<u32, Vec<u8>>,
    pub msrs: BTreeMap<(u32, u32), u64>,
    pub regs: BTreeMap<u64, u64>,
    pub attrs: BTreeMap<(u32, u64), Vec<u8>>,
    initialized: bool,
}

/// The kernel.
pub struct Model {
    pub state: Arc<Mutex<State>>,
    feature_msrs: BTreeMap<u32, u64>,
    regs: BTreeMap<u64, u64>,
}

impl Model {
    pub fn of(host: &Surface, shape: &str) -> Model {
        let index = host.offer.shapes.iter().position(|s| s.name == shape).unwrap() as u8;
        let here = host.offer.registers.iter().filter(|r| r.shapes.is_empty() || r.shapes.contains(&index));
        Model {
            state: Arc::default(),
            feature_msrs: host.offer.feature_msrs.iter().map(|m| (m.msr.0, m.value.0)).collect(),
            regs: here.filter_map(|r| Some((r.id.0, r.reset?.0))).collect(),
        }
    }

    fn vm_cap(state: &State, cap: u32) -> u64 {
        state.caps.iter().find(|((_, c), _)| *c == cap).map_or(0, |(_, args)| *args)
    }

    fn msr(&self, state: &State, fd: u32, msr: u32) -> Option<u64> {
        let reset = self.feature_msrs.get(&msr).copied().or((msr == 0x179).then_some(32))?;
        Some(state.msrs.get(&(fd, msr)).copied().unwrap_or(reset))
    }
}

fn done() -> Result<i32, Refusal> {
    Ok(0)
}

impl Backend for Model {
    fn open(&self, _: &str, kind: FdKind) -> Result<Handle, Refusal> {
        let mut s = self.state.lock().unwrap();
        s.next += 1;
        let number = s.next;
        s.kinds.insert(number, kind);
        Ok(Handle(number))
    }

    fn call(&self, fd: Handle, request: &Request, arg: Arg<'_>) -> Result<i32, Refusal> {
        if let Some(Creates::Returned(kind)) = request.creates {
            return self.open("", kind).map(|h| h.0 as i32);
        }
        let mut s = self.state.lock().unwrap();
        match (request.name, arg) {
            ("KVM_CREATE_DEVICE", Arg::Out(bytes)) => {
                drop(s);
                let handle = self.open("", FdKind::Device)?;
                bytes[4..8].copy_from_slice(&handle.0.to_ne_bytes());
                done()
            }
            ("KVM_CREATE_IRQCHIP", _) => {
                s.irqchip = true;
                done()
            }
            ("KVM_GET_IRQCHIP", _) if s.irqchip => done(),
            ("KVM_GET_IRQCHIP", _) => Err(Errno::ENXIO.into()),
            ("KVM_ENABLE_CAP", Arg::In(bytes)) => {
                s.split |= word(bytes, 0) == 121;
                s.caps.insert((fd.0, word(bytes, 0)), long(bytes, 8));
                done()
            }
            ("KVM_SET_CPUID2", Arg::In(bytes)) => {
                s.cpuid.insert(fd.0, bytes.to_vec());
                done()
            }
            ("KVM_GET_CPUID2", Arg::Out(bytes)) => {
                let kept = s.cpuid.get(&fd.0).cloned().unwrap_or_else(|| vec![0; 8]);
                bytes[..kept.len()].copy_from_slice(&kept);
                done()
            }
            ("KVM_SET_MSRS", Arg::In(bytes)) => {
                for (n, entry) in bytes[8..].chunks_exact(16).enumerate() {
                    let msr = word(entry, 0);
                    if self.msr(&s, fd.0, msr).is_none() {
                        return Ok(n as i32);
                    }
                    let value = long(entry, 8);
                    s.msrs.remove(&(fd.0, msr));
                    if self.msr(&s, fd.0, msr) != Some(value) {
                        s.msrs.insert((fd.0, msr), value);
                    }
                }
                Ok((bytes.len() / 16) as i32)
            }
            ("KVM_GET_MSRS", Arg::Out(bytes)) => {
                for (n, entry) in bytes[8..].chunks_exact_mut(16).enumerate() {
                    let Some(value) = self.msr(&s, fd.0, word(entry, 0)) else { return Ok(n as i32) };
                    entry[8..].copy_from_slice(&value.to_ne_bytes());
                }
                Ok((bytes.len() / 16) as i32)
            }
            ("KVM_X86_SETUP_MCE", Arg::In(bytes)) => {
                s.msrs.insert((fd.0, 0x179), long(bytes, 0));
                done()
            }
            ("KVM_GET_LAPIC", Arg::Out(page)) => {
                if !s.irqchip && !s.split {
                    return Err(Errno::EINVAL.into());
                }
                let boot = s.kinds.iter().find(|(_, k)| **k == FdKind::Vcpu).is_some_and(|(n, _)| *n == fd.0);
                let lint0 = if boot && Self::vm_cap(&s, 213) & 1 == 0 { 0x700 } else { 0x1_0000u32 };
                page[0x350..0x354].copy_from_slice(&lint0.to_ne_bytes());
                let flags = Self::vm_cap(&s, 129);
                let directed = s.split && flags & 8 == 0;
                page[0x33] = u8::from(directed);
                done()
            }
            ("KVM_GET_VCPU_EVENTS", Arg::Out(bytes)) => {
                let flags = (Self::vm_cap(&s, 164) & 1) << 4 | (Self::vm_cap(&s, 218) & 1) << 5;
                bytes[20..24].copy_from_slice(&(flags as u32).to_ne_bytes());
                done()
            }
            ("KVM_ARM_PREFERRED_TARGET", Arg::Out(bytes)) => {
                bytes[..4].copy_from_slice(&5u32.to_ne_bytes());
                done()
            }
            ("KVM_ARM_VCPU_INIT", _) => {
                s.initialized = true;
                done()
            }
            ("KVM_ARM_VCPU_FINALIZE", _) if s.initialized => done(),
            ("KVM_GET_ONE_REG", Arg::Pointing { head, payload }) if s.initialized => {
                let id = long(head, 0);
                let reset = self.regs.get(&id).copied().ok_or(Errno::ENOENT)?;
                let value = s.regs.get(&id).copied().unwrap_or(reset).to_le_bytes();
                let size = payload.len().min(8);
                payload[..size].copy_from_slice(&value[..size]);
                done()
            }
            ("KVM_SET_ONE_REG", Arg::Pointing { head, payload }) if s.initialized => {
                let id = long(head, 0);
                if !self.regs.contains_key(&id) {
                    return Err(Errno::ENOENT.into());
                }
                let mut value = [0; 8];
                value[..payload.len()].copy_from_slice(payload);
                // What is as it was is not remembered: two states are equal when the same is in force.
                s.regs.remove(&id);
                if self.regs[&id] != u64::from_le_bytes(value) {
                    s.regs.insert(id, u64::from_le_bytes(value));
                }
                done()
            }
            ("KVM_GET_REG_LIST", Arg::Out(bytes)) if s.initialized => {
                let count = self.regs.len();
                let room = word(bytes, 0) as usize;
                bytes[..4].copy_from_slice(&(count as u32).to_ne_bytes());
                if room < count {
                    return Err(Errno::E2BIG.into());
                }
                for (id, place) in self.regs.keys().zip(bytes[8..].chunks_exact_mut(8)) {
                    place.copy_from_slice(&id.to_ne_bytes());
                }
                done()
            }
            ("KVM_SET_DEVICE_ATTR", Arg::Pointing { head, payload }) => {
                s.attrs.insert((word(head, 4), long(head, 8)), payload.to_vec());
                done()
            }
            ("KVM_GET_DEVICE_ATTR", Arg::Pointing { head, payload }) => {
                let default = 0x4b00_343bu32.to_ne_bytes().to_vec();
                let kept = s.attrs.get(&(word(head, 4), long(head, 8))).cloned().unwrap_or(default);
                payload.copy_from_slice(&kept);
                done()
            }
            // ENOEXEC: no vCPU yet that could have registers.
            (name, _)
                if name.contains("ONE_REG") || name == "KVM_GET_REG_LIST" || name.starts_with("KVM_ARM") =>
            {
                Err(Errno(8).into())
            }
            (name, _) => panic!("the model does not know {name}"),
        }
    }

    fn read(&self, _: Source<'_>) -> Result<Vec<u8>, Refusal> {
        Err(Errno::ENOENT.into())
    }

    fn close(&self, _: Handle) {}
}

/// A bundled host.
pub fn host(name: &str) -> Host {
    load(name).unwrap()
}

/// The richest contract that these hosts can keep in a shape.
pub fn contract(hosts: &[&Host], shape: &str) -> Contract {
    let views: Vec<&View> =
        hosts.iter().map(|h| h.views.iter().find(|v| v.shape == shape).unwrap()).collect();
    baseline(&views, "a test's").contract
}

/// The same, with another value than the default for every choice that the host offers another one for.
pub fn everything_selected(contract: &Contract, host: &Host) -> Contract {
    let view = host.views.iter().find(|v| v.shape == contract.shape).unwrap();
    let mut contract = contract.clone();
    contract.choices.clear();
    for offer in &view.choices {
        let Some(default) = offer.default else { continue };
        let other = (0..64u8).find(|v| *v != default && offer.values >> v & 1 == 1);
        contract.choices.push((offer.choice, other.unwrap_or(default)));
    }
    contract.choices.sort_unstable();
    contract
}

/// A plan for so many vCPUs.
pub fn plan(contract: &Contract, host: &Host, vcpus: u32) -> Plan {
    let setup = Setup { topology: Topology { vcpus, threads: 1 }, ..Setup::default() };
    Plan::new(contract, &host.surface, setup).unwrap()
}
