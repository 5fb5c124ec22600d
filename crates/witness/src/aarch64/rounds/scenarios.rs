//! States that are hard to save, and what a guest must meet after each.

use std::time::Duration;

use evenkeel_monitor::Error as MonitorError;
use evenkeel_monitor::aarch64::{
    Configure, GIC_DISTRIBUTOR, GIC_ITS, GIC_REDISTRIBUTOR, MEMORY_BASE, Machine,
};
use evenkeel_sys::layout::VCPU_EVENTS;
use evenkeel_sys::requests::{KVM_ARM_SET_COUNTER_OFFSET, KVM_IRQ_LINE, KVM_SET_VCPU_EVENTS, KVM_SIGNAL_MSI};
use evenkeel_sys::{Deadline, Exit, Ram, System};

use super::{Error, Trial};
use crate::Error as WitnessError;
use crate::aarch64::abi;
use crate::aarch64::probe::{DSB, ISB, Outcome, Probe, Reg, ldr_x, str_w, str_x};
use crate::aarch64::programs::CPU_ON;
use crate::aarch64::session::{Batch, Session, area, load};

/// What the guest is stopped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Between two batches: the store that ends a batch is in flight.
    Idle,
    /// An SGI is pending.
    Sgi,
    /// A PPI was made pending by a register.
    Ppi,
    /// The line of a level-triggered SPI is high.
    SpiLevel,
    /// An edge-triggered SPI is latched.
    SpiEdge,
    /// An SGI was acknowledged and is active.
    Active,
    /// The virtual timer is armed.
    TimerArmed,
    /// The virtual timer has expired, and its interrupt is pending.
    TimerExpired,
    /// The vCPU sleeps in WFI until the virtual timer fires.
    Wfi,
    /// A load from nowhere was answered, and not carried out.
    Mmio,
    /// An LPI of the ITS is pending.
    Lpi,
    /// An SError is pending.
    SError,
    /// The VMM moved both counters.
    CounterOffset,
}

const ALL: [(Scenario, &str); 13] = [
    (Scenario::Idle, "idle"),
    (Scenario::Sgi, "sgi"),
    (Scenario::Ppi, "ppi"),
    (Scenario::SpiLevel, "spi-level"),
    (Scenario::SpiEdge, "spi-edge"),
    (Scenario::Active, "active"),
    (Scenario::TimerArmed, "timer-armed"),
    (Scenario::TimerExpired, "timer-expired"),
    (Scenario::Wfi, "wfi"),
    (Scenario::Mmio, "mmio"),
    (Scenario::Lpi, "lpi"),
    (Scenario::SError, "serror"),
    (Scenario::CounterOffset, "counter-offset"),
];

impl Scenario {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Scenario> {
        ALL.iter().map(|(scenario, _)| *scenario)
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        ALL.iter().find(|(scenario, _)| *scenario == self).map_or("", |(_, name)| name)
    }

    /// The one of this name.
    pub fn by_name(name: &str) -> Option<Scenario> {
        ALL.iter().find(|(_, known)| *known == name).map(|(scenario, _)| *scenario)
    }

    /// Whether the scenario itself changes what is seen: the tables of LPIs stay in place.
    pub(super) fn changes(self, look: &str) -> bool {
        self == Scenario::Lpi && (look.starts_with("arm64.gicr.") || look.starts_with("arm64.gits."))
    }
}

const KVM_CAP_COUNTER_OFFSET: u32 = 227;
const KVM_CAP_VCPU_EVENTS: u32 = 41;

const ICC_SRE: Reg = Reg(3, 0, 12, 12, 5);
const ICC_PMR: Reg = Reg(3, 0, 4, 6, 0);
const ICC_IGRPEN1: Reg = Reg(3, 0, 12, 12, 7);
const ICC_IAR1: Reg = Reg(3, 0, 12, 12, 0);
const ICC_EOIR1: Reg = Reg(3, 0, 12, 12, 1);
const ICC_SGI1R: Reg = Reg(3, 0, 12, 11, 5);
const ISR: Reg = Reg(3, 0, 12, 1, 0);
const CNTVCT: Reg = Reg(3, 3, 14, 0, 2);
const CNTFRQ: Reg = Reg(3, 3, 14, 0, 0);
const CNTV_CTL: Reg = Reg(3, 3, 14, 3, 1);
const CNTV_CVAL: Reg = Reg(3, 3, 14, 3, 2);

