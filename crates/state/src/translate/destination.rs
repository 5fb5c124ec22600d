//! What the other host takes.

use evenkeel_catalog::{SECTIONS, Translator};
use evenkeel_contract::view::{ItemKey, View, capability};
use evenkeel_contract::{carries, registers};
use evenkeel_surface::{Arch, Offer, Write};

/// A host that state is to go to, as its capture tells.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'d> {
    /// The host in the guest's shape.
    pub view: &'d View,
    /// Its answers.
    pub offer: &'d Offer,
}

impl Destination<'_> {
    /// What the host does with an item; none when nobody knows.
    pub(super) fn takes(&self, key: ItemKey) -> Option<Write> {
        carries::taken(self.view, key)
    }

    /// The same of an item that holds this value: a register of arm64 may be refused because of it.
    pub(super) fn takes_value(&self, key: ItemKey, value: Option<u64>) -> Option<Write> {
        match (self.view.arch, key, value) {
            (Arch::Aarch64, ItemKey::Reg(id), Some(value)) => Some(registers::held(self.view, id, value)),
            _ => self.takes(key),
        }
    }

    /// What an item holds in a fresh vCPU there.
    pub(super) fn shows(&self, key: ItemKey) -> Option<u64> {
        self.view.item(key)?.reset
    }

    /// A capture of any host of this shape says whether it has this section.
    pub(super) fn tells_of(&self, section: &str) -> bool {
        let told = |name: &str| self.offer.sections.iter().any(|s| s.item == name);
        // One of an older kernel has what stands in.
        told(section)
            || SECTIONS.iter().any(|s| s.name == section && !s.instead.is_empty() && told(s.instead))
    }

    /// The host has no ioctls for a section, as far as its capture tells.
    pub fn lacks_section(&self, name: &str) -> bool {
        let index = SECTIONS.iter().position(|s| s.name == name).and_then(|index| u16::try_from(index).ok());
        let known = SECTIONS.iter().any(|s| s.name == name && !s.get.is_empty() && s.cut.is_empty());
        known
            && self.tells_of(name)
            && index.is_some_and(|index| self.takes(ItemKey::Section(index)) == Some(Write::Refused))
    }

    /// The host lacks what makes a translator needless. One that asks for no capability is always needed: it does nothing
    /// where there is nothing to do.
    pub(super) fn lacks(&self, rule: &Translator) -> bool {
        let Some(cap) = rule.cap else { return true };
        let shape = self.offer.shapes.iter().position(|s| s.name == self.view.shape);
        let answer = capability(self.offer, cap, shape) as u32 as u64;
        if rule.cap_bits == 0 { answer == 0 } else { answer & rule.cap_bits != rule.cap_bits }
    }
}
