//! A guest that is saved and set elsewhere again and again, at random moments, while all its vCPUs run and timers and interrupts
//! are under way; what the witness sees in it stays what it was.
//!
//! `EVENKEEL_CYCLES=1000` says how many cycles, `EVENKEEL_SEED` repeats a run's choices (not its moments: those are the host's).

use std::io::Cursor;
use std::sync::Arc;
use std::time::{Duration, Instant};

use evenkeel_capsule::{Id, Layout, Reader, Region, Slices};
use evenkeel_monitor::{Irqchip, Machine, Shape};
use evenkeel_state::file::{Guest, known};
use evenkeel_state::{Image, Manifest, Noting, x86};
use evenkeel_sys::requests::*;
use evenkeel_sys::{Deadline, Exit, Live, Ram, Runner, Slot, System, Vcpu};
use evenkeel_witness::observation::Observation;
use evenkeel_witness::probe::Probe;
use evenkeel_witness::programs::x86_64::{cpuid, msr};
use evenkeel_witness::session::Session;
use evenkeel_witness::{abi, compare, moved};

use crate::stage::{copy, load};
use crate::turns::{self, Books, program};

const SHAPE: Shape = Shape { irqchip: Irqchip::Kernel, pit: true, memory: abi::MEMORY };
/// A run that takes as long as this waits for what never comes.
const HANGS: Duration = Duration::from_secs(20);

/// xorshift64.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// What was counted.
#[derive(Default)]
struct Told {
    cycles: usize,
    turns: u64,
    sent: u64,
    whole: usize,
    capsules: usize,
    /// Saving and restoring.
    spent: Duration,
    looking: Duration,
}

fn run(runner: &mut Runner<'_, '_>, deadline: &Deadline, limit: Duration) -> Exit {
    deadline.arm(limit);
    let exit = runner.run();
    deadline.disarm();
    match exit {
        Ok(exit @ (Exit::PortWrite { .. } | Exit::Interrupted)) => exit,
        Ok(other) => panic!("{other:?}"),
        Err(error) if error.errno() == Some(evenkeel_sys::Errno::EAGAIN) => Exit::Interrupted,
        Err(error) => panic!("{error}"),
    }
}

/// To the end of the turn at hand. A guest that waits for an interrupt that was lost does not get there.
fn turn(runner: &mut Runner<'_, '_>, deadline: &Deadline) {
    let exit = run(runner, deadline, HANGS);
    assert!(
        matches!(exit, Exit::PortWrite { .. }),
        "no end of a turn within {HANGS:?}: an interrupt was lost"
    );
}

/// Runs all vCPUs at once, each for some turns and a random time more: whatever they are at then is where they are saved.
fn go(runners: &mut [Runner<'_, '_>], random: &mut Random) {
    let plans: Vec<(u64, Duration)> =
        runners.iter().map(|_| (random.below(3), Duration::from_micros(1 + random.below(300)))).collect();
    let all = |(runner, (count, rest)): (&mut Runner<'_, '_>, (u64, Duration))| {
        let deadline = Deadline::new();
        (0..count).for_each(|_| turn(runner, &deadline));
        run(runner, &deadline, rest);
    };
    std::thread::scope(|scope| {
        for plan in runners.iter_mut().zip(plans) {
            scope.spawn(move || all(plan));
        }
    });
    // A timer may end while nobody runs.
    std::thread::sleep(Duration::from_micros(random.below(200)));
}

/// What every cycle looks at, as the witness sees it.
fn glance(session: &mut Session<'_, '_>, n: u32) -> Vec<Option<[u64; 6]>> {
    let mut probes: Vec<Probe> =
        [0, 1, 7, 0xd, 0x4000_0000, 0x4000_0001, 0x8000_0001].map(|leaf| cpuid::probe(leaf, 0)).to_vec();
    let msrs = turns::held(n).map(|(msr, _)| msr).into_iter().chain([0x1b, 0x6e0, 0xc000_0080, 0x4b56_4d01]);
    probes.extend(msrs.map(msr::read));
    // mov rax, CR0 / CR4 / DR0 / DR6 / DR7
    for code in [[0x20, 0xc0], [0x20, 0xe0], [0x21, 0xc0], [0x21, 0xf0], [0x21, 0xf8]] {
        probes.push(Probe::new(&[0x0f, code[0], code[1]]));
    }
    session.ask(&probes).unwrap().iter().map(|outcome| outcome.registers().copied()).collect()
}

