//! What a guest must meet in the other machine.

use evenkeel_monitor::aarch64::Machine;
use evenkeel_sys::layout::VCPU_EVENTS;
use evenkeel_sys::requests::KVM_SET_VCPU_EVENTS;

use super::probes::{
    ANSWER, CNTV_CTL, CNTV_CVAL, CNTVCT, EDGE, ICC_EOIR1, ICC_SGI1R, ISR, LEVEL, LPI, PPI, SGI, SPURIOUS,
    TIMER, acknowledge, all, clock, line, set,
};
use super::{Error, Left, Scenario};
use crate::aarch64::probe::{ISB, Outcome, Probe};
use crate::aarch64::session::Session;

/// What the guest meets in the other machine otherwise than it should.
pub(in super::super) fn check(
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
            once_timer(session, scenario == Scenario::TimerExpired, &off)?
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
            // WFI is a hint: a guest that was stopped in it may find it over, and the timer running still.
            let met = once_timer(session, false, &off)?;
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

/// The timer's interrupt comes, once.
fn once_timer(session: &mut Session<'_, '_, '_>, at_once: bool, off: &[Probe]) -> Result<Vec<String>, Error> {
    let mut wrong = Vec::new();
    let fired = wait(session, at_once)?;
    if fired != Some(TIMER) {
        wrong.push(format!("the timer's interrupt, and it was {fired:?}"));
    }
    all(session, off)?;
    let end = Probe::new(&[ICC_EOIR1.msr(0), ISB]).with(&[TIMER]);
    let quiet = all(session, &[end, acknowledge()])?[1];
    if quiet != SPURIOUS {
        wrong.push(format!("once more {quiet}"));
    }
    Ok(wrong)
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
