//! A guest hears of a vCPU that is plugged while it runs, also when it was saved before it heard.
#![cfg(all(kvm, target_arch = "x86_64"))]

mod common;

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{elf, file};
use evenkeel_monitor::board::{Board, Runs};
use evenkeel_monitor::linux::Boot;
use evenkeel_monitor::pc::Pc;
use evenkeel_monitor::{End, Irqchip, Machine, Shape};
use evenkeel_state::Noting;
use evenkeel_state::x86::{self, Options};
use evenkeel_sys::requests::KVM_GET_SUPPORTED_CPUID;
use evenkeel_sys::{Live, Ram, Slot, System, Vcpu};

const MEMORY: usize = 4 << 20;
/// Looks for news, tells on the serial port what is plugged, and clears the news.
const LISTENS: &[u8] = &[
    0x66, 0xba, 0xe0, 0x0c, // mov dx, 0xce0
    0xec, // in al, dx
    0x84, 0xc0, // test al, al
    0x74, 0xf7, // jz, back to mov
    0xee, // out dx, al
    0x66, 0xba, 0xd8, 0x0c, // mov dx, 0xcd8
    0xec, // in al, dx
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xee, // out dx, al
    0xeb, 0xe9, // back to the first
];

#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    fn comes_to(&self, what: &[u8]) {
        let begin = Instant::now();
        while *self.0.lock().unwrap() != what {
            assert!(begin.elapsed() < Duration::from_secs(20), "{:?}, not {what:?}", self.0.lock().unwrap());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn kvm_a_plugged_vcpu_is_in_the_state() {
    for irqchip in [Irqchip::Kernel, Irqchip::Split] {
        let live = Live::new();
        let noting = Noting::new(&live);
        let system = System::open(&noting).unwrap();
        let shape = Shape { irqchip, pit: irqchip == Irqchip::Kernel, memory: MEMORY };
        let machine = Machine::new(&system, shape).unwrap();
        let cpuid = system.cpuid(&KVM_GET_SUPPORTED_CPUID).unwrap();
        let vcpus: Vec<Vcpu<'_>> = (0..4)
            .map(|id| {
                let vcpu = machine.vcpu(id).unwrap();
                vcpu.set_cpuid(&cpuid).unwrap();
                vcpu
            })
            .collect();
        let said = Said::default();
        let mut boot =
            Boot { kernel: file(&elf(LISTENS, None)), initramfs: None, command_line: String::new() };
        let pc = Pc::pluggable(&machine, &vcpus, 1, Vec::new(), said.clone(), &mut boot).unwrap();
        let plug = pc.plug().unwrap();
        let saved = std::thread::scope(|scope| {
            let running = scope.spawn(|| pc.run(None));
            plug.plug(2).unwrap();
            said.comes_to(&[3]);
            // Plugged while it stands: it hears later, wherever that is.
            pc.life().pause().unwrap();
            plug.plug(3).unwrap();
            let saved = pc.save(&noting.manifest(0).unwrap()).unwrap();
            pc.life().resume().unwrap();
            said.comes_to(&[3, 7]);
            pc.life().stop();
            assert_eq!(running.join().unwrap(), End::Stopped);
            saved
        });
        let mut memory = vec![0; MEMORY];
        pc.ram().read(0, &mut memory).unwrap();

        let (board, mut records) = Board::read(&saved.sections).unwrap().unwrap();
        assert_eq!(board.vcpus, 4);
        let noting = Noting::new(&live);
        let system = System::open(&noting).unwrap();
        let ram = Arc::new(Ram::new(MEMORY).unwrap());
        ram.write(0, &memory).unwrap();
        let slot = Slot { number: 0, flags: 0, guest: 0, offset: 0, length: MEMORY as u64 };
        let image = &saved.saved.image;
        let made = x86::remake(&system, &image.manifest, &[(slot, ram.clone())]).unwrap();
        let report = x86::restore(&mut made.parts(&system), image, &Options::default()).unwrap();
        assert_eq!(report.not_kept, []);
        let machine = Machine::adopt(&system, made.vm, ram, shape);
        let said = Said::default();
        let restored =
            |records: &_| Pc::restored(&machine, &made.vcpus, &board, records, Vec::new(), said.clone());
        let pc = restored(&records).unwrap();
        assert_eq!(pc.plug().unwrap().plugged(), 3);
        std::thread::scope(|scope| {
            let running = scope.spawn(|| pc.run(None));
            said.comes_to(&[7]);
            pc.plug().unwrap().plug(4).unwrap();
            said.comes_to(&[7, 15]);
            pc.life().stop();
            assert_eq!(running.join().unwrap(), End::Stopped);
        });
        // It was made for four, and that is what it is.
        records.get_mut("vcpu-plug").unwrap().config.0 =
            evenkeel_capsule::cbor::print(&evenkeel_monitor::devices::plug::Config { most: 5 });
        assert!(restored(&records).err().unwrap().to_string().contains("another device"));
    }
}

#[test]
fn kvm_a_machine_with_all_its_vcpus_has_nothing_to_plug() {
    let live = Live::new();
    let system = System::open(&live).unwrap();
    let shape = Shape { irqchip: Irqchip::Kernel, pit: true, memory: MEMORY };
    let machine = Machine::new(&system, shape).unwrap();
    let vcpus = [machine.vcpu(0).unwrap()];
    let mut boot = Boot { kernel: file(&elf(LISTENS, None)), initramfs: None, command_line: String::new() };
    let pc = Pc::new(&machine, &vcpus, Vec::new(), io::sink(), &mut boot).unwrap();
    assert!(pc.plug().is_none() && pc.board().devices.iter().all(|device| device.kind != "vcpu-plug"));
    let refused = Pc::pluggable(&machine, &vcpus, 2, Vec::new(), io::sink(), &mut boot).err().unwrap();
    assert!(refused.to_string().contains("2 vCPUs of 1"), "{refused}");
}
