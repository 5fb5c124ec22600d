//! From a contract and a host to steps.

use std::collections::BTreeMap;

use evenkeel_catalog::{self as catalog, Call, KNOBS, Stage};
use evenkeel_contract::keeps::{Question, keeps};
use evenkeel_contract::{Contract, Finding, Outcome, Remedy, Shown, View, document};
use evenkeel_steps::{Expect, Facet, Place, Set, Step, Unseen, order};
use evenkeel_surface::{Arch, Surface};
use evenkeel_sys::layout::CpuidEntry;
use schemars::JsonSchema;
use serde::Serialize;

use crate::choices::{self, Context, Wanted};
use crate::topology::Topology;
use crate::{Applying, cpuid, registers};

/// KVM_CAP_SPLIT_IRQCHIP.
const CAP_SPLIT_IRQCHIP: u32 = 121;
/// Features of KVM_ARM_VCPU_INIT that shapes name, and their bits.
const FEATURES: [(&str, u32); 5] =
    [("psci-0.2", 2), ("pmu", 3), ("sve", 4), ("pauth-address", 5), ("pauth-generic", 6)];
const POWER_OFF: u32 = 1;
const SVE: u32 = 4;

/// What the VMM decides about the VM that is no matter of the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// How many vCPUs, and how they lie.
    pub topology: Topology,
    /// The VMM has made the irqchip that the contract's shape names: it is only looked at (x86).
    pub irqchip_made: bool,
    /// Pins of the IOAPIC that the VMM has, with a split irqchip.
    pub pins: u64,
    /// Where distributor and redistributors of the GIC go (arm64); none: the VMM places and initializes it.
    pub gic: Option<(u64, u64)>,
    /// The PMU's interrupt, a PPI (arm64).
    pub pmu_interrupt: u32,
    /// The PMU's number in sysfs, for a strict PMU (arm64).
    pub pmu: Option<u32>,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            topology: Topology::default(),
            irqchip_made: false,
            pins: 24,
            gic: Some((0x0800_0000, 0x080a_0000)),
            pmu_interrupt: 23,
            pmu: None,
        }
    }
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// Contract and host are of different architectures.
    Architecture(Arch, Arch),
    /// The host was not captured in the contract's shape.
    Shape(String),
    /// The catalog's edges contradict each other.
    Order(order::Cycle),
}

impl std::fmt::Display for PlanError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PlanError::Architecture(contract, host) => {
                write!(f, "the contract is for {} and the host is {}", contract.name(), host.name())
            }
            PlanError::Shape(shape) => write!(f, "the host cannot make a VM of shape `{shape}`"),
            PlanError::Order(cycle) => cycle.fmt(f),
        }
    }
}

impl std::error::Error for PlanError {}

/// A facet that the host cannot give, told before anything is touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Refusal {
    /// Its name.
    pub facet: String,
    /// In a line; may be empty.
    pub title: String,
    /// The raw coordinate; may be empty.
    pub at: String,
    /// What the contract says, or what it implies by not naming it.
    pub wanted: String,
    /// What the host gives.
    pub offered: String,
    /// The code of the finding, for `evenkeel explain`.
    pub code: &'static str,
    /// The ledger entry that explains it; none: the cause is unknown.
    pub cause: Option<&'static str>,
    /// What to do.
    pub remedy: String,
    /// The user waived it by name.
    pub waived: bool,
}

/// Work for the VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Duty {
    /// Its name.
    pub name: String,
    /// The facet that needs it.
    pub facet: String,
    /// The value that needs it.
    pub value: String,
    /// What to do.
    pub work: String,
}

/// A behaviour that nothing selects and no ioctl tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Unobserved {
    /// Its name, which is also that of the observation.
    pub facet: String,
    /// What the contract says, or implies.
    pub wanted: String,
}

/// What is to be done on a VM so that its guest gets what it was promised.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The contract.
    pub contract: Contract,
    /// Its digest.
    pub digest: String,
    /// `uname -r` of the host, and KVM's back-end.
    pub host: (String, String),
    /// What the host cannot give.
    pub refusals: Vec<Refusal>,
    /// Work for the VMM.
    pub duties: Vec<Duty>,
    /// What is at rest, as wanted as far as is known, and no ioctl shows it.
    pub left_alone: Vec<Unseen>,
    /// Behaviours that only a look from inside a guest tells.
    pub unobserved: Vec<Unobserved>,
    /// The argument of KVM_CREATE_VM (arm64: the width of guest physical addresses; 0 where nothing is to be selected).
    pub vm_type: u64,
    pub(crate) setup: Setup,
    pub(crate) hyperv: bool,
    waivers: Vec<String>,
    /// What the guest is shown.
    pub(crate) shown: Shown,
    /// Facets that are no words and that an ioctl shows.
    pub(crate) readable: Vec<&'static str>,
    /// What is the same for every vCPU, by name.
    pub(crate) fixed: BTreeMap<&'static str, Step>,
    order: Vec<&'static str>,
    table: Vec<CpuidEntry>,
    pub(crate) features: u32,
    init_unseen: Vec<Unseen>,
    looks: [Vec<Expect>; 3],
}

