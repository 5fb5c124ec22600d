//! A tiny guest that writes all over its memory, and the machine that it runs in: of tests and of the benchmark.
#![allow(dead_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use evenkeel_capsule::{Draft, Id};
use evenkeel_catalog::Arch;
use evenkeel_memory::{Guest, Life, Place};
use evenkeel_monitor::x86_64::Tables;
use evenkeel_monitor::{Irqchip, Machine, Shape};
use evenkeel_state::order::{Order, Phase};
use evenkeel_state::x86::{self, Host};
use evenkeel_state::{Cpu, Image, Noting, Parts, file};
use evenkeel_sys::{Deadline, Exit, Ram, System, Vcpu};

/// What the program is told: base, mask of pages, pages a burst, ticks of the TSC between bursts, and where it counts bursts and
/// keeps the longest time that it did not run.
pub const CONTROL: usize = 0x8000;
pub const BURSTS: usize = CONTROL + 32;
pub const GAP: usize = CONTROL + 40;
const CODE: u64 = 0x1_0000;
const TABLES: Tables = Tables { gdt: 0x1000, idt: 0x2000, tss: 0x3000, pages: 0x1_8000 };
/// What is written to.
pub const BASE: u64 = 16 << 20;

/// ```text
///        mov ebx, 0x8000           ; what it is told
///        mov rdi, [rbx]; mov rsi, [rbx+8]; mov r8, [rbx+16]; mov r9, [rbx+24]; movabs r12, 0x9e3779b97f4a7c15
///        test r8, r8; jz idle
///        rdtsc; shl rdx, 32; or rax, rdx; mov r13, rax; mov r14, rax
/// burst: mov rcx, r8
/// write: xorshift r12 by 13, 7, 17
///        mov rax, r12; and rax, rsi; shl rax, 12; mov [rdi+rax], r12
///        dec rcx; jnz write
///        inc qword ptr [rbx+32]; mov dx, 0x3f8; out dx, al
/// wait:  pause; rdtsc; shl rdx, 32; or rax, rdx
///        mov r15, rax; sub r15, r13; mov r13, rax
///        cmp r15, [rbx+40]; jbe quiet; mov [rbx+40], r15
/// quiet: cmp rax, r14; jb wait; add r14, r9; jmp burst
/// idle:  hlt; jmp idle
/// ```
const PROGRAM: &[u8] = &[
    0xbb, 0x00, 0x80, 0x00, 0x00, 0x48, 0x8b, 0x3b, 0x48, 0x8b, 0x73, 0x08, 0x4c, 0x8b, 0x43, 0x10, 0x4c,
    0x8b, 0x4b, 0x18, 0x49, 0xbc, 0x15, 0x7c, 0x4a, 0x7f, 0xb9, 0x79, 0x37, 0x9e, 0x4d, 0x85, 0xc0, 0x74,
    0x74, 0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0x49, 0x89, 0xc5, 0x49, 0x89, 0xc6, 0x4c,
    0x89, 0xc1, 0x4c, 0x89, 0xe0, 0x48, 0xc1, 0xe0, 0x0d, 0x49, 0x31, 0xc4, 0x4c, 0x89, 0xe0, 0x48, 0xc1,
    0xe8, 0x07, 0x49, 0x31, 0xc4, 0x4c, 0x89, 0xe0, 0x48, 0xc1, 0xe0, 0x11, 0x49, 0x31, 0xc4, 0x4c, 0x89,
    0xe0, 0x48, 0x21, 0xf0, 0x48, 0xc1, 0xe0, 0x0c, 0x4c, 0x89, 0x24, 0x07, 0x48, 0xff, 0xc9, 0x75, 0xcf,
    0x48, 0xff, 0x43, 0x20, 0x66, 0xba, 0xf8, 0x03, 0xee, 0xf3, 0x90, 0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20,
    0x48, 0x09, 0xd0, 0x49, 0x89, 0xc7, 0x4d, 0x29, 0xef, 0x49, 0x89, 0xc5, 0x4c, 0x3b, 0x7b, 0x28, 0x76,
    0x04, 0x4c, 0x89, 0x7b, 0x28, 0x4c, 0x39, 0xf0, 0x72, 0xdd, 0x4d, 0x01, 0xce, 0xeb, 0x9b, 0xf4, 0xeb,
    0xfd,
];

