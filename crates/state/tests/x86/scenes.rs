//! Guests that are stopped at points where state is easily lost.

use std::thread::sleep;
use std::time::Duration;

use evenkeel_monitor::Irqchip;
use evenkeel_state::{Image, Retire};
use evenkeel_sys::Exit;
use evenkeel_sys::requests::*;
use evenkeel_witness::abi;

use crate::asm::{Asm, results};
use crate::stage::{Scene, word};

pub const EXCEPTION_PAYLOAD: u32 = 164;
const KEPT: u32 = 0x40;

/// `struct kvm_vcpu_events`: exception injected, number; interrupt injected; shadow; NMI pending, masked.
pub fn event(image: &Image, at: usize) -> u8 {
    word(image, "vcpu-events", at & !3).to_le_bytes()[at & 3]
}

fn timer(mode: u32, x2apic: bool, count: u32) -> Asm {
    let asm = Asm::new();
    if x2apic {
        asm.x2apic_on().wrmsr(0x83e, 0xb).wrmsr(0x832, (mode | 0x61).into()).wrmsr(0x838, count.into())
    } else {
        asm.apic_on().apic(0x3e0, 0xb).apic(0x320, mode | 0x61).apic(0x380, count)
    }
}

/// Every scene that this machine's KVM can play.
pub fn all() -> Vec<Scene<'static>> {
    vec![
        Scene {
            name: "in-flight port write",
            program: &|_| Asm::new().mov(0, 7).out(abi::BREATH).keep(results(0)).done(),
            stop: &|s| s.breath(0, 1),
            ..Scene::default()
        },
        Scene {
            name: "in-flight port read",
            program: &|_| Asm::new().input(0x60).keep(results(0)).done(),
            stop: &|s| {
                let exit = s.until(0, |e| matches!(e, Exit::PortRead { .. }));
                s.answer(0, &exit);
            },
            ..Scene::default()
        },
        Scene {
            name: "in-flight string port read",
            // mov edi, results; mov ecx, 4; mov edx, 0x60; rep insd
            program: &|_| Asm::new().mov(7, results(0)).mov(1, 4).mov(2, 0x60).bytes(&[0xf3, 0x6d]).done(),
            stop: &|s| {
                let exit = s.until(0, |e| matches!(e, Exit::PortRead { .. }));
                s.answer(0, &exit);
            },
            ..Scene::default()
        },
        Scene {
            name: "in-flight memory read",
            program: &|_| Asm::new().load(0xd000_0000).keep(results(0)).done(),
            stop: &|s| {
                let exit = s.until(0, |e| matches!(e, Exit::MemoryRead { .. }));
                s.answer(0, &exit);
            },
            ..Scene::default()
        },
        Scene {
            name: "in-flight memory write",
            program: &|_| Asm::new().store(0xd000_0000, 5).mov(0, 9).keep(results(0)).done(),
            stop: &|s| drop(s.until(0, |e| matches!(e, Exit::MemoryWrite { .. }))),
            ..Scene::default()
        },
        Scene {
            name: "pending interrupt",
            program: &|_| Asm::new().apic_on().out(abi::BREATH).window(3).done(),
            stop: &|s| {
                s.breath(0, 1);
                s.msi(0, 0x51);
            },
            point: &|i| word(i, "lapic", 0x200 + 0x20) == 1 << 0x11,
            ..Scene::default()
        },
        Scene {
            name: "interrupt in service, another pending",
            program: &|_| {
                Asm::new()
                    .apic_on()
                    .out(abi::BREATH)
                    .window(3)
                    .out(abi::BREATH)
                    .apic(0xb0, 0)
                    .window(3)
                    .done()
            },
            stop: &|s| {
                s.breath(0, 1);
                s.msi(0, 0x55);
                s.breath(0, 4);
                s.msi(0, 0x51);
            },
            point: &|i| word(i, "lapic", 0x120) == 1 << 0x15 && word(i, "lapic", 0x220) == 1 << 0x11,
            ..Scene::default()
        },
        Scene {
            name: "pending NMI",
            program: &|_| Asm::new().out(abi::BREATH).window(3).done(),
            stop: &|s| {
                s.breath(0, 1);
                s.runners[0].vcpu().int(&KVM_NMI, 0).unwrap();
            },
            point: &|i| event(i, 13) == 1,
            ..Scene::default()
        },
        Scene {
            name: "NMI that was not ended, and another pending",
            program: &|_| Asm::new().out(abi::BREATH).window(3).out(abi::BREATH).window(3).done(),
            stop: &|s| {
                s.breath(0, 1);
                s.runners[0].vcpu().int(&KVM_NMI, 0).unwrap();
                s.breath(0, 4);
                s.runners[0].vcpu().int(&KVM_NMI, 0).unwrap();
            },
            ..Scene::default()
        },
        Scene {
            name: "injected exception",
            program: &|_| Asm::new().out(abi::BREATH).mov(0, 3).keep(results(0)).done(),
            stop: &|s| {
                s.breath(0, 1);
                inject(s, |e| (e[0], e[1]) = (1, 6));
            },
            point: &|i| event(i, 0) == 1 && event(i, 1) == 6,
            ..Scene::default()
        },
        Scene {
            name: "pending exception with a payload",
            enable: &|vm| assert!(vm.enable_cap(EXCEPTION_PAYLOAD, [1, 0, 0, 0]).is_ok()),
            program: &|_| {
                Asm::new()
                    .out(abi::BREATH)
                    .mov(0, 3)
                    .keep(results(0))
                    .bytes(&[0x0f, 0x21, 0xf0])
                    .keep(results(0) + 8)
                    .done()
            },
            stop: &|s| {
                s.breath(0, 1);
                // A single step that is not delivered yet, with BS for DR6.
                inject(s, |e| {
                    (e[1], e[3]) = (1, 1);
                    e[20] |= 0x10;
                    e[55] = 1;
                    e[56..64].copy_from_slice(&0x4000_u64.to_le_bytes());
                });
            },
            point: &|i| event(i, 3) == 1 && event(i, 1) == 1,
            ..Scene::default()
        },
        Scene {
            name: "halted",
            program: &|_| Asm::new().apic_on().sti().hlt().cli().mov(0, 4).keep(results(0)).done(),
            stop: &|s| halt(s),
            finish: &|s| {
                s.msi(0, 0x61);
                s.play_out(0);
            },
            point: &|i| word(i, "mp-state", 0) == 3,
            ..Scene::default()
        },
        Scene {
            name: "halted, with the interrupt that wakes it pending",
            program: &|_| Asm::new().apic_on().sti().hlt().cli().mov(0, 4).keep(results(0)).done(),
            stop: &|s| {
                halt(s);
                s.msi(0, 0x61);
            },
            ..Scene::default()
        },
        Scene {
            name: "interrupt shadow",
            program: &|_| Asm::new().apic_on().out(abi::BREATH).sti().bytes(&[0x90, 0x90]).window(3).done(),
            stop: &|s| {
                s.breath(0, 1);
                inject(s, |e| e[11] = 1);
                s.msi(0, 0x52);
            },
            point: &|i| event(i, 11) != 0,
            ..Scene::default()
        },
        Scene {
            name: "deadline timer armed",
            program: &|_| {
                Asm::new()
                    .apic_on()
                    .apic(0x320, 0x4_0061)
                    .deadline_in(0x7000_0000)
                    .out(abi::BREATH)
                    .sti()
                    .hlt()
                    .cli()
                    .done()
            },
            stop: &|s| s.breath(0, 1),
            ..Scene::default()
        },
        Scene {
            name: "deadline timer just expired",
            program: &|_| {
                Asm::new()
                    .apic_on()
                    .apic(0x320, 0x4_0061)
                    .deadline_in(2_000_000)
                    .out(abi::BREATH)
                    .window(6)
                    .done()
            },
            stop: &|s| {
                s.breath(0, 1);
                sleep(Duration::from_millis(10));
            },
            ..Scene::default()
        },
        Scene {
            name: "one-shot timer armed",
            program: &|_| timer(0, false, 3_000_000_000).out(abi::BREATH).sti().hlt().cli().done(),
            stop: &|s| s.breath(0, 1),
            ..Scene::default()
        },
        Scene {
            name: "one-shot timer just expired",
            program: &|_| timer(0, false, 1_000_000).out(abi::BREATH).window(6).done(),
            stop: &|s| {
                s.breath(0, 1);
                sleep(Duration::from_millis(10));
            },
            ..Scene::default()
        },
        Scene {
            name: "one-shot timer just expired, x2APIC",
            program: &|_| timer(0, true, 1_000_000).out(abi::BREATH).window(6).done(),
            stop: &|s| {
                s.breath(0, 1);
                sleep(Duration::from_millis(10));
            },
            ..Scene::default()
        },
        Scene {
            name: "one-shot timer fired and ended",
            program: &|_| {
                timer(0, false, 100_000).window(100).apic(0xb0, 0).out(abi::BREATH).window(6).done()
            },
            stop: &|s| s.breath(0, 101),
            ..Scene::default()
        },
        Scene {
            name: "one-shot timer fired and ended, x2APIC",
            program: &|_| {
                let asm = timer(0, true, 100_000).window(100).wrmsr(0x80b, 0).out(abi::BREATH).window(6);
                // The initial count, as the guest reads it.
                asm.mov(1, 0x838).bytes(&[0x0f, 0x32]).keep(results(0)).done()
            },
            stop: &|s| s.breath(0, 101),
            ..Scene::default()
        },
        Scene {
            name: "level interrupt of the IOAPIC, masked and pending",
            program: &|_| {
                let ioapic = |asm: Asm, register: u32, value: u32| {
                    asm.store(0xfec0_0000, register).store(0xfec0_0010, value)
                };
                let asm = ioapic(
                    ioapic(Asm::new().mov(0, 0xff).out(0x21).out(0xa1).apic_on(), 0x1b, 0),
                    0x1a,
                    0x1_8065,
                )
                .out(abi::BREATH);
                ioapic(asm, 0x1a, 0x8065).window(3).done()
            },
            stop: &|s| {
                s.breath(0, 1);
                let mut line = [0; 8];
                line[..4].copy_from_slice(&5_u32.to_le_bytes());
                line[4..].copy_from_slice(&1_u32.to_le_bytes());
                s.vm.set(&KVM_IRQ_LINE, &line).unwrap();
            },
            ..Scene::default()
        },
        Scene {
            name: "waiting for SIPI, which is on its way",
            cpus: 2,
            waiting: true,
            program: &|n| match n {
                0 => {
                    let asm = Asm::new().apic_on().apic(0x310, 1 << 24).apic(0x300, 0x4500);
                    asm.apic(0x310, 1 << 24)
                        .apic(0x300, 0x4608)
                        .out(abi::BREATH)
                        .mov(0, 1)
                        .keep(results(0))
                        .done()
                }
                _ => Asm::new().done(),
            },
            stop: &|s| s.breath(0, 1),
            finish: &|s| (0..2).for_each(|n| s.play_out(n)),
            ..Scene::default()
        },
        Scene {
            name: "split irqchip, pending interrupt",
            irqchip: Irqchip::Split,
            program: &|_| Asm::new().apic_on().out(abi::BREATH).window(3).done(),
            stop: &|s| {
                s.breath(0, 1);
                s.msi(0, 0x51);
            },
            ..Scene::default()
        },
        Scene {
            name: "no irqchip, interrupt injected",
            irqchip: Irqchip::None,
            program: &|_| Asm::new().out(abi::BREATH).sti().out(abi::BREATH).bytes(&[0x90]).cli().done(),
            stop: &|s| {
                s.breath(0, 2);
                s.runners[0].vcpu().set(&KVM_INTERRUPT, &KEPT.to_le_bytes()).unwrap();
            },
            ..Scene::default()
        },
        Scene {
            name: "debug registers and floating point",
            program: &|_| {
                // mov eax, 0x1234; mov dr0, rax; fld1; movd xmm5, eax
                let asm = Asm::new().mov(0, 0x1234).bytes(&[0x0f, 0x23, 0xc0]).out(abi::BREATH);
                asm.bytes(&[0x0f, 0x21, 0xc0]).keep(results(0)).done()
            },
            stop: &|s| s.breath(0, 1),
            ..Scene::default()
        },
    ]
}

