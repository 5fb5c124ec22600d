//! Where the GICv3 and the ITS keep their state: attributes of their devices.
//!
//! Group numbers are those of `arch/arm64/include/uapi/asm/kvm.h`, offsets those of `include/linux/irqchip/arm-gic-v3.h`.

/// KVM_DEV_ARM_VGIC_GRP_DIST_REGS.
pub(super) const DIST: u32 = 1;
/// KVM_DEV_ARM_VGIC_GRP_CTRL.
pub(super) const CTRL: u32 = 4;
/// KVM_DEV_ARM_VGIC_GRP_REDIST_REGS.
pub(super) const REDIST: u32 = 5;
/// KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS.
pub(super) const SYSREGS: u32 = 6;
/// KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO.
pub(super) const LEVELS: u32 = 7;
/// KVM_DEV_ARM_VGIC_GRP_ITS_REGS.
pub(super) const ITS: u32 = 8;

/// KVM_DEV_ARM_ITS_SAVE_TABLES.
pub(super) const ITS_SAVE: u64 = 1;
/// KVM_DEV_ARM_ITS_RESTORE_TABLES.
pub(super) const ITS_RESTORE: u64 = 2;
/// KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES.
pub(super) const SAVE_PENDING: u64 = 3;

/// GICD_IIDR.
pub(super) const IIDR: u64 = 8;
/// GICD_TYPER; its lowest five bits say how many interrupts there are.
pub(super) const TYPER: u64 = 4;
/// The frame of the private interrupts, in a redistributor.
const SGI: u64 = 0x1_0000;

/// KVM_DEV_TYPE_ARM_VGIC_V2, _V3 and ITS.
pub(super) const GIC_V2: u32 = 5;
pub(super) const GIC_V3: u32 = 7;
pub(super) const ITS_DEVICE: u32 = 8;

/// What a vCPU's redistributor and CPU interface are named by in attributes: the affinities of its MPIDR_EL1.
pub(super) fn affinity(mpidr: u64) -> u64 {
    (mpidr & 0xff_ffff | mpidr >> 8 & 0xff00_0000) << 32
}

/// How many interrupts a distributor has, from GICD_TYPER.
pub(super) fn interrupts(typer: u32) -> u64 {
    (u64::from(typer & 0x1f) + 1) * 32
}

/// The registers of a distributor with this many interrupts but GICD_IIDR, in the order in which they are set. GICD_CTLR comes
/// first: an interrupt that is made pending while the distributor is off is never delivered, because KVM queues it then or
/// not at all (seen on 6.12: the latch reads back set, and the guest waits in vain). What an interrupt is comes before
/// whether it is pending. GICD_TYPER and GICD_TYPER2 are there to be compared.
pub(super) fn distributor(interrupts: u64) -> Vec<u64> {
    let run = |base: u64, bits: u64| {
        // The first 32 interrupts are the redistributors'.
        (32 * bits / 32..interrupts * bits / 32).map(move |n| base + 4 * n)
    };
    let mut all = vec![TYPER, 0xc, 0];
    for (base, bits) in [(0x80, 1), (0xc00, 2), (0x400, 8), (0x6000, 64), (0x100, 1), (0x200, 1), (0x300, 1)]
    {
        all.extend(run(base, bits));
    }
    all
}

/// GICR_PROPBASER and GICR_PENDBASER.
pub(super) const LPI_TABLES: [u64; 4] = [0x70, 0x74, 0x78, 0x7c];

/// The other registers of a redistributor, in the order in which they are set; GICR_TYPER is there to be compared, GICR_CTLR
/// is last, because it turns LPIs on.
pub(super) fn redistributor() -> Vec<u64> {
    let mut all = vec![8, 0xc, SGI + 0x80, SGI + 0xc00, SGI + 0xc04];
    all.extend((0..8).map(|n| SGI + 0x400 + 4 * n));
    all.extend([SGI + 0x100, SGI + 0x200, SGI + 0x300, 0]);
    all
}

/// A register that only sets bits: the one that clears them, for an offset in a distributor or a redistributor.
pub(super) fn clears(offset: u64) -> Option<u64> {
    matches!(offset & 0xff80, 0x100 | 0x300).then_some(offset + 0x80)
}

