//! The contract, carried out on the witness's machine as a VMM would: when vCPUs are made, after their first run, at a
//! reset, and on a vCPU that is made later.

use std::cell::RefCell;

use evenkeel_apply::{Applying, Halt, Plan, Report, Setup, Topology};
use evenkeel_steps::Difference;
use evenkeel_sys::Error as CallError;
use evenkeel_witness::observation::Observation;
use schemars::JsonSchema;
use serde::Serialize;

use crate::failure::Failure;

/// What a contract is carried out for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Occasion {
    /// The VM was made.
    Vm,
    /// A vCPU was made, before the guest ran.
    Made,
    /// The interrupt controller was made (arm64).
    #[cfg_attr(not(target_arch = "aarch64"), expect(dead_code, reason = "such a machine has none"))]
    Gic,
    /// The interrupt controller is ready (arm64).
    #[cfg_attr(not(target_arch = "aarch64"), expect(dead_code, reason = "such a machine has none"))]
    GicReady,
    /// The vCPU ran for the first time: read back, nothing is set.
    FirstRun,
    /// A vCPU was made when the guest had been running.
    MadeLater,
    /// The guest is reset.
    Reset,
}

impl Occasion {
    fn words(self) -> &'static str {
        match self {
            Occasion::Vm => "the VM is made",
            Occasion::Made => "made",
            Occasion::Gic => "the interrupt controller is made",
            Occasion::GicReady => "the interrupt controller is ready",
            Occasion::FirstRun => "after the first run",
            Occasion::MadeLater => "made later",
            Occasion::Reset => "at a reset",
        }
    }
}

/// One time that something was set, or read back, or both.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Again {
    /// What for.
    pub occasion: Occasion,
    /// The vCPU; none for the VM and the interrupt controller.
    pub vcpu: Option<u32>,
    /// How many places were read and were as wanted.
    pub kept: usize,
    /// Ioctls that failed, whether or not it mattered.
    pub failed: Vec<String>,
    /// What was read otherwise than wanted.
    pub differences: Vec<Difference>,
}

impl Again {
    /// In a line.
    pub fn text(&self) -> String {
        let who = self.vcpu.map_or(String::new(), |vcpu| format!("vCPU {vcpu} "));
        let mut line = format!("{who}{}: {} places as wanted", self.occasion.words(), self.kept);
        if !self.failed.is_empty() {
            line += &format!(", {} ioctls failed ({})", self.failed.len(), self.failed[0]);
        }
        if !self.differences.is_empty() {
            let names: Vec<&str> = self.differences.iter().take(MOST).map(|d| d.facet.as_str()).collect();
            let more = self.differences.len() - names.len();
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            line += &format!(", otherwise: {}{more}", names.join(", "));
        }
        line
    }
}

/// So many names fit in a line.
const MOST: usize = 4;

/// A plan on its way.
struct Carried<'p> {
    plan: &'p Plan,
    applying: Applying<'p>,
    again: Vec<Again>,
}

impl<'p> Carried<'p> {
    fn new(plan: &'p Plan) -> Self {
        Carried { plan, applying: plan.start(), again: Vec::new() }
    }

