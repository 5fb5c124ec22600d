//! Guests with state in use that only some hosts have: nested guests, Xen's and Hyper-V's interfaces, other rates of the TSC,
//! counters of performance, single steps. Each scene says why it cannot be played where it cannot.

use evenkeel_sys::layout::CpuidEntry;
use evenkeel_sys::requests::*;
use evenkeel_sys::{Exit, System};
use evenkeel_witness::abi;
use std::time::Duration;

use crate::asm::{Asm, place, results};
use crate::scenes::{EXCEPTION_PAYLOAD, event};
use crate::stage::{Scene, Stage};

const CAP_XEN_HVM: u32 = 38;
const CAP_HYPERV_SYNIC2: u32 = 148;
/// KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET.
const TSC_OFFSET: (u32, u64) = (0, 0);
/// Pages that no program uses.
const VMCB: u32 = abi::SCRATCH + 0x4000;
const HOST_SAVE: u32 = abi::SCRATCH + 0x5000;
const PAGES: u32 = abi::SCRATCH + 0x6000;
/// A second program of the first vCPU, behind the first: a nested guest's, or a handler.
const BEHIND: u32 = abi::SCRATCH + 0xc00;

/// Scenes with state in use.
pub fn all() -> Vec<Scene<'static>> {
    let mut all = vec![stepped(), trapped(), moved_tsc(), other_rate(), counters(), xen(), hyperv()];
    all.extend([nested(), nested_off()]);
    all
}

/// What no scene plays, and why not here.
pub fn without_scene(system: &System<'_>) -> Vec<String> {
    // Name, leaf, register of the output, bit.
    const FEATURES: [(&str, u32, usize, u32); 3] =
        [("AMX's tiles", 7, 3, 24), ("shadow stacks", 7, 2, 7), ("nested guests of VMX", 1, 2, 5)];
    let cpuid = system.cpuid(&KVM_GET_SUPPORTED_CPUID).unwrap();
    let has = |leaf, register: usize, bit| {
        cpuid.iter().any(|e| e.function == leaf && e.index == 0 && e.output[register] >> bit & 1 != 0)
    };
    let told = |(name, leaf, register, bit): (&str, u32, usize, u32)| {
        let why = if has(leaf, register, bit) {
            "offered here, and no scene plays it"
        } else {
            "this KVM does not offer it"
        };
        format!("{name}: {why}")
    };
    FEATURES.into_iter().map(told).collect()
}

/// Asks a vCPU that is thrown away.
fn on_trial(system: &System<'_>, ask: impl Fn(&evenkeel_sys::Vcpu<'_>) -> Option<String>) -> Option<String> {
    let shape = evenkeel_monitor::Shape { memory: abi::MEMORY, ..crate::SHAPE };
    let machine = evenkeel_monitor::Machine::new(system, shape).unwrap();
    let vcpu = machine.vcpu(0).unwrap();
    vcpu.set_cpuid(&system.cpuid(&KVM_GET_SUPPORTED_CPUID).unwrap()).unwrap();
    ask(&vcpu)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn rip(s: &Stage<'_, '_, '_>) -> u64 {
    let regs = s.runners[0].vcpu().get(&KVM_GET_REGS, 0).unwrap();
    u64::from_le_bytes(regs[128..136].try_into().unwrap())
}

/// KVM_SET_GUEST_DEBUG with KVM_GUESTDBG_ENABLE and KVM_GUESTDBG_SINGLESTEP, or without.
fn debugger(s: &Stage<'_, '_, '_>, on: bool) {
    let mut debug = [0; 72];
    debug[0] = if on { 3 } else { 0 };
    s.runners[0].vcpu().set(&KVM_SET_GUEST_DEBUG, &debug).unwrap();
}

/// KVM_EXIT_DEBUG.
const DEBUG: Exit = Exit::Other(4);

fn stepped() -> Scene<'static> {
    Scene {
        name: "stepped by a debugger outside",
        program: &|_| {
            let asm = Asm::new().out(abi::BREATH);
            asm.mov(0, 5).mov(3, 6).keep(results(0)).bytes(&[0x90]).mov(0, 7).keep(results(0) + 8).done()
        },
        stop: &|s| {
            s.breath(0, 1);
            debugger(s, true);
            // The write to the port ends first, then the first instruction behind it.
            for _ in 0..2 {
                assert_eq!(s.step(0, Duration::from_secs(5)), DEBUG);
            }
        },
        finish: &|s| {
            for _ in 0..4 {
                let exit = s.step(0, Duration::from_secs(5));
                s.said.push(format!("{exit:?} at {:#x}", rip(s)));
            }
            debugger(s, false);
            s.play_out(0);
        },
        point: &|i| i.manifest.calls.iter().any(|c| c.call == "KVM_SET_GUEST_DEBUG" && c.argument[0] == 3),
        ..Scene::default()
    }
}

