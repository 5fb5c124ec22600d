//! The state of an x86 guest on the real KVM: saved, set in another VM, saved again.
//!
//! What this machine's KVM cannot produce is played on the lab's kernels. There the test runs as a static program:
//!
//! ```text
//! CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS=-Ctarget-feature=+crt-static cargo test -p evenkeel-state --test x86 \
//!     --no-run --target x86_64-unknown-linux-gnu --target-dir target/lab
//! evenkeel lab run debian-7.3 -- target/lab/x86_64-unknown-linux-gnu/debug/deps/x86-… --nocapture nothing_is_lost
//! ```
//!
//! `EVENKEEL_CYCLES=1000` makes the guest go through so many cycles; `EVENKEEL_EDGES=all` looks for a scene for every edge. In
//! the lab a file `edges.all` among those of `--send` says the same.
#![cfg(target_arch = "x86_64")]

mod altered;
mod asm;
mod cycles;
mod edges;
mod faults;
mod in_use;
mod pretended;
mod scenes;
mod stage;
mod trap;
mod turns;

use evenkeel_monitor::{Irqchip, Machine, Shape};
use evenkeel_state::{Cpu, Elapsed, Manifest, Parts, compare, x86};
use evenkeel_sys::requests::KVM_GET_SUPPORTED_CPUID;
use evenkeel_sys::{Deadline, Live, System};
use evenkeel_witness::probe::{Probe, RAX, RBX, RCX, RDX};
use evenkeel_witness::session::{Session, load};
use evenkeel_witness::{abi, guests};
use stage::{Orders, Scene, play};

const SHAPE: Shape = Shape { irqchip: Irqchip::Kernel, pit: true, memory: abi::MEMORY };

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_the_witness_goes_on_in_another_vm() {
    let live = Live::new();
    let system = System::open(&live).unwrap();
    let cpuid = system.cpuid(&KVM_GET_SUPPORTED_CPUID).unwrap();
    let first = Machine::new(&system, SHAPE).unwrap();
    load(first.ram(), guests::image()).unwrap();
    let vcpu = first.vcpu(0).unwrap();
    vcpu.set_cpuid(&cpuid).unwrap();
    let deadline = Deadline::new();
    let mut session = Session::new(&first, &vcpu, 0, &deadline).unwrap();
    session.start().unwrap();
    let questions = [
        Probe::new(&[0x0f, 0xa2]).with(RAX, 1),
        Probe::new(&[0x0f, 0xa2]).with(RAX, 7),
        // Write the STAR MSR, then read it.
        Probe::new(&[0x0f, 0x30]).with(RCX, 0xc000_0081).with(RDX, 0x0012_0008).with(RAX, 0x1234),
        Probe::new(&[0x0f, 0x32]).with(RCX, 0xc000_0081),
        Probe::new(&[0x90]).with(RBX, 5),
    ];
    let before = session.ask(&questions).unwrap();

    let mut parts = Parts::new(&system, first.vm(), vec![Cpu::running(session.runner())]);
    let saved = x86::save(&mut parts, &Manifest::default()).unwrap();
    for absent in &saved.absent {
        println!("absent: {}/{}: {}", absent.owner, absent.item, absent.why);
    }

    let second = Machine::new(&system, SHAPE).unwrap();
    let mut memory = vec![0; abi::MEMORY];
    first.ram().read(0, &mut memory).unwrap();
    second.ram().write(0, &memory).unwrap();
    let other = second.vcpu(0).unwrap();
    let mut parts = Parts::new(&system, second.vm(), vec![Cpu::still(&other)]);
    let report = x86::restore(&mut parts, &saved.image, &x86::Options::default()).unwrap();
    println!("{report}");
    for left in &report.left {
        println!("left: {}/{}: {}", left.owner, left.item, left.why);
    }
    assert!(report.complete(), "{report}");

    let mut moved = Session::new(&second, &other, 0, &deadline).unwrap();
    assert_eq!(moved.one(questions[3].clone()).unwrap(), before[3], "STAR is as it was");
    assert_eq!(moved.ask(&questions).unwrap(), before);
}

/// Plays a scene, and holds what came of it against what must.
fn check(scene: &Scene<'_>, orders: &Orders<'_>) -> Result<(bool, String), String> {
    let outcome = play(scene, orders)?;
    // The second agrees with the first; the third is the second in all that does not run.
    for (n, pair) in outcome.images.windows(2).enumerate() {
        let cleared = !outcome.reports[n].gaps.is_empty();
        let different = compare(&pair[0], &pair[1], Elapsed::of(outcome.took));
        let different: Vec<_> =
            different.iter().filter(|d| !(cleared && d.field == "TMICT")).map(ToString::to_string).collect();
        if !different.is_empty() {
            let flags = pair[0].item(evenkeel_state::Owner::Vm, "clock").map(|clock| clock.bytes[8]);
            return Err(format!("image {} and {}: {different:?}, clock {flags:?}", n + 1, n + 2));
        }
    }
    // A guest that reads the count that is told to be cleared finds it cleared.
    let told = outcome.reports.iter().any(|report| report.gaps.iter().any(|gap| gap.gap == "G06"));
    let seen = |all: &[String]| -> Vec<String> {
        all.iter().filter(|line| !(told && line.contains("results"))).cloned().collect()
    };
    if seen(&outcome.stayed) != seen(&outcome.moved) {
        return Err(format!("stayed: {:?}\nmoved: {:?}", outcome.stayed, outcome.moved));
    }
    let gaps: Vec<_> = outcome.reports.iter().flat_map(|r| &r.gaps).map(|g| &g.what).collect();
    let seen: Vec<_> = outcome.moved.iter().map(|s| s.replace(", 0", "")).collect();
    Ok((outcome.there, format!("{seen:?} {gaps:?}")))
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_nothing_is_lost_at_any_point() {
    let live = Live::new();
    let system = System::open(&live).unwrap();
    let mut failed = Vec::new();
    let (mut played, mut elsewhere) = (0, Vec::new());
    let mut not_here = in_use::without_scene(&system);
    let every = scenes::all().into_iter().chain([scenes::rich()]).chain(in_use::all());
    for scene in every.chain((1..=8).map(scenes::many)) {
        if let Some(why) = (scene.needs)(&system) {
            not_here.push(format!("{}: {why}", scene.name));
            continue;
        }
        let begin = std::time::Instant::now();
        match check(&scene, &Orders::default()) {
            Ok((true, told)) => {
                played += 1;
                println!("{} ({} vCPUs, {:?}): {told}", scene.name, scene.cpus, begin.elapsed());
            }
            Ok((false, told)) => elsewhere.push(format!("{}: {told}", scene.name)),
            Err(why) => failed.push(format!("{}: {why}", scene.name)),
        }
    }
    println!(
        "{played} scenes were played; this KVM does not come to the point of {}: {elsewhere:#?}",
        elsewhere.len()
    );
    println!("{} states cannot be produced here: {not_here:#?}", not_here.len());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    // kvm_pvm has neither interrupts in service nor shadows.
    let most = if std::path::Path::new("/sys/module/kvm_pvm").exists() { 4 } else { 0 };
    assert!(played >= 25 && elsewhere.len() <= most, "{played} {elsewhere:?}");
}