    /// What reading back says is in the report; here the guest is asked all the same.
    fn note(
        &mut self,
        occasion: Occasion,
        vcpu: Option<u32>,
        work: impl FnOnce(&mut Applying<'p>) -> Result<(), Halt>,
    ) -> Result<(), CallError> {
        let from = self.applying.steps().len();
        let _ = work(&mut self.applying);
        let steps = &self.applying.steps()[from..];
        self.again.push(Again {
            occasion,
            vcpu,
            kept: steps.iter().map(|s| s.kept).sum(),
            failed: steps.iter().flat_map(|s| s.failed.iter().cloned()).collect(),
            differences: steps.iter().flat_map(|s| s.differences.iter().cloned()).collect(),
        });
        Ok(())
    }

    /// A guest that is started in a VM of its own gets the contract anew.
    fn begin(&mut self) {
        *self = Carried::new(self.plan);
    }

    fn made(&self) -> Occasion {
        let ran = self.again.iter().any(|a| a.occasion == Occasion::FirstRun);
        if ran { Occasion::MadeLater } else { Occasion::Made }
    }
}

/// The witness brings a second vCPU up, and on x86 a third one when it has been running.
pub fn setup() -> Setup {
    let vcpus = if cfg!(target_arch = "x86_64") { 3 } else { 2 };
    // The monitor makes the irqchip of the shape.
    Setup { topology: Topology { vcpus, threads: 1 }, irqchip_made: true, ..Setup::default() }
}

fn cannot(e: &dyn std::fmt::Display) -> Failure {
    Failure { exit: 3, ..Failure::bad(format!("nothing was observed: {e}"), "this needs a usable /dev/kvm") }
}

/// Runs the witness under a plan: what it saw, and what came of the plan.
#[cfg(target_arch = "x86_64")]
pub fn out(plan: &Plan) -> Result<(Observation, Report, Vec<Again>), Failure> {
    use evenkeel_monitor::Irqchip;
    use evenkeel_witness::programs::x86_64::Configure;

    let shape = crate::commands::observe::known(&plan.contract.shape, Irqchip::by_name)?;
    let carried = RefCell::new(Carried::new(plan));
    let configure = Configure {
        vm: &|vm| {
            let mut carried = carried.borrow_mut();
            carried.begin();
            carried.note(Occasion::Vm, None, |a| a.vm(vm))
        },
        vcpu: &|vcpu, id| {
            let mut carried = carried.borrow_mut();
            let occasion = carried.made();
            carried.note(occasion, Some(id), |a| a.vcpu(vcpu, id))
        },
        ran: &|vcpu, id| carried.borrow_mut().note(Occasion::FirstRun, Some(id), |a| a.reread(vcpu, id)),
        reset: &|vcpu, id| carried.borrow_mut().note(Occasion::Reset, Some(id), |a| a.reset(vcpu, id)),
        later: true,
    };
    let seen = crate::commands::observe::under(shape, &configure).map_err(|e| cannot(&e))?;
    let carried = carried.into_inner();
    Ok((seen, carried.applying.report(), carried.again))
}

/// Runs the witness under a plan: what it saw, and what came of the plan.
#[cfg(target_arch = "aarch64")]
pub fn out(plan: &Plan) -> Result<(Observation, Report, Vec<Again>), Failure> {
    use evenkeel_monitor::aarch64::{Configure, Shape};

    let shape = crate::commands::observe::known(&plan.contract.shape, Shape::by_name)?;
    let carried = RefCell::new(Carried::new(plan));
    let vcpu = |vcpu: &evenkeel_sys::Vcpu<'_>, id: u64| {
        let mut carried = carried.borrow_mut();
        let occasion = carried.made();
        carried.note(occasion, Some(id as u32), |a| a.vcpu(vcpu, id as u32))
    };
    let gic = |gic: &evenkeel_sys::Device<'_>| carried.borrow_mut().note(Occasion::Gic, None, |a| a.gic(gic));
    let late = |vcpu: &evenkeel_sys::Vcpu<'_>, id: u64| {
        carried.borrow_mut().note(Occasion::GicReady, Some(id as u32), |a| a.late(vcpu, id as u32))
    };
    let configure = Configure {
        // 0 is what the usual host has, where nothing is to be selected.
        vm_type: (plan.vm_type != 0).then_some(plan.vm_type),
        features: Some(plan.vcpu_features()),
        vm: &|vm| {
            let mut carried = carried.borrow_mut();
            carried.begin();
            carried.note(Occasion::Vm, None, |a| a.vm(vm))
        },
        vcpu: Some(&vcpu),
        gic: if plan.initializes_gic() { Some(&gic) } else { None },
        without_its: false,
        late: if plan.is_late() { Some(&late) } else { None },
        ran: &|vcpu, id| {
            carried.borrow_mut().note(Occasion::FirstRun, Some(id as u32), |a| a.reread(vcpu, id as u32))
        },
        reset: &|vcpu, id| {
            carried.borrow_mut().note(Occasion::Reset, Some(id as u32), |a| a.reset(vcpu, id as u32))
        },
    };
    let seen = crate::commands::observe::under(shape, &configure).map_err(|e| cannot(&e))?;
    let carried = carried.into_inner();
    Ok((seen, carried.applying.report(), carried.again))
}