fn trapped() -> Scene<'static> {
    Scene {
        name: "the guest's own single step, its exception pending",
        enable: &|vm| assert!(vm.enable_cap(EXCEPTION_PAYLOAD, [1, 0, 0, 0]).is_ok()),
        // pushf; or dword [rsp], TF; popf; out
        program: &|_| Asm::new().bytes(&[0x9c, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d]).out(abi::BREATH).done(),
        stop: &|s| {
            // Its handler does not go back: where it was, and DR6.
            let handler = Asm::new().bytes(&[0x58]).keep(results(0)).bytes(&[0x0f, 0x21, 0xf0]);
            s.ram.write(BEHIND as usize, &handler.keep(results(0) + 8).done().0).unwrap();
            let mut gate = [0; 16];
            s.ram.read(abi::IDT as usize + 16, &mut gate).unwrap();
            put(&mut gate, 0, &(BEHIND as u16).to_le_bytes());
            put(&mut gate, 6, &((BEHIND >> 16) as u16).to_le_bytes());
            s.ram.write(abi::IDT as usize + 16, &gate).unwrap();
            s.breath(0, 1);
        },
        point: &|i| event(i, 1) == 1 && (event(i, 3) == 1 || event(i, 0) == 1),
        ..Scene::default()
    }
}

fn moved_tsc() -> Scene<'static> {
    Scene {
        name: "a TSC that was moved by its offset",
        needs: &|system| {
            let why = |e: evenkeel_sys::Error| format!("no attribute for the TSC's offset: {e}");
            on_trial(system, |vcpu| vcpu.has_attr(TSC_OFFSET.0, TSC_OFFSET.1).err().map(why))
        },
        program: &|_| {
            // rdtsc; shl rdx, 32; or rax, rdx; shr rax, 44: hours, so that it reads the same.
            let asm = Asm::new().out(abi::BREATH).bytes(&[0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20]);
            asm.bytes(&[0x48, 0x09, 0xd0, 0x48, 0xc1, 0xe8, 44]).keep(results(0)).done()
        },
        stop: &|s| {
            s.breath(0, 1);
            let vcpu = s.runners[0].vcpu();
            let offset = u64::from_le_bytes(vcpu.get_attr::<8>(TSC_OFFSET.0, TSC_OFFSET.1).unwrap());
            let moved = offset.wrapping_add(5 << 44 | 1 << 43);
            vcpu.set_attr(TSC_OFFSET.0, TSC_OFFSET.1, &moved.to_le_bytes()).unwrap();
        },
        ..Scene::default()
    }
}

/// Twice the rate of the host: by scaling, or by catching up at each entry.
fn other_rate() -> Scene<'static> {
    let twice = |vcpu: &evenkeel_sys::Vcpu<'_>| {
        let khz = vcpu.int(&KVM_GET_TSC_KHZ, 0)?;
        vcpu.int(&KVM_SET_TSC_KHZ, 2 * u64::from(khz.cast_unsigned()))
    };
    Scene {
        name: "a TSC of twice the host's rate",
        needs: &|system| {
            let set = |vcpu: &evenkeel_sys::Vcpu<'_>| {
                let khz = vcpu.int(&KVM_GET_TSC_KHZ, 0)?;
                vcpu.int(&KVM_SET_TSC_KHZ, 2 * u64::from(khz.cast_unsigned()))
            };
            on_trial(system, |vcpu| set(vcpu).err().map(|e| e.to_string()))
        },
        vcpu: Box::leak(Box::new(move |vcpu: &evenkeel_sys::Vcpu<'_>| {
            twice(vcpu).unwrap();
        })),
        program: &|_| {
            Asm::new().apic_on().apic(0x320, 0x4_0061).deadline_far().out(abi::BREATH).window(3).done()
        },
        stop: &|s| s.breath(0, 1),
        ..Scene::default()
    }
}

