//! The arm64 engine on a made-up KVM with the ways of real ones: sets that only set, registers that show others, an interrupt
//! controller that must be told twice. What guests notice is measured in the lab: `evenkeel lab rounds`.

use std::collections::BTreeMap;
use std::sync::Mutex;

use evenkeel_catalog::Arch;
use evenkeel_state::order::{Order, Phase, edges};
use evenkeel_state::{Elapsed, Image, Manifest, Noting, Owner, Parts, Report, Saved, arm64, compare};
use evenkeel_sys::{
    Arg, Backend, Errno, Fault, Faulty, FdKind, Handle, Refusal, Request, Rule, Source, System, When,
};

const MPIDR: u64 = 0x6030_0000_0013_c005;
const PFR0: u64 = 0x6030_0000_0013_c020;
const SCTLR: u64 = 0x6030_0000_0013_c080;
/// Listed only while PFR0 is not 0.
const FPMR: u64 = 0x6030_0000_0013_da22;
const PSCI: u64 = 0x6030_0000_0014_0000;
const ENABLE: u64 = 0x6030_0000_0013_dce1;
const DISABLE: u64 = 0x6030_0000_0013_dce2;
const COUNTER: u64 = 0x6030_0000_0013_df1a;
const IDS: [u64; 8] = [MPIDR, PFR0, SCTLR, FPMR, PSCI, ENABLE, DISABLE, COUNTER];

#[derive(Default)]
struct Host {
    state: Mutex<State>,
    /// GICD_IIDR is accepted and ignored.
    deaf: bool,
}

