//! A guest that is saved and set elsewhere again and again, at random moments, while timers and interrupts are under way.

use std::time::{Duration, Instant};

use evenkeel_monitor::{Irqchip, Machine, Shape};
use evenkeel_state::{Noting, x86};
use evenkeel_sys::requests::KVM_GET_SUPPORTED_CPUID;
use evenkeel_sys::{Deadline, Exit, Live, System};
use evenkeel_witness::abi;

use crate::asm::{Asm, results};
use crate::stage::{Stage, copy, load};

/// Asks for an interrupt of its timer, waits for it, and counts: by turns one-shot and deadline, in x2APIC mode. It also
/// keeps the TSC of each turn, and how often it went back.
fn program() -> Asm {
    let r = results(0);
    let start = Asm::new().x2apic_on().wrmsr(0x83e, 0xb);
    // r + 0: turns. r + 8: last TSC. r + 16: how often it went back.
    let begin = start.0.len();
    // One-shot: vector 0x61, 20000 ticks; then halt until it is there.
    let one = start.wrmsr(0x832, 0x61).wrmsr(0x838, 20_000).sti().hlt().cli().wrmsr(0x80b, 0);
    // TSC deadline: vector 0x62.
    let two = one.wrmsr(0x832, 0x4_0062).deadline_in(50_000).sti().hlt().cli().wrmsr(0x80b, 0);
    // rdtsc; shl rdx, 32; or rax, rdx; mov edi, r
    let now = two.bytes(&[0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0]).mov(7, r);
    // cmp rax, [rdi + 8]; jae +4; inc qword [rdi + 16]; mov [rdi + 8], rax; inc qword [rdi]
    let mut kept = now.bytes(&[0x48, 0x3b, 0x47, 0x08, 0x73, 0x04, 0x48, 0xff, 0x47, 0x10]);
    kept = kept.bytes(&[0x48, 0x89, 0x47, 0x08, 0x48, 0xff, 0x07]).out(abi::BREATH);
    let back = begin as i64 - (kept.0.len() as i64 + 5);
    kept.bytes(&[0xe9]).bytes(&(back as i32).to_le_bytes())
}

/// Turns of the guest, and cycles, until it has had this many.
fn cycles(count: usize) -> (u64, Duration) {
    let live = Live::new();
    let deadline = Deadline::new();
    let shape = Shape { irqchip: Irqchip::Kernel, pit: true, memory: abi::MEMORY };
    let (manifest, mut memory, mut image);
    let mut seed = 0x1234_5678_9abc_def1_u64;
    let mut random = move |most: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % most
    };
    // Runs for a random time, or to a random exit: whatever it is at then is where it is saved.
    let mut some = |stage: &mut Stage<'_, '_, '_>| {
        for _ in 0..random(4) {
            let exit = stage.step(0, Duration::from_secs(5));
            assert!(matches!(exit, Exit::PortWrite { .. }), "{exit:?}");
        }
        let exit = stage.step(0, Duration::from_micros(1 + random(300)));
        assert!(matches!(exit, Exit::PortWrite { .. } | Exit::Interrupted), "{exit:?}");
        // A timer may end while nobody runs.
        std::thread::sleep(Duration::from_micros(random(200)));
    };
    {
        let noting = Noting::new(&live);
        let system = System::open(&noting).unwrap();
        let machine = Machine::new(&system, shape).unwrap();
        let vcpus = [machine.vcpu(0).unwrap()];
        vcpus[0].set_cpuid(&system.cpuid(&KVM_GET_SUPPORTED_CPUID).unwrap()).unwrap();
        load(machine.ram(), &vcpus, &|_| program(), false);
        let mut stage = Stage::new(&system, machine.vm(), &vcpus, machine.ram().clone(), &deadline);
        some(&mut stage);
        manifest = noting.manifest(0).unwrap();
        image = x86::save(&mut stage.parts(), &manifest).unwrap().image;
        memory = copy(&noting.memory(0));
    }
    let mut spent = Duration::ZERO;
    let mut turns = 0;
    for cycle in 0..count {
        // A backend of its own, so that nothing of earlier VMs stays.
        let live = Live::new();
        let system = System::open(&live).unwrap();
        let made = x86::remake(&system, &manifest, &memory).unwrap();
        let mut stage = Stage::new(&system, &made.vm, &made.vcpus, memory[0].1.clone(), &deadline);
        let begin = Instant::now();
        let report = x86::restore(&mut stage.parts(), &image, &x86::Options::default()).unwrap();
        spent += begin.elapsed();
        assert!(report.complete() && report.gaps.is_empty(), "cycle {cycle}: {report} {:?}", report.gaps);
        some(&mut stage);
        let begin = Instant::now();
        image = x86::save(&mut stage.parts(), &manifest).unwrap().image;
        spent += begin.elapsed();
        let (one, two) = (stage.arrivals(0, 0x61), stage.arrivals(0, 0x62));
        let word = |at: u32| {
            u64::from(stage.word(results(0) + at)) | u64::from(stage.word(results(0) + at + 4)) << 32
        };
        turns = word(0);
        // In each turn one of each; the turn at hand may have had its own.
        let fine = |count: u32| (turns..=turns + 1).contains(&u64::from(count));
        assert!(
            fine(one) && fine(two) && one >= two,
            "cycle {cycle}: {one} and {two} interrupts in {turns} turns"
        );
        assert_eq!(word(16), 0, "cycle {cycle}: the TSC went back");
        let next = copy(&memory);
        drop(stage);
        memory = next;
    }
    (turns, spent)
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_a_guest_outlives_many_cycles() {
    let count = std::env::var("EVENKEEL_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let begin = Instant::now();
    let (turns, spent) = cycles(count);
    println!(
        "{count} cycles in {:?}, {:?} of it saving and setting; the guest made {turns} turns",
        begin.elapsed(),
        spent
    );
    assert!(turns as usize > count / 4, "{turns}");
}
