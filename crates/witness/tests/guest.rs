//! The guest on the real KVM. Ignored, with the reason, where there is none.
#![cfg(target_arch = "x86_64")]

use std::time::Duration;

use evenkeel_monitor::{Irqchip, Machine, Shape};
use evenkeel_sys::requests::KVM_GET_SUPPORTED_CPUID;
use evenkeel_sys::{Deadline, Live, System};
use evenkeel_witness::observation::Record;
use evenkeel_witness::probe::{Outcome, Probe, RAX, RBX, RCX, RDI, RDX, RSI};
use evenkeel_witness::programs::x86_64::{memory, msr};
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

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_a_result_without_this_runs_nonce_is_none() {
    with(Irqchip::Kernel, |session| {
        let value = Probe { inputs: [7; 6], code: vec![0x90] };
        let first = session.one(value.clone()).unwrap();
        assert_eq!(first.registers(), Some(&[7; 6]));
        let mut result = [0; abi::RESULT_BYTES];
        session.ram().read(abi::OUTCOMES as usize, &mut result).unwrap();
        let tag = u64::from_le_bytes(result[abi::TAG..abi::TAG + 8].try_into().unwrap());
        assert_eq!(Outcome::decode(&result, tag, 0), first);
        assert_eq!(Outcome::decode(&result, tag, 1), Outcome::Silent, "another probe's");
        session.one(value).unwrap();
        session.ram().read(abi::OUTCOMES as usize, &mut result).unwrap();
        assert_eq!(Outcome::decode(&result, tag, 0), Outcome::Silent, "an earlier run's nonce");
    });
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_a_guest_that_writes_over_its_tables_is_not_believed() {
    with(Irqchip::Kernel, |session| {
        // mov qword ptr [rsi], rax
        let poke =
            |at: u32, value: u64| Probe::new(&[0x48, 0x89, 0x06]).with(RSI, u64::from(at)).with(RAX, value);
        let nop = Probe::new(&[0x90]);
        // The next probe's index becomes huge: no more probes are done, and what was not done has no result.
        let outcomes = session.ask(&[poke(abi::AREA, 0xffff_fff0), nop.clone(), nop.clone()]).unwrap();
        assert_eq!(outcomes[1..], [Outcome::Silent, Outcome::Silent]);
        // The results' place is not memory: what is written there goes nowhere, and no probe has a result.
        let outcomes = session.ask(&[poke(abi::AREA + abi::RESULTS, 0xd000_0000), nop.clone(), nop.clone()]);
        assert!(outcomes.is_ok_and(|o| o[1..].iter().all(|o| o.registers().is_none())));
        // The guest's own code, behind its end: it still runs, and is not believed.
        let end = abi::CODE + abi::CODE_BYTES as u32 - 8;
        let error = session.one(poke(end, 1)).unwrap_err().to_string();
        assert!(error.contains("code was changed"), "{error}");
    });
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_a_guest_that_breaks_itself_ends_in_an_error() {
    with(Irqchip::Kernel, |session| {
        session.limit = Duration::from_millis(500);
        // mov rsp, 0xd0000000; ret: the stack is gone, and with it everything.
        let outcome = session.one(Probe::new(&[0xbc, 0x00, 0x00, 0x00, 0xd0, 0xc3]));
        match outcome {
            Ok(Outcome::Ended(_) | Outcome::Stopped | Outcome::Silent | Outcome::Exited(_)) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    });
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_memory_types_are_told_apart_and_left_as_they_were() {
    with(Irqchip::Kernel, |session| {
        let mut record = Record::default();
        msr::read_all(session, &mut record).unwrap();
        let before = |record: &Record| {
            [0x200, 0x201, 0x250, 0x277, 0x2ff].map(|n| record.number(&format!("msr.{n:x}")))
        };
        let then = before(&record);
        assert!(then.iter().all(Option::is_some), "{then:x?}");
        memory::observe(session, &mut record).unwrap();
        // UC, WC, WT, WP, WB, and nothing else: the architecture has no other type for a range.
        for name in ["variable", "fixed", "default"] {
            let types = |what: &str| record.number(&format!("memory.mtrr.{name}.types{what}"));
            assert_eq!((types(""), types(".faults")), (Some(0x73), Some(0x8c)), "{name}");
        }
        // With UC-, type 7, as well. Hosts were seen that take the two that do not exist.
        assert_eq!(record.number("memory.pat.types").unwrap() & 0xf3, 0xf3);
        // The enable bits, and none of those that are reserved.
        assert_eq!(record.number("memory.mtrr.default.enable.writable"), Some(0xc00));
        assert_eq!(record.number("memory.mtrr.default.enable.faults"), Some(0x1300));
        let mut after = Record::default();
        msr::read_all(session, &mut after).unwrap();
        assert_eq!(before(&after), then);
    });
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_many_short_runs_each_have_all_of_their_time() {
    with(Irqchip::Kernel, |session| {
        // The watcher sleeps over short runs; one that follows with less time is stopped all the same, and on time.
        for limit in [5_000, 60, 5_000, 60] {
            session.limit = Duration::from_millis(limit);
            for _ in 0..20 {
                assert!(session.one(Probe::new(&[0x90])).unwrap().registers().is_some());
            }
            if limit == 60 {
                let start = std::time::Instant::now();
                let outcome = session.one(Probe::new(&[0xeb, 0xfe])).unwrap();
                assert_eq!(outcome, Outcome::Ended("no end within 60ms".to_owned()));
                let took = start.elapsed();
                assert!(took >= Duration::from_millis(60) && took < Duration::from_secs(3), "{took:?}");
            }
        }
    });
}

#[test]
fn whatever_is_in_memory_is_one_of_the_outcomes() {
    // A xorshift over many results, with the right tag and without.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let (mut silent, mut known) = (0, 0);
    for _ in 0..20_000 {
        let mut bytes: Vec<u8> = (0..abi::RESULT_BYTES / 8).flat_map(|_| next().to_le_bytes()).collect();
        let nonce = next();
        let index = (next() & 0xfff) as u32;
        if next() & 1 == 0 {
            bytes[abi::TAG..abi::TAG + 8].copy_from_slice(&(nonce ^ u64::from(index)).to_le_bytes());
            bytes[abi::KIND..abi::KIND + 8].copy_from_slice(&(next() & 7).to_le_bytes());
            bytes[abi::VECTOR..abi::VECTOR + 8].copy_from_slice(&(next() & 0x3f).to_le_bytes());
            bytes[abi::ERROR..abi::ERROR + 8].copy_from_slice(&(next() & 0x1_ffff_ffff).to_le_bytes());
        }
        match Outcome::decode(&bytes, nonce, index) {
            Outcome::Silent => silent += 1,
            Outcome::Faulted { vector, .. } => {
                assert!(vector < 32);
                known += 1;
            }
            _ => known += 1,
        }
    }
    assert!(silent > 10_000 && known > 1_000, "{silent} {known}");
    assert_eq!(Outcome::decode(&[], 0, 1), Outcome::Silent, "too short");
}
