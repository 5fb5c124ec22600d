//! In which order registers are set: as the catalog's edges say.

use evenkeel_catalog::{self as catalog, Arch};

use crate::order::{Order, Phase};

/// The vector lengths of SVE (KVM_REG_ARM64_SVE_VLS): fixed once SVE is finalized, and set before that.
pub(crate) const SVE_VECTOR_LENGTHS: u64 = 0x6060_0000_0015_ffff;

/// What a register is to the catalog's edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// Fixed before the vCPU is complete.
    VectorLengths,
    /// ID registers: they decide which other registers there are.
    Identity,
    /// KVM's firmware pseudo registers.
    Firmware,
    /// All the others.
    Plain,
    /// Registers that run by themselves.
    Counter,
}

impl Group {
    /// Its name among the catalog's items.
    fn item(self) -> &'static str {
        match self {
            Group::VectorLengths => "reg.606000000015ffff",
            Group::Identity => "arm64-id-registers",
            Group::Firmware => "arm64-firmware-registers",
            Group::Plain => "arm64-registers",
            Group::Counter => "arm64-counters",
        }
    }
}

/// The group of an arm64 register.
pub fn group(id: u64) -> Group {
    let coprocessor = id >> 16 & 0xfff;
    if id == SVE_VECTOR_LENGTHS {
        Group::VectorLengths
    } else if is_identity(id) {
        Group::Identity
    } else if coprocessor == 0x14 || coprocessor == 0x16 {
        // KVM_REG_ARM_FW, KVM_REG_ARM_FW_FEAT_BMAP.
        Group::Firmware
    } else if catalog::reg(id).is_some_and(|reg| reg.running) {
        Group::Counter
    } else {
        Group::Plain
    }
}

/// System registers with op0 = 3, op1 = 0, 1 or 3, CRn = 0 and CRm below 8: the range that the architecture keeps for
/// identification and that KVM_ARM_GET_REG_WRITABLE_MASKS speaks of.
fn is_identity(id: u64) -> bool {
    let (op0, op1) = (id >> 14 & 3, id >> 11 & 7);
    let (crn, crm) = (id >> 7 & 0xf, id >> 3 & 0xf);
    id >> 16 == 0x6030_0000_0013 && op0 == 3 && matches!(op1, 0 | 1 | 3) && crn == 0 && crm < 8
}

/// How many items must be set before this register, at the least. Ascending is an order that keeps every edge.
pub fn rank(id: u64) -> u32 {
    rank_in(Order::catalogued(Arch::Aarch64, Phase::Restore), id)
}

/// The same in another order than the catalog's.
pub(crate) fn rank_in(order: &Order, id: u64) -> u32 {
    order.rank(group(id).item()).max(order.rank(&format!("reg.{id:x}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_comes_before_firmware_before_the_rest_before_counters() {
        let [vls, pfr0, psci, sctlr, cval, counter] = [
            SVE_VECTOR_LENGTHS,
            0x6030_0000_0013_c020,
            0x6030_0000_0014_0000,
            0x6030_0000_0013_c080,
            0x6030_0000_0013_df02,
            0x6030_0000_0013_df1a,
        ];
        assert_eq!(
            [vls, pfr0, psci, sctlr, counter].map(group),
            [Group::VectorLengths, Group::Identity, Group::Firmware, Group::Plain, Group::Counter]
        );
        for (before, after) in [(vls, pfr0), (pfr0, psci), (psci, sctlr), (sctlr, counter), (cval, counter)] {
            assert!(rank(before) < rank(after), "{before:x} {after:x}");
        }
    }
}