/// AMD's counters as they were before there was a version: a selector and a count that stands.
fn counters() -> Scene<'static> {
    const HELD: [(u32, u64); 2] = [(0xc001_0000, 0x3_0076), (0xc001_0004, 0x1234_5678)];
    Scene {
        name: "counters of performance",
        needs: &|system| {
            on_trial(system, |vcpu| {
                let done = vcpu.msrs().set(&HELD);
                let there = vcpu.msrs().get(&HELD.map(|(msr, _)| msr));
                let kept =
                    there.iter().zip(HELD).all(|(got, (_, put))| got.as_ref().is_ok_and(|v| *v == put));
                (!kept).then(|| format!("what is written to them is not there: {done:?}, then {there:?}"))
            })
        },
        program: &|_| {
            let asm = Asm::new().wrmsr(HELD[1].0, HELD[1].1).wrmsr(HELD[0].0, HELD[0].1).out(abi::BREATH);
            let asm = asm.mov(1, HELD[0].0).bytes(&[0x0f, 0x32]).keep(results(0));
            asm.mov(1, HELD[1].0).bytes(&[0x0f, 0x32]).keep(results(0) + 8).done()
        },
        stop: &|s| s.breath(0, 1),
        ..Scene::default()
    }
}

/// A `kvm_xen_hvm_attr` or `kvm_xen_vcpu_attr`.
fn attribute(kind: u16, value: &[u8]) -> [u8; 72] {
    let mut attr = [0; 72];
    put(&mut attr, 0, &kind.to_le_bytes());
    put(&mut attr, 8, value);
    attr
}

fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Xen's page, its time, its run state, a vector and a timer that is armed.
fn xen() -> Scene<'static> {
    Scene {
        name: "Xen's interface: shared page, vCPU's info, run state, vector, timer",
        needs: &|system| match system.check_extension(CAP_XEN_HVM) {
            Ok(0) => Some("KVM_CAP_XEN_HVM is 0".to_owned()),
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        },
        enable: &|vm| {
            let has = vm.check_extension(CAP_XEN_HVM).unwrap().cast_unsigned();
            let mut config = [0; 56];
            // KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, and _EVTCHN_SEND where it is.
            put(&mut config, 0, &(2 | has & 32).to_le_bytes());
            put(&mut config, 4, &0x4000_0000_u32.to_le_bytes());
            vm.set(&KVM_XEN_HVM_CONFIG, &config).unwrap();
        },
        // The run state that the kernel keeps in the guest's memory, and the version of the guest's time: whether it is even.
        program: &|_| Asm::new().out(abi::BREATH).load(PAGES + 0x1200).keep(results(0)).done(),
        stop: &|s| {
            s.breath(0, 1);
            let vcpu = s.runners[0].vcpu();
            let of_vm = [
                attribute(0, &[1]),
                attribute(1, &words(&[u64::from(PAGES >> 12)])),
                attribute(2, &[0x71]),
                attribute(4, &0x0004_0011_u32.to_le_bytes()),
            ];
            let done = of_vm.map(|attr| s.vm.set(&KVM_XEN_HVM_SET_ATTR, &attr).is_ok());
            s.said.push(format!("{done:?}"));
            let clock = s.vm.get(&KVM_GET_CLOCK, 0).unwrap();
            let now = u64::from_le_bytes(clock[..8].try_into().unwrap());
            let of_vcpu = [
                attribute(6, &7_u32.to_le_bytes()),
                attribute(0, &words(&[u64::from(PAGES) + 0x1000])),
                attribute(1, &words(&[u64::from(PAGES) + 0x1100])),
                attribute(2, &words(&[u64::from(PAGES) + 0x1200])),
                // RUNSTATE_DATA: running since the sum of all times.
                attribute(4, &words(&[0, 1_000_000, 700_000, 200_000, 60_000, 40_000])),
                // Port 3, priority 0, in a quarter of an hour.
                attribute(7, &words(&[3, now + 900_000_000_000])),
                attribute(8, &[0x72]),
            ];
            let done = of_vcpu.map(|attr| vcpu.set(&KVM_XEN_VCPU_SET_ATTR, &attr).is_ok());
            assert!(done.iter().filter(|done| **done).count() >= 4, "{done:?}");
        },
        point: &|i| {
            let of = |owner, name| i.item(owner, name).map_or(0, |item| item.bytes.len() / 72);
            let (vm, vcpu) =
                (of(evenkeel_state::Owner::Vm, "xen-vm"), of(evenkeel_state::Owner::Vcpu(0), "xen-vcpu"));
            vm >= 3 && vcpu >= 4
        },
        ..Scene::default()
    }
}