/// Runs the first vCPU until it has halted, however slow its host is.
fn halt(s: &mut crate::stage::Stage<'_, '_, '_>) {
    for _ in 0..200 {
        assert_eq!(s.step(0, Duration::from_millis(30)), Exit::Interrupted);
        // KVM_MP_STATE_HALTED.
        if s.runners[0].vcpu().get(&KVM_GET_MP_STATE, 0).unwrap()[0] == 3 {
            return;
        }
    }
}

/// Two to eight vCPUs, each counting and sending the next one an interrupt.
pub fn many(cpus: u32) -> Scene<'static> {
    Scene {
        name: "many vCPUs",
        cpus,
        program: &|n| {
            Asm::new().x2apic_on().mov(0, 100 + n).out(abi::BREATH).window(3).keep(results(n)).done()
        },
        stop: &|s| {
            for n in 0..s.runners.len() {
                s.breath(n, 1);
                s.msi(n as u32, 0x70 + n as u8);
            }
        },
        finish: &|s| (0..s.runners.len()).for_each(|n| s.play_out(n)),
        ..Scene::default()
    }
}

fn inject(s: &mut crate::stage::Stage<'_, '_, '_>, change: impl Fn(&mut [u8])) {
    // What the kernel has still open ends first: the end of an instruction is the end of a shadow.
    assert_eq!(s.runners[0].retire().unwrap(), Exit::Interrupted);
    let vcpu = s.runners[0].vcpu();
    let mut events = vcpu.get(&KVM_GET_VCPU_EVENTS, 0).unwrap();
    change(&mut events);
    vcpu.set(&KVM_SET_VCPU_EVENTS, &events).unwrap();
}