impl Plan {
    /// Plans a contract on a host. Nothing is touched.
    ///
    /// # Errors
    /// See [`PlanError`]. That the host cannot give a facet is no error but a [`Refusal`].
    pub fn new(contract: &Contract, host: &Surface, setup: Setup) -> Result<Plan, PlanError> {
        if contract.arch != host.arch {
            return Err(PlanError::Architecture(contract.arch, host.arch));
        }
        let arch = match contract.arch {
            Arch::X86_64 => catalog::Arch::X86_64,
            Arch::Aarch64 => catalog::Arch::Aarch64,
        };
        let views = View::all(host, "this host");
        let shape = host.offer.shapes.iter().position(|s| s.name == contract.shape);
        let (Some(shape_index), Some(view)) = (shape, views.iter().find(|v| v.shape == contract.shape))
        else {
            return Err(PlanError::Shape(contract.shape.clone()));
        };
        let shown = contract.resolve(view);
        let all: Vec<Wanted> = choices::wanted(&shown, view);
        let context = Context { shown: &shown, view, offer: &host.offer, shape_index, all: &all };
        let (table, hyperv) = cpuid::table(&shown, &host.offer);
        let features = host.offer.shapes[shape_index].features.as_slice();
        let has = |name: &str| features.iter().any(|f| f == name);
        let bits = FEATURES.iter().filter(|(name, _)| has(name)).fold(0, |all, (_, bit)| all | 1u32 << bit);
        let mut fixed: BTreeMap<&'static str, Step> = BTreeMap::new();
        let mut add = |step: Step| {
            fixed.insert(step.name, step);
        };
        KNOBS.iter().filter(|k| k.arch == arch).filter_map(|k| context.knob(k)).for_each(&mut add);
        match arch {
            catalog::Arch::X86_64 => {
                add(irqchip(&contract.shape, &setup));
                add(registers::msrs(&shown, view));
            }
            catalog::Arch::Aarch64 => {
                add(registers::one_regs(&shown, view, false));
                add(registers::one_regs(&shown, view, true));
                if let Some(places) = setup.gic.filter(|_| has("gic=v3")) {
                    add(gic_init(places));
                }
                if has("pmu") {
                    add(pmu_init(&setup));
                }
            }
        }
        Ok(Plan {
            digest: document::digest(contract),
            contract: contract.clone(),
            host: (host.provenance.kernel.release.clone(), host.provenance.kernel.backend.clone()),
            refusals: refusals(view, &shown),
            duties: context.duties(),
            left_alone: context.left_alone(),
            unobserved: context.unobserved(),
            vm_type: context.argument(Call::VmType),
            hyperv,
            waivers: Vec::new(),
            readable: context.readable(),
            shown: shown.clone(),
            fixed,
            order: order::catalogued(arch).map_err(PlanError::Order)?,
            table,
            features: bits | context.argument(Call::VcpuFeature) as u32,
            init_unseen: context.by_argument(Call::VcpuFeature),
            looks: [
                context.look(Stage::Vcpu, true),
                context.look(Stage::Vcpu, false),
                context.look(Stage::Gic, false),
            ],
            setup,
        })
    }

    /// Waives facets by name: a field, or a word with all its fields. Differences in them are told and do not refuse.
    #[must_use]
    pub fn waive(mut self, facets: &[String]) -> Plan {
        self.waivers.extend_from_slice(facets);
        for refusal in &mut self.refusals {
            refusal.waived = is_waived(&self.waivers, &refusal.facet);
        }
        self
    }

    /// Whether the user waived this facet.
    pub(crate) fn waives(&self, facet: &str) -> bool {
        is_waived(&self.waivers, facet)
    }

