//! A guest of a few bytes, on the real KVM. Ignored, with the reason, where there is none.
#![cfg(target_arch = "x86_64")]

use std::sync::Arc;

use evenkeel_sys::requests::{KVM_GET_REGS, KVM_GET_SREGS, KVM_SET_REGS, KVM_SET_SREGS};
use evenkeel_sys::{Errno, Exit, Fault, Faulty, Live, Ram, Rule, Slot, System, When, layout};

/// Runs this real-mode code at 0x1000 and hands each exit to `each` until that is done.
fn run(code: &[u8], mut each: impl FnMut(&Exit) -> Option<Vec<u8>>) -> Vec<Exit> {
    let live = Live::new();
    let system = System::open(&live).unwrap();
    let vm = system.create_vm(0).unwrap();
    let ram = Arc::new(Ram::new(0x4000).unwrap());
    ram.write(0x1000, code).unwrap();
    vm.set_memory(0, 0, &ram).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let mut sregs = vcpu.get(&KVM_GET_SREGS, layout::X86_SREGS).unwrap();
    // CS: base and selector 0.
    sregs[..8].fill(0);
    sregs[12..14].fill(0);
    vcpu.set(&KVM_SET_SREGS, &sregs).unwrap();
    let mut regs = vcpu.get(&KVM_GET_REGS, layout::X86_REGS).unwrap();
    regs[128..136].copy_from_slice(&0x1000_u64.to_ne_bytes());
    vcpu.set(&KVM_SET_REGS, &regs).unwrap();
    let mut runner = vcpu.runner(&system).unwrap();
    let mut exits = Vec::new();
    for _ in 0..10 {
        let exit = runner.run().unwrap();
        let answer = each(&exit);
        exits.push(exit.clone());
        match answer {
            Some(data) => runner.answer(&data),
            None if exit == Exit::Halted => break,
            None => {}
        }
    }
    exits
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_ports_memory_and_halt() {
    // in al, 0x10; inc al; out 0x11, al; mov [0x7000], al; hlt
    let code = [0xe4, 0x10, 0xfe, 0xc0, 0xe6, 0x11, 0xa2, 0x00, 0x70, 0xf4];
    let exits = run(&code, |exit| matches!(exit, Exit::PortRead { .. }).then(|| vec![41]));
    assert_eq!(
        exits,
        [
            Exit::PortRead { port: 0x10, size: 1, count: 1 },
            Exit::PortWrite { port: 0x11, size: 1, data: vec![42] },
            Exit::MemoryWrite { address: 0x7000, data: vec![42] },
            Exit::Halted,
        ]
    );
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_an_immediate_exit_executes_nothing() {
    let live = Live::new();
    let system = System::open(&live).unwrap();
    let vcpu = system.create_vm(0).unwrap().create_vcpu(0).unwrap();
    let mut runner = vcpu.runner(&system).unwrap();
    runner.leave_at_once(true);
    assert_eq!(runner.run().unwrap(), Exit::Interrupted);
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_memory_that_is_not_there_is_refused() {
    let live = Live::new();
    let system = System::open(&live).unwrap();
    let vm = system.create_vm(0).unwrap();
    let ram = Arc::new(Ram::new(0x2000).unwrap());
    let slot = Slot { number: 0, flags: 0, guest: 0, offset: 0x1000, length: 0x2000 };
    assert!(vm.set_slot(slot, Some(&ram)).unwrap_err().to_string().contains("within its memory"));
    assert!(vm.set_slot(Slot { offset: u64::MAX, ..slot }, Some(&ram)).is_err());
    assert!(vm.set_slot(slot, None).is_err(), "memory of some length and none to take it from");
    // Behind the choke point's back: the ioctl takes an address from nobody.
    let raw = vm.set(&evenkeel_sys::requests::KVM_SET_USER_MEMORY_REGION, &[0; 32]);
    assert!(raw.unwrap_err().to_string().contains("does not take an argument of this form"));
    vm.set_slot(Slot { length: 0x1000, ..slot }, Some(&ram)).unwrap();
    vm.set_slot(Slot { length: 0, ..slot }, None).unwrap();
    assert_eq!(Arc::strong_count(&ram), 1, "memory that was taken away is let go");
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_faults_reach_memory_and_runs() {
    let rule = |name: &str| Rule { when: When::Every(name.to_owned()), fault: Fault::Fail(Errno::EIO) };
    for name in ["KVM_SET_USER_MEMORY_REGION", "mmap", "KVM_RUN"] {
        let faulty = Faulty::new(Live::new(), vec![rule(name)]);
        let system = System::open(&faulty).unwrap();
        let vm = system.create_vm(0).unwrap();
        let ram = Arc::new(Ram::new(0x1000).unwrap());
        let memory = vm.set_memory(0, 0, &ram);
        let vcpu = vm.create_vcpu(0).unwrap();
        let ran = vcpu.runner(&system).and_then(|mut runner| runner.run());
        let error = memory.and_then(|()| ran.map(drop)).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn memory_is_copied_within_its_bounds() {
    let ram = Ram::new(0x1000).unwrap();
    let mut bytes = [0; 4];
    ram.write(0xffc, &[1, 2, 3, 4]).unwrap();
    ram.read(0xffc, &mut bytes).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4]);
    assert!(ram.read(0xffd, &mut bytes).is_err());
    assert!(ram.write(usize::MAX, &bytes).unwrap_err().to_string().contains("not within"));
}
