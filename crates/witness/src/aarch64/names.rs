//! Names of system registers, in the words of the architecture: the catalog's where it has the register, and here those
//! that no saved state has, because KVM hides them, traps them or leaves them to the guest.

use evenkeel_catalog as catalog;

use crate::aarch64::probe::Reg;

/// The ONE_REG id that a system register has, where it has one: `KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG`.
pub fn one_reg(register: Reg) -> u64 {
    let Reg(op0, op1, crn, crm, op2) = register;
    0x6030_0000_0013_0000 | u64::from(op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2)
}

/// The system register of a ONE_REG id.
pub fn of_one_reg(id: u64) -> Option<Reg> {
    let part = |shift: u32, mask: u64| (id >> shift & mask) as u32;
    (id >> 16 == 0x6030_0000_0013)
        .then(|| Reg(part(14, 3), part(11, 7), part(7, 15), part(3, 15), part(0, 7)))
}

/// What observations call it: `arm64.id-aa64pfr0-el1`, or `arm64.sys.3.0.0.7.5` where nothing has a name.
pub fn name(register: Reg) -> String {
    let id = one_reg(register);
    if let Some(facet) = catalog::REGISTERS.iter().find(|r| r.at.reg == Some(id)) {
        return facet.name.to_owned();
    }
    let known = OTHERS.iter().find(|(r, _)| *r == register).map(|(_, name)| *name);
    // A run of registers in the catalog has one name for all; here every register has its own.
    let single = catalog::reg(id).filter(|r| r.last.is_none()).map(|r| r.name);
    match known.or(single) {
        Some(name) => format!("arm64.{}", name.to_ascii_lowercase().replace('_', "-")),
        None => {
            let Reg(op0, op1, crn, crm, op2) = register;
            format!("arm64.sys.{op0}.{op1}.{crn}.{crm}.{op2}")
        }
    }
}