const HYPERV: [(u32, u64); 10] = [
    (0x4000_0000, 0x8100_0001_0002_0003),
    (0x4000_0001, PAGES as u64 | 1),
    (0x4000_0073, (PAGES as u64 + 0x1000) | 1),
    (0x4000_0021, (PAGES as u64 + 0x2000) | 1),
    (0x4000_0100, 0x1111_2222),
    (0x4000_0080, 1),
    (0x4000_0083, (PAGES as u64 + 0x3000) | 1),
    (0x4000_0092, 0x73),
    // Enabled, one-shot, by way of SINT2; at a moment that is not reached.
    (0x4000_00b0, 0x2_0001),
    (0x4000_00b1, 0xff_ffff_ffff),
];

fn hyperv() -> Scene<'static> {
    Scene {
        name: "Hyper-V's interface: identity, pages, SynIC, timer",
        needs: &|system| match system.check_extension(CAP_HYPERV_SYNIC2) {
            Ok(0) => Some("KVM_CAP_HYPERV_SYNIC2 is 0".to_owned()),
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        },
        cpuid: &|cpuid| {
            cpuid.retain(|e| !matches!(e.function, 0x4000_0000..0x4000_0100));
            let leaf = |function, output| CpuidEntry { function, index: 0, flags: 0, output };
            cpuid.extend([
                leaf(0x4000_0000, [0x4000_0005, 0x7263_694d, 0x666f_736f, 0x7648_2074]),
                leaf(0x4000_0001, [0x3123_7648, 0, 0, 0]),
                leaf(0x4000_0002, [0; 4]),
                // All MSRs, crash registers, timers by SINT.
                leaf(0x4000_0003, [0x2fff, 0, 0, 0x400]),
                leaf(0x4000_0004, [0; 4]),
                leaf(0x4000_0005, [64, 64, 0, 0]),
            ]);
        },
        vcpu: &|vcpu| {
            vcpu.enable_cap(CAP_HYPERV_SYNIC2, [0; 4]).unwrap();
        },
        program: &|_| {
            let asm = HYPERV
                .iter()
                .filter(|(msr, _)| *msr != 0x4000_0100)
                .fold(Asm::new().apic_on(), |asm, (msr, value)| asm.wrmsr(*msr, *value));
            let asm = asm.out(abi::BREATH);
            let read = |asm: Asm, (n, (msr, _)): (u32, &(u32, u64))| {
                asm.mov(1, *msr).bytes(&[0x0f, 0x32]).keep(results(0) + 8 * n)
            };
            (0..).zip(&HYPERV).fold(asm, read).done()
        },
        stop: &|s| {
            s.breath(0, 1);
            let done = s.runners[0].vcpu().msrs().set(&[HYPERV[4]]);
            assert!(done[0].is_ok(), "{done:?}");
        },
        point: &|i| {
            let held = |wanted: &(u32, u64)| {
                let item = i.item(evenkeel_state::Owner::Vcpu(0), "msrs").unwrap();
                let entry = [u64::from(wanted.0).to_le_bytes(), wanted.1.to_le_bytes()].concat();
                item.bytes.chunks_exact(16).any(|e| e == entry)
            };
            HYPERV.iter().all(held)
        },
        ..Scene::default()
    }
}

fn no_svm(system: &System<'_>) -> Option<String> {
    let cpuid = system.cpuid(&KVM_GET_SUPPORTED_CPUID).unwrap();
    let svm = cpuid.iter().any(|e| e.function == 0x8000_0001 && e.output[2] & 4 != 0);
    (!svm).then(|| "the CPUID that this KVM supports has no SVM".to_owned())
}

/// EFER with SVME, and a page for the host's state.
fn svm_on() -> Asm {
    Asm::new()
        .wrmsr(0xc000_0080, evenkeel_monitor::x86_64::EFER | 0x1000)
        .wrmsr(0xc001_0117, HOST_SAVE.into())
}

fn guest_mode(image: &evenkeel_state::Image) -> (bool, bool) {
    let flags = image.item(evenkeel_state::Owner::Vcpu(0), "nested-state").map_or(0, |i| i.bytes[0]);
    // KVM_STATE_NESTED_GUEST_MODE is bit 0 of the flags; KVM_STATE_NESTED_GIF_SET bit 8.
    let gif = image.item(evenkeel_state::Owner::Vcpu(0), "nested-state").is_some_and(|i| i.bytes[1] & 1 != 0);
    (flags & 1 != 0, gif)
}