/// `WFI`.
const WFI: u32 = 0xd503_207f;

const SGI: u64 = 3;
const PPI: u64 = 20;
const LEVEL: u64 = 40;
const EDGE: u64 = 42;
/// The virtual timer's interrupt, unless somebody says otherwise.
const TIMER: u64 = 27;
const LPI: u64 = 8192;
/// What is read where nothing is pending.
const SPURIOUS: u64 = 1023;

/// Nobody is there.
const NOWHERE: u64 = 0x0a00_0000;
/// What the VMM answers there.
const ANSWER: u32 = 0x1234_5678;

/// Where the tables for LPIs are: 64 KiB each.
const TABLES: u64 = MEMORY_BASE + 0x30_0000;
const DEVICES: u64 = TABLES;
const COLLECTIONS: u64 = TABLES + 0x1_0000;
const COMMANDS: u64 = TABLES + 0x2_0000;
const PROPERTIES: u64 = TABLES + 0x3_0000;
const PENDING: u64 = TABLES + 0x4_0000;
const TRANSLATIONS: u64 = TABLES + 0x5_0000;
const DEVICE: u64 = 7;
const EVENT: u64 = 1;

/// What is left to be finished in the other machine.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Left {
    pub(super) batch: Option<Batch>,
    /// The virtual counter when the guest was stopped.
    pub(super) counter: u64,
}