/// A system register in an attribute: op0, op1, CRn, CRm, op2.
const fn system(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

/// A register of the CPU interface: encoding, name, and whether it may be missing where there is a GICv3: the active
/// priorities by the number of priority bits, those of EL2 with the guest's EL2.
pub(super) struct Interface {
    pub(super) at: u64,
    pub(super) name: &'static str,
    pub(super) may_miss: bool,
}

const fn icc(name: &'static str, crn: u64, crm: u64, op2: u64, may_miss: bool) -> Interface {
    Interface { at: system(3, 0, crn, crm, op2), name, may_miss }
}

const fn ich(name: &'static str, crm: u64, op2: u64) -> Interface {
    Interface { at: system(3, 4, 12, crm, op2), name, may_miss: true }
}

/// In the order in which they are set.
pub(super) const INTERFACE: &[Interface] = &[
    icc("ICC_SRE_EL1", 12, 12, 5, false),
    icc("ICC_CTLR_EL1", 12, 12, 4, false),
    icc("ICC_IGRPEN0_EL1", 12, 12, 6, false),
    icc("ICC_IGRPEN1_EL1", 12, 12, 7, false),
    icc("ICC_PMR_EL1", 4, 6, 0, false),
    icc("ICC_BPR0_EL1", 12, 8, 3, false),
    icc("ICC_BPR1_EL1", 12, 12, 3, false),
    icc("ICC_AP0R0_EL1", 12, 8, 4, false),
    icc("ICC_AP0R1_EL1", 12, 8, 5, true),
    icc("ICC_AP0R2_EL1", 12, 8, 6, true),
    icc("ICC_AP0R3_EL1", 12, 8, 7, true),
    icc("ICC_AP1R0_EL1", 12, 9, 0, false),
    icc("ICC_AP1R1_EL1", 12, 9, 1, true),
    icc("ICC_AP1R2_EL1", 12, 9, 2, true),
    icc("ICC_AP1R3_EL1", 12, 9, 3, true),
    ich("ICH_AP0R0_EL2", 8, 0),
    ich("ICH_AP0R1_EL2", 8, 1),
    ich("ICH_AP0R2_EL2", 8, 2),
    ich("ICH_AP0R3_EL2", 8, 3),
    ich("ICH_AP1R0_EL2", 9, 0),
    ich("ICH_AP1R1_EL2", 9, 1),
    ich("ICH_AP1R2_EL2", 9, 2),
    ich("ICH_AP1R3_EL2", 9, 3),
    ich("ICC_SRE_EL2", 9, 5),
    ich("ICH_HCR_EL2", 11, 0),
    ich("ICH_VTR_EL2", 11, 1),
    ich("ICH_VMCR_EL2", 11, 7),
    ich("ICH_LR0_EL2", 12, 0),
    ich("ICH_LR1_EL2", 12, 1),
    ich("ICH_LR2_EL2", 12, 2),
    ich("ICH_LR3_EL2", 12, 3),
    ich("ICH_LR4_EL2", 12, 4),
    ich("ICH_LR5_EL2", 12, 5),
    ich("ICH_LR6_EL2", 12, 6),
    ich("ICH_LR7_EL2", 12, 7),
    ich("ICH_LR8_EL2", 13, 0),
    ich("ICH_LR9_EL2", 13, 1),
    ich("ICH_LR10_EL2", 13, 2),
    ich("ICH_LR11_EL2", 13, 3),
    ich("ICH_LR12_EL2", 13, 4),
    ich("ICH_LR13_EL2", 13, 5),
    ich("ICH_LR14_EL2", 13, 6),
    ich("ICH_LR15_EL2", 13, 7),
];

/// GITS_CBASER.
pub(super) const ITS_CBASER: u64 = 0x80;
/// GITS_CTLR.
pub(super) const ITS_CTLR: u64 = 0;
/// GITS_IIDR, GITS_CREADR, GITS_CWRITER, GITS_BASER0 to 7, in the order in which they are set. GITS_TYPER is there to be
/// compared.
pub(super) const ITS_REGISTERS: [u64; 12] =
    [4, 8, 0x90, 0x88, 0x100, 0x108, 0x110, 0x118, 0x120, 0x128, 0x130, 0x138];

/// What people call an attribute.
pub(super) fn name(group: u32, attr: u64) -> String {
    let offset = attr & 0xffff_ffff;
    let known = |names: &[(u64, &str)]| {
        names.iter().find(|(at, _)| *at == offset).map(|(_, name)| (*name).to_owned())
    };
    let runs = |part: &str, base: u64, names: &[(u64, u64, &str)]| {
        let found = names.iter().find(|(from, to, _)| (base + from..base + to).contains(&offset));
        found.map(|(from, _, name)| format!("{part}_{name}{}", (offset - base - from) / 4))
    };
    const EACH: &[(u64, u64, &str)] = &[
        (0x80, 0x100, "IGROUPR"),
        (0x100, 0x180, "ISENABLER"),
        (0x200, 0x280, "ISPENDR"),
        (0x300, 0x380, "ISACTIVER"),
        (0x400, 0x800, "IPRIORITYR"),
        (0xc00, 0xd00, "ICFGR"),
        (0x6000, 0x8000, "IROUTER"),
    ];
    let found = match group {
        DIST => known(&[(0, "GICD_CTLR"), (TYPER, "GICD_TYPER"), (IIDR, "GICD_IIDR"), (0xc, "GICD_TYPER2")])
            .or_else(|| runs("GICD", 0, EACH)),
        REDIST => known(&[
            (0, "GICR_CTLR"),
            (8, "GICR_TYPER"),
            (0xc, "GICR_TYPER.high"),
            (0x70, "GICR_PROPBASER"),
            (0x74, "GICR_PROPBASER.high"),
            (0x78, "GICR_PENDBASER"),
            (0x7c, "GICR_PENDBASER.high"),
        ])
        .or_else(|| runs("GICR", SGI, EACH)),
        SYSREGS => INTERFACE.iter().find(|i| i.at == offset).map(|i| i.name.to_owned()),
        LEVELS => Some(format!("levels.{}", offset & 0x3ff)),
        ITS => known(&[
            (0, "GITS_CTLR"),
            (4, "GITS_IIDR"),
            (8, "GITS_TYPER"),
            (ITS_CBASER, "GITS_CBASER"),
            (0x88, "GITS_CWRITER"),
            (0x90, "GITS_CREADR"),
        ])
        .or_else(|| (0x100..0x140).contains(&offset).then(|| format!("GITS_BASER{}", (offset - 0x100) / 8))),
        _ => None,
    };
    found.unwrap_or_else(|| format!("{group}.{attr:x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distributor_is_covered_for_every_shared_interrupt() {
        let all = distributor(64);
        for offset in [0x84, 0xc08, 0xc0c, 0x420, 0x43c, 0x6100, 0x61fc, 0x104, 0x204, 0x304] {
            assert!(all.contains(&offset), "{offset:x}");
        }
        for offset in [0x80, 0x88, 0xc04, 0x400, 0x440, 0x6000, 0x6200, IIDR] {
            assert!(!all.contains(&offset), "{offset:x}");
        }
        let at = |offset| all.iter().position(|o| *o == offset).unwrap();
        assert!(at(0xc08) < at(0x204), "a trigger mode decides what pending means");
        assert!(at(0) < at(0x204) && at(0) < at(0x104), "what is pending while all is off is not queued");
        assert_eq!(distributor(32).len(), 3, "without shared interrupts");
    }

    #[test]
    fn what_only_sets_has_one_that_clears() {
        assert_eq!(
            [clears(0x104), clears(0x304), clears(0x204), clears(0x84)],
            [Some(0x184), Some(0x384), None, None]
        );
        assert_eq!([clears(SGI + 0x100), clears(SGI + 0x300)], [Some(SGI + 0x180), Some(SGI + 0x380)]);
        assert_eq!([clears(0x6100), clears(0x6304), clears(SGI + 0x400)], [None; 3]);
    }

    #[test]
    fn names_and_numbers_are_those_of_the_headers() {
        assert_eq!(affinity(0x80_0102_0003) >> 32, 0x8002_0003);
        assert_eq!(interrupts(0x0078_0001), 64);
        assert_eq!(name(DIST, 0x43c), "GICD_IPRIORITYR15");
        assert_eq!(name(REDIST, 7 << 32 | 0x1_0100), "GICR_ISENABLER0");
        assert_eq!(name(SYSREGS, 0xc230), "ICC_PMR_EL1");
        assert_eq!(name(ITS, 0x108), "GITS_BASER1");
        assert_eq!(name(9, 0x10), "9.10");
    }
}