/// Registers that are looked at besides those of the catalog.
pub const OTHERS: &[(Reg, &str)] = &[
    (Reg(3, 1, 0, 0, 0), "CCSIDR_EL1"),
    (Reg(3, 1, 0, 0, 1), "CLIDR_EL1"),
    (Reg(3, 1, 0, 0, 2), "CCSIDR2_EL1"),
    (Reg(3, 1, 0, 0, 4), "GMID_EL1"),
    (Reg(3, 1, 0, 0, 6), "SMIDR_EL1"),
    (Reg(3, 1, 0, 0, 7), "AIDR_EL1"),
    (Reg(3, 2, 0, 0, 0), "CSSELR_EL1"),
    (Reg(3, 3, 0, 0, 1), "CTR_EL0"),
    (Reg(3, 3, 0, 0, 7), "DCZID_EL0"),
    // Random numbers, and switches of PSTATE.
    (Reg(3, 3, 2, 4, 0), "RNDR"),
    (Reg(3, 3, 2, 4, 1), "RNDRRS"),
    (Reg(3, 0, 4, 2, 2), "CURRENTEL"),
    (Reg(3, 0, 4, 2, 3), "PAN"),
    (Reg(3, 0, 4, 2, 4), "UAO"),
    (Reg(3, 0, 4, 3, 0), "ALLINT"),
    (Reg(3, 0, 4, 3, 1), "PM"),
    (Reg(3, 3, 4, 2, 2), "SVCR"),
    (Reg(3, 3, 4, 2, 5), "DIT"),
    (Reg(3, 3, 4, 2, 6), "SSBS"),
    (Reg(3, 3, 4, 2, 7), "TCO"),
    (Reg(3, 3, 4, 4, 2), "FPMR"),
    // Control and translation of extensions.
    (Reg(3, 0, 1, 0, 3), "SCTLR2_EL1"),
    (Reg(3, 0, 1, 2, 0), "ZCR_EL1"),
    (Reg(3, 0, 1, 2, 1), "TRFCR_EL1"),
    (Reg(3, 0, 1, 2, 4), "SMPRI_EL1"),
    (Reg(3, 0, 1, 2, 6), "SMCR_EL1"),
    (Reg(3, 0, 2, 0, 3), "TCR2_EL1"),
    (Reg(3, 0, 2, 5, 0), "GCSCR_EL1"),
    (Reg(3, 0, 2, 5, 1), "GCSPR_EL1"),
    (Reg(3, 0, 2, 5, 2), "GCSCRE0_EL1"),
    (Reg(3, 3, 2, 5, 1), "GCSPR_EL0"),
    (Reg(3, 0, 10, 2, 1), "MAIR2_EL1"),
    (Reg(3, 0, 10, 3, 1), "AMAIR2_EL1"),
    (Reg(3, 0, 10, 2, 2), "PIRE0_EL1"),
    (Reg(3, 0, 10, 2, 3), "PIR_EL1"),
    (Reg(3, 0, 10, 2, 4), "POR_EL1"),
    (Reg(3, 3, 10, 2, 4), "POR_EL0"),
    (Reg(3, 0, 10, 2, 5), "S2POR_EL1"),
    (Reg(3, 0, 13, 0, 3), "RCWSMASK_EL1"),
    (Reg(3, 0, 13, 0, 5), "ACCDATA_EL1"),
    (Reg(3, 0, 13, 0, 6), "RCWMASK_EL1"),
    (Reg(3, 0, 13, 0, 7), "SCXTNUM_EL1"),
    (Reg(3, 3, 13, 0, 5), "TPIDR2_EL0"),
    (Reg(3, 3, 13, 0, 7), "SCXTNUM_EL0"),
    // Limited ordering, partitioning, errors.
    (Reg(3, 0, 10, 4, 0), "LORSA_EL1"),
    (Reg(3, 0, 10, 4, 1), "LOREA_EL1"),
    (Reg(3, 0, 10, 4, 2), "LORN_EL1"),
    (Reg(3, 0, 10, 4, 3), "LORC_EL1"),
    (Reg(3, 0, 10, 4, 7), "LORID_EL1"),
    (Reg(3, 0, 10, 4, 4), "MPAMIDR_EL1"),
    (Reg(3, 0, 10, 4, 5), "MPAMBWIDR_EL1"),
    (Reg(3, 0, 10, 5, 0), "MPAM1_EL1"),
    (Reg(3, 0, 10, 5, 1), "MPAM0_EL1"),
    (Reg(3, 0, 10, 5, 3), "MPAMSM_EL1"),
    (Reg(3, 0, 5, 3, 0), "ERRIDR_EL1"),
    (Reg(3, 0, 5, 3, 1), "ERRSELR_EL1"),
    (Reg(3, 0, 5, 4, 0), "ERXFR_EL1"),
    (Reg(3, 0, 5, 4, 1), "ERXCTLR_EL1"),
    (Reg(3, 0, 5, 4, 2), "ERXSTATUS_EL1"),
    (Reg(3, 0, 5, 4, 3), "ERXADDR_EL1"),
    (Reg(3, 0, 5, 4, 4), "ERXPFGF_EL1"),
    (Reg(3, 0, 5, 4, 5), "ERXPFGCTL_EL1"),
    (Reg(3, 0, 5, 4, 6), "ERXPFGCDN_EL1"),
    (Reg(3, 0, 5, 5, 0), "ERXMISC0_EL1"),
    (Reg(3, 0, 5, 5, 1), "ERXMISC1_EL1"),
    (Reg(3, 0, 5, 5, 2), "ERXMISC2_EL1"),
    (Reg(3, 0, 5, 5, 3), "ERXMISC3_EL1"),
    (Reg(3, 0, 12, 1, 1), "DISR_EL1"),
    // Statistical profiling, trace buffer, branch records, activity monitors.
    (Reg(3, 0, 9, 9, 0), "PMSCR_EL1"),
    (Reg(3, 0, 9, 9, 1), "PMSNEVFR_EL1"),
    (Reg(3, 0, 9, 9, 2), "PMSICR_EL1"),
    (Reg(3, 0, 9, 9, 3), "PMSIRR_EL1"),
    (Reg(3, 0, 9, 9, 4), "PMSFCR_EL1"),
    (Reg(3, 0, 9, 9, 5), "PMSEVFR_EL1"),
    (Reg(3, 0, 9, 9, 6), "PMSLATFR_EL1"),
    (Reg(3, 0, 9, 9, 7), "PMSIDR_EL1"),
    (Reg(3, 0, 9, 10, 0), "PMBLIMITR_EL1"),
    (Reg(3, 0, 9, 10, 1), "PMBPTR_EL1"),
    (Reg(3, 0, 9, 10, 3), "PMBSR_EL1"),
    (Reg(3, 0, 9, 10, 7), "PMBIDR_EL1"),
    (Reg(3, 0, 9, 11, 0), "TRBLIMITR_EL1"),
    (Reg(3, 0, 9, 11, 1), "TRBPTR_EL1"),
    (Reg(3, 0, 9, 11, 2), "TRBBASER_EL1"),
    (Reg(3, 0, 9, 11, 3), "TRBSR_EL1"),
    (Reg(3, 0, 9, 11, 7), "TRBIDR_EL1"),
    (Reg(2, 1, 9, 0, 0), "BRBCR_EL1"),
    (Reg(2, 1, 9, 0, 1), "BRBFCR_EL1"),
    (Reg(2, 1, 9, 2, 0), "BRBIDR0_EL1"),
    (Reg(2, 1, 8, 0, 0), "BRBINF0_EL1"),
    (Reg(2, 1, 0, 8, 7), "TRCIDR0"),
    (Reg(2, 1, 1, 1, 4), "TRCOSLSR"),
    (Reg(2, 1, 7, 15, 6), "TRCDEVARCH"),
    (Reg(3, 3, 13, 2, 0), "AMCR_EL0"),
    (Reg(3, 3, 13, 2, 1), "AMCFGR_EL0"),
    (Reg(3, 3, 13, 2, 3), "AMUSERENR_EL0"),
    (Reg(3, 3, 13, 4, 0), "AMEVCNTR00_EL0"),
    // Performance monitors.
    (Reg(3, 0, 9, 14, 4), "PMUACR_EL1"),
    (Reg(3, 0, 9, 14, 5), "PMECR_EL1"),
    (Reg(3, 0, 9, 14, 6), "PMMIR_EL1"),
    (Reg(3, 3, 9, 4, 0), "PMICNTR_EL0"),
    (Reg(3, 3, 9, 6, 0), "PMICFILTR_EL0"),
    (Reg(3, 3, 9, 12, 0), "PMCR_EL0"),
    (Reg(3, 3, 9, 12, 6), "PMCEID0_EL0"),
    (Reg(3, 3, 9, 12, 7), "PMCEID1_EL0"),
    (Reg(3, 3, 9, 13, 0), "PMCCNTR_EL0"),
    (Reg(3, 3, 14, 15, 7), "PMCCFILTR_EL0"),
    // Timers.
    (Reg(3, 3, 14, 0, 0), "CNTFRQ_EL0"),
    (Reg(3, 3, 14, 0, 1), "CNTPCT_EL0"),
    (Reg(3, 3, 14, 0, 2), "CNTVCT_EL0"),
    (Reg(3, 3, 14, 0, 5), "CNTPCTSS_EL0"),
    (Reg(3, 3, 14, 0, 6), "CNTVCTSS_EL0"),
    (Reg(3, 3, 14, 2, 0), "CNTP_TVAL_EL0"),
    (Reg(3, 3, 14, 2, 1), "CNTP_CTL_EL0"),
    (Reg(3, 3, 14, 2, 2), "CNTP_CVAL_EL0"),
    (Reg(3, 3, 14, 3, 0), "CNTV_TVAL_EL0"),
    (Reg(3, 3, 14, 3, 1), "CNTV_CTL_EL0"),
    (Reg(3, 3, 14, 3, 2), "CNTV_CVAL_EL0"),
    (Reg(3, 7, 14, 2, 0), "CNTPS_TVAL_EL1"),
    // The GIC's CPU interface.
    (Reg(3, 0, 4, 6, 0), "ICC_PMR_EL1"),
    (Reg(3, 0, 12, 8, 0), "ICC_IAR0_EL1"),
    (Reg(3, 0, 12, 8, 2), "ICC_HPPIR0_EL1"),
    (Reg(3, 0, 12, 8, 3), "ICC_BPR0_EL1"),
    (Reg(3, 0, 12, 8, 4), "ICC_AP0R0_EL1"),
    (Reg(3, 0, 12, 9, 0), "ICC_AP1R0_EL1"),
    (Reg(3, 0, 12, 9, 5), "ICC_NMIAR1_EL1"),
    (Reg(3, 0, 12, 11, 3), "ICC_RPR_EL1"),
    (Reg(3, 0, 12, 12, 0), "ICC_IAR1_EL1"),
    (Reg(3, 0, 12, 12, 2), "ICC_HPPIR1_EL1"),
    (Reg(3, 0, 12, 12, 3), "ICC_BPR1_EL1"),
    (Reg(3, 0, 12, 12, 4), "ICC_CTLR_EL1"),
    (Reg(3, 0, 12, 12, 5), "ICC_SRE_EL1"),
    (Reg(3, 0, 12, 12, 6), "ICC_IGRPEN0_EL1"),
    (Reg(3, 0, 12, 12, 7), "ICC_IGRPEN1_EL1"),
    // Debug.
    (Reg(2, 0, 1, 0, 0), "MDRAR_EL1"),
    (Reg(2, 0, 1, 1, 4), "OSLSR_EL1"),
    (Reg(2, 0, 1, 3, 4), "OSDLR_EL1"),
    (Reg(2, 0, 1, 4, 4), "DBGPRCR_EL1"),
    (Reg(2, 0, 7, 8, 6), "DBGCLAIMSET_EL1"),
    (Reg(2, 0, 7, 14, 6), "DBGAUTHSTATUS_EL1"),
    (Reg(2, 0, 0, 4, 2), "MDSELR_EL1"),
    (Reg(2, 3, 0, 1, 0), "MDCCSR_EL0"),
    // What belongs to EL2, seen from EL1.
    (Reg(3, 4, 1, 1, 0), "HCR_EL2"),
    (Reg(3, 5, 12, 0, 0), "VBAR_EL12"),
];

