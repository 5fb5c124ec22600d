//! A vCPU to save from or to load into, made as a VMM makes it: features, SVE, interrupt controller, PMU.

use evenkeel_sys::{Backend, Device, Error as CallError, Source, System, Vcpu, Vm};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::Error;

/// What a vCPU is made with. The same shapes as in a capture, so that what a capture foretells is what is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// PSCI and a GICv3.
    Min,
    /// The same with a PMU.
    Pmu,
    /// The same with SVE and pointer authentication, as far as the host has them.
    Full,
}

const CAP_PMU_V3: u32 = 126;
const CAP_IPA_SIZE: u32 = 165;
const CAP_SVE: u32 = 170;
const CAP_PAUTH_ADDRESS: u32 = 171;
const CAP_PAUTH_GENERIC: u32 = 172;

/// Features of KVM_ARM_VCPU_INIT: bit, the word for it, the capability that offers it.
type Feature = (u32, &'static str, Option<u32>);
const POWER_OFF: Feature = (0, "power-off", None);
const PSCI: Feature = (2, "psci-0.2", None);
const PMU: Feature = (3, "pmu", Some(CAP_PMU_V3));
const SVE: Feature = (4, "sve", Some(CAP_SVE));
const PAUTH_ADDRESS: Feature = (5, "pauth-address", Some(CAP_PAUTH_ADDRESS));
const PAUTH_GENERIC: Feature = (6, "pauth-generic", Some(CAP_PAUTH_GENERIC));

/// The word for the interrupt controller.
const GIC: &str = "gic=v3";
/// KVM_DEV_TYPE_ARM_VGIC_V3, and where its frames go: any place would do, nothing runs.
const DEVICE_GIC_V3: u32 = 7;
const GIC_DISTRIBUTOR: u64 = 0x0800_0000;
const GIC_REDISTRIBUTOR: u64 = 0x080a_0000;

impl Shape {
    /// All, from the fewest features to the most.
    pub const ALL: [Shape; 3] = [Shape::Min, Shape::Pmu, Shape::Full];

    /// The word for it, as in a capture.
    pub fn name(self) -> &'static str {
        match self {
            Shape::Min => "min",
            Shape::Pmu => "pmu",
            Shape::Full => "full",
        }
    }

    /// The shape of this name.
    pub fn by_name(name: &str) -> Option<Shape> {
        Shape::ALL.into_iter().find(|shape| shape.name() == name)
    }

    /// The words for what it is made with, where a host has all of it; as in a capture.
    pub fn feature_names(self) -> impl Iterator<Item = &'static str> {
        self.features().iter().map(|(_, name, _)| *name).chain([GIC])
    }

    fn features(self) -> &'static [Feature] {
        match self {
            Shape::Min => &[POWER_OFF, PSCI],
            Shape::Pmu => &[POWER_OFF, PSCI, PMU],
            Shape::Full => &[POWER_OFF, PSCI, PMU, SVE, PAUTH_ADDRESS, PAUTH_GENERIC],
        }
    }
}

/// Opens `/dev/kvm` of an arm64 host.
pub(crate) fn open(backend: &dyn Backend) -> Result<System<'_>, Error> {
    let name = read(backend, "which architecture is this", Source::Architecture)?;
    if name != b"aarch64" {
        return Err(Error::Architecture(String::from_utf8_lossy(&name).into_owned()));
    }
    System::open(backend).map_err(Error::call("is there KVM"))
}

fn read(backend: &dyn Backend, what: &'static str, source: Source<'_>) -> Result<Vec<u8>, Error> {
    backend.read(source).map_err(|why| Error::Call {
        what,
        source: CallError { ioctl: "read", argument: source.to_string(), why },
    })
}

/// The release of the kernel that runs: a name, never a reason for anything.
pub(crate) fn release(system: &System<'_>) -> Result<String, Error> {
    let uname = read(system.backend(), "the kernel's name", Source::Uname)?;
    Ok(String::from_utf8_lossy(&uname).lines().next().unwrap_or_default().to_owned())
}

