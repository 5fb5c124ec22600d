//! States that are hard to save, and what a guest must meet after each: [`stop`] brings a guest into one, [`check`] looks at
//! what became of it in the other machine.

mod check;
mod lpi;
mod others;
mod probes;
mod stop;

use evenkeel_monitor::aarch64::{Configure, GIC_DISTRIBUTOR, GIC_REDISTRIBUTOR, Machine};
use evenkeel_sys::System;
use evenkeel_sys::requests::KVM_ARM_SET_COUNTER_OFFSET;

use super::{Error, Trial};
use crate::aarch64::abi;
use crate::aarch64::session::{Batch, Session, load};

pub(super) use check::check;
pub(super) use others::{bring_up, others_go_on};
use probes::{EDGE, ICC_IGRPEN1, ICC_PMR, ICC_SRE, LEVEL, PPI, SGI, TIMER, all, set, write_w};
pub(super) use stop::stop;

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
