//! State that no CPU here has, on a KVM that pretends to have it: counters of performance, AMX's tiles, a shadow stack, a nested
//! guest of VMX. What is saved and set is what such a KVM is told, byte for byte; that real ones understand it alike is not shown.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use evenkeel_state::{Elapsed, Image, Noting, Owner, compare, x86};
use evenkeel_sys::layout::{X86_XSAVE, long, word};
use evenkeel_sys::requests::*;
use evenkeel_sys::{Arg, Backend, Errno, FdKind, Handle, Live, Ram, Refusal, Request, RunPage, Slot, Source};
use evenkeel_witness::abi;

use crate::asm::Asm;
use crate::stage::{Scene, Stage, at_the_point, copy};

const CAP_NESTED_STATE: u64 = 157;
const CAP_XSAVE2: u64 = 208;
/// MSR_CORE_PERF_GLOBAL_CTRL, MSR_CORE_PERF_FIXED_CTR_CTRL, MSR_P6_EVNTSEL0, MSR_IA32_PERFCTR0, MSR_CORE_PERF_FIXED_CTR0.
const COUNTERS: [u32; 5] = [0x38f, 0x38d, 0x186, 0xc1, 0x309];
/// The place of XTILEDATA (component 18) in an XSAVE area as CPUs with AMX have it, and the size of the area.
const TILES: std::ops::Range<usize> = 2816..11_008;
/// XSTATE_BV, and XTILECFG and XTILEDATA in it.
const XSTATE_BV: usize = 512;
const AMX: u64 = 3 << 17;
/// KVM_X86_REG_KVM(KVM_REG_GUEST_SSP): an integer of 64 bits.
const SSP: u64 = 0x2030_0003_0000_0000;
/// A header, VMCS12 and its shadow; KVM_STATE_NESTED_FORMAT_VMX is 0.
const VMX: usize = 128 + 2 * 4096;

/// What one vCPU holds of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    counters: BTreeMap<u32, u64>,
    tiles: Vec<u8>,
    ssp: u64,
    nested: Vec<u8>,
}

impl Held {
    /// Something else in each place.
    fn full() -> Held {
        let bytes =
            |n: usize, seed: usize| (0..n).map(|at| ((at * 7 + seed) % 251) as u8).collect::<Vec<u8>>();
        let mut nested = vec![0; VMX];
        nested[4..8].copy_from_slice(&(VMX as u32).to_le_bytes());
        // Where VMXON and the current VMCS12 are.
        nested[8..16].copy_from_slice(&0x7000_u64.to_le_bytes());
        nested[16..24].copy_from_slice(&0x8000_u64.to_le_bytes());
        nested[128..].copy_from_slice(&bytes(2 * 4096, 3));
        Held {
            counters: (0x1111_u64..).step_by(0x1111).zip(COUNTERS).map(|(value, msr)| (msr, value)).collect(),
            tiles: bytes(TILES.len(), 1),
            ssp: 0x7fff_1234_5008,
            nested,
        }
    }
}

/// What a vCPU loses that is told to hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loses {
    Nothing,
    Counters,
    Tiles,
    Ssp,
    Nested,
}

/// The kernel, with more than it has.
struct Pretending {
    live: Live,
    held: Mutex<BTreeMap<Handle, Held>>,
    loses: Mutex<Loses>,
}

impl Pretending {
    /// Does this with what a vCPU holds.
    fn of<T>(&self, fd: Handle, what: impl FnOnce(&mut Held) -> T) -> T {
        what(self.held.lock().unwrap().entry(fd).or_default())
    }

    fn loses(&self, what: Loses) -> bool {
        *self.loses.lock().unwrap() == what
    }

    /// One after the other, as the kernel does, up to the first that is refused.
    fn msrs(&self, fd: Handle, request: &Request, bytes: &mut [u8], set: bool) -> Result<i32, Refusal> {
        let (_, entries) = bytes.split_at_mut(8);
        for (n, entry) in (0..).zip(entries.chunks_exact_mut(16)) {
            let msr = word(entry, 0);
            if COUNTERS.contains(&msr) {
                let lost = self.loses(Loses::Counters);
                self.of(fd, |held| {
                    if !set {
                        let value = held.counters.get(&msr).copied().unwrap_or(0);
                        entry[8..].copy_from_slice(&value.to_le_bytes());
                    } else if !lost {
                        held.counters.insert(msr, long(entry, 8));
                    }
                });
                continue;
            }
            let mut one = [&[1, 0, 0, 0, 0, 0, 0, 0], &*entry].concat();
            let done = if set {
                self.live.call(fd, request, Arg::In(&one))?
            } else {
                self.live.call(fd, request, Arg::Out(&mut one))?
            };
            if done != 1 {
                return Ok(n);
            }
            entry.copy_from_slice(&one[8..]);
        }
        Ok((entries.len() / 16) as i32)
    }