/// A look at a vCPU that is at the end of a turn, where nothing is under way on it: as the witness's guest, which is in the same
/// memory, and then back.
fn look<T>(
    machine: &Machine<'_, '_>,
    runner: &mut Runner<'_, '_>,
    n: u32,
    deadline: &Deadline,
    with: impl FnOnce(&mut Session<'_, '_>) -> T,
) -> T {
    turn(runner, deadline);
    // The write that ended the turn is finished before anything is set.
    runner.leave_at_once(true);
    assert!(matches!(runner.run(), Ok(Exit::Interrupted)));
    runner.leave_at_once(false);
    let vcpu: &Vcpu<'_> = runner.vcpu();
    let regs = vcpu.get(&KVM_GET_REGS, 144).unwrap();
    let sregs = vcpu.get(&KVM_GET_SREGS, 312).unwrap();
    let mut session = Session::new(machine, vcpu, n, deadline).unwrap();
    session.start().unwrap();
    let seen = with(&mut session);
    session.runner().leave_at_once(true);
    assert!(matches!(session.runner().run(), Ok(Exit::Interrupted)));
    session.runner().leave_at_once(false);
    vcpu.set(&KVM_SET_SREGS, &sregs).unwrap();
    vcpu.set(&KVM_SET_REGS, &regs).unwrap();
    seen
}

/// XMM0 to XMM15, which the guest does not touch.
fn vectors(vcpu: &Vcpu<'_>) -> Vec<u8> {
    vcpu.get(&KVM_GET_XSAVE, 4096).unwrap()[160..416].to_vec()
}

/// Gives each vCPU its own. XSTATE_BV says that they are in use: KVM_SET_FPU does not, and a fresh vCPU loses what it set.
fn fill(vcpu: &Vcpu<'_>, n: u8) {
    let mut xsave = vcpu.get(&KVM_GET_XSAVE, 4096).unwrap();
    xsave[512] |= 3;
    xsave[160..416].iter_mut().zip(0..=255_u8).for_each(|(byte, i)| *byte = i ^ n << 5);
    vcpu.set(&KVM_SET_XSAVE, &xsave).unwrap();
}

/// The guest through a capsule, as bytes.
fn through(image: Image, memory: &[(Slot, Arc<Ram>)], random: &mut Random) -> (Image, Vec<(Slot, Arc<Ram>)>) {
    let held: Vec<(u64, Vec<u8>)> = memory
        .iter()
        .map(|(slot, ram)| {
            let mut bytes = vec![0; ram.len()];
            ram.read(0, &mut bytes).unwrap();
            (slot.guest, bytes)
        })
        .collect();
    let slices: Vec<(u64, &[u8])> = held.iter().map(|(at, bytes)| (*at, &bytes[..])).collect();
    let regions: Vec<Region> =
        slices.iter().map(|(at, bytes)| Region { address: *at, length: bytes.len() as u64 }).collect();
    let layout = match random.below(3) {
        0 => Layout::lazy(regions),
        1 => Layout { level: Some(1), ..Layout::eager(regions) },
        _ => Layout::eager(regions),
    };
    let guest = Guest::new(Id([7; 16]), image);
    let mut file = Cursor::new(Vec::new());
    guest.draft().unwrap().write_with(&mut file, &layout, Slices(&slices)).unwrap();
    let mut reader = Reader::open(file, &known).unwrap();
    let back = Guest::read(&mut reader).unwrap();
    assert_eq!(back, guest);
    let fresh: Vec<(Slot, Arc<Ram>)> =
        memory.iter().map(|(slot, ram)| (*slot, Arc::new(Ram::new(ram.len()).unwrap()))).collect();
    reader
        .load(|address, bytes| {
            let (slot, ram) = fresh.iter().rfind(|(slot, _)| slot.guest <= address).unwrap();
            ram.write((address - slot.guest) as usize, bytes).map_err(std::io::Error::other)
        })
        .unwrap();
    (back.image, fresh)
}