/// The machine, with its guest in memory.
pub(super) fn machine<'s, 'b>(
    system: &'s System<'b>,
    image: &[u8],
    trial: Trial,
    configure: &Configure<'_>,
) -> Result<Machine<'s, 'b>, Error> {
    let lacks = |cap: u32, name: &str| -> Result<Option<String>, Error> {
        Ok((system.check_extension(cap)? <= 0).then(|| name.to_owned()))
    };
    let lacking = match trial.scenario {
        Scenario::CounterOffset => lacks(KVM_CAP_COUNTER_OFFSET, "KVM_CAP_COUNTER_OFFSET")?,
        Scenario::SError => lacks(KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS")?,
        _ => None,
    };
    if let Some(lacking) = lacking {
        return Err(Error::Lacking(lacking));
    }
    let machine = Machine::new(system, trial.shape, abi::MEMORY, trial.vcpus, configure)?;
    let missing =
        if trial.scenario == Scenario::Lpi { machine.no_its.clone() } else { machine.no_gic.clone() };
    if let Some(missing) = missing {
        return Err(Error::Lacking(missing));
    }
    if trial.scenario == Scenario::CounterOffset {
        let mut offset = [0; 16];
        offset[..8].copy_from_slice(&0x1234_5678_u64.to_ne_bytes());
        machine.vm().set(&KVM_ARM_SET_COUNTER_OFFSET, &offset)?;
    }
    load(machine.ram(), image)?;
    Ok(machine)
}

fn write_w(address: u64, value: u64) -> Probe {
    Probe::new(&[str_w(1, 0), DSB]).with(&[address, value])
}

fn write_x(address: u64, value: u64) -> Probe {
    Probe::new(&[str_x(1, 0), DSB]).with(&[address, value])
}

fn set(register: Reg, value: u64) -> Probe {
    Probe::new(&[register.msr(0), ISB]).with(&[value])
}

/// Acknowledges the highest pending interrupt.
fn acknowledge() -> Probe {
    Probe::new(&[ICC_IAR1.mrs(0), DSB])
}

/// Asks, and all must come to their end.
fn all(session: &mut Session<'_, '_, '_>, probes: &[Probe]) -> Result<Vec<u64>, Error> {
    let outcomes = session.ask(probes)?;
    let values: Option<Vec<u64>> = outcomes.iter().map(|outcome| Some(outcome.registers()?[0])).collect();
    values.ok_or_else(|| {
        let index = outcomes.iter().position(|o| o.registers().is_none()).unwrap_or_default();
        let exit = match &outcomes[index] {
            Outcome::Faulted { esr, .. } => *esr,
            _ => 0,
        };
        Error::Witness(WitnessError::Lost {
            index: index as u32,
            of: outcomes.len(),
            code: probes[index].encode()[abi::PROBE_CODE..].to_vec(),
            why: MonitorError::Ended(Exit::Other(exit)),
        })
    })
}

/// Interrupts on, as far as the GIC goes; the vCPU itself masks them, so that they stay pending.
pub(super) fn prepare(session: &mut Session<'_, '_, '_>) -> Result<(), Error> {
    const SGIS: u64 = GIC_REDISTRIBUTOR + 0x1_0000;
    let enabled = 1 << SGI | 1 << PPI | 1 << TIMER;
    all(
        session,
        &[
            set(ICC_SRE, 7),
            set(ICC_PMR, 0xf0),
            set(ICC_IGRPEN1, 1),
            // ARE, and interrupts of group 1.
            write_w(GIC_DISTRIBUTOR, 0x12),
            write_w(SGIS + 0x80, 0xffff_ffff),
            write_w(SGIS + 0x100, enabled),
            write_w(GIC_DISTRIBUTOR + 0x84, 0xffff_ffff),
            // EDGE is edge-triggered: two bits an interrupt.
            write_w(GIC_DISTRIBUTOR + 0xc00 + EDGE / 16 * 4, 2 << (EDGE % 16 * 2)),
            write_w(GIC_DISTRIBUTOR + 0x104, 1 << (LEVEL - 32) | 1 << (EDGE - 32)),
        ],
    )
    .map(drop)
}

/// The second vCPU, where there is one, is brought up and asked something; all others stay off.
pub(super) fn bring_up<'m, 's, 'b>(
    machine: &'m Machine<'s, 'b>,
    first: &mut Session<'m, 's, 'b>,
    deadline: &'m Deadline,
    trial: Trial,
) -> Result<Vec<Session<'m, 's, 'b>>, Error> {
    if trial.vcpus < 2 {
        return Ok(Vec::new());
    }
    all(first, &[Probe::call(CPU_ON, &[1, abi::CODE, area(1)])])?;
    let mut second = Session::new(machine, 1, deadline)?;
    all(&mut second, &[Probe::read(CNTVCT)])?;
    Ok(vec![second])
}

/// After a restore, the second vCPU goes on, and one that was off is brought up.
pub(super) fn others_go_on(
    machine: &Machine<'_, '_>,
    deadline: &Deadline,
    trial: Trial,
) -> Result<Vec<String>, Error> {
    let mut wrong = Vec::new();
    for number in 1..trial.vcpus.min(abi::AREAS as u64) {
        if number > 1 {
            let mut first = Session::new(machine, 0, deadline)?;
            let on = all(&mut first, &[Probe::call(CPU_ON, &[number, abi::CODE, area(number as usize)])])?;
            if on != [0] {
                wrong.push(format!("vCPU {number}: CPU_ON returned {on:x?}"));
                continue;
            }
        }
        let mut session = Session::new(machine, number as usize, deadline)?;
        let mpidr = all(&mut session, &[Probe::read(Reg(3, 0, 0, 0, 5))])?[0];
        if mpidr & 0xff != number {
            wrong.push(format!("vCPU {number}: it says that it is {mpidr:#x}"));
        }
    }
    Ok(wrong)
}

/// `KVM_IRQ_LINE` of an SPI.
fn line(machine: &Machine<'_, '_>, interrupt: u64, high: bool) -> Result<(), Error> {
    let mut level = [0; 8];
    level[..4].copy_from_slice(&(1 << 24 | interrupt as u32).to_ne_bytes());
    level[4..].copy_from_slice(&u32::from(high).to_ne_bytes());
    machine.vm().set(&KVM_IRQ_LINE, &level)?;
    Ok(())
}

