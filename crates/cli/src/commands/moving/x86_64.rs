//! On x86.

use evenkeel_apply::Plan;
use evenkeel_contract::Contract;
use evenkeel_monitor::Irqchip;
use evenkeel_state::{Image, Noting};
use evenkeel_surface::Arch;
use evenkeel_sys::{Live, System};
use evenkeel_witness::moved::{Kept, MoveError, Taken, x86};
use evenkeel_witness::programs::x86_64::{Configure, offered_cpuid};

use super::{Wanted, cannot, under};
use crate::commands::{observe, observe_contract};
use crate::failure::Failure;

/// Guests of which architecture are moved here.
pub const ARCH: Arch = Arch::X86_64;

/// The guest is stopped between two batches: there is nothing to choose.
#[derive(clap::Args)]
pub struct Stop {}

/// Saves a guest, and tells its shape.
pub fn keep(wanted: &Wanted<'_>) -> Result<(Kept, String), Failure> {
    let Stop {} = wanted.stop;
    match wanted.contract {
        Some(contract) => Ok((promised(contract, wanted.vcpus)?, contract.shape.clone())),
        None => {
            let shape = wanted.shape.unwrap_or("kernel");
            Ok((open(observe::known(shape, Irqchip::by_name)?, wanted.vcpus)?, shape.to_owned()))
        }
    }
}

/// A guest that is shown all that the host offers.
fn open(irqchip: Irqchip, vcpus: u32) -> Result<Kept, Failure> {
    let live = Live::new();
    let noting = Noting::new(&live);
    let system = System::open(&noting).map_err(|e| cannot(&e))?;
    let vcpu = |vcpu: &evenkeel_sys::Vcpu<'_>, id: u32| vcpu.set_cpuid(&offered_cpuid(&system, id)?);
    let configure = Configure { vcpu: &vcpu, ..Configure::default() };
    x86::keep(&noting, &system, irqchip, vcpus, &configure).map_err(|e| cannot(&e))
}

/// A guest under a contract, which has to be kept.
fn promised(contract: &Contract, vcpus: u32) -> Result<Kept, Failure> {
    let irqchip = observe::known(&contract.shape, Irqchip::by_name)?;
    let host = evenkeel_hosts::capture_here()?;
    let mut setup = observe_contract::setup();
    setup.topology.vcpus = vcpus;
    let plan = Plan::new(contract, &host, setup).map_err(|e| Failure::bad(e.to_string(), ""))?;
    let live = Live::new();
    let noting = Noting::new(&live);
    let system = System::open(&noting).map_err(|e| cannot(&e))?;
    let applying = std::cell::RefCell::new(plan.start());
    // What stops a stage is in the report, which is asked below.
    let vm = |vm: &evenkeel_sys::Vm<'_>| {
        let _ = applying.borrow_mut().vm(vm);
        Ok(())
    };
    let vcpu = |vcpu: &evenkeel_sys::Vcpu<'_>, id: u32| {
        let _ = applying.borrow_mut().vcpu(vcpu, id);
        Ok(())
    };
    let configure = Configure { vm: &vm, vcpu: &vcpu, ..Configure::default() };
    let kept = x86::keep(&noting, &system, irqchip, vcpus, &configure).map_err(|e| cannot(&e))?;
    under(&applying.borrow().report())?;
    Ok(kept)
}

/// Restores a guest, and lets it go on.
pub fn take(image: &Image, memory: &[(u64, Vec<u8>)], _stopped: Option<&[u8]>) -> Result<Taken, MoveError> {
    x86::take(&Live::new(), image, memory)
}