/// What the guest was before it was first moved.
struct First {
    seen: Observation,
    glances: Vec<Vec<Option<[u64; 6]>>>,
    vectors: Vec<Vec<u8>>,
}

struct Held {
    manifest: Manifest,
    image: Image,
    memory: Vec<(Slot, Arc<Ram>)>,
}

/// Makes the guest, looks at it, and saves it for the first time.
fn begin(cpus: u32, clock: bool, random: &mut Random, deadline: &Deadline) -> (First, Held) {
    let live = Live::new();
    let noting = Noting::new(&live);
    let system = System::open(&noting).unwrap();
    let machine = Machine::new(&system, SHAPE).unwrap();
    let vcpus: Vec<Vcpu<'_>> = (0..cpus).map(|n| machine.vcpu(n.into()).unwrap()).collect();
    let cpuid = system.cpuid(&KVM_GET_SUPPORTED_CPUID).unwrap();
    vcpus.iter().for_each(|vcpu| vcpu.set_cpuid(&cpuid).unwrap());
    load(machine.ram(), &vcpus, &|n| program(n, cpus, clock), false);
    (1..).zip(&vcpus).for_each(|(n, vcpu)| fill(vcpu, n));
    let mut runners: Vec<Runner<'_, '_>> = vcpus.iter().map(|vcpu| vcpu.runner(&system).unwrap()).collect();
    let glances = (0..cpus.min(2))
        .map(|n| look(&machine, &mut runners[n as usize], n, deadline, |session| glance(session, n)))
        .collect();
    let mut whole = || {
        look(&machine, &mut runners[0], 0, deadline, |session| moved::x86::look(session, "kernel").unwrap())
    };
    // The first time leaves traces.
    whole();
    let seen = whole();
    let first = First { seen, glances, vectors: vcpus.iter().map(vectors).collect() };
    go(&mut runners, random);
    let manifest = noting.manifest(0).unwrap();
    let image = save(&system, &machine, &mut runners, &manifest);
    let memory = copy(&noting.memory(0));
    (first, Held { manifest, image, memory })
}

fn save<'b>(
    system: &System<'b>,
    machine: &Machine<'_, 'b>,
    runners: &mut [Runner<'_, 'b>],
    manifest: &Manifest,
) -> Image {
    let cpus = runners.iter_mut().map(evenkeel_state::Cpu::running).collect();
    let mut parts = evenkeel_state::Parts::new(system, machine.vm(), cpus);
    x86::save(&mut parts, manifest).unwrap().image
}