/// What is looked at to settle a facet: a difference there has the facet's cause. Prefixes of names, and the facet.
pub const BEHIND: &[(&str, &str)] = &[
    ("arm64.ccsidr", "arm64.clidr-el1.ctype1"),
    ("arm64.ccsidr", "arm64.clidr-el1.ctype2"),
    ("arm64.csselr-el1", "arm64.clidr-el1.ctype1"),
    ("arm64.csselr-el1", "arm64.clidr-el1.ctype2"),
    // Where a contract has the caches of CLIDR_EL1 alike, what is beyond them still tells who answers.
    ("arm64.ccsidr-el1", "arm64.guest.ccsidr-beyond"),
    ("arm64.csselr-el1", "arm64.guest.ccsidr-beyond"),
    ("arm64.ctr-el0", "arm64.guest.ctr-el0-idc"),
    // Without the host extensions the physical timer is emulated.
    ("arm64.cntp-ctl-el0", "arm64.id-aa64mmfr1-el1.vh"),
    ("arm64.pmccfiltr-el0@min", "arm64.guest.pmu-less-registers@min"),
    ("arm64.pmccntr-el0@min", "arm64.guest.pmu-less-registers@min"),
    ("arm64.pmceid0-el0@min", "arm64.guest.pmu-less-registers@min"),
    ("arm64.pmceid1-el0@min", "arm64.guest.pmu-less-registers@min"),
    ("arm64.pmcnten", "arm64.guest.pmu-less-registers@min"),
    ("arm64.pmcr-el0@min", "arm64.guest.pmu-less-registers@min"),
    ("arm64.pminten", "arm64.guest.pmu-less-registers@min"),
    ("arm64.pmovs", "arm64.guest.pmu-less-registers@min"),
    ("arm64.pmselr-el0@min", "arm64.guest.pmu-less-registers@min"),
    ("arm64.pmuserenr-el0@min", "arm64.guest.pmu-less-registers@min"),
    ("arm64.pmxev", "arm64.guest.pmu-less-registers@min"),
    ("arm64.pmcr-el0", "arm64.guest.pmcr-imp"),
    ("arm64.pmceid0-el0", "arm64.guest.pmceid-chain"),
    ("arm64.pmmir-el1@min", "arm64.guest.pmmir-less@min"),
    ("insn.smc", "arm64.guest.smc-conduit"),
    ("arm64.pmmir-el1", "arm64.guest.pmmir-el1"),
    ("arm64.smidr-el1", "arm64.guest.smidr-el1"),
    ("arm64.gmid-el1", "arm64.guest.gmid-el1"),
    ("arm64.tpidr2-el0", "arm64.guest.tpidr2-el0"),
    ("arm64.oslsr-el1.locked", "arm64.guest.os-lock"),
    ("arm64.gicd.iidr", "arm64.vgic.iidr"),
    ("arm64.gicr.ctlr", "arm64.vgic.iidr"),
    ("smccc.84000000", "arm64.psci.version"),
    ("smccc.8400000a.", "arm64.psci.version"),
    ("smccc.84000012", "arm64.psci.version"),
    ("smccc.84000015", "arm64.psci.version"),
    ("smccc.8400005", "arm64.fw-std-bmap.trng"),
    ("smccc.c4000053", "arm64.fw-std-bmap.trng"),
    ("smccc.86000001", "arm64.fw-vendor-hyp-bmap.ptp"),
    ("smccc.8600", "arm64.fw-vendor-hyp-bmap.func-feat"),
    ("smccc.80000001.80008000", "arm64.fw-workaround-1"),
    ("smccc.80000001.80007fff", "arm64.fw-workaround-2"),
    ("smccc.80000001.80003fff", "arm64.fw-workaround-3"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_have_the_names_of_the_catalog() {
        assert_eq!(name(Reg(3, 0, 0, 4, 0)), "arm64.id-aa64pfr0-el1");
        assert_eq!(name(Reg(3, 0, 0, 0, 5)), "arm64.mpidr-el1");
        assert_eq!(name(Reg(3, 1, 0, 0, 6)), "arm64.smidr-el1");
        assert_eq!(name(Reg(3, 0, 15, 3, 7)), "arm64.sys.3.0.15.3.7");
        assert_eq!(of_one_reg(0x6030_0000_0013_c020), Some(Reg(3, 0, 0, 4, 0)));
        assert_eq!(of_one_reg(0x6030_0000_0014_0000), None);
        for (register, _) in OTHERS {
            assert_eq!(of_one_reg(one_reg(*register)), Some(*register));
        }
    }

    #[test]
    fn the_catalog_and_this_list_agree_on_names() {
        for (register, name) in OTHERS {
            if let Some(known) = catalog::reg(one_reg(*register)).filter(|r| r.last.is_none()) {
                // The timers' ids are not those of their encodings.
                assert!(known.name == *name || known.name.starts_with("KVM_REG_"), "{} {name}", known.name);
            }
        }
    }
}
