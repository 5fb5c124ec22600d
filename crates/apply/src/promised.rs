//! What a guest under the contract must find, for whoever looks from inside.

use evenkeel_catalog::{CHOICES, Choice, Stage};
use evenkeel_contract::Coord;
use evenkeel_contract::contract::guard_of;
use evenkeel_steps::Expect;

use crate::plan::Plan;

/// A facet that is no word, and what the guest was promised of it.
#[derive(Clone, Copy, Debug)]
pub struct PromisedChoice {
    /// The facet.
    pub facet: &'static Choice,
    /// The promised value, as an index into the facet's values.
    pub value: u8,
    /// The contract names it. Otherwise it is at its absent value, as is everything that a contract does not name.
    pub named: bool,
    /// Some ioctl shows it.
    pub is_readable: bool,
}

impl Plan {
    /// The feature MSRs (x86), or the ID and firmware registers (arm64): what each must hold, and the bits that count.
    pub fn promised_registers(&self) -> Vec<Expect> {
        let steps = ["feature-msrs", "id-registers", "firmware-registers"];
        steps.iter().filter_map(|name| self.fixed.get(name)).flat_map(|s| s.expect.iter().copied()).collect()
    }

    /// Every facet that is no word: those that this host has, and those that the contract names. What is left to a host
    /// of which nobody knows it is promised to nobody.
    pub fn promised_choices(&self) -> Vec<PromisedChoice> {
        let promised = self.shown.choices.iter().filter_map(|(index, value)| {
            let facet = CHOICES.get(usize::from(*index))?;
            let value = (*value)?;
            facet.values.get(usize::from(value))?;
            let named = self.contract.choices.iter().any(|(named, _)| named == index);
            let is_readable = self.readable.contains(&facet.name);
            Some(PromisedChoice { facet, value, named, is_readable })
        });
        promised.collect()
    }

    /// The CPUID field without which a guest does not have the word at all, where the contract does not show it.
    pub fn hidden_by(&self, at: Coord) -> Option<&'static str> {
        let guard = guard_of(at).or(match at {
            // RDMSR of VMX's MSRs raises #GP in a guest without VMX.
            Coord::Msr(0x480..=0x491) => Some("cpuid.1.0.ecx.vmx"),
            _ => None,
        });
        guard.filter(|field| self.shown.field(field) == 0)
    }

    /// The first word of features that KVM_ARM_VCPU_INIT gets for the vCPU that starts (arm64).
    pub fn vcpu_features(&self) -> u32 {
        self.features
    }

    /// The plan places and initializes the interrupt controller (arm64).
    pub fn initializes_gic(&self) -> bool {
        self.fixed.contains_key("gic-init")
    }

    /// There is something to do for each vCPU once the interrupt controller is ready (arm64).
    pub fn is_late(&self) -> bool {
        self.fixed.values().any(|step| step.stage == Stage::Late)
    }
}