/// What a guest does.
#[derive(Clone, Copy, Debug)]
pub struct Habit {
    /// Bytes of memory.
    pub memory: usize,
    /// MiB/s that it writes, a page each; 0: it halts.
    pub rate: u64,
    /// Bursts a second.
    pub bursts: u64,
}

/// Ticks of this machine's TSC in a second, as a guest sees them.
pub fn ticks(vcpu: &Vcpu<'_>) -> u64 {
    vcpu.int(&evenkeel_sys::requests::KVM_GET_TSC_KHZ, 0).map_or(2_000_000, |khz| khz as u64) * 1000
}

pub fn shape(memory: usize) -> Shape {
    Shape { irqchip: Irqchip::Kernel, pit: false, memory }
}

/// Loads program and tables, tells it what to do, and fills the rest with what is not zero.
pub fn load(machine: &Machine<'_, '_>, vcpu: &Vcpu<'_>, habit: Habit) {
    let ram = machine.ram();
    fill(ram);
    TABLES.write(ram, CODE as u32, 0, 0x8000).unwrap();
    ram.write(CODE as usize, PROGRAM).unwrap();
    let pages = ((habit.memory as u64 - BASE) / 4096 + 1).next_power_of_two() / 2;
    let burst = habit.rate * 256 / habit.bursts.max(1);
    let every = ticks(vcpu) / habit.bursts.max(1);
    for (i, word) in [BASE, pages - 1, burst, every, 0, 0].into_iter().enumerate() {
        ram.write(CONTROL + 8 * i, &word.to_le_bytes()).unwrap();
    }
    TABLES.enter(vcpu, CODE, 0x7000).unwrap();
}

/// All of it is there, and nothing of it is zero.
pub fn fill(ram: &Ram) {
    let mut page = vec![0; 1 << 20];
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    for at in (0..ram.len()).step_by(page.len()) {
        let length = page.len().min(ram.len() - at);
        for word in page.chunks_exact_mut(8) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            word.copy_from_slice(&x.to_le_bytes());
        }
        ram.write(at, &page[..length]).unwrap();
    }
}

