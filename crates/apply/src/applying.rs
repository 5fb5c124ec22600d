//! A plan, carried out on one VM.

use evenkeel_catalog::Stage;
use evenkeel_steps::{Seen, Set, Step, StepReport, Target, compare, run};
use evenkeel_surface::Arch;
use evenkeel_sys::{Device, Vcpu, Vm};

use crate::plan::Plan;
use crate::report::Report;

/// A stage that did not do what it should: the VM must not be used. The report says which facet, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Halt {
    /// The first step that failed.
    pub step: String,
    /// What it says of itself, in a line.
    pub what: String,
}

impl std::fmt::Display for Halt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "step `{}`: {}", self.step, self.what)
    }
}

impl std::error::Error for Halt {}

/// What has been done so far, and what came of it.
#[derive(Clone, Debug)]
pub struct Applying<'p> {
    pub(crate) plan: &'p Plan,
    pub(crate) steps: Vec<StepReport>,
    pub(crate) vm_done: bool,
    pub(crate) gic_done: bool,
    pub(crate) vcpus: Vec<u32>,
    pub(crate) late: Vec<u32>,
    pub(crate) reread: Vec<u32>,
    /// What was seen on the vCPU that starts, for the contract that the host can keep.
    pub(crate) seen: Seen,
    target: u32,
}

impl<'p> Applying<'p> {
    pub(crate) fn new(plan: &'p Plan) -> Self {
        Applying {
            plan,
            steps: Vec::new(),
            vm_done: false,
            gic_done: false,
            vcpus: Vec::new(),
            late: Vec::new(),
            reread: Vec::new(),
            seen: Seen::default(),
            // KVM_ARM_TARGET_GENERIC_V8, what every host has preferred since 4.2.
            target: 5,
        }
    }

    /// What comes before the first vCPU.
    ///
    /// # Errors
    /// Something differs that was not waived. Going on is possible, and makes the report longer, not the VM usable.
    pub fn vm(&mut self, vm: &Vm<'_>) -> Result<(), Halt> {
        if self.plan.contract.arch == Arch::Aarch64
            && let Ok(target) = vm.preferred_target()
        {
            self.target = target;
        }
        self.vm_done = true;
        self.carry_out(Stage::Vm, Target::Vm(vm), 0, false)
    }

    /// A vCPU that has just been created, at the start or later.
    ///
    /// # Errors
    /// As [`Applying::vm`].
    pub fn vcpu(&mut self, vcpu: &Vcpu<'_>, index: u32) -> Result<(), Halt> {
        note(&mut self.vcpus, index);
        self.carry_out(Stage::Vcpu, Target::Vcpu(vcpu, index), index, false)
    }

    /// The interrupt controller, when it and the first vCPUs have been created (arm64).
    ///
    /// # Errors
    /// As [`Applying::vm`].
    pub fn gic(&mut self, gic: &Device<'_>) -> Result<(), Halt> {
        self.gic_done = true;
        self.carry_out(Stage::Gic, Target::Gic(gic), 0, false)
    }

    /// A vCPU once the interrupt controller is ready (arm64).
    ///
    /// # Errors
    /// As [`Applying::vm`].
    pub fn late(&mut self, vcpu: &Vcpu<'_>, index: u32) -> Result<(), Halt> {
        note(&mut self.late, index);
        self.carry_out(Stage::Late, Target::Vcpu(vcpu, index), index, false)
    }

    /// Sets everything of a vCPU again when its guest is reset. A kernel that takes no feature after the first run
    /// refuses, and what is read decides. On arm64 KVM_ARM_VCPU_INIT is the VMM's, as part of the reset. Places that the
    /// guest changes by itself are not looked at: whether they are reset yet is the VMM's matter.
    ///
    /// # Errors
    /// As [`Applying::vm`].
    pub fn reset(&mut self, vcpu: &Vcpu<'_>, index: u32) -> Result<(), Halt> {
        self.carry_out(Stage::Vcpu, Target::Vcpu(vcpu, index), index, true)
    }

    /// Looks at a vCPU again, after its first KVM_RUN: kernels change features then.
    ///
    /// # Errors
    /// As [`Applying::vm`].
    pub fn reread(&mut self, vcpu: &Vcpu<'_>, index: u32) -> Result<(), Halt> {
        note(&mut self.reread, index);
        let from = self.steps.len();
        for step in self.plan.steps(Stage::Vcpu, index, self.target) {
            let (report, _) = compare(&step, Target::Vcpu(vcpu, index));
            self.add(report);
        }
        self.first_failure(from)
    }

    /// What was done and looked at so far, in order.
    pub fn steps(&self) -> &[StepReport] {
        &self.steps
    }

    /// The document: what the kernel really did.
    pub fn report(&self) -> Report {
        Report::of(self)
    }

    fn carry_out(
        &mut self,
        stage: Stage,
        target: Target<'_, '_>,
        index: u32,
        again: bool,
    ) -> Result<(), Halt> {
        let from = self.steps.len();
        let makes = |step: &Step| step.set.iter().any(|s| matches!(s, Set::Init { .. }));
        for mut step in self.plan.steps(stage, index, self.target) {
            if again && makes(&step) {
                continue;
            }
            step.expect.retain(|e| !(again && e.fresh));
            let (report, seen) = run(&step, target);
            if index == 0 {
                self.seen.0.extend(seen.0);
            }
            self.add(report);
        }
        self.first_failure(from)
    }

    fn add(&mut self, mut report: StepReport) {
        for d in &mut report.differences {
            d.waived = self.plan.waives(&d.facet);
        }
        self.steps.push(report);
    }

    fn first_failure(&self, from: usize) -> Result<(), Halt> {
        let Some(failed) = self.steps[from..].iter().find(|s| !s.holds()) else { return Ok(()) };
        let first = failed.differences.iter().find(|d| !d.waived);
        let what = first.map_or_else(String::new, |d| {
            let got = d.got.as_ref().map_or_else(|| d.why.clone(), |got| format!("{got} is in force"));
            format!("{}: {} was wanted, {got}", d.facet, d.wanted)
        });
        Err(Halt { step: failed.step.clone(), what })
    }
}

fn note(list: &mut Vec<u32>, index: u32) {
    if !list.contains(&index) {
        list.push(index);
    }
}
