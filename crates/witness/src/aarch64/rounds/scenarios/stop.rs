//! Bringing a guest to where it is saved.

use std::time::Duration;

use evenkeel_monitor::Error as MonitorError;
use evenkeel_monitor::aarch64::{GIC_REDISTRIBUTOR, Machine};
use evenkeel_sys::Exit;
use evenkeel_sys::layout::VCPU_EVENTS;
use evenkeel_sys::requests::KVM_SET_VCPU_EVENTS;

use super::probes::{
    ANSWER, CNTV_CTL, CNTV_CVAL, CNTVCT, EDGE, ICC_SGI1R, LEVEL, NOWHERE, PPI, SGI, acknowledge, all, clock,
    line, set, write_w,
};
use super::{Error, Left, Scenario, lpi};
use crate::Error as WitnessError;
use crate::aarch64::probe::{ISB, Probe};
use crate::aarch64::session::Session;

/// `WFI`.
const WFI: u32 = 0xd503_207f;

/// Brings the guest to where it is to be saved.
pub(in super::super) fn stop(
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
            lpi::set_up(machine.ram(), session)?;
            lpi::signal(machine)?;
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