    fn list(&self, fd: Handle, request: &Request, bytes: &mut [u8]) -> Result<i32, Refusal> {
        let answer = self.live.call(fd, request, Arg::Out(&mut *bytes));
        let there = word(bytes, 0) as usize;
        bytes[..4].copy_from_slice(&((there + COUNTERS.len()) as u32).to_le_bytes());
        if answer.is_ok() {
            let Some(room) = bytes.get_mut(4 + 4 * there..4 + 4 * (there + COUNTERS.len())) else {
                return Err(Errno::E2BIG.into());
            };
            room.copy_from_slice(&COUNTERS.map(u32::to_le_bytes).concat());
        }
        answer
    }

    fn xsave(&self, fd: Handle, bytes: &mut [u8]) -> Result<i32, Refusal> {
        self.live.call(fd, &KVM_GET_XSAVE, Arg::Out(&mut bytes[..X86_XSAVE]))?;
        self.of(fd, |held| {
            if !held.tiles.is_empty() {
                bytes[TILES].copy_from_slice(&held.tiles);
                let used = long(bytes, XSTATE_BV) | AMX;
                bytes[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&used.to_le_bytes());
            }
        });
        Ok(0)
    }

    fn set_xsave(&self, fd: Handle, bytes: &[u8]) -> Result<i32, Refusal> {
        let used = long(bytes, XSTATE_BV);
        if used & AMX == AMX && !self.loses(Loses::Tiles) {
            self.of(fd, |held| held.tiles = bytes[TILES].to_vec());
        }
        let mut known = bytes[..X86_XSAVE].to_vec();
        known[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&(used & !AMX).to_le_bytes());
        known[TILES.start..].fill(0);
        self.live.call(fd, &KVM_SET_XSAVE, Arg::In(&known))
    }
}

impl Backend for Pretending {
    fn open(&self, path: &str, kind: FdKind) -> Result<Handle, Refusal> {
        self.live.open(path, kind)
    }

    fn call(&self, fd: Handle, request: &Request, arg: Arg<'_>) -> Result<i32, Refusal> {
        match (request.name, arg) {
            ("KVM_CREATE_VCPU", arg) => {
                let vcpu = self.live.call(fd, request, arg)?;
                self.of(Handle(vcpu.cast_unsigned()), |_| ());
                Ok(vcpu)
            }
            ("KVM_CHECK_EXTENSION", Arg::Int(CAP_XSAVE2)) => Ok(TILES.end as i32),
            ("KVM_CHECK_EXTENSION", Arg::Int(CAP_NESTED_STATE)) => Ok(VMX as i32),
            ("KVM_GET_MSR_INDEX_LIST", Arg::Out(bytes)) => self.list(fd, request, bytes),
            ("KVM_GET_MSRS", Arg::Out(bytes)) => self.msrs(fd, request, bytes, false),
            ("KVM_SET_MSRS", Arg::In(bytes)) => self.msrs(fd, request, &mut bytes.to_vec(), true),
            ("KVM_GET_XSAVE2", Arg::Out(bytes)) if bytes.len() < TILES.end => Err(Errno::EFAULT.into()),
            ("KVM_GET_XSAVE2", Arg::Out(bytes)) => self.xsave(fd, bytes),
            ("KVM_SET_XSAVE", Arg::In(bytes)) if bytes.len() == TILES.end => self.set_xsave(fd, bytes),
            ("KVM_GET_REG_LIST", Arg::Out(bytes)) => {
                let room = long(bytes, 0);
                bytes[..8].copy_from_slice(&1_u64.to_le_bytes());
                if room == 0 {
                    return Err(Errno::E2BIG.into());
                }
                bytes[8..16].copy_from_slice(&SSP.to_le_bytes());
                Ok(0)
            }
            ("KVM_GET_ONE_REG", Arg::Pointing { payload, .. }) => {
                payload.copy_from_slice(&self.of(fd, |held| held.ssp).to_le_bytes());
                Ok(0)
            }
            ("KVM_SET_ONE_REG", Arg::Pointing { payload, .. }) => {
                if !self.loses(Loses::Ssp) {
                    self.of(fd, |held| held.ssp = long(payload, 0));
                }
                Ok(0)
            }
            ("KVM_GET_NESTED_STATE", Arg::Out(bytes)) => self.of(fd, |held| {
                let mut state = held.nested.clone();
                if state.is_empty() {
                    // VMXON was never executed: no addresses, and nothing behind the header.
                    state = vec![0; 128];
                    state[4..8].copy_from_slice(&128_u32.to_le_bytes());
                    state[8..24].fill(0xff);
                }
                let room = (word(bytes, 4) as usize).min(bytes.len());
                bytes[4..8].copy_from_slice(&(state.len() as u32).to_le_bytes());
                if room < state.len() {
                    return Err(Errno::E2BIG.into());
                }
                bytes[..state.len()].copy_from_slice(&state);
                Ok(0)
            }),
            ("KVM_SET_NESTED_STATE", Arg::In(bytes)) => {
                if !self.loses(Loses::Nested) {
                    self.of(fd, |held| held.nested = bytes.to_vec());
                }
                Ok(0)
            }
            (_, arg) => self.live.call(fd, request, arg),
        }
    }