/// A guest with something in every group, host side by host side: what an order or a lost call can spoil.
pub fn rich() -> Scene<'static> {
    Scene {
        name: "something in every group",
        program: &|_| {
            let asm = Asm::new().x2apic_on().wrmsr(0x83e, 0xb).wrmsr(0x832, 0x4_0061).deadline_far();
            // The task priority by CR8, a debug register, a breath; then all of it as the guest reads it.
            let asm =
                asm.mov(0, 3).bytes(&[0x44, 0x0f, 0x22, 0xc0]).mov(0, 0x1234).bytes(&[0x0f, 0x23, 0xc0]);
            let asm = asm.out(abi::BREATH).keep(results(0));
            let asm = asm.bytes(&[0x44, 0x0f, 0x20, 0xc0]).keep(results(0) + 8);
            let asm = asm.bytes(&[0x0f, 0x21, 0xc0]).keep(results(0) + 16);
            let asm = asm.bytes(&[0x0f, 0x20, 0xe0]).keep(results(0) + 24);
            let asm = [0xc000_0080_u32, 0xc000_0081, 0x174, 0x277, 0x2ff]
                .iter()
                .zip(0_u32..)
                .fold(asm, |asm, (msr, n)| {
                    asm.mov(1, *msr).bytes(&[0x0f, 0x32]).keep(results(0) + 32 + 8 * n)
                });
            asm.window(3).done()
        },
        stop: &|s| {
            s.breath(0, 1);
            let vcpu = s.runners[0].vcpu();
            let mut sregs = vcpu.get(&KVM_GET_SREGS, 0).unwrap();
            // CR4: OSFXSR, OSXMMEXCPT, OSXSAVE where it is; EFER: SCE, NXE.
            let cr4 = u64::from_le_bytes(sregs[248..256].try_into().unwrap()) | 0x4_0600;
            sregs[248..256].copy_from_slice(&cr4.to_le_bytes());
            let efer = u64::from_le_bytes(sregs[264..272].try_into().unwrap()) | 0x801;
            sregs[264..272].copy_from_slice(&efer.to_le_bytes());
            vcpu.set(&KVM_SET_SREGS, &sregs).unwrap();
            let mut xcrs = vcpu.get(&KVM_GET_XCRS, 0).unwrap();
            xcrs[0] = 1;
            xcrs[16] = 7;
            vcpu.set(&KVM_SET_XCRS, &xcrs).unwrap();
            let mut xsave = vcpu.get(&KVM_GET_XSAVE, 0).unwrap();
            // XMM3, the upper half of YMM3, and XSTATE_BV.
            xsave[208..224].fill(0x33);
            xsave[512] |= 7;
            xsave[576 + 48..576 + 64].fill(0x44);
            vcpu.set(&KVM_SET_XSAVE, &xsave).unwrap();
            let msrs = [
                (0xc000_0081, 0x0018_0008_0000_1234),
                (0xc000_0082, 0x5678),
                (0x174, 8),
                (0x175, 0x9000),
                (0x277, 0x0007_0406_0007_0401),
                (0x2ff, 0xc06),
                (0x200, 6),
                (0x17b, 0),
                (0x400, !0),
                (0x12, 0),
                (0x4b56_4d01, u64::from(abi::SCRATCH) + 0xf001),
                (0x4b56_4d04, 1),
                (0xc000_0103, 5),
            ];
            let done = vcpu.msrs().set(&msrs);
            assert!(done.iter().filter(|done| done.is_ok()).count() >= 8, "{done:?}");
            s.msi(0, 0x51);
            // A line of the PIC, and a count in the PIT.
            let mut line = [0; 8];
            line[..4].copy_from_slice(&3_u32.to_le_bytes());
            line[4..].copy_from_slice(&1_u32.to_le_bytes());
            s.vm.set(&KVM_IRQ_LINE, &line).unwrap();
        },
        ..Scene::default()
    }
}