    /// Begins to carry it out on one VM.
    pub fn start(&self) -> Applying<'_> {
        Applying::new(self)
    }

    /// The steps of a stage, in order; for vCPUs those of the one with this index. `target` is
    /// KVM_ARM_PREFERRED_TARGET's answer.
    pub fn steps(&self, stage: Stage, index: u32, target: u32) -> Vec<Step> {
        let mut steps = Vec::new();
        for name in &self.order {
            match *name {
                "cpuid" if stage == Stage::Vcpu => steps.push(self.cpuid(index)),
                "vcpu-init" if stage == Stage::Vcpu => steps.push(self.vcpu_init(index, target)),
                name => steps.extend(self.fixed.get(name).filter(|s| s.stage == stage).cloned()),
            }
        }
        let looks = match stage {
            Stage::Vcpu => &self.looks[usize::from(index != 0)],
            Stage::Gic => &self.looks[2],
            Stage::Vm | Stage::Late => return steps,
        };
        let mut look = Step::new("look", stage);
        look.expect.clone_from(looks);
        if stage == Stage::Vcpu && self.contract.arch == Arch::X86_64 {
            let wanted = u64::from(self.contract.shape != "none");
            let (place, facet) = (Place::HasLapic, Facet::Shape("lapic"));
            look.expect.push(Expect { place, mask: 1, wanted, facet, fresh: false });
        }
        if !look.expect.is_empty() {
            steps.push(look);
        }
        steps
    }

    /// The CPUID table that a vCPU is given.
    pub fn table(&self, index: u32) -> Vec<CpuidEntry> {
        let mut table = self.table.clone();
        self.setup.topology.fill(&mut table, index);
        table
    }

    /// What a guest must find in the CPUID of a vCPU: each word with the bits that count. What KVM or the guest itself
    /// changes while it runs does not.
    pub fn shown_cpuid(&self, index: u32) -> Vec<Expect> {
        cpuid::expect(&self.table(index), self.hyperv)
    }

    fn cpuid(&self, index: u32) -> Step {
        let table = self.table(index);
        let mut step = Step::new("cpuid", Stage::Vcpu);
        step.expect = cpuid::expect(&table, self.hyperv);
        step.set.push(Set::Cpuid(table));
        step
    }

    fn vcpu_init(&self, index: u32, target: u32) -> Step {
        let mut step = Step::new("vcpu-init", Stage::Vcpu);
        let off = if index == 0 { 0 } else { POWER_OFF };
        step.set.push(Set::Init { target, features: self.features | off });
        if self.features & 1 << SVE != 0 {
            step.set.push(Set::Finalize(SVE));
        }
        step.unseen.clone_from(&self.init_unseen);
        step
    }
}

fn is_waived(waivers: &[String], facet: &str) -> bool {
    waivers.iter().any(|w| {
        facet.strip_prefix(w.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}

fn irqchip(shape: &str, setup: &Setup) -> Step {
    let mut step = Step::new("irqchip", Stage::Vm);
    match shape {
        _ if setup.irqchip_made => {}
        "kernel" => step.set.push(Set::CreateIrqchip),
        "split" => step.set.push(Set::EnableCap { cap: CAP_SPLIT_IRQCHIP, args: [setup.pins, 0, 0, 0] }),
        _ => {}
    }
    let (place, facet) = (Place::HasIrqchip, Facet::Shape("irqchip"));
    step.expect.push(Expect { place, mask: 1, wanted: u64::from(shape == "kernel"), facet, fresh: false });
    step
}

/// KVM_DEV_ARM_VGIC_GRP_ADDR for distributor and redistributors; then KVM_DEV_ARM_VGIC_CTRL_INIT.
fn gic_init((distributor, redistributors): (u64, u64)) -> Step {
    let mut step = Step::new("gic-init", Stage::Gic);
    let mut attr =
        |group, attr, value: &[u8]| step.set.push(Set::Attr { group, attr, value: value.to_vec() });
    attr(0, 2, &distributor.to_ne_bytes());
    attr(0, 3, &redistributors.to_ne_bytes());
    attr(4, 0, &[]);
    step
}

/// KVM_ARM_VCPU_PMU_V3_CTRL: the PMU where it must be named, the interrupt, then initialization.
fn pmu_init(setup: &Setup) -> Step {
    let mut step = Step::new("pmu-init", Stage::Late);
    let mut attr = |attr, value: &[u8]| step.set.push(Set::Attr { group: 0, attr, value: value.to_vec() });
    if let Some(pmu) = setup.pmu {
        attr(3, &pmu.to_ne_bytes());
    }
    attr(0, &setup.pmu_interrupt.to_ne_bytes());
    attr(1, &[]);
    step
}

/// What the host cannot give, whatever is selected.
fn refusals(view: &View, shown: &Shown) -> Vec<Refusal> {
    let question = Question { from: view, on: view, running: false, pinned: true };
    let findings = keeps(&question, shown);
    findings.into_iter().filter(|f| f.outcome == Outcome::No).map(refusal).collect()
}

fn refusal(f: Finding) -> Refusal {
    let remedy = match f.remedy {
        Remedy::Nothing => "nothing has to be done".to_owned(),
        Remedy::Selector { steps } => steps.join("; "),
        Remedy::Duty { work } => work,
        Remedy::Refuse { because } => {
            format!("{because}: take another host, or a contract that this one can keep, or waive the facet")
        }
        Remedy::Observe { name } => format!("observe {name}"),
    };
    Refusal {
        facet: f.subject,
        title: f.title,
        at: f.at,
        wanted: f.before,
        offered: f.after,
        code: f.code,
        cause: f.cause,
        remedy,
        waived: false,
    }
}
