//! A guest on a stage: made, brought to a point, saved, set in two other VMs one after the other, and let go on in the first
//! and in the last.

use std::sync::Arc;
use std::time::{Duration, Instant};

use evenkeel_monitor::x86_64::Tables;
use evenkeel_monitor::{Irqchip, Machine, Shape};
use evenkeel_state::order::{Order, Phase};
use evenkeel_state::{Cpu, Image, Manifest, Noting, Owner, Parts, Report, Saved, x86};
use evenkeel_sys::layout::CpuidEntry;
use evenkeel_sys::requests::*;
use evenkeel_sys::{Deadline, Exit, Live, Ram, Runner, Slot, System, Vcpu, Vm};
use evenkeel_witness::{abi, guests, session};

use crate::asm::{Asm, place, results};

const TABLES: Tables = Tables { gdt: abi::GDT, idt: abi::IDT, tss: abi::TSS, pages: abi::PAGES };

/// A guest, and what is done to it.
pub struct Scene<'a> {
    pub name: &'a str,
    pub cpus: u32,
    /// All vCPUs but the first wait for SIPI.
    pub waiting: bool,
    pub irqchip: Irqchip,
    /// Why this host cannot play it; none where it can.
    pub needs: &'a dyn Fn(&System<'_>) -> Option<String>,
    /// What the guest is shown: begins with what KVM supports.
    pub cpuid: &'a dyn Fn(&mut Vec<CpuidEntry>),
    /// What is enabled of each vCPU.
    pub vcpu: &'a dyn Fn(&Vcpu<'_>),
    /// What is enabled of the VM before there are vCPUs.
    pub enable: &'a dyn Fn(&Vm<'_>),
    /// What vCPU `n` executes.
    pub program: &'a dyn Fn(u32) -> Asm,
    /// Brings it to the point.
    pub stop: &'a dyn Fn(&mut Stage<'_, '_, '_>),
    /// Goes on to the end.
    pub finish: &'a dyn Fn(&mut Stage<'_, '_, '_>),
    /// What is saved is what was meant to be saved.
    pub point: &'a dyn Fn(&Image) -> bool,
}

impl Default for Scene<'_> {
    fn default() -> Self {
        Scene {
            name: "",
            cpus: 1,
            waiting: false,
            irqchip: Irqchip::Kernel,
            needs: &|_| None,
            cpuid: &|_| {},
            vcpu: &|_| {},
            enable: &|_| {},
            program: &|_| Asm::new().done(),
            stop: &|_| {},
            finish: &|stage| stage.play_out(0),
            point: &|_| true,
        }
    }
}

/// A VM that stands still.
pub struct Stage<'s, 'v, 'b> {
    pub system: &'s System<'b>,
    pub vm: &'s Vm<'b>,
    pub runners: Vec<Runner<'v, 'b>>,
    pub ram: Arc<Ram>,
    pub deadline: &'s Deadline,
    /// What the guest said in the end, and what came to the host on the way.
    pub said: Vec<String>,
}

