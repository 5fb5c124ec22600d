//! How another VMM uses evenkeel with its own file descriptors. The VMM here is on `kvm-ioctls`; its guest counts, and says
//! each number on a port. It is put under a contract, saved into a capsule in the middle of its work, and goes on in another
//! VM from there. Run it with `cargo run --example vmm`; `cargo test` runs it too. docs/vmm.md explains each step.
#![forbid(unsafe_code)]

use std::io::{Cursor, Error as IoError};
use std::sync::Arc;

use evenkeel_apply::{Plan, Setup, Topology};
use evenkeel_capsule::{Id, Layout, Reader, Region, Slices};
use evenkeel_contract::{View, baseline::baseline, document};
use evenkeel_state::{Cpu, Guest, Manifest, Noting, Parts, Role, file, x86};
use evenkeel_sys::requests::{KVM_CREATE_IRQCHIP, KVM_CREATE_VCPU};
use evenkeel_sys::{Live, Ram, System, Vcpu, Vm};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

type Failed = Box<dyn std::error::Error>;

/// Real mode: `again: inc al; out 0x10, al; jmp again`.
const CODE: [u8; 6] = [0xfe, 0xc0, 0xe6, 0x10, 0xeb, 0xfa];
const MEMORY: usize = 2 << 20;

/// The VMM's own machine: what it had before it knew of evenkeel.
struct Machine {
    vcpu: VcpuFd,
    vm: VmFd,
    memory: Arc<Ram>,
}

impl Machine {
    fn new(kvm: &Kvm, live: &Live) -> Result<Machine, Failed> {
        let vm = kvm.create_vm()?;
        vm.create_irq_chip()?;
        // A VMM that maps memory by itself gives it to its VM as ever.
        let memory = Arc::new(Ram::new(MEMORY).map_err(|why| why.to_string())?);
        Vm::of(live, live.lend(&vm)?).set_memory(0, 0, &memory)?;
        Ok(Machine { vcpu: vm.create_vcpu(0)?, vm, memory })
    }

    /// Runs until the guest has said so many numbers; returns the last one.
    fn run(&mut self, numbers: usize) -> Result<u8, Failed> {
        let mut last = 0;
        for _ in 0..numbers {
            match self.vcpu.run()? {
                VcpuExit::IoOut(0x10, data) => last = data[0],
                other => return Err(format!("{other:?}").into()),
            }
        }
        // The last write is finished here; nothing of the guest is executed.
        self.vcpu.set_kvm_immediate_exit(1);
        let done = self.vcpu.run().err().map(|e| IoError::from(e).kind());
        self.vcpu.set_kvm_immediate_exit(0);
        (done == Some(std::io::ErrorKind::Interrupted)).then_some(last).ok_or("no clean stop".into())
    }

    /// What it selected when it made the VM: KVM does not tell, so the VMM does.
    fn manifest() -> Manifest {
        let mut manifest = Manifest::of(0);
        manifest.note(Role::Vm, &KVM_CREATE_IRQCHIP, &[0; 8]);
        manifest.note(Role::Vm, &KVM_CREATE_VCPU, &[0; 8]);
        manifest
    }
}