pub fn word(ram: &Ram, at: usize) -> u64 {
    let mut bytes = [0; 8];
    ram.read(at, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

pub fn guest(ram: &Arc<Ram>) -> Guest {
    Guest::new(vec![Place { guest: 0, ram: ram.clone(), offset: 0, length: ram.len() as u64 }]).unwrap()
}

enum Wish {
    Save(Sender<Result<Image, String>>),
    Resume,
    Stop,
}

/// The machine from outside; its vCPU runs in a thread of `scope`.
pub struct Pilot<'s> {
    deadline: Arc<Deadline>,
    wanted: Arc<AtomicBool>,
    paused: Receiver<()>,
    orders: Sender<Wish>,
    thread: Option<ScopedJoinHandle<'s, ()>>,
    pub outputs: Arc<AtomicU64>,
    pub image: Option<Image>,
}

/// Starts the vCPU.
pub fn start<'s, 'e, 'b: 'e>(
    scope: &'s std::thread::Scope<'s, 'e>,
    noting: &'e Noting<'e>,
    machine: &'e Machine<'e, 'b>,
    vcpu: &'e Vcpu<'b>,
) -> Pilot<'s> {
    let (wanted, outputs) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (tell, paused) = channel();
    let (orders, ordered) = channel();
    let (made, make) = channel();
    let (want, count) = (wanted.clone(), outputs.clone());
    let thread = scope.spawn(move || {
        let deadline = Arc::new(Deadline::new());
        made.send(deadline.clone()).unwrap();
        let mut runner = vcpu.runner(machine.system()).unwrap();
        let manifest = noting.manifest(0).unwrap_or_default();
        // What does not change is asked before anybody waits for it.
        let host =
            Host::ask(&Parts::new(machine.system(), machine.vm(), vec![Cpu::running(&mut runner)])).unwrap();
        loop {
            if want.swap(false, Ordering::AcqRel) {
                deadline.disarm();
                tell.send(()).unwrap();
                loop {
                    match ordered.recv() {
                        Ok(Wish::Save(to)) => {
                            let mut parts =
                                Parts::new(machine.system(), machine.vm(), vec![Cpu::running(&mut runner)]);
                            let order = Order::catalogued(Arch::X86_64, Phase::Save);
                            let saved = x86::save_with(&mut parts, &manifest, &host, order);
                            to.send(saved.map(|saved| saved.image).map_err(|e| e.to_string())).unwrap();
                        }
                        Ok(Wish::Resume) => break,
                        Ok(Wish::Stop) | Err(_) => return,
                    }
                }
            }
            match runner.run() {
                Ok(Exit::PortWrite { .. }) => {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Exit::Interrupted) => {}
                other => panic!("the guest ended: {other:?}"),
            }
        }
    });
    let deadline = make.recv().unwrap();
    Pilot { deadline, wanted, paused, orders, thread: Some(thread), outputs, image: None }
}

impl Pilot<'_> {
    /// Waits until it has written so often.
    pub fn until(&self, outputs: u64) {
        let begin = Instant::now();
        while self.outputs.load(Ordering::Relaxed) < outputs {
            assert!(begin.elapsed() < Duration::from_secs(60), "the guest does not go on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// It has written, and goes on writing.
    pub fn goes_on(&self) {
        self.until(self.outputs.load(Ordering::Relaxed) + 3);
    }

    pub fn stop(&mut self) {
        if self.thread.is_some() && self.pause().is_ok() {
            let _ = self.orders.send(Wish::Stop);
        }
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Pilot<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Life for Pilot<'_> {
    fn pause(&mut self) -> Result<(), String> {
        self.wanted.store(true, Ordering::Release);
        self.deadline.arm(Duration::ZERO);
        self.paused.recv().map_err(|e| e.to_string())
    }

    fn save(&mut self) -> Result<(), String> {
        let (to, from) = channel();
        self.orders.send(Wish::Save(to)).map_err(|e| e.to_string())?;
        self.image = Some(from.recv().map_err(|e| e.to_string())??);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), String> {
        self.orders.send(Wish::Resume).map_err(|e| e.to_string())
    }

    fn draft(&mut self) -> Result<Draft, String> {
        let image = self.image.take().ok_or("nothing was saved")?;
        file::Guest::new(Id([7; 16]), image).draft().map_err(|e| e.to_string())
    }
}

/// A machine with one vCPU and this guest in it, and what is done with it while it runs.
pub fn with<T>(habit: Habit, work: impl for<'s, 'e> FnOnce(&mut Pilot<'s>, &'e Machine<'e, '_>) -> T) -> T {
    let live = evenkeel_sys::Live::new();
    let noting = Noting::new(&live);
    let system = System::open(&noting).unwrap();
    let machine = Machine::new(&system, shape(habit.memory)).unwrap();
    let vcpu = machine.vcpu(0).unwrap();
    vcpu.set_cpuid(&system.cpuid(&evenkeel_sys::requests::KVM_GET_SUPPORTED_CPUID).unwrap()).unwrap();
    load(&machine, &vcpu, habit);
    std::thread::scope(|scope| {
        let mut pilot = start(scope, &noting, &machine, &vcpu);
        work(&mut pilot, &machine)
    })
}