/// As many cycles of a guest with as many vCPUs.
fn cycles(cpus: u32, count: usize, clock: bool, mut random: Random, told: &mut Told) {
    let deadline = Deadline::new();
    let (first, mut held) = begin(cpus, clock, &mut random, &deadline);
    let mut begun = 0;
    for cycle in 0..count {
        let here = format!("{cpus} vCPUs, cycle {cycle}");
        if random.below(3) == 0 {
            (held.image, held.memory) = through(held.image, &held.memory, &mut random);
            told.capsules += 1;
        }
        // A backend of its own, so that nothing of earlier VMs stays.
        let live = Live::new();
        let system = System::open(&live).unwrap();
        let start = Instant::now();
        let made = x86::remake(&system, &held.manifest, &held.memory).unwrap();
        let report = x86::restore(&mut made.parts(&system), &held.image, &x86::Options::default()).unwrap();
        told.spent += start.elapsed();
        assert!(report.complete() && report.gaps.is_empty(), "{here}: {report} {:?}", report.gaps);
        let machine = Machine::adopt(&system, made.vm, held.memory[0].1.clone(), SHAPE);
        let mut runners: Vec<Runner<'_, '_>> =
            made.vcpus.iter().map(|vcpu| vcpu.runner(&system).unwrap()).collect();
        go(&mut runners, &mut random);

        let start = Instant::now();
        let n = random.below(u64::from(cpus.min(2))) as u32;
        let seen = look(&machine, &mut runners[n as usize], n, &deadline, |session| glance(session, n));
        assert_eq!(seen, first.glances[n as usize], "{here}: vcpu.{n} sees what it did not see before");
        for (n, vcpu) in made.vcpus.iter().enumerate() {
            assert_eq!(vectors(vcpu), first.vectors[n], "{here}: vector registers of vcpu.{n}");
        }
        if random.below(16) == 0 || cycle + 1 == count {
            let seen =
                look(&machine, &mut runners[0], 0, &deadline, |s| moved::x86::look(s, "kernel").unwrap());
            let compared = compare::compare(&first.seen, &seen);
            assert!(compared.alike > 100, "{here}: it looked at {} things", compared.alike);
            let other: Vec<_> = compared.differences.iter().chain(&compared.undetermined).collect();
            assert!(other.is_empty(), "{here}: {other:#?}");
            told.whole += 1;
        }
        told.looking += start.elapsed();
        go(&mut runners, &mut random);

        let books = Books { ram: machine.ram(), cpus, clock };
        let wrong = books.wrong();
        assert!(wrong.is_empty(), "{here}: {wrong:#?}");
        if cycle + 1 == count {
            // What is on its way arrives.
            runners.iter_mut().for_each(|runner| turn(runner, &deadline));
            for _ in 0..4 {
                for (n, runner) in (0..).zip(runners.iter_mut()) {
                    let before = books.word(n, turns::TURNS);
                    turn(runner, &deadline);
                    assert!(books.word(n, turns::TURNS) > before, "{here}: vcpu.{n} stands");
                }
            }
            assert!(books.wrong().is_empty(), "{here}: {:#?}", books.wrong());
            begun = (0..cpus).map(|n| books.word(n, turns::TURNS)).min().unwrap_or(0);
            told.turns += (0..cpus).map(|n| books.word(n, turns::TURNS)).sum::<u64>();
            told.sent += books.sent();
            if cpus > 1 {
                assert!(books.sent() as usize >= count / 4, "{here}: {} interrupts were sent", books.sent());
            }
        }
        let start = Instant::now();
        held.image = save(&system, &machine, &mut runners, &held.manifest);
        told.spent += start.elapsed();
        held.memory = copy(&held.memory);
        told.cycles += 1;
    }
    assert!(begun as usize > count, "each vCPU makes a turn or more a cycle: {begun} in {count}");
}

#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
#[test]
fn kvm_a_guest_outlives_many_cycles() {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let count = number("EVENKEEL_CYCLES").unwrap_or(24) as usize;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = number("EVENKEEL_SEED").unwrap_or(now.as_micros() as u64) | 1;
    println!("EVENKEEL_SEED={seed}");
    let live = Live::new();
    let system = System::open(&live).unwrap();
    let offered = system.cpuid(&KVM_GET_SUPPORTED_CPUID).unwrap();
    // KVM_FEATURE_CLOCKSOURCE2.
    let clock = offered.iter().any(|entry| entry.function == 0x4000_0001 && entry.output[0] >> 3 & 1 == 1);
    let begin = Instant::now();
    let mut told = Told::default();
    for cpus in 1..=4 {
        let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(cpus) | 1);
        cycles(cpus, count.div_ceil(4), clock, random, &mut told);
    }
    let Told { cycles, turns, sent, whole, capsules, spent, looking } = told;
    println!(
        "{cycles} cycles of guests with 1 to 4 vCPUs in {:?}: {spent:?} making, restoring and saving, {looking:?} looking \
         ({whole} times at everything); {capsules} went through a capsule; {turns} turns, {sent} interrupts between vCPUs; \
         kvmclock: {clock}",
        begin.elapsed()
    );
}