impl<'s, 'v, 'b> Stage<'s, 'v, 'b> {
    pub fn new(
        system: &'s System<'b>,
        vm: &'s Vm<'b>,
        vcpus: &'v [Vcpu<'b>],
        ram: Arc<Ram>,
        deadline: &'s Deadline,
    ) -> Self {
        let runners = vcpus.iter().map(|vcpu| vcpu.runner(system).unwrap()).collect();
        Stage { system, vm, runners, ram, deadline, said: Vec::new() }
    }

    /// Runs a vCPU until it leaves in some way, for a while at most.
    pub fn step(&mut self, n: usize, limit: Duration) -> Exit {
        self.deadline.arm(limit);
        let exit = self.runners[n].run();
        self.deadline.disarm();
        match exit {
            Ok(exit) => exit,
            Err(error) if error.errno() == Some(evenkeel_sys::Errno::EAGAIN) => Exit::Interrupted,
            Err(error) => panic!("vcpu.{n}: {error}"),
        }
    }

    /// Runs it until this exit, answering reads with 0x11223344.
    pub fn until(&mut self, n: usize, wanted: impl Fn(&Exit) -> bool) -> Exit {
        for _ in 0..10_000 {
            let exit = self.step(n, Duration::from_secs(5));
            if wanted(&exit) {
                return exit;
            }
            self.answer(n, &exit);
            assert!(
                !matches!(exit, Exit::Interrupted | Exit::Shutdown | Exit::InternalError(..)),
                "vcpu.{n}: {exit:?}"
            );
        }
        panic!("vcpu.{n}: it goes round")
    }

    pub fn answer(&mut self, n: usize, exit: &Exit) {
        if let Exit::PortRead { .. } | Exit::MemoryRead { .. } = exit {
            self.runners[n].answer(&0x8877_6655_1122_3344_u64.to_le_bytes());
        }
    }

    /// Stops at the `count`-th write to the port that says nothing.
    pub fn breath(&mut self, n: usize, count: usize) {
        for _ in 0..count {
            self.until(n, |e| matches!(e, Exit::PortWrite { port, .. } if *port == u16::from(abi::BREATH)));
        }
    }

    /// Runs it to its end; notes what came to the host.
    pub fn play_out(&mut self, n: usize) {
        for _ in 0..2000 {
            let exit = self.step(n, Duration::from_secs(8));
            self.answer(n, &exit);
            match &exit {
                Exit::PortWrite { port, data, .. } if *port == u16::from(abi::PORT) => {
                    self.said.push(format!("vcpu.{n} {data:02x?}"));
                    return;
                }
                Exit::PortWrite { port, .. } if *port == u16::from(abi::BREATH) => {}
                Exit::Interrupted | Exit::Shutdown => {
                    self.said.push(format!("vcpu.{n} {exit:?}"));
                    return;
                }
                other => self.said.push(format!("vcpu.{n} {other:?}")),
            }
        }
        panic!("vcpu.{n}: no end");
    }

    pub fn msi(&self, apic: u32, vector: u8) {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&(0xfee0_0000 | apic << 12).to_le_bytes());
        bytes[8..12].copy_from_slice(&u32::from(vector).to_le_bytes());
        self.vm.set(&KVM_SIGNAL_MSI, &bytes).unwrap();
    }

    pub fn word(&self, at: u32) -> u32 {
        let mut bytes = [0; 4];
        self.ram.read(at as usize, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    /// How often a vector arrived at vCPU `n`.
    pub fn arrivals(&self, n: u32, vector: u8) -> u32 {
        self.word(abi::AREA + n * abi::AREA_BYTES + abi::ARRIVALS + 4 * u32::from(vector))
    }

    pub fn parts<'g>(&'g mut self) -> Parts<'g, 'b>
    where
        'v: 'g,
        's: 'g,
    {
        Parts::new(self.system, self.vm, self.runners.iter_mut().map(Cpu::running).collect())
    }

    /// All that the guest did: arrivals at each vCPU, the results of each, and what it said.
    pub fn observed(&self, cpus: u32) -> Vec<String> {
        let mut all = self.said.clone();
        for n in 0..cpus {
            for vector in 0..=255 {
                let count = self.arrivals(n, vector);
                if count > 0 {
                    all.push(format!("vcpu.{n} vector {vector:#x} {count} times"));
                }
            }
            let words: Vec<u32> = (0..64).map(|w| self.word(results(n) + 4 * w)).collect();
            all.push(format!("vcpu.{n} results {words:x?}"));
        }
        all
    }
}

/// Loads the guest's stubs and programs, and puts every vCPU at its program.
pub fn load(ram: &Ram, vcpus: &[Vcpu<'_>], program: &dyn Fn(u32) -> Asm, waiting: bool) {
    session::load(ram, guests::image()).unwrap();
    // Exceptions and NMIs without an error code count as interrupts do, 0x20 higher: vectors 1, 2, 3 and 6.
    for vector in [1, 2, 3, 6] {
        let mut gate = [0; 16];
        ram.read(abi::IDT as usize + 16 * (vector + 0x20), &mut gate).unwrap();
        ram.write(abi::IDT as usize + 16 * vector, &gate).unwrap();
    }
    for (n, vcpu) in (0_u32..).zip(vcpus) {
        if n > 0 && !waiting {
            vcpu.set(&KVM_SET_MP_STATE, &[0; 4]).unwrap();
        }
        let code = program(n).0;
        assert!(code.len() < 0x1000, "{} bytes of program", code.len());
        ram.write(place(n) as usize, &code).unwrap();
        let stack = u64::from(abi::AREA + n * abi::AREA_BYTES + abi::AREA_BYTES - 64);
        TABLES.enter(vcpu, place(n).into(), stack).unwrap();
    }
}

/// The same memory, copied.
pub fn copy(memory: &[(Slot, Arc<Ram>)]) -> Vec<(Slot, Arc<Ram>)> {
    memory
        .iter()
        .map(|(slot, ram)| {
            let mut bytes = vec![0; ram.len()];
            ram.read(0, &mut bytes).unwrap();
            let other = Ram::new(ram.len()).unwrap();
            other.write(0, &bytes).unwrap();
            (*slot, Arc::new(other))
        })
        .collect()
}

/// What came of a scene.
pub struct Outcome {
    pub reports: Vec<Report>,
    pub images: Vec<Image>,
    /// It was stopped at the point that was meant.
    pub there: bool,
    /// From the first save to the last.
    pub took: Duration,
    /// What the guest did that was not moved, and the one that was moved twice.
    pub stayed: Vec<String>,
    pub moved: Vec<String>,
}

pub struct Orders<'o> {
    pub save: &'o Order,
    pub restore: &'o Order,
}

