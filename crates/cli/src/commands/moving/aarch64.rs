//! On arm64.

use evenkeel_apply::Plan;
use evenkeel_contract::Contract;
use evenkeel_monitor::aarch64::{Configure, Shape};
use evenkeel_state::{Image, Noting};
use evenkeel_surface::Arch;
use evenkeel_sys::{Device, Live, Vcpu, Vm};
use evenkeel_witness::aarch64::rounds::{Scenario, Trial};
use evenkeel_witness::guests;
use evenkeel_witness::moved::{Kept, MoveError, Taken, arm64};

use super::{Wanted, cannot, under};
use crate::commands::rounds::scenario;
use crate::commands::{observe, observe_contract};
use crate::failure::Failure;

/// Guests of which architecture are moved here.
pub const ARCH: Arch = Arch::Aarch64;

/// What the guest is stopped in.
#[derive(clap::Args)]
pub struct Stop {
    /// What the guest is stopped in: idle (between two batches), timer-expired, lpi, wfi and others.
    #[arg(long, value_name = "SCENARIO", default_value = "idle", value_parser = scenario)]
    stopped_in: Scenario,
}

/// Saves a guest, and tells its shape.
pub fn keep(wanted: &Wanted<'_>) -> Result<(Kept, String), Failure> {
    let shape = match wanted.contract {
        Some(contract) => contract.shape.as_str(),
        None => wanted.shape.unwrap_or("full"),
    };
    let known = observe::known(shape, Shape::by_name)?;
    let trial = Trial { shape: known, vcpus: wanted.vcpus.into(), scenario: wanted.stop.stopped_in };
    let kept = match wanted.contract {
        Some(contract) => promised(contract, trial)?,
        None => saved(trial, &Configure::default())?,
    };
    Ok((kept, shape.to_owned()))
}

fn saved(trial: Trial, configure: &Configure<'_>) -> Result<Kept, Failure> {
    let live = Live::new();
    arm64::keep(&Noting::new(&live), guests::image(), trial, configure).map_err(|e| cannot(&e))
}

/// A guest under a contract, which has to be kept.
fn promised(contract: &Contract, trial: Trial) -> Result<Kept, Failure> {
    let host = evenkeel_hosts::capture_here()?;
    let mut setup = observe_contract::setup();
    setup.topology.vcpus = trial.vcpus as u32;
    let plan = Plan::new(contract, &host, setup).map_err(|e| Failure::bad(e.to_string(), ""))?;
    let applying = std::cell::RefCell::new(plan.start());
    // What stops a stage is in the report, which is asked below.
    let vcpu = |vcpu: &Vcpu<'_>, id: u64| {
        let _ = applying.borrow_mut().vcpu(vcpu, id as u32);
        Ok(())
    };
    let gic = |gic: &Device<'_>| {
        let _ = applying.borrow_mut().gic(gic);
        Ok(())
    };
    let late = |vcpu: &Vcpu<'_>, id: u64| {
        let _ = applying.borrow_mut().late(vcpu, id as u32);
        Ok(())
    };
    let configure = Configure {
        vm_type: (plan.vm_type != 0).then_some(plan.vm_type),
        features: Some(plan.vcpu_features()),
        vm: &|vm: &Vm<'_>| {
            let _ = applying.borrow_mut().vm(vm);
            Ok(())
        },
        vcpu: Some(&vcpu),
        gic: if plan.initializes_gic() { Some(&gic) } else { None },
        late: if plan.is_late() { Some(&late) } else { None },
        ..Configure::default()
    };
    let kept = saved(trial, &configure)?;
    under(&applying.borrow().report())?;
    Ok(kept)
}

/// Restores a guest, and lets it go on.
pub fn take(image: &Image, memory: &[(u64, Vec<u8>)], stopped: Option<&[u8]>) -> Result<Taken, MoveError> {
    arm64::take(&Live::new(), image, memory, stopped)
}
