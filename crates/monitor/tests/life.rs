//! A machine that runs is paused, resumed, saved, set in another, and ended: with a guest of a few instructions on this
//! machine's KVM.
#![cfg(target_arch = "x86_64")]
#![cfg_attr(not(kvm), allow(dead_code))]

mod common;

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{elf, file};
use evenkeel_monitor::board::{Board, Runs};
use evenkeel_monitor::devices::virtio::{Device, block::Block, entropy::Entropy};
use evenkeel_monitor::linux::Boot;
use evenkeel_monitor::pc::Pc;
use evenkeel_monitor::{End, Irqchip, Machine, Phase, Shape};
use evenkeel_state::Noting;
use evenkeel_state::x86::{self, Options};
use evenkeel_sys::requests::KVM_GET_SUPPORTED_CPUID;
use evenkeel_sys::{Live, Ram, Slot, System, Vcpu};

const MEMORY: usize = 4 << 20;
const COUNTER: usize = 0x20_0000;

/// Counts in memory, and writes to the serial port each time.
const COUNTS: &[u8] = &[
    0x48, 0xc7, 0xc3, 0x00, 0x00, 0x20, 0x00, // mov rbx, COUNTER
    0x48, 0xff, 0x03, // inc qword [rbx]
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'x', // mov al, 'x'
    0xee, // out dx, al
    0xeb, 0xf4, // back to inc
];
/// A triple fault: an interrupt with an empty table.
const FAULTS: &[u8] = &[0x0f, 0x01, 0x1c, 0x25, 0x00, 0x00, 0x30, 0x00, 0x0f, 0x0b]; // lidt [0x300000]; ud2

/// Counts the bytes that the guest writes.
#[derive(Clone, Default)]
struct Said(Arc<AtomicUsize>);

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.fetch_add(bytes.len(), Ordering::Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn disk() -> Vec<Box<dyn Device>> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    vec![Box::new(Entropy::new().unwrap()), Box::new(Block::new(file, false, "disk0").unwrap())]
}

fn vcpus<'b>(machine: &Machine<'_, 'b>, count: u64) -> Vec<Vcpu<'b>> {
    let cpuid = machine.system().cpuid(&KVM_GET_SUPPORTED_CPUID).unwrap();
    let make = |id| {
        let vcpu = machine.vcpu(id).unwrap();
        vcpu.set_cpuid(&cpuid).unwrap();
        vcpu
    };
    (0..count).map(make).collect()
}

fn counter(ram: &Ram) -> u64 {
    let mut bytes = [0; 8];
    ram.read(COUNTER, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

/// Waits for what must come.
fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(20), "{what} did not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs code on a new machine while `outside` has it.
fn with(
    code: &[u8],
    irqchip: Irqchip,
    count: u64,
    limit: Option<Duration>,
    outside: impl FnOnce(&Pc<'_, '_, Said>, &Noting<'_>, &Said),
) -> End {
    let live = Live::new();
    let noting = Noting::new(&live);
    let system = System::open(&noting).unwrap();
    let shape = Shape { irqchip, pit: irqchip == Irqchip::Kernel, memory: MEMORY };
    let machine = Machine::new(&system, shape).unwrap();
    let vcpus = vcpus(&machine, count);
    let said = Said::default();
    let mut boot = Boot { kernel: file(&elf(code, None)), initramfs: None, command_line: String::new() };
    let pc = Pc::new(&machine, &vcpus, disk(), said.clone(), &mut boot).unwrap();
    assert_eq!(pc.life().phase(), Phase::Ready);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| pc.run(limit));
        outside(&pc, &noting, &said);
        let end = running.join().unwrap();
        assert_eq!(pc.life().phase(), Phase::Ended(end.clone()));
        assert!(pc.life().pause().is_err() && pc.life().resume().is_err());
        end
    })
}

#[test]
#[cfg_attr(not(kvm), ignore = "no /dev/kvm")]
fn kvm_a_paused_machine_executes_nothing_and_goes_on() {
    // The second vCPU waits in KVM_RUN to be started, and is kicked as well.
    let end = with(COUNTS, Irqchip::Kernel, 2, None, |pc, _, said| {
        let life = pc.life();
        let mut took = Vec::new();
        for _ in 0..20 {
            let before = counter(pc.ram());
            soon("a count", || counter(pc.ram()) > before);
            took.push(life.pause().unwrap());
            assert_eq!(life.phase(), Phase::Paused);
            let (count, written) = (counter(pc.ram()), said.0.load(Ordering::Relaxed));
            // What was pending is done: each count was written but perhaps the last.
            assert!(count as usize - written <= 1, "{count} counts, {written} bytes");
            std::thread::sleep(Duration::from_millis(3));
            assert_eq!((counter(pc.ram()), said.0.load(Ordering::Relaxed)), (count, written));
            // Whoever pauses what is paused finds it so.
            life.pause().unwrap();
            life.resume().unwrap();
            assert_eq!(life.phase(), Phase::Running);
        }
        took.sort();
        eprintln!("pause: median {:?}, worst {:?}", took[took.len() / 2], took[took.len() - 1]);
        life.stop();
    });
    assert_eq!(end, End::Stopped);
}