/// A guest that runs a guest, stopped in that.
fn nested() -> Scene<'static> {
    Scene {
        name: "in a nested guest (SVM)",
        needs: &no_svm,
        program: &|_| {
            // vmrun; stgi; mov rax, [VMCB + 0x70]: what the nested guest left for.
            let asm = svm_on().mov(0, VMCB).bytes(&[0x0f, 0x01, 0xd8, 0x0f, 0x01, 0xdc]);
            asm.load(VMCB + 0x70).keep(results(0) + 8).window(3).done()
        },
        stop: &|s| {
            // mov eax, 0x4711; out; keep; vmmcall
            let l2 = Asm::new().mov(0, 0x4711).out(abi::BREATH).keep(results(0)).bytes(&[0x0f, 0x01, 0xd9]);
            s.ram.write(BEHIND as usize, &l2.0).unwrap();
            s.ram.write(VMCB as usize, &vmcb(s)).unwrap();
            s.breath(0, 1);
        },
        point: &|i| guest_mode(i).0,
        ..Scene::default()
    }
}

/// The VMCB of a guest that is as its host is now.
fn vmcb(s: &Stage<'_, '_, '_>) -> Vec<u8> {
    let sregs = s.runners[0].vcpu().get(&KVM_GET_SREGS, 0).unwrap();
    let mut vmcb = vec![0; 0x1000];
    // It leaves for VMRUN and VMMCALL; it has address space 1.
    put(&mut vmcb, 0x10, &3_u32.to_le_bytes());
    put(&mut vmcb, 0x58, &1_u32.to_le_bytes());
    // ES, CS, SS, DS, FS, GS of the VMCB, by their places in kvm_sregs: cs ds es fs gs ss.
    for (at, from) in [(0x400, 2), (0x410, 0), (0x420, 5), (0x430, 1), (0x440, 3), (0x450, 4), (0x490, 6)] {
        let s = &sregs[24 * from..24 * from + 24];
        let [kind, present, dpl, db, s_bit, long, granular, available] =
            [14, 15, 16, 17, 18, 19, 20, 21].map(|n| u16::from(s[n]));
        let attributes = kind
            | s_bit << 4
            | dpl << 5
            | present << 7
            | available << 8
            | long << 9
            | db << 10
            | granular << 11;
        put(&mut vmcb, at, &s[12..14]);
        put(&mut vmcb, at + 2, &attributes.to_le_bytes());
        put(&mut vmcb, at + 4, &s[8..12]);
        put(&mut vmcb, at + 8, &s[..8]);
    }
    for (at, from) in [(0x460, 192), (0x480, 208)] {
        put(&mut vmcb, at + 4, &sregs[from + 8..from + 10]);
        put(&mut vmcb, at + 8, &sregs[from..from + 8]);
    }
    let regs = s.runners[0].vcpu().get(&KVM_GET_REGS, 0).unwrap();
    let efer = evenkeel_monitor::x86_64::EFER | 0x1000;
    let values = [
        (0x4d0, efer),
        (0x560, 0x400),
        (0x568, 0xffff_0ff0),
        (0x570, 2),
        (0x578, u64::from(BEHIND)),
        (0x668, 0x0007_0406_0007_0406),
    ];
    for (at, value) in values {
        put(&mut vmcb, at, &value.to_le_bytes());
    }
    // CR4, CR3, CR0, RSP.
    for (at, from) in [(0x548, 248), (0x550, 240), (0x558, 224)] {
        put(&mut vmcb, at, &sregs[from..from + 8]);
    }
    put(&mut vmcb, 0x5d8, &regs[48..56]);
    vmcb
}

/// No nested guest, and interrupts held back by CLGI.
fn nested_off() -> Scene<'static> {
    Scene {
        name: "interrupts held back by CLGI (SVM), one pending",
        needs: &no_svm,
        program: &|_| {
            let asm = Asm::new().apic_on();
            let asm = asm.bytes(&svm_on().0).bytes(&[0x0f, 0x01, 0xdd]).sti().out(abi::BREATH).bytes(&[0x90]);
            // No interrupt arrived up to here: the count as it is, then let them in.
            let asm = asm.load(abi::AREA + abi::ARRIVALS + 4 * 0x51).keep(results(0));
            asm.bytes(&[0x0f, 0x01, 0xdc]).window(3).done()
        },
        stop: &|s| {
            assert!(place(0) < BEHIND);
            s.breath(0, 1);
            s.msi(0, 0x51);
        },
        point: &|i| !guest_mode(i).1,
        ..Scene::default()
    }
}