impl Default for Orders<'static> {
    fn default() -> Self {
        let of = |phase| Order::catalogued(evenkeel_catalog::Arch::X86_64, phase);
        Orders { save: of(Phase::Save), restore: of(Phase::Restore) }
    }
}

/// Sets a scene up in a VM, brings it to its point, and does this with it there.
pub fn at_the_point<T>(
    scene: &Scene<'_>,
    noting: &Noting<'_>,
    then: impl FnOnce(&mut Stage<'_, '_, '_>) -> T,
) -> T {
    let system = System::open(noting).unwrap();
    let pit = scene.irqchip == Irqchip::Kernel;
    let machine = Machine::new(&system, Shape { irqchip: scene.irqchip, pit, memory: abi::MEMORY }).unwrap();
    (scene.enable)(machine.vm());
    let vcpus: Vec<Vcpu<'_>> = (0..scene.cpus).map(|n| machine.vcpu(n.into()).unwrap()).collect();
    let mut cpuid = system.cpuid(&KVM_GET_SUPPORTED_CPUID).unwrap();
    (scene.cpuid)(&mut cpuid);
    for vcpu in &vcpus {
        vcpu.set_cpuid(&cpuid).unwrap();
        (scene.vcpu)(vcpu);
    }
    load(machine.ram(), &vcpus, scene.program, scene.waiting);
    let deadline = Deadline::new();
    let mut stage = Stage::new(&system, machine.vm(), &vcpus, machine.ram().clone(), &deadline);
    (scene.stop)(&mut stage);
    stage.said.clear();
    then(&mut stage)
}

/// Plays a scene: saved, set elsewhere, saved there, set elsewhere again, saved there.
pub fn play(scene: &Scene<'_>, orders: &Orders<'_>) -> Result<Outcome, String> {
    let live = Live::new();
    let noting = Noting::new(&live);
    at_the_point(scene, &noting, |source| play_from(source, scene, &noting, orders))
}

fn play_from(
    source: &mut Stage<'_, '_, '_>,
    scene: &Scene<'_>,
    noting: &Noting<'_>,
    orders: &Orders<'_>,
) -> Result<Outcome, String> {
    let (system, deadline) = (source.system, source.deadline);
    let mut outcome = Outcome {
        reports: Vec::new(),
        images: Vec::new(),
        there: false,
        took: Duration::ZERO,
        stayed: Vec::new(),
        moved: Vec::new(),
    };
    let manifest = noting.manifest(0).unwrap();
    let begin = Instant::now();
    let saved = save(source, &manifest, orders)?;
    outcome.there = (scene.point)(&saved.image);
    outcome.images.push(saved.image);
    let memory = copy(&noting.memory(0));

    let second = x86::remake(system, &manifest, &memory).unwrap();
    {
        let image = &outcome.images[0];
        let mut stage = Stage::new(system, &second.vm, &second.vcpus, memory[0].1.clone(), deadline);
        outcome.reports.push(restore(&mut stage, image, orders)?);
        outcome.images.push(save(&mut stage, &manifest, orders)?.image);
    }
    let memory = copy(&memory);
    drop(second);
    let third = x86::remake(system, &manifest, &memory).unwrap();
    let mut last = Stage::new(system, &third.vm, &third.vcpus, memory[0].1.clone(), deadline);
    outcome.reports.push(restore(&mut last, &outcome.images[1], orders)?);
    outcome.images.push(save(&mut last, &manifest, orders)?.image);

    outcome.took = begin.elapsed();
    (scene.finish)(source);
    outcome.stayed = source.observed(scene.cpus);
    (scene.finish)(&mut last);
    outcome.moved = last.observed(scene.cpus);
    Ok(outcome)
}

fn save(stage: &mut Stage<'_, '_, '_>, manifest: &Manifest, orders: &Orders<'_>) -> Result<Saved, String> {
    let mut parts = stage.parts();
    let host = x86::Host::ask(&parts).unwrap();
    x86::save_with(&mut parts, manifest, &host, orders.save).map_err(|e| e.to_string())
}

fn restore(stage: &mut Stage<'_, '_, '_>, image: &Image, orders: &Orders<'_>) -> Result<Report, String> {
    let mut parts = stage.parts();
    let host = x86::Host::ask(&parts).unwrap();
    let report = x86::restore_with(&mut parts, image, &x86::Options::default(), &host, orders.restore)
        .map_err(|e| e.to_string())?;
    if report.complete() { Ok(report) } else { Err(report.to_string()) }
}

/// A 32-bit word of an item of the first vCPU.
pub fn word(image: &Image, item: &str, at: usize) -> u32 {
    let item = image.item(Owner::Vcpu(0), item).unwrap();
    u32::from_le_bytes(item.bytes[at..at + 4].try_into().unwrap())
}
