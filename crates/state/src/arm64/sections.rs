//! Which section of the catalog a call of the manifest belongs to, and which devices there are.

use evenkeel_sys::layout::{long, word};

use super::place::{GIC_V2, GIC_V3, ITS_DEVICE};
use crate::image::Owner;
use crate::manifest::{Manifest, Noted, Role};
use crate::order::Order;
use crate::outcome::Refused;
use crate::registers::SVE_VECTOR_LENGTHS;

/// The interrupt controllers of a VM: places in the order in which devices were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Devices {
    pub(super) gic: Option<usize>,
    pub(super) its: Option<usize>,
    /// The vCPUs have EL2, and with it timers of their own for it.
    pub(super) el2: bool,
}

/// KVM_ARM_VCPU_HAS_EL2.
const HAS_EL2: u32 = 1 << 7;

impl Devices {
    /// As the manifest made them.
    ///
    /// # Errors
    /// One whose state nobody here can save.
    pub(super) fn of(manifest: &Manifest) -> Result<Devices, Refused> {
        let has_el2 =
            |call: &Noted| call.call == "KVM_ARM_VCPU_INIT" && word(&call.argument, 4) & HAS_EL2 != 0;
        let mut devices = Devices { el2: manifest.calls.iter().any(has_el2), ..Devices::default() };
        let made = manifest.calls.iter().filter(|call| call.call == "KVM_CREATE_DEVICE");
        for (place, call) in made.enumerate() {
            let kind = word(&call.argument, 0);
            let slot = match kind {
                GIC_V3 => &mut devices.gic,
                ITS_DEVICE => &mut devices.its,
                GIC_V2 => return Err(unsaved("a GICv2, whose state is not saved yet")),
                _ => {
                    return Err(unsaved(&format!(
                        "a device of kind {kind}, whose state nobody knows how to save"
                    )));
                }
            };
            if slot.replace(place).is_some() {
                return Err(unsaved("more than one device of a kind"));
            }
        }
        Ok(devices)
    }

    fn is_its(&self, place: u32) -> bool {
        self.its == Some(place as usize)
    }
}

fn unsaved(what: &str) -> Refused {
    Refused::new(Owner::Vm, "manifest", format!("the VM has {what}"))
}

/// What a call selects, as the catalog calls it.
pub(super) fn section(call: &Noted, devices: &Devices) -> &'static str {
    match (call.on, call.call.as_str()) {
        (Role::Device(place), "KVM_SET_DEVICE_ATTR") => {
            let (group, attr) = (word(&call.argument, 4), long(&call.argument, 8));
            match (devices.is_its(place), group, attr) {
                (true, ..) => "its-base",
                (false, 4, 0) => "vgic-v3-init",
                _ => "vgic-v3-config",
            }
        }
        (_, "KVM_CREATE_DEVICE") => "vgic-v3-config",
        (Role::Vm, "KVM_SET_DEVICE_ATTR") => "arm64-smccc-filter",
        (Role::Vcpu(_), "KVM_SET_DEVICE_ATTR") => "arm64-pmu-config",
        (_, "KVM_CREATE_VCPU" | "KVM_ARM_VCPU_INIT") => "arm64-vcpu-features",
        (_, "KVM_SET_ONE_REG") => "reg.606000000015ffff",
        (_, "KVM_ARM_VCPU_FINALIZE") => "arm64-sve-finalized",
        (_, "KVM_SET_GSI_ROUTING") => "arm64-msi-routes",
        (_, "KVM_ARM_SET_COUNTER_OFFSET") => "arm64-counters",
        _ => "arm64-vm-config",
    }
}

/// Whether a call has its place among the state, because something of that comes before it.
pub(super) fn is_later(call: &Noted, devices: &Devices, order: &Order) -> bool {
    order.rank(section(call, devices)) > order.rank("arm64-id-registers")
}

/// KVM_CAP_ARM_MTE.
const CAP_MTE: u32 = 205;

/// Whether everything that the manifest selects can be saved.
pub(super) fn saveable(manifest: &Manifest) -> Result<Devices, Refused> {
    for call in &manifest.calls {
        match call.call.as_str() {
            // Above the width of addresses: protected VMs, realms.
            "KVM_CREATE_VM" if long(&call.argument, 0) >> 8 != 0 => {
                return Err(unsaved("a type whose memory and registers the host may not read"));
            }
            "KVM_ENABLE_CAP" if word(&call.argument, 0) == CAP_MTE => {
                return Err(Refused::new(
                    Owner::Vm,
                    "arm64-mte-tags",
                    "allocation tags of memory are not copied",
                )
                .hint("without KVM_CAP_ARM_MTE the guest has no tags"));
            }
            _ => {}
        }
    }
    Devices::of(manifest)
}

/// The manifest with the vector lengths of SVE, which the VMM need not have set and which are fixed before anything else
/// is: each before the KVM_ARM_VCPU_FINALIZE of its vCPU.
pub(super) fn with_lengths(manifest: &Manifest, lengths: &[Option<Vec<u8>>]) -> Manifest {
    let is_lengths =
        |call: &Noted| call.call == "KVM_SET_ONE_REG" && long(&call.argument, 0) == SVE_VECTOR_LENGTHS;
    let mut calls: Vec<Noted> = Vec::new();
    for call in manifest.calls.iter().filter(|call| !is_lengths(call)) {
        if let (Role::Vcpu(index), "KVM_ARM_VCPU_FINALIZE") = (call.on, call.call.as_str())
            && let Some(Some(payload)) = lengths.get(index as usize)
        {
            let mut argument = vec![0; evenkeel_sys::layout::ONE_REG];
            argument[..8].copy_from_slice(&SVE_VECTOR_LENGTHS.to_le_bytes());
            let (on, payload) = (call.on, payload.clone());
            calls.push(Noted { on, call: "KVM_SET_ONE_REG".to_owned(), argument, payload });
        }
        calls.push(call.clone());
    }
    Manifest { calls }
}
