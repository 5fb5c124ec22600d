//! The witness on x86.
//!
//! [`keep`] makes a machine, lets its guest look at everything that stays the same, puts values of its own into registers and
//! MSRs, and saves it at the port write that ends a batch. [`take`], there or on another host, makes the machine as the
//! manifest says, sets the state, reads it back, saves it again and a third time, and lets the guest look once more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use evenkeel_monitor::{Irqchip, Machine, Shape};
use evenkeel_state::{Cpu, Elapsed, Image, Noting, Parts, Report, compare, x86};
use evenkeel_sys::{Backend, Deadline, Ram, Runner, Slot, System, Vcpu};

use evenkeel_surface::Arch;

use crate::observation::{Observation, Record, Volatile};
use crate::probe::{RAX, RCX, RDX};
use crate::programs::x86_64::{Configure, choices, cpuid, msr, registers};
use crate::session::{Session, load};
use crate::{Error, abi, guests, probe::Probe};

use super::{Kept, MoveError, Taken};

/// MSRs that hold what a guest puts there, and what this one does.
const HELD: &[(u32, u64)] = &[
    (0x174, 0x10),                    // SYSENTER_CS
    (0xc000_0081, 0x0023_0010 << 32), // STAR
    (0xc000_0082, 0xffff_8000_0123_4000),
    (0xc000_0083, 0xffff_8000_0567_8000),
    (0xc000_0084, 0x4_7700),
    (0xc000_0102, 0xffff_8000_7654_3000), // KERNEL_GS_BASE
    (0x277, 0x0007_0106_0007_0406),       // PAT: entry 5 write-combining
    (0x200, 0x8000_0006),                 // MTRR_PHYSBASE0
    (0x201, 0xf_8000_0800),               // MTRR_PHYSMASK0
];

/// A clock that is set with the time of day goes on from then: to the second.
const LATE: Duration = Duration::from_secs(1);

fn lent<'g, 'v: 'g, 'b: 'g>(
    system: &'g System<'b>,
    machine: &'g Machine<'_, 'b>,
    first: &'g mut Runner<'v, 'b>,
    others: &'g [Vcpu<'b>],
) -> Parts<'g, 'b> {
    let mut cpus = vec![Cpu::running(first)];
    cpus.extend(others.iter().map(Cpu::still));
    Parts::new(system, machine.vm(), cpus)
}

/// Everything that stays the same in a guest that is left alone.
///
/// # Errors
/// As [`Session::ask`].
pub fn look(session: &mut Session<'_, '_>, shape: &str) -> Result<Observation, Error> {
    let mut record = Record::default();
    cpuid::observe(session, &mut record, "")?;
    msr::read_all(session, &mut record)?;
    registers::observe(session, &mut record)?;
    choices::settle(&mut record, shape);
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    Ok(record.finish(Arch::X86_64, shape, Volatile { kernel, ..Volatile::default() }))
}

/// Makes a witness with `vcpus` vCPUs, of which the first runs, and saves it. `system` is that of `noting`, which has made no
/// other VM.
///
/// # Errors
/// There is no such machine, the guest is lost, or state cannot be saved.
pub fn keep(
    noting: &Noting<'_>,
    system: &System<'_>,
    irqchip: Irqchip,
    vcpus: u32,
    configure: &Configure<'_>,
) -> Result<Kept, MoveError> {
    let shape = Shape { irqchip, pit: irqchip == Irqchip::Kernel, memory: abi::MEMORY };
    let machine = Machine::new(system, shape)?;
    (configure.vm)(machine.vm())?;
    load(machine.ram(), guests::image())?;
    let mut cpus = Vec::new();
    for id in 0..vcpus.max(1) {
        let vcpu = machine.vcpu(id.into())?;
        (configure.vcpu)(&vcpu, id)?;
        cpus.push(vcpu);
    }
    let (first, others) = cpus.split_at(1);
    let deadline = Deadline::new();
    let mut session = Session::new(&machine, &first[0], 0, &deadline)?;
    session.start()?;
    let write = |(index, value): &(u32, u64)| msr::write(*index, *value);
    session.ask(&HELD.iter().map(write).collect::<Vec<_>>())?;
    // mov dr0, rax; mov dr3, rcx
    let debug = Probe::new(&[0x0f, 0x23, 0xc0, 0x0f, 0x23, 0xd9]);
    session.one(debug.with(RAX, 0x1234_5000).with(RCX, 0x7654_3000).with(RDX, 0))?;
    // The first time leaves traces.
    look(&mut session, irqchip.name())?;
    let seen = look(&mut session, irqchip.name())?;
    let begin = Instant::now();
    let manifest = noting.manifest(0).unwrap_or_default();
    let saved = x86::save(&mut lent(system, &machine, session.runner(), others), &manifest)?;
    let took = begin.elapsed();
    let mut bytes = vec![0; machine.ram().len()];
    machine.ram().read(0, &mut bytes).map_err(Error::from)?;
    Ok(Kept { saved, memory: vec![(0, bytes)], seen, stopped: None, took })
}

/// Sets what was saved in a machine of this host, and lets the guest go on.
///
/// # Errors
/// The machine cannot be made, or the guest is lost.
pub fn take(backend: &dyn Backend, image: &Image, memory: &[(u64, Vec<u8>)]) -> Result<Taken, MoveError> {
    let irqchip = Irqchip::by_name(image.manifest.shape()).unwrap_or_default();
    let system = System::open(backend)?;
    let begin = Instant::now();
    let (made, report) = revive(&system, image, memory)?;
    let took = begin.elapsed();
    let (slot, ram) = &made.memory[0];
    let shape = Shape { irqchip, pit: false, memory: slot.length as usize };
    let machine = Machine::adopt(&system, made.vm, ram.clone(), shape);
    let (first, others) = made.vcpus.split_at(1);
    let mut runner = first[0].runner(&system)?;
    let again = x86::save(&mut lent(&system, &machine, &mut runner, others), &image.manifest)?.image;
    let third = {
        let mut bytes = vec![0; ram.len()];
        ram.read(0, &mut bytes).map_err(Error::from)?;
        let (made, _) = revive(&system, &again, &[(slot.guest, bytes)])?;
        let third = x86::save(&mut made.parts(&system), &again.manifest)?.image;
        compare(&again, &third, Elapsed::of(begin.elapsed() + LATE))
    };
    let deadline = Deadline::new();
    let mut session = Session::new(&machine, &first[0], 0, &deadline)?;
    let seen = look(&mut session, irqchip.name())?;
    Ok(Taken { report, third, met: Vec::new(), seen, image: again, took })
}

fn revive<'b>(
    system: &System<'b>,
    image: &Image,
    memory: &[(u64, Vec<u8>)],
) -> Result<(evenkeel_state::Made<'b>, Report), MoveError> {
    let mut slots = Vec::with_capacity(memory.len());
    for (number, (guest, bytes)) in (0..).zip(memory) {
        let ram = Arc::new(Ram::new(bytes.len()).map_err(evenkeel_monitor::Error::Memory)?);
        ram.write(0, bytes).map_err(Error::from)?;
        let slot = Slot { number, flags: 0, guest: *guest, offset: 0, length: bytes.len() as u64 };
        slots.push((slot, ram));
    }
    let made = x86::remake(system, &image.manifest, &slots)?;
    let report = x86::restore(&mut made.parts(system), image, &x86::Options::default())?;
    Ok((made, report))
}