/// Starts a guest under a contract, and saves it after a hundred numbers.
fn save(kvm: &Kvm) -> Result<Vec<u8>, Failed> {
    let live = Live::new();
    let mut machine = Machine::new(kvm, &live)?;
    // 1. Lend the file descriptors. `noting` remembers what is selected through it and cannot be read back.
    let noting = Noting::new(&live);
    let system = System::of(&noting, live.lend(kvm)?);
    let vm = Vm::of(&noting, live.lend(&machine.vm)?);
    let vcpu = Vcpu::of(&noting, live.lend(&machine.vcpu)?);
    let number = noting.take_up(Machine::manifest(), &vm, &[&vcpu]);

    // 2. A contract: here all that this host can give; usually a file that was agreed on for a fleet.
    let host = evenkeel_hosts::capture_here()?;
    let views = View::all(&host, "here");
    let view = views.iter().find(|view| view.shape == "kernel").ok_or("no such shape")?;
    let contract = baseline(&[view], "all that this host can give").contract;
    let setup = Setup { topology: Topology::default(), irqchip_made: true, ..Setup::default() };
    let plan = Plan::new(&contract, &host, setup)?;
    let mut applying = plan.start();
    applying.vm(&vm)?;
    applying.vcpu(&vcpu, 0)?;
    let report = applying.report();
    // Everything was read back. A host that alters what it is told is named here, bit by bit; `waive` lets a name differ.
    if !report.usable {
        return Err(format!("this host does not keep the contract: {}", report.findings().join(", ")).into());
    }

    // 3. The guest, as before.
    machine.memory.write(0x1000, &CODE)?;
    let mut sregs = machine.vcpu.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    machine.vcpu.set_sregs(&sregs)?;
    let mut regs = machine.vcpu.get_regs()?;
    (regs.rip, regs.rax, regs.rflags) = (0x1000, 0, 2);
    machine.vcpu.set_regs(&regs)?;
    let last = machine.run(100)?;
    println!("saved after {last}");

    // 4. All of its state, then its memory, into a capsule.
    let manifest = noting.manifest(number).ok_or("it was taken up")?;
    let saved = x86::save(&mut Parts::new(&system, &vm, vec![Cpu::still(&vcpu)]), &manifest)?;
    saved.gaps.iter().for_each(|gap| println!("KVM cannot save {}: {}", gap.gap, gap.what));
    let mut guest = Guest::new(Id(*b"an example guest"), saved.image);
    guest.contract = Some(document::print(&contract).into_bytes());
    let mut memory = vec![0; MEMORY];
    machine.memory.read(0, &mut memory)?;
    let layout = Layout::eager(vec![Region { address: 0, length: MEMORY as u64 }]);
    let mut capsule = Cursor::new(Vec::new());
    guest.draft()?.write_with(&mut capsule, &layout, Slices(&[(0, &memory)]))?;
    Ok(capsule.into_inner())
}

/// Makes the guest again, and lets it say fifty numbers more. Returns the last one.
fn restore(kvm: &Kvm, capsule: &[u8]) -> Result<u8, Failed> {
    let mut reader = Reader::open(Cursor::new(capsule), &file::known)?;
    // Everything is verified before anything runs.
    reader.verify()?;
    reader.read_index()?;
    let guest = Guest::read(&mut reader)?;
    let live = Live::new();
    let mut machine = Machine::new(kvm, &live)?;
    if guest.image.manifest.calls[..3] != Machine::manifest().calls {
        return Err("the capsule is of another kind of machine".into());
    }
    let memory = &machine.memory;
    reader.load(|at, bytes| memory.write(at as usize, bytes).map_err(IoError::other))?;
    let system = System::of(&live, live.lend(kvm)?);
    let vm = Vm::of(&live, live.lend(&machine.vm)?);
    let vcpu = Vcpu::of(&live, live.lend(&machine.vcpu)?);
    let report = x86::restore(
        &mut Parts::new(&system, &vm, vec![Cpu::still(&vcpu)]),
        &guest.image,
        &x86::Options::default(),
    )?;
    // Set, read back: a guest that is not as it was does not run.
    if !report.complete() {
        return Err(format!("{:?}", report.not_kept).into());
    }
    machine.run(50)
}

fn main() -> Result<(), Failed> {
    let kvm = Kvm::new()?;
    let capsule = save(&kvm)?;
    println!("a capsule of {} bytes", capsule.len());
    println!("it went on to {}", restore(&kvm, &capsule)?);
    Ok(())
}

#[test]
#[cfg_attr(not(kvm), ignore = "needs /dev/kvm")]
fn kvm_a_guest_of_another_vmm_goes_on_from_a_capsule() {
    let kvm = Kvm::new().unwrap();
    assert_eq!(restore(&kvm, &save(&kvm).unwrap()).unwrap(), 150);
}