/// Brings the guest to where it is to be saved.
pub(super) fn stop(
    scenario: Scenario,
    machine: &Machine<'_, '_>,
    session: &mut Session<'_, '_, '_>,
) -> Result<Left, Error> {
    const SGIS: u64 = GIC_REDISTRIBUTOR + 0x1_0000;
    let sgi = Probe::new(&[ICC_SGI1R.msr(0), ISB]).with(&[SGI << 24 | 1]);
    let mut left = Left::default();
    match scenario {
        Scenario::Idle | Scenario::CounterOffset => {}
        Scenario::Sgi => drop(all(session, &[sgi])?),
        Scenario::Active => {
            let got = all(session, &[sgi, acknowledge()])?;
            if got[1] != SGI {
                return Err(MonitorError::Ended(Exit::Other(got[1] as u32)).into());
            }
        }
        Scenario::Ppi => drop(all(session, &[write_w(SGIS + 0x200, 1 << PPI)])?),
        Scenario::SpiLevel => line(machine, LEVEL, true)?,
        Scenario::SpiEdge => {
            line(machine, EDGE, true)?;
            line(machine, EDGE, false)?;
        }
        Scenario::TimerArmed => {
            let (now, rate) = clock(session)?;
            all(session, &[set(CNTV_CVAL, now + rate), set(CNTV_CTL, 1)])?;
        }
        Scenario::TimerExpired => {
            let (now, _) = clock(session)?;
            all(session, &[set(CNTV_CVAL, now - 1), set(CNTV_CTL, 1)])?;
        }
        Scenario::Wfi => {
            let (now, rate) = clock(session)?;
            all(session, &[set(CNTV_CVAL, now + 2 * rate), set(CNTV_CTL, 1)])?;
            let batch = session.begin(&[Probe::new(&[WFI, ISB, CNTVCT.mrs(0)])])?;
            left.batch = Some(batch);
            let limit = std::mem::replace(&mut session.limit, Duration::from_millis(300));
            let stopped = session.finish(&batch);
            session.limit = limit;
            match stopped {
                Err(WitnessError::Monitor(MonitorError::Hung(_))) => {}
                Err(error) => return Err(error.into()),
                Ok(outcomes) => {
                    return Err(WitnessError::Lost {
                        index: 0,
                        of: outcomes.len(),
                        code: Vec::new(),
                        why: MonitorError::Hung(limit),
                    }
                    .into());
                }
            }
        }
        Scenario::Mmio => {
            left.batch = Some(session.begin(&[Probe::new(&[0xb940_0000]).with(&[NOWHERE])])?);
            loop {
                match session.runner().run()? {
                    Exit::MemoryRead { address: NOWHERE, .. } => break,
                    Exit::Interrupted => {}
                    exit => return Err(MonitorError::Ended(exit).into()),
                }
            }
            session.runner().answer(&ANSWER.to_le_bytes());
        }
        Scenario::Lpi => {
            lpi(machine.ram(), session)?;
            // struct kvm_msi: address, data, flags (KVM_MSI_VALID_DEVID), device.
            let mut msi = [0; 32];
            msi[..8].copy_from_slice(&(GIC_ITS + 0x1_0040).to_ne_bytes());
            msi[8..12].copy_from_slice(&(EVENT as u32).to_ne_bytes());
            msi[12..16].copy_from_slice(&1_u32.to_ne_bytes());
            msi[16..20].copy_from_slice(&(DEVICE as u32).to_ne_bytes());
            machine.vm().set(&KVM_SIGNAL_MSI, &msi)?;
        }
        Scenario::SError => {
            let mut events = [0; VCPU_EVENTS];
            events[0] = 1;
            machine.vcpus()[0].set(&KVM_SET_VCPU_EVENTS, &events)?;
        }
    }
    if matches!(scenario, Scenario::Idle | Scenario::CounterOffset) {
        left.counter = all(session, &[Probe::read(CNTVCT)])?[0];
    }
    Ok(left)
}