#[test]
#[cfg_attr(not(kvm), ignore = "no /dev/kvm")]
fn kvm_pauses_from_many_threads_agree() {
    with(COUNTS, Irqchip::Split, 2, None, |pc, _, _| {
        let order = Mutex::new(());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        let _one = order.lock().unwrap();
                        pc.life().pause().unwrap();
                        let count = counter(pc.ram());
                        std::thread::yield_now();
                        assert_eq!(counter(pc.ram()), count);
                        pc.life().resume().unwrap();
                    }
                });
            }
        });
        pc.life().stop();
    });
}

#[test]
#[cfg_attr(not(kvm), ignore = "no /dev/kvm")]
fn kvm_a_machine_ends_by_itself_by_its_time_and_from_outside() {
    assert_eq!(with(FAULTS, Irqchip::Kernel, 1, None, |_, _, _| {}), End::Reset);
    let limit = Some(Duration::from_millis(200));
    assert_eq!(with(COUNTS, Irqchip::Kernel, 2, limit, |_, _, _| {}), End::TimeOver);
    // Also while it is paused.
    let end = with(COUNTS, Irqchip::Kernel, 2, None, |pc, _, _| {
        pc.life().pause().unwrap();
        pc.life().stop();
    });
    assert_eq!(end, End::Stopped);
}

#[test]
#[cfg_attr(not(kvm), ignore = "no /dev/kvm")]
fn kvm_a_saved_machine_goes_on_in_another() {
    for irqchip in [Irqchip::Kernel, Irqchip::Split] {
        let mut kept = None;
        with(COUNTS, irqchip, 2, None, |pc, noting, _| {
            soon("a count", || counter(pc.ram()) > 100);
            assert!(pc.save(&noting.manifest(0).unwrap()).is_err(), "a machine that runs is not saved");
            pc.life().pause().unwrap();
            let saved = pc.save(&noting.manifest(0).unwrap()).unwrap();
            let mut memory = vec![0; MEMORY];
            pc.ram().read(0, &mut memory).unwrap();
            kept = Some((saved, memory, counter(pc.ram())));
            pc.life().stop();
        });
        let (saved, memory, count) = kept.unwrap();
        let (board, records) = Board::read(&saved.sections).unwrap().unwrap();
        assert_eq!((board.vcpus, board.irqchip.as_str()), (2, irqchip.name()));

        let live = Live::new();
        let noting = Noting::new(&live);
        let system = System::open(&noting).unwrap();
        let ram = Arc::new(Ram::new(MEMORY).unwrap());
        ram.write(0, &memory).unwrap();
        let slot = Slot { number: 0, flags: 0, guest: 0, offset: 0, length: MEMORY as u64 };
        let image = &saved.saved.image;
        let made = x86::remake(&system, &image.manifest, &[(slot, ram.clone())]).unwrap();
        let report = x86::restore(&mut made.parts(&system), image, &Options::default()).unwrap();
        assert_eq!(report.not_kept, []);
        let shape = Shape { irqchip, pit: irqchip == Irqchip::Kernel, memory: MEMORY };
        let machine = Machine::adopt(&system, made.vm, ram, shape);

        // Another disk refuses.
        let other = tempfile::tempfile().unwrap();
        other.set_len(2 << 20).unwrap();
        let others: Vec<Box<dyn Device>> =
            vec![Box::new(Entropy::new().unwrap()), Box::new(Block::new(other, false, "disk0").unwrap())];
        let refused = Pc::restored(&machine, &made.vcpus, &board, &records, others, Said::default());
        assert!(refused.err().unwrap().to_string().contains("another device"));

        let said = Said::default();
        let pc = Pc::restored(&machine, &made.vcpus, &board, &records, disk(), said.clone()).unwrap();
        // It begins paused where it is told to.
        pc.life().pause().unwrap();
        std::thread::scope(|scope| {
            let running = scope.spawn(|| pc.run(None));
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(counter(pc.ram()), count);
            // Saved again before it ran, it is the same.
            let again = pc.save(&noting.manifest(0).unwrap()).unwrap();
            assert_eq!(again.sections, saved.sections);
            assert_eq!(noting.manifest(0).unwrap(), image.manifest);
            pc.life().resume().unwrap();
            soon("a count", || counter(pc.ram()) > count + 100 && said.0.load(Ordering::Relaxed) > 100);
            pc.life().stop();
            assert_eq!(running.join().unwrap(), End::Stopped);
        });
    }
}
