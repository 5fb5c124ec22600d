//! An ELF file with a note of PVH begins as that says, and finds all that it is told.
#![cfg(target_arch = "x86_64")]
#![cfg_attr(not(kvm), allow(dead_code))]

mod common;

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{CODE, elf, file};
use evenkeel_monitor::board::Runs;
use evenkeel_monitor::linux::Boot;
use evenkeel_monitor::pc::Pc;
use evenkeel_monitor::{End, Irqchip, Machine, Shape};
use evenkeel_sys::requests::KVM_GET_SUPPORTED_CPUID;
use evenkeel_sys::{Live, System};

const MEMORY: u64 = 8 << 20;

/// 32-bit code that writes to the serial port what EBX leads to, and resets. Its entry by the ELF header is `ud2`.
const TELLS: &[u8] = &[
    0x0f, 0x0b, // ud2
    0x89, 0xde, // mov esi, ebx
    0xb9, 56, 0, 0, 0, // mov ecx, 56
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xf3, 0x6e, // rep outsb: the start info
    0x8b, 0x73, 40, 0xb9, 48, 0, 0, 0, 0xf3, 0x6e, // 48 bytes at [ebx + 40]: the memory map
    0x8b, 0x73, 16, 0xb9, 32, 0, 0, 0, 0xf3, 0x6e, // the module list
    0x8b, 0x43, 16, 0x8b, 0x30, 0xb9, 5, 0, 0, 0, 0xf3, 0x6e, // the first module
    0x8b, 0x73, 24, 0xb9, 8, 0, 0, 0, 0xf3, 0x6e, // the command line
    0x8b, 0x73, 32, 0xb9, 8, 0, 0, 0, 0xf3, 0x6e, // ACPI's root pointer
    0x0f, 0x20, 0xc0, 0xee, // mov eax, cr0; out dx, al
    0x0f, 0x20, 0xe0, 0xee, // mov eax, cr4; out dx, al
    0xb0, 0xfe, 0xe6, 0x64, // mov al, 0xfe; out 0x64, al
    0xf4, // hlt
];

#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

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
#[cfg_attr(not(kvm), ignore = "no /dev/kvm")]
fn kvm_a_kernel_with_a_note_is_told_by_pvh_what_there_is() {
    let live = Live::new();
    let system = System::open(&live).unwrap();
    let shape = Shape { irqchip: Irqchip::Kernel, pit: true, memory: MEMORY as usize };
    let machine = Machine::new(&system, shape).unwrap();
    let vcpus = [machine.vcpu(0).unwrap()];
    vcpus[0].set_cpuid(&system.cpuid(&KVM_GET_SUPPORTED_CPUID).unwrap()).unwrap();
    let said = Said::default();
    let mut boot = Boot {
        kernel: file(&elf(TELLS, Some(CODE as u32 + 2))),
        initramfs: Some(b"archive".to_vec()),
        command_line: "quiet a=b".to_owned(),
    };
    let pc = Pc::new(&machine, &vcpus, Vec::new(), said.clone(), &mut boot).unwrap();
    assert_eq!(pc.run(Some(Duration::from_secs(20))), End::Reset);

    let said = said.0.lock().unwrap();
    let word = |at: usize| u32::from_le_bytes(said[at..at + 4].try_into().unwrap());
    let long = |at: usize| u64::from_le_bytes(said[at..at + 8].try_into().unwrap());
    // Magic, version, flags, modules; entries of the memory map.
    assert_eq!((word(0), word(4), word(8), word(12), word(48)), (0x336e_c578, 1, 0, 1, 2));
    // Address, length and type: the memory below 640 KiB, and from 1 MiB on.
    let map: Vec<_> = [56, 80].map(|at| (long(at), long(at + 8), word(at + 16))).into();
    assert_eq!(map, [(0, 0x9_fc00, 1), (0x10_0000, MEMORY - 0x10_0000, 1)]);
    assert_eq!((long(104), long(112)), (MEMORY - 0x1000, 7), "where the archive is");
    assert_eq!(&said[136..], b"archiquiet a=RSD PTR \x11\0", "what is there, and CR0 and CR4");
}

#[test]
#[cfg_attr(not(kvm), ignore = "no /dev/kvm")]
fn kvm_a_kernel_that_is_not_where_it_says_is_refused() {
    let live = Live::new();
    let system = System::open(&live).unwrap();
    let shape = Shape { irqchip: Irqchip::Kernel, pit: true, memory: MEMORY as usize };
    let good = elf(TELLS, Some(CODE as u32));
    let changed = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    };
    for (kernel, why) in [
        (elf(TELLS, Some(MEMORY as u32)), "its entry 0x800000 is behind its end"),
        // What it takes, of which the file has less.
        (changed(64 + 40, &MEMORY.to_le_bytes()), "the kernel does not fit"),
        (changed(64 + 40, &u64::MAX.to_le_bytes()), "neither a bzImage"),
        (changed(64 + 24, &(MEMORY - 8).to_le_bytes()), "neither a bzImage"),
        (changed(0x800 + 4, &3_u32.to_le_bytes()), "Invalid PVH note"),
        (good[..0x1010].to_vec(), "neither a bzImage"),
    ] {
        let machine = Machine::new(&system, shape).unwrap();
        let mut boot = Boot { kernel: file(&kernel), initramfs: None, command_line: String::new() };
        let refused = Pc::new(&machine, &[], Vec::new(), io::sink(), &mut boot).err().unwrap().to_string();
        assert!(refused.contains(why), "{why}: {refused}");
    }
}
