//! Interrupt lines through a real KVM, with the IOAPIC in the kernel and with the one here: what the local APIC of a vCPU holds.

#![cfg(target_arch = "x86_64")]

use evenkeel_monitor::devices::interrupts::Interrupts;
use evenkeel_monitor::devices::ioapic::BASE;
use evenkeel_monitor::{Irqchip, Machine, Shape};
use evenkeel_sys::requests::{KVM_GET_LAPIC, KVM_SET_LAPIC};
use evenkeel_sys::{Live, System, Vcpu};

const PIN: u32 = 5;
const VECTOR: u32 = 0x41;
const LEVEL: u32 = 1 << 15;
/// Registers of the local APIC.
const SPURIOUS: usize = 0xf0;
const TRIGGER: usize = 0x180;
const REQUEST: usize = 0x200;

fn page(vcpu: &Vcpu<'_>) -> Vec<u8> {
    vcpu.get(&KVM_GET_LAPIC, 1024).unwrap()
}

/// A vector's bit in one of the APIC's bitmaps.
fn bit(page: &[u8], bitmap: usize, vector: u32) -> bool {
    page[bitmap + (vector as usize / 32) * 16 + (vector as usize % 32) / 8] >> (vector % 8) & 1 == 1
}

fn clear(vcpu: &Vcpu<'_>) {
    let mut bytes = page(vcpu);
    bytes[SPURIOUS..SPURIOUS + 4].copy_from_slice(&0x1ff_u32.to_le_bytes());
    bytes[REQUEST..REQUEST + 128].fill(0);
    vcpu.set(&KVM_SET_LAPIC, &bytes).unwrap();
}

fn program(interrupts: &Interrupts<'_, '_>, low: u32) {
    for (register, value) in [(0x11 + 2 * PIN, 0), (0x10 + 2 * PIN, low)] {
        assert!(interrupts.write(BASE, &register.to_le_bytes()));
        assert!(interrupts.write(BASE + 0x10, &value.to_le_bytes()));
    }
}

#[test]
#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
fn kvm_delivers_what_the_ioapic_here_sends() {
    let live = Live::new();
    let system = System::open(&live).unwrap();
    let shape = Shape { irqchip: Irqchip::Split, pit: false, memory: 1 << 20 };
    let machine = Machine::new(&system, shape).unwrap();
    let vcpu = machine.vcpu(0).unwrap();
    clear(&vcpu);
    let interrupts = Interrupts::new(machine.vm(), Irqchip::Split).unwrap();

    let mut version = [0; 4];
    assert!(interrupts.write(BASE, &1_u32.to_le_bytes()));
    assert!(interrupts.read(BASE + 0x10, &mut version));
    assert_eq!(u32::from_le_bytes(version), 0x0017_0020);
    assert!(!interrupts.read(BASE - 4, &mut version) && !interrupts.write(BASE + 0x1000, &version));

    // An edge.
    program(&interrupts, VECTOR);
    assert!(!bit(&page(&vcpu), REQUEST, VECTOR));
    interrupts.pulse(PIN);
    let got = page(&vcpu);
    assert!(bit(&got, REQUEST, VECTOR) && !bit(&got, TRIGGER, VECTOR), "an edge");
    assert!(!bit(&got, REQUEST, VECTOR + 1));

    // A level, which is delivered again after its end as long as it is high.
    clear(&vcpu);
    program(&interrupts, (VECTOR + 1) | LEVEL);
    interrupts.set(PIN, true);
    let got = page(&vcpu);
    assert!(bit(&got, REQUEST, VECTOR + 1) && bit(&got, TRIGGER, VECTOR + 1), "a level");
    clear(&vcpu);
    interrupts.set(PIN, false);
    interrupts.set(PIN, true);
    assert!(!bit(&page(&vcpu), REQUEST, VECTOR + 1), "it was not ended");
    interrupts.eoi(VECTOR as u8 + 1);
    assert!(bit(&page(&vcpu), REQUEST, VECTOR + 1));

    // The same machine with an IOAPIC that is at what this one is at sends nothing again.
    clear(&vcpu);
    let (_, state) = interrupts.records().unwrap();
    let again = Interrupts::new(machine.vm(), Irqchip::Split).unwrap();
    again.set_state(&state).unwrap();
    again.set(PIN, true);
    assert!(!bit(&page(&vcpu), REQUEST, VECTOR + 1));
    again.eoi(VECTOR as u8 + 1);
    assert!(bit(&page(&vcpu), REQUEST, VECTOR + 1));
}

#[test]
#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
fn kvm_has_lines_of_its_own_or_none() {
    let live = Live::new();
    let system = System::open(&live).unwrap();
    let shape = Shape { irqchip: Irqchip::Kernel, pit: true, memory: 1 << 20 };
    let machine = Machine::new(&system, shape).unwrap();
    let interrupts = Interrupts::new(machine.vm(), Irqchip::Kernel).unwrap();
    assert!(!interrupts.write(BASE, &[0; 4]), "the kernel answers there");
    assert!(interrupts.records().is_none());
    assert!(interrupts.set_state(&[]).is_err());
    assert!(Interrupts::new(machine.vm(), Irqchip::None).is_err());
    // IRR of the kernel's IOAPIC: behind chip number, padding, base, index and id.
    interrupts.set(PIN, true);
    let chip = machine.vm().irqchip(2).unwrap();
    assert_eq!(chip[24] >> PIN & 1, 1);
    interrupts.set(PIN, false);
    assert_eq!(machine.vm().irqchip(2).unwrap()[24] >> PIN & 1, 0);
}
