//! The guest on the real KVM. Ignored, with the reason, where there is none.
#![cfg(target_arch = "x86_64")]

use std::time::Duration;

use evenkeel_monitor::{Irqchip, Machine, Shape};
use evenkeel_sys::requests::KVM_GET_SUPPORTED_CPUID;
use evenkeel_sys::{Deadline, Live, System};
use evenkeel_witness::probe::{Outcome, Probe, RAX, RBX, RCX, RDI, RDX, RSI};
use evenkeel_witness::session::{Session, load};
use evenkeel_witness::{abi, guests};

fn with(irqchip: Irqchip, work: impl FnOnce(&mut Session<'_, '_>)) {
    let live = Live::new();
    let system = System::open(&live).unwrap();
    let machine = Machine::new(&system, Shape { irqchip, pit: false, memory: abi::MEMORY }).unwrap();
    load(machine.ram(), guests::image()).unwrap();
    let vcpu = machine.vcpu(0).unwrap();
    vcpu.set_cpuid(&system.cpuid(&KVM_GET_SUPPORTED_CPUID).unwrap()).unwrap();
    let deadline = Deadline::new();
    let mut session = Session::new(&machine, &vcpu, 0, &deadline).unwrap();
    session.start().unwrap();
    work(&mut session);
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_probes_return_their_registers_and_faults() {
    with(Irqchip::Kernel, |session| {
        let cpuid = Probe::new(&[0x0f, 0xa2]);
        let rdmsr = Probe::new(&[0x0f, 0x32]);
        let all = Probe { inputs: [1, 2, 3, 4, 5, 6], code: vec![0x90] };
        let outcomes = session
            .ask(&[
                cpuid.with(RAX, 0),
                rdmsr.clone().with(RCX, 0xc000_0080),
                rdmsr.with(RCX, 0xdead_0000),
                Probe::new(&[0x0f, 0x0b]),
                all,
            ])
            .unwrap();
        let vendor = outcomes[0].registers().unwrap();
        assert!(vendor[RAX] >= 1 && vendor[RBX] != 0 && vendor[RCX] != 0 && vendor[RDX] != 0, "{outcomes:?}");
        assert_eq!(outcomes[1].edx_eax().unwrap() & 0x500, 0x500, "EFER in long mode: {outcomes:?}");
        assert_eq!(outcomes[2], Outcome::Faulted { vector: 13, error: 0, offset: 0 });
        assert_eq!(outcomes[3], Outcome::Faulted { vector: 6, error: 0, offset: 0 });
        let same = outcomes[4].registers().unwrap();
        assert_eq!([same[RAX], same[RBX], same[RCX], same[RDX], same[RSI], same[RDI]], [1, 2, 3, 4, 5, 6]);
    });
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_a_guest_that_hangs_is_stopped() {
    with(Irqchip::Kernel, |session| {
        session.limit = Duration::from_millis(100);
        let hang = Probe::new(&[0xeb, 0xfe]);
        let outcomes = session.ask(&[hang.clone(), Probe::new(&[0x90])]).unwrap();
        assert_eq!(outcomes[0], Outcome::Ended("no end within 100ms".to_owned()));
        assert!(outcomes[1].registers().is_some(), "it goes on behind: {outcomes:?}");
        let error = session.ask(&vec![hang; 10]).unwrap_err().to_string();
        assert!(error.contains("100ms"), "not for ever: {error}");
    });
}