/// The virtual counter and its rate.
fn clock(session: &mut Session<'_, '_, '_>) -> Result<(u64, u64), Error> {
    let values = all(session, &[Probe::read(CNTVCT), Probe::read(CNTFRQ)])?;
    Ok((values[0], values[1]))
}

/// Sets up the ITS: one device with one event, that is one LPI of the first vCPU.
fn lpi(ram: &Ram, session: &mut Session<'_, '_, '_>) -> Result<(), Error> {
    let commands: [[u64; 4]; 4] = [
        // MAPD: an event id has two bits.
        [DEVICE << 32 | 8, 1, 1 << 63 | TRANSLATIONS, 0],
        // MAPC: collection 0 is of the first vCPU.
        [9, 0, 1 << 63, 0],
        // MAPTI.
        [DEVICE << 32 | 10, LPI << 32 | EVENT, 0, 0],
        // INV.
        [DEVICE << 32 | 12, EVENT, 0, 0],
    ];
    let bytes: Vec<u8> = commands.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
    ram.write((COMMANDS - MEMORY_BASE) as usize, &bytes)?;
    // Priority 0xa0, enabled.
    ram.write((PROPERTIES - MEMORY_BASE) as usize, &[0xa1])?;
    // Valid, 64 KiB pages, one of them.
    let table = |address: u64| 1 << 63 | address | 2 << 8;
    all(
        session,
        &[
            write_x(GIC_REDISTRIBUTOR + 0x70, PROPERTIES | 15),
            write_x(GIC_REDISTRIBUTOR + 0x78, PENDING),
            write_w(GIC_REDISTRIBUTOR, 1),
            write_x(GIC_ITS + 0x100, table(DEVICES)),
            write_x(GIC_ITS + 0x108, table(COLLECTIONS)),
            write_x(GIC_ITS + 0x80, 1 << 63 | COMMANDS | 15),
            write_w(GIC_ITS, 1),
            write_x(GIC_ITS + 0x88, bytes.len() as u64),
            Probe::new(&[ldr_x(0, 0)]).with(&[GIC_ITS + 0x90]),
        ],
    )
    .map(drop)
}