/// A VM with one vCPU, complete but for its first run.
#[derive(Debug)]
pub(crate) struct Guest<'b> {
    // Closed in this order.
    pub(crate) vcpu: Vcpu<'b>,
    pub(crate) gic: Device<'b>,
    /// What the vCPU was given, in words.
    pub(crate) features: Vec<String>,
    _vm: Vm<'b>,
}

impl<'b> Guest<'b> {
    /// Makes it. `early` may set what is fixed when SVE is finalized: the vector lengths.
    pub(crate) fn make(
        system: &System<'b>,
        shape: Shape,
        early: impl FnOnce(&Vcpu<'b>),
    ) -> Result<Guest<'b>, Error> {
        let guest = Guest::without_init(system, shape, early)?;
        guest.init_gic().map_err(Error::call("the interrupt controller"))?;
        if guest.features.iter().any(|name| name == PMU.1) {
            // KVM_ARM_VCPU_PMU_V3_CTRL: the interrupt (a PPI), then initialization.
            let set = |attr, value: &[u8]| guest.vcpu.set_attr(0, attr, value);
            set(0, &23u32.to_ne_bytes()).and_then(|()| set(1, &[])).map_err(Error::call("the PMU"))?;
        }
        Ok(guest)
    }

    /// The same up to where KVM_DEV_ARM_VGIC_CTRL_INIT is still to come.
    pub(crate) fn without_init(
        system: &System<'b>,
        shape: Shape,
        early: impl FnOnce(&Vcpu<'b>),
    ) -> Result<Guest<'b>, Error> {
        // Type 0 means 40 bits of guest physical address, more than some hosts have.
        let bits = system.check_extension(CAP_IPA_SIZE).map_err(Error::call("a VM"))?;
        let kind = if (32..40).contains(&bits) { bits as u64 } else { 0 };
        let vm = system.create_vm(kind).map_err(Error::call("a VM"))?;
        let mut wanted: Vec<&Feature> = Vec::new();
        for feature in shape.features() {
            let offered = match feature.2 {
                None => true,
                Some(cap) => system.check_extension(cap).map_err(Error::call("a vCPU's features"))? > 0,
            };
            if offered {
                wanted.push(feature);
            }
        }
        let bits = wanted.iter().fold(0, |all, (bit, ..)| all | 1 << bit);
        let target = vm.preferred_target().map_err(Error::call("a vCPU"))?;
        let vcpu = vm.create_vcpu(0).map_err(Error::call("a vCPU"))?;
        vcpu.init(target, bits).map_err(Error::call("a vCPU"))?;
        early(&vcpu);
        if bits & 1 << SVE.0 != 0 {
            vcpu.finalize(SVE.0).map_err(Error::call("SVE"))?;
        }
        let gic = make_gic(&vm).map_err(Error::call("the interrupt controller"))?;
        let features = wanted.iter().map(|(_, name, _)| *name).chain([GIC]).map(str::to_owned).collect();
        Ok(Guest { vcpu, gic, features, _vm: vm })
    }

    /// KVM_DEV_ARM_VGIC_CTRL_INIT.
    pub(crate) fn init_gic(&self) -> Result<(), CallError> {
        self.gic.set_attr(4, 0, &[])
    }
}

/// A GICv3 with its addresses (KVM_DEV_ARM_VGIC_GRP_ADDR: distributor, redistributors).
fn make_gic<'b>(vm: &Vm<'b>) -> Result<Device<'b>, CallError> {
    let gic = vm.create_device(DEVICE_GIC_V3)?;
    gic.set_attr(0, 2, &GIC_DISTRIBUTOR.to_ne_bytes())?;
    gic.set_attr(0, 3, &GIC_REDISTRIBUTOR.to_ne_bytes())?;
    Ok(gic)
}