#[derive(Default)]
struct State {
    kinds: Vec<FdKind>,
    vcpus: u64,
    registers: BTreeMap<(u32, u64), u64>,
    attributes: BTreeMap<(u32, u32, u64), Vec<u8>>,
    structures: BTreeMap<(u32, &'static str), Vec<u8>>,
    /// Devices that were initialized.
    ready: Vec<u32>,
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

impl State {
    fn create(&mut self, kind: FdKind) -> i32 {
        self.kinds.push(kind);
        self.kinds.len() as i32 - 1
    }

    fn vcpu(&mut self) -> i32 {
        let made = self.create(FdKind::Vcpu);
        let fresh = [self.vcpus, 0x11, 0x30d0_0800, 3, 0x1_0001, 0x8000_001e, 0, 1000];
        self.registers.extend(IDS.iter().zip(fresh).map(|(id, value)| ((made as u32, *id), value)));
        self.structures.insert((made as u32, "MP_STATE"), vec![0; 4]);
        self.structures.insert((made as u32, "VCPU_EVENTS"), vec![0; 64]);
        self.vcpus += 1;
        made
    }

    fn listed(&self, vcpu: u32) -> Vec<u64> {
        IDS.into_iter().filter(|id| *id != FPMR || self.registers[&(vcpu, PFR0)] != 0).collect()
    }

    fn register(&mut self, vcpu: u32, id: u64, payload: &mut [u8], set: bool) -> Result<i32, Refusal> {
        if !self.listed(vcpu).contains(&id) {
            return Err(Errno::ENOENT.into());
        }
        let shown = if id == DISABLE { ENABLE } else { id };
        let value = self.registers[&(vcpu, shown)];
        if set {
            let new = match id {
                ENABLE => value | number(payload),
                DISABLE => value & !number(payload),
                _ => number(payload),
            };
            self.registers.insert((vcpu, shown), new);
        } else {
            payload.copy_from_slice(&value.to_le_bytes());
            if id == COUNTER {
                self.registers.insert((vcpu, id), value + 10);
            }
        }
        Ok(0)
    }

    fn attribute(
        &mut self,
        fd: u32,
        head: &[u8],
        payload: &mut [u8],
        set: bool,
        deaf: bool,
    ) -> Result<i32, Refusal> {
        let (group, attr) = (number(&head[4..8]) as u32, number(&head[8..16]));
        let offset = attr & 0xffff_ffff;
        let device = self.kinds[fd as usize] == FdKind::Device;
        match (device, group, offset) {
            (true, 4, 0) => self.ready.push(fd),
            // The registers of EL2's interface, with op1 = 4; and nothing before initialization.
            (true, 6, _) if offset >> 11 & 7 == 4 => return Err(Errno::ENXIO.into()),
            (true, 1 | 5 | 6 | 7, _) if !self.ready.contains(&fd) => return Err(Errno::EBUSY.into()),
            (true, 1, 4) if !set => payload.copy_from_slice(&[1, 0, 0, 0]),
            (true, 1, 4) => {}
            (true, 1, 8) if deaf && set => {}
            (false, 0, _) => {}
            (false, 1, 0 | 1) | (true, ..) => {
                let clear = |at: u64| (group, at & 0xff80) == (group, 0x180) || at & 0xff80 == 0x380;
                let at = if clear(offset) { attr - 0x80 } else { attr };
                let held = self.attributes.entry((fd, group, at)).or_insert_with(|| vec![0; payload.len()]);
                let sets = matches!(group, 1 | 5) && matches!(offset & 0xff80, 0x100 | 0x300);
                match set {
                    false => payload.copy_from_slice(held),
                    true if matches!(group, 1 | 5) && clear(offset) => {
                        held.iter_mut().zip(payload).for_each(|(a, b)| *a &= !*b);
                    }
                    true if sets => held.iter_mut().zip(payload).for_each(|(a, b)| *a |= *b),
                    true => held.copy_from_slice(payload),
                }
            }
            _ => return Err(Errno::ENXIO.into()),
        }
        Ok(0)
    }
}

impl Backend for Host {
    fn open(&self, _: &str, kind: FdKind) -> Result<Handle, Refusal> {
        Ok(Handle(self.state.lock().unwrap().create(kind) as u32))
    }

    fn call(&self, fd: Handle, request: &Request, arg: Arg<'_>) -> Result<i32, Refusal> {
        let mut state = self.state.lock().unwrap();
        match (request.name, arg) {
            ("KVM_CHECK_EXTENSION", _) => Ok(1),
            ("KVM_CREATE_VM", _) => Ok(state.create(FdKind::Vm)),
            ("KVM_CREATE_VCPU", _) => Ok(state.vcpu()),
            ("KVM_CREATE_DEVICE", Arg::Out(out)) => {
                let made = state.create(FdKind::Device);
                out[4..8].copy_from_slice(&made.to_ne_bytes());
                Ok(0)
            }
            ("KVM_ARM_PREFERRED_TARGET" | "KVM_ARM_VCPU_INIT", _) => Ok(0),
            ("KVM_GET_REG_LIST", Arg::Out(out)) => {
                let ids = state.listed(fd.0);
                out[..8].copy_from_slice(&(ids.len() as u64).to_ne_bytes());
                for (id, place) in ids.iter().zip(out[8..].chunks_exact_mut(8)) {
                    place.copy_from_slice(&id.to_ne_bytes());
                }
                Ok(0)
            }
            ("KVM_GET_ONE_REG", Arg::Pointing { head, payload }) => {
                state.register(fd.0, number(&head[..8]), payload, false)
            }
            ("KVM_SET_ONE_REG", Arg::Pointing { head, payload }) => {
                state.register(fd.0, number(&head[..8]), payload, true)
            }
            ("KVM_GET_DEVICE_ATTR", Arg::Pointing { head, payload }) => {
                state.attribute(fd.0, head, payload, false, self.deaf)
            }
            ("KVM_SET_DEVICE_ATTR", Arg::Pointing { head, payload }) => {
                state.attribute(fd.0, head, payload, true, self.deaf)
            }
            (name, Arg::Out(out)) if name.starts_with("KVM_GET_") => {
                let held = state.structures.get(&(fd.0, &name[8..])).ok_or(Errno::ENOTTY)?;
                out.copy_from_slice(held);
                Ok(0)
            }
            (name, Arg::In(bytes)) if name.starts_with("KVM_SET_") => {
                let name = if name.ends_with("MP_STATE") { "MP_STATE" } else { "VCPU_EVENTS" };
                state.structures.insert((fd.0, name), bytes.to_vec());
                Ok(0)
            }
            _ => Err(Errno::ENOTTY.into()),
        }
    }

    fn read(&self, _: Source<'_>) -> Result<Vec<u8>, Refusal> {
        Err(Errno::ENOENT.into())
    }

    fn close(&self, _: Handle) {}
}

/// A VM with two vCPUs and a GICv3 whose state is nowhere what it is in a fresh one.
fn saved(host: &dyn Backend) -> Saved {
    let noting = Noting::new(host);
    let system = System::open(&noting).unwrap();
    let vm = system.create_vm(0).unwrap();
    let vcpus = [vm.create_vcpu(0).unwrap(), vm.create_vcpu(1).unwrap()];
    vcpus[0].init(5, 4).unwrap();
    vcpus[1].init(5, 5).unwrap();
    let gic = vm.create_device(7).unwrap();
    gic.set_attr(0, 2, &[0; 8]).unwrap();
    gic.set_attr(4, 0, &[]).unwrap();
    for vcpu in &vcpus {
        vcpu.set_one_reg(PFR0, &0x22_u64.to_le_bytes()).unwrap();
        vcpu.set_one_reg(SCTLR, &0x30d0_1805_u64.to_le_bytes()).unwrap();
        vcpu.set_one_reg(DISABLE, &u64::MAX.to_le_bytes()).unwrap();
        vcpu.set_one_reg(ENABLE, &0x4_u64.to_le_bytes()).unwrap();
        vcpu.set_attr(1, 0, &29_u32.to_le_bytes()).unwrap();
    }
    for (group, attr, value) in [
        (1, 8, 0x4b00_243b_u32),
        (1, 0, 0x12),
        (1, 0x104, 0x500),
        (1, 0x204, 0x400),
        (5, 1 << 32 | 0x1_0100, 8),
    ] {
        gic.set_attr(group, attr, &value.to_le_bytes()).unwrap();
    }
    vcpus[1].set(&evenkeel_sys::requests::KVM_SET_MP_STATE, &[3, 0, 0, 0]).unwrap();
    let manifest = noting.manifest(0).unwrap();
    let cpus = vcpus.iter().map(evenkeel_state::Cpu::still).collect();
    let mut parts = Parts { devices: vec![&gic], ..Parts::new(&system, &vm, cpus) };
    arm64::save(&mut parts, &manifest).unwrap()
}

fn restored(
    host: &dyn Backend,
    image: &Image,
    order: &Order,
) -> Result<(Report, Saved), evenkeel_state::Refused> {
    let system = System::open(host).map_err(|_| refused("no KVM"))?;
    let mut made = arm64::remake(&system, &image.manifest, &[])?;
    let later = std::mem::take(&mut made.later);
    let report = arm64::restore_in(&mut made.parts(&system), image, &later, arm64::Time::Stopped, order)?;
    let again = arm64::save(&mut made.parts(&system), &image.manifest)?;
    Ok((report, again))
}

fn refused(why: &str) -> evenkeel_state::Refused {
    let (item, owner, source, hint) = (String::new(), Owner::Vm, None, String::new());
    evenkeel_state::Refused { item, owner, why: why.to_owned(), source, hint }
}

fn catalogued() -> &'static Order {
    Order::catalogued(Arch::Aarch64, Phase::Restore)
}

#[test]
fn what_is_saved_is_restored_and_saved_again() {
    let saved = saved(&Host::default());
    assert!(saved.image.items.len() > 15, "{:?}", saved.image.items);
    assert!(saved.absent.iter().any(|a| a.item == "its-tables" && a.why == "the VM has no ITS"));
    let (report, again) = restored(&Host::default(), &saved.image, catalogued()).unwrap();
    assert_eq!(report.not_kept, []);
    assert_eq!((report.running, report.implied), (1, 2), "a counter, and an alias of each vCPU");
    assert!(report.kept > 100, "{}", report.kept);
    assert_eq!(compare(&saved.image, &again.image, Elapsed::none()), []);
}

#[test]
fn what_was_accepted_and_ignored_is_named() {
    let saved = saved(&Host::default());
    let (report, _) = restored(&Host { deaf: true, ..Host::default() }, &saved.image, catalogued()).unwrap();
    let lost: Vec<String> = report.not_kept.iter().map(ToString::to_string).collect();
    assert_eq!(lost, ["vm/vgic-v3-iidr/GICD_IIDR: altered, saved 0x4b00243b, now 0x0"]);
}

#[test]
fn an_image_with_what_does_not_belong_is_refused_before_anything_is_set() {
    let saved = saved(&Host::default());
    let spoil = |spoil: &dyn Fn(&mut Image)| {
        let mut image = saved.image.clone();
        spoil(&mut image);
        restored(&Host::default(), &image, catalogued()).unwrap_err().to_string()
    };
    assert!(spoil(&|i| i.items[0].name = "sregs".to_owned()).contains("nobody here knows"));
    assert!(spoil(&|i| i.items[0].owner = Owner::Vcpu(7)).contains("the VM has 2 vCPUs"));
    assert!(spoil(&|i| i.items.push(i.items[0].clone())).contains("twice"));
    assert!(spoil(&|i| i.items[0].bytes.truncate(9)).contains("cut off"));
    assert!(spoil(&|i| i.manifest = Manifest::default()).contains("KVM_CREATE_VM"));
}

#[test]
fn edges_that_are_turned_show_here_too() {
    let saved = saved(&Host::default());
    let shows = |before: &str, after: &str| {
        let edge = edges(Arch::Aarch64, Phase::Restore).find(|e| (e.before, e.after) == (before, after));
        let order = Order::turned(edge.unwrap()).unwrap();
        match restored(&Host::default(), &saved.image, &order) {
            Ok((report, _)) => !report.complete(),
            Err(_) => true,
        }
    };
    assert!(
        shows("vgic-v3-init", "vgic-v3-iidr"),
        "registers of the GIC are refused before it is initialized"
    );
}

#[test]
fn every_call_that_fails_or_lies_is_told_or_does_no_harm() {
    let whole = saved(&Host::default());
    let (mut refused, mut named, mut harmless) = (0, 0, 0);
    for fault in [Fault::Fail(Errno::EIO), Fault::Lie] {
        for n in 0.. {
            let host = Faulty::new(Host::default(), vec![Rule { when: When::Nth(n), fault: fault.clone() }]);
            let done = restored(&host, &whole.image, catalogued());
            if host.spoiled().is_empty() {
                break;
            }
            match done {
                Err(_) => refused += 1,
                Ok((report, _)) if !report.complete() => named += 1,
                Ok((_, again)) => {
                    let lost = compare(&whole.image, &again.image, Elapsed::none());
                    assert_eq!(lost, [], "call {n}, {:?}, and nobody says so", host.spoiled());
                    harmless += 1;
                }
            }
        }
    }
    println!("{refused} refused, {named} named, {harmless} harmless");
    assert!(refused > 100 && named > 50, "{refused}, {named}");
}