/// What the guest meets in the other machine otherwise than it should.
pub(super) fn check(
    scenario: Scenario,
    machine: &Machine<'_, '_>,
    session: &mut Session<'_, '_, '_>,
    left: &Left,
) -> Result<Vec<String>, Error> {
    let once = |session: &mut Session<'_, '_, '_>, interrupt: u64| -> Result<Vec<String>, Error> {
        let end = Probe::new(&[ICC_EOIR1.msr(0), ISB]).with(&[interrupt]);
        let got = all(session, &[acknowledge(), end, acknowledge()])?;
        let (first, second) = (got[0], got[2]);
        let fine = first == interrupt && second == SPURIOUS;
        Ok(if fine {
            Vec::new()
        } else {
            vec![format!("interrupt {interrupt} once, and it was {first}, {second}")]
        })
    };
    let off = [set(CNTV_CTL, 0), set(CNTV_CVAL, 0)];
    Ok(match scenario {
        Scenario::Idle | Scenario::CounterOffset => {
            let (now, rate) = clock(session)?;
            let passed = now.wrapping_sub(left.counter);
            let quiet = all(session, &[acknowledge()])?[0];
            let mut wrong = Vec::new();
            // What passes while the guest does not run is not the guest's time, but for what it takes to restore it.
            if passed > 120 * rate {
                wrong.push(format!("the virtual counter went from {} to {now}", left.counter));
            }
            if quiet != SPURIOUS {
                wrong.push(format!("interrupt {quiet} out of nothing"));
            }
            wrong
        }
        Scenario::Sgi => once(session, SGI)?,
        Scenario::Ppi => once(session, PPI)?,
        Scenario::SpiEdge => once(session, EDGE)?,
        Scenario::Lpi => once(session, LPI)?,
        Scenario::SpiLevel => {
            let end = Probe::new(&[ICC_EOIR1.msr(0), ISB]).with(&[LEVEL]);
            let got = all(session, &[acknowledge(), end.clone(), acknowledge(), end])?;
            line(machine, LEVEL, false)?;
            let quiet = all(session, &[acknowledge()])?[0];
            let met = [got[0], got[2], quiet];
            if met == [LEVEL, LEVEL, SPURIOUS] {
                Vec::new()
            } else {
                vec![format!("a level, and met {met:?}")]
            }
        }
        Scenario::Active => {
            // The running priority masks others of the same one until it is ended.
            let sgi = Probe::new(&[ICC_SGI1R.msr(0), ISB]).with(&[SGI << 24 | 1]);
            let masked = all(session, &[sgi, acknowledge()])?[1];
            let end = Probe::new(&[ICC_EOIR1.msr(0), ISB]).with(&[SGI]);
            let got = all(session, &[end.clone(), acknowledge(), end])?[1];
            let met = [masked, got];
            if met == [SPURIOUS, SGI] {
                Vec::new()
            } else {
                vec![format!("an active interrupt, and met {met:?}")]
            }
        }
        Scenario::TimerArmed | Scenario::TimerExpired => {
            let mut wrong = Vec::new();
            let fired = wait(session, scenario == Scenario::TimerExpired)?;
            if fired != Some(TIMER) {
                wrong.push(format!("the timer's interrupt, and it was {fired:?}"));
            }
            all(session, &off)?;
            let end = Probe::new(&[ICC_EOIR1.msr(0), ISB]).with(&[TIMER]);
            let quiet = all(session, &[end, acknowledge()])?[1];
            if quiet != SPURIOUS {
                wrong.push(format!("once more {quiet}"));
            }
            wrong
        }
        Scenario::Wfi | Scenario::Mmio => {
            let Some(batch) = left.batch else { return Ok(vec!["nothing was begun".to_owned()]) };
            let outcomes = session.finish(&batch)?;
            let got = outcomes.first().and_then(Outcome::registers).map(|x| x[0]);
            if scenario == Scenario::Mmio {
                let fine = got == Some(u64::from(ANSWER));
                return Ok(if fine {
                    Vec::new()
                } else {
                    vec![format!("the load gave {:?}", outcomes.first())]
                });
            }
            let met = once_timer(session, &off)?;
            if got.is_none() { vec![format!("it did not wake up: {outcomes:?}")] } else { met }
        }
        Scenario::SError => {
            let pending = all(session, &[Probe::read(ISR)])?[0];
            let none = [0; VCPU_EVENTS];
            machine.vcpus()[0].set(&KVM_SET_VCPU_EVENTS, &none)?;
            if pending & 1 << 8 != 0 { Vec::new() } else { vec![format!("no SError: ISR_EL1 {pending:#x}")] }
        }
    })
}

fn once_timer(session: &mut Session<'_, '_, '_>, off: &[Probe]) -> Result<Vec<String>, Error> {
    let got = all(session, &[acknowledge()])?[0];
    all(session, off)?;
    let end = Probe::new(&[ICC_EOIR1.msr(0), ISB]).with(&[TIMER]);
    let quiet = all(session, &[end, acknowledge()])?[1];
    let met = [got, quiet];
    Ok(if met == [TIMER, SPURIOUS] { Vec::new() } else { vec![format!("the timer once, and met {met:?}")] })
}

/// Acknowledges again and again until something comes, for 30 seconds of the guest's; at once, if it must be there.
fn wait(session: &mut Session<'_, '_, '_>, at_once: bool) -> Result<Option<u64>, Error> {
    let (begin, rate) = clock(session)?;
    loop {
        let got = all(session, &[acknowledge(), Probe::read(CNTVCT)])?;
        if got[0] != SPURIOUS {
            return Ok(Some(got[0]));
        }
        if at_once || got[1] > begin + 30 * rate {
            return Ok(None);
        }
    }
}
