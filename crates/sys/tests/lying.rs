//! A host that lies, over a small kernel of our own: no /dev/kvm is needed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use evenkeel_sys::layout::{CpuidEntry, long, word};
use evenkeel_sys::{
    Alteration, Arg, Backend, Creates, Errno, FdKind, Handle, Lying, Refusal, Request, Source, System,
};

/// What a file descriptor was told.
#[derive(Clone, Debug, Default)]
struct Told {
    cpuid: Vec<u8>,
    msrs: BTreeMap<u32, u64>,
    caps: Vec<(u32, u64)>,
    mce: u64,
}

/// Takes every CPUID and the MSRs 0x10a and 0x8b; refuses capability 999.
#[derive(Clone, Default)]
struct Toy(Arc<Mutex<BTreeMap<Handle, Told>>>);

impl Toy {
    fn told(&self, fd: u32) -> Told {
        self.0.lock().unwrap()[&Handle(fd)].clone()
    }
}

impl Backend for Toy {
    fn open(&self, _: &str, _: FdKind) -> Result<Handle, Refusal> {
        self.0.lock().unwrap().insert(Handle(0), Told::default());
        Ok(Handle(0))
    }

    fn call(&self, fd: Handle, request: &Request, arg: Arg<'_>) -> Result<i32, Refusal> {
        let mut all = self.0.lock().unwrap();
        if let Some(Creates::Returned(_)) = request.creates {
            let next = Handle(all.len() as u32);
            all.insert(next, Told::default());
            return Ok(next.0 as i32);
        }
        let told = all.get_mut(&fd).ok_or(Errno::EBADF)?;
        match (request.name, arg) {
            ("KVM_GET_API_VERSION", _) => Ok(12),
            ("KVM_SET_CPUID2", Arg::In(bytes)) => {
                told.cpuid = bytes.to_vec();
                Ok(0)
            }
            ("KVM_GET_CPUID2", Arg::Out(bytes)) => {
                bytes[..told.cpuid.len()].copy_from_slice(&told.cpuid);
                Ok(0)
            }
            ("KVM_SET_MSRS", Arg::In(bytes)) => {
                let mut done = 0;
                for entry in bytes[8..].chunks_exact(16) {
                    if ![0x10a, 0x8b].contains(&word(entry, 0)) {
                        break;
                    }
                    told.msrs.insert(word(entry, 0), long(entry, 8));
                    done += 1;
                }
                Ok(done)
            }
            ("KVM_GET_MSRS", Arg::Out(bytes)) => {
                for entry in bytes[8..].chunks_exact_mut(16) {
                    let value = told.msrs.get(&word(entry, 0)).copied().unwrap_or(0xff);
                    entry[8..].copy_from_slice(&value.to_ne_bytes());
                }
                Ok(word(bytes, 0) as i32)
            }
            ("KVM_ENABLE_CAP", Arg::In(bytes)) if word(bytes, 0) != 999 => {
                told.caps.push((word(bytes, 0), long(bytes, 8)));
                Ok(0)
            }
            ("KVM_X86_SETUP_MCE", Arg::In(bytes)) => {
                told.mce = long(bytes, 0);
                Ok(0)
            }
            _ => Err(Errno::EINVAL.into()),
        }
    }

    fn read(&self, _: Source<'_>) -> Result<Vec<u8>, Refusal> {
        Err(Errno::ENOENT.into())
    }

    fn close(&self, _: Handle) {}
}

const TABLE: [CpuidEntry; 1] = [CpuidEntry { function: 7, index: 0, flags: 1, output: [0, 3, 0, 0] }];

fn flip(leaf: u32, subleaf: u32, flip: u32) -> Alteration {
    Alteration::Cpuid { leaf, subleaf, register: 1, flip }
}

#[test]
fn what_was_asked_for_is_read_and_something_else_is_in_force() {
    let toy = Toy::default();
    let list = vec![
        flip(7, 0, 1),
        flip(7, 1, 4),
        Alteration::Msr { msr: 0x10a, flip: 2 },
        Alteration::Cap { on: FdKind::Vm, cap: 213, argument: Some(4) },
        Alteration::Cap { on: FdKind::Vcpu, cap: 190, argument: None },
        Alteration::Mce(10),
    ];
    let lying = Lying::new(toy.clone(), list);
    let system = System::open(&lying).unwrap();
    // The VM is 1 and its twin 2, the vCPU 3 and its twin 4.
    let vm = system.create_vm(0).unwrap();
    vm.enable_cap(129, [3, 0, 0, 0]).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    vcpu.enable_cap(190, [1, 0, 0, 0]).unwrap();
    vcpu.set_cpuid(&TABLE).unwrap();
    assert!(vcpu.msrs().set(&[(0x8b, 5), (0x10a, 0)]).iter().all(Result::is_ok));
    assert_eq!(vcpu.cpuid().unwrap(), TABLE);
    assert_eq!(vcpu.msrs().get(&[0x10a, 0x8b]).into_iter().map(Result::unwrap).collect::<Vec<_>>(), [0, 5]);

    let (real, twin) = (toy.told(3), toy.told(4));
    let entries: Vec<CpuidEntry> = real.cpuid[8..].chunks_exact(40).map(CpuidEntry::from_bytes).collect();
    assert_eq!(entries.iter().map(|e| (e.index, e.output[1])).collect::<Vec<_>>(), [(0, 2), (1, 4)]);
    assert_eq!((real.msrs[&0x10a], real.msrs[&0x8b], real.mce), (2, 5, 10));
    assert_eq!((real.caps, twin.caps, twin.mce), (vec![], vec![(190, 1)], 0));
    // What nobody asked for comes before the vCPU; the twin knows nothing of it.
    assert_eq!(toy.told(1).caps, [(129, 3), (213, 4)]);
    assert_eq!(toy.told(2).caps, [(129, 3)]);
    assert!(lying.made().iter().all(|made| made.calls == 1 && made.refused.is_none()), "{:?}", lying.made());
}

#[test]
fn a_refusal_is_noted_and_not_told() {
    let toy = Toy::default();
    let lying = Lying::new(
        toy.clone(),
        vec![Alteration::Cap { on: FdKind::Vcpu, cap: 999, argument: Some(1) }, flip(7, 0, 1)],
    );
    let system = System::open(&lying).unwrap();
    let vcpu = system.create_vm(0).unwrap().create_vcpu(0).unwrap();
    assert_eq!(lying.made()[1].calls, 0, "nothing has been set yet");
    vcpu.set_cpuid(&TABLE).unwrap();
    let made = lying.made();
    assert_eq!(made[0].refused, Some(Errno::EINVAL.into()));
    assert_eq!((made[1].calls, &made[1].refused), (1, &None));
}

#[test]
fn an_honest_host_shows_what_it_altered() {
    let lying = Lying::honest(Toy::default(), vec![flip(7, 0, 1), Alteration::NoMsrs]);
    let system = System::open(&lying).unwrap();
    let vcpu = system.create_vm(0).unwrap().create_vcpu(0).unwrap();
    vcpu.set_cpuid(&TABLE).unwrap();
    assert!(vcpu.msrs().set(&[(0x10a, 0)])[0].is_ok());
    assert_eq!(vcpu.cpuid().unwrap()[0].output[1], 2);
    assert_eq!(*vcpu.msrs().get(&[0x10a])[0].as_ref().unwrap(), 0xff, "nothing was set");
}