    fn read(&self, source: Source<'_>) -> Result<Vec<u8>, Refusal> {
        self.live.read(source)
    }

    fn close(&self, fd: Handle) {
        if let Ok(mut held) = self.held.lock() {
            held.remove(&fd);
        }
        self.live.close(fd);
    }

    fn set_memory(&self, vm: Handle, slot: Slot, ram: Option<&Arc<Ram>>) -> Result<(), Refusal> {
        self.live.set_memory(vm, slot, ram)
    }

    fn map_run(&self, vcpu: Handle, length: usize) -> Result<Arc<RunPage>, Refusal> {
        self.live.map_run(vcpu, length)
    }
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_what_no_cpu_here_has_is_saved_and_set_where_kvm_pretends_to_have_it() {
    let pretending = Pretending {
        live: Live::new(),
        held: Mutex::new(BTreeMap::new()),
        loses: Mutex::new(Loses::Nothing),
    };
    let noting = Noting::new(&pretending);
    let scene = Scene {
        program: &|_| Asm::new().out(abi::BREATH).done(),
        stop: &|s| s.breath(0, 1),
        ..Scene::default()
    };
    at_the_point(&scene, &noting, |stage| moved(stage, &pretending, &noting));
}

fn moved(stage: &mut Stage<'_, '_, '_>, pretending: &Pretending, noting: &Noting<'_>) {
    let manifest = noting.manifest(0).unwrap();
    for held in pretending.held.lock().unwrap().values_mut() {
        *held = Held::full();
    }
    let begin = std::time::Instant::now();
    let saved = x86::save(&mut stage.parts(), &manifest).unwrap().image;
    // Each under its name.
    let size = |image: &Image, item: &str| image.item(Owner::Vcpu(0), item).map(|item| item.bytes.len());
    assert_eq!(
        ["xsave2", "ssp", "nested-state"].map(|item| size(&saved, item)),
        [Some(TILES.end), Some(16), Some(VMX)]
    );
    for (loses, named) in [
        (Loses::Nothing, None),
        (Loses::Counters, Some("msrs")),
        (Loses::Tiles, Some("xsave2")),
        (Loses::Ssp, Some("ssp")),
        (Loses::Nested, Some("nested-state")),
    ] {
        *pretending.loses.lock().unwrap() = loses;
        let memory = copy(&noting.memory(0));
        let before: Vec<Handle> = pretending.held.lock().unwrap().keys().copied().collect();
        let made = x86::remake(stage.system, &manifest, &memory).unwrap();
        let mut other = Stage::new(stage.system, &made.vm, &made.vcpus, memory[0].1.clone(), stage.deadline);
        let report = x86::restore(&mut other.parts(), &saved, &x86::Options::default()).unwrap();
        let lost: Vec<&str> = report.not_kept.iter().map(|not| not.item.as_str()).collect();
        println!("{loses:?}: {lost:?}");
        match named {
            Some(named) => assert!(!lost.is_empty() && lost.iter().all(|item| *item == named), "{report}"),
            None => {
                assert!(report.complete(), "{report}");
                let held = pretending.held.lock().unwrap().clone();
                let new: Vec<&Held> =
                    held.iter().filter(|(fd, _)| !before.contains(fd)).map(|(_, held)| held).collect();
                assert_eq!(new, [&Held::full()], "the vCPU was told all of it");
                let again = x86::save(&mut other.parts(), &manifest).unwrap().image;
                let different = compare(&saved, &again, Elapsed::of(begin.elapsed()));
                assert!(
                    different.is_empty(),
                    "{:?}",
                    different.iter().map(ToString::to_string).collect::<Vec<_>>()
                );
            }
        }
    }
}
