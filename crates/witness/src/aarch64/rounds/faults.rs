//! Calls that fail or lie while a guest is saved or restored.

use std::time::{Duration, Instant};

use evenkeel_state::{Refused, arm64};
use evenkeel_sys::{Errno, Fault, Faulty, Live, Rule, System, When};
use serde::{Deserialize, Serialize};

use super::vm::{parts, revive};
use super::{Error, Kept, differences};

/// What became of spoilt calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spoilt {
    /// Which calls: `restore: EIO`.
    pub what: String,
    /// Calls that there are.
    pub calls: usize,
    /// Calls that were spoilt, one in each run.
    pub tried: usize,
    /// Runs that were refused, with the reason.
    pub refused: usize,
    /// Runs whose report names what was not kept.
    pub named: usize,
    /// Runs after which nothing is otherwise than without the fault.
    pub harmless: usize,
    /// Runs in which something is otherwise, and nobody said so.
    pub missed: Vec<String>,
    /// Runs after which the guest that was to be saved could not be saved in full.
    pub harmed: Vec<String>,
}

/// How calls are spoilt.
fn faults() -> [(&'static str, Fault); 2] {
    [("EIO", Fault::Fail(Errno::EIO)), ("a lie", Fault::Lie)]
}

/// Every call, without changing any: to count them.
fn counting() -> Faulty<Live> {
    let all = When::Random { permille: 1000, seed: 0 };
    Faulty::new(Live::new(), vec![Rule { when: all, fault: Fault::Delay(Duration::ZERO) }])
}

fn spoiling(call: usize, fault: Fault) -> Faulty<Live> {
    Faulty::new(Live::new(), vec![Rule { when: When::Nth(call), fault }])
}

/// Spoils every `step`th call, one in each run, first while a guest is restored, then while it is saved.
///
/// # Errors
/// Without any fault it does not work either.
pub fn spoil(kept: &Kept, step: usize) -> Result<Vec<Spoilt>, Error> {
    let backend = counting();
    let (restoring, all) = {
        let system = System::open(&backend)?;
        let (revived, _) = revive(&system, &kept.saved.image, &kept.memory)?;
        let restoring = backend.spoiled().len();
        arm64::save(&mut parts(&revived.machine, Vec::new()), &kept.saved.image.manifest)?;
        (restoring, backend.spoiled().len())
    };
    let mut told = Vec::new();
    for (name, fault) in faults() {
        let mut spoilt = Spoilt { what: format!("restore: {name}"), calls: restoring, ..Spoilt::default() };
        for call in (0..restoring).step_by(step.max(1)) {
            restore(kept, call, fault.clone(), &mut spoilt);
        }
        told.push(spoilt);
        let calls = all - restoring;
        let mut spoilt = Spoilt { what: format!("save: {name}"), calls, ..Spoilt::default() };
        for call in (restoring..all).step_by(step.max(1)) {
            save(kept, call, fault.clone(), &mut spoilt)?;
        }
        told.push(spoilt);
    }
    Ok(told)
}

fn restore(kept: &Kept, call: usize, fault: Fault, spoilt: &mut Spoilt) {
    let begin = Instant::now();
    let backend = spoiling(call, fault);
    spoilt.tried += 1;
    let done = (|| -> Result<bool, Error> {
        let system = System::open(&backend)?;
        let (revived, report) = revive(&system, &kept.saved.image, &kept.memory)?;
        if !report.complete() {
            return Ok(false);
        }
        let again = arm64::save(&mut parts(&revived.machine, Vec::new()), &kept.saved.image.manifest)?;
        let otherwise = differences(&kept.saved.image, &again.image, begin);
        if otherwise.is_empty() {
            spoilt.harmless += 1;
        } else {
            spoilt.missed.push(format!("{:?}: {otherwise:?}", backend.spoiled()));
        }
        Ok(true)
    })();
    match done {
        Err(_) => spoilt.refused += 1,
        Ok(false) => spoilt.named += 1,
        Ok(true) => {}
    }
}

fn save(kept: &Kept, call: usize, fault: Fault, spoilt: &mut Spoilt) -> Result<(), Error> {
    let begin = Instant::now();
    let backend = spoiling(call, fault);
    let system = System::open(&backend)?;
    let (revived, _) = revive(&system, &kept.saved.image, &kept.memory)?;
    let save = || -> Result<_, Refused> {
        arm64::save(&mut parts(&revived.machine, Vec::new()), &kept.saved.image.manifest)
    };
    spoilt.tried += 1;
    match save() {
        Err(_) => spoilt.refused += 1,
        Ok(saved) => {
            let otherwise = differences(&kept.saved.image, &saved.image, begin);
            if otherwise.is_empty() {
                spoilt.harmless += 1;
            } else {
                spoilt.missed.push(format!("{:?}: {otherwise:?}", backend.spoiled()));
            }
        }
    }
    // The guest is as it was: it can be saved now.
    match save() {
        Ok(saved) if differences(&kept.saved.image, &saved.image, begin).is_empty() => {}
        Ok(_) => spoilt.harmed.push(format!("{:?}: it is another now", backend.spoiled())),
        Err(refused) => spoilt.harmed.push(format!("{:?}: {refused}", backend.spoiled())),
    }
    Ok(())
}
