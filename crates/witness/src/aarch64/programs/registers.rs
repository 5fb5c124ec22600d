//! System registers: the whole space of ID registers, caches, and every other register that is known, whether the guest
//! should have it or not.

use evenkeel_catalog as catalog;

use super::{Look, Take};
use crate::aarch64::names::{OTHERS, name, of_one_reg};
use crate::aarch64::probe::{ISB, Probe, Reg};

const CSSELR: Reg = Reg(3, 2, 0, 0, 0);
const CCSIDR: Reg = Reg(3, 1, 0, 0, 0);
const OSLAR: Reg = Reg(2, 0, 1, 0, 4);
const OSLSR: Reg = Reg(2, 0, 1, 1, 4);
const PMSELR: Reg = Reg(3, 3, 9, 12, 5);
const PMXEVTYPER: Reg = Reg(3, 3, 9, 13, 1);
const PMCNTENSET: Reg = Reg(3, 3, 9, 12, 1);
const PMCNTENCLR: Reg = Reg(3, 3, 9, 12, 2);

/// Registers whose values the guest's own program makes, or that tell where it is.
const OWN: [&str; 10] = [
    "arm64.sctlr-el1",
    "arm64.cpacr-el1",
    "arm64.ttbr0-el1",
    "arm64.tcr-el1",
    "arm64.mair-el1",
    "arm64.vbar-el1",
    "arm64.tpidr-el1",
    "arm64.esr-el1",
    "arm64.far-el1",
    "arm64.par-el1",
];
/// Registers that run by themselves, or are random.
const RUNNING: [&str; 9] = [
    "arm64.cntpct-el0",
    "arm64.cntvct-el0",
    "arm64.cntpctss-el0",
    "arm64.cntvctss-el0",
    "arm64.cntp-tval-el0",
    "arm64.cntv-tval-el0",
    "arm64.rndr",
    "arm64.rndrrs",
    "arm64.pmccntr-el0",
];

/// Whether it is a register of the performance monitors.
pub fn is_pmu(name: &str) -> bool {
    name.strip_prefix("arm64.pm")
        .is_some_and(|rest| !rest.starts_with(['s', 'b']) || rest.starts_with("selr"))
        && name != "arm64.pm"
}

fn known() -> Vec<Reg> {
    let ids = (0..64).map(|n| Reg(3, 0, 0, n >> 3, n & 7));
    let others = OTHERS.iter().map(|(register, _)| *register);
    // What the catalog has of EL0 and EL1; EL2's registers are no guest's here.
    let catalogued = catalog::REGS.iter().filter(|r| r.last.is_none()).map(|r| r.id);
    let facets = catalog::REGISTERS.iter().filter_map(|r| r.at.reg);
    let more = catalogued.chain(facets).filter_map(of_one_reg).filter(|r| r.1 != 4 && r.1 != 5);
    let mut all: Vec<Reg> = ids.chain(others).chain(more).collect();
    all.sort();
    all.dedup();
    all
}

pub(super) fn looks() -> Vec<Look> {
    let mut all: Vec<Look> = known()
        .into_iter()
        .map(|register| {
            let name = name(register);
            let take = match name.as_str() {
                own if OWN.contains(&own) => Take::Whether,
                running if RUNNING.contains(&running) => Take::Running,
                _ => Take::Value,
            };
            Look::new(name, Probe::read(register), take)
        })
        .collect();
    // Before anything is written.
    for selector in 0..14 {
        let code = [CSSELR.msr(0), ISB, CCSIDR.mrs(0)];
        let probe = Probe::new(&code).with(&[selector]);
        all.push(Look::new(format!("arm64.ccsidr-el1.{selector}"), probe, Take::Value));
    }
    let lock = [OSLAR.msr(0), ISB, OSLSR.mrs(0), OSLAR.msr(1), ISB];
    all.push(Look::new("arm64.oslsr-el1.locked", Probe::new(&lock).with(&[1]), Take::Value));
    // The first counter and the one of cycles, through the selector: what they count, all bits set and read back.
    for counter in [0, 31] {
        let code = [PMSELR.msr(0), ISB, PMXEVTYPER.msr(1), ISB, PMXEVTYPER.mrs(0), PMXEVTYPER.msr(2)];
        let probe = Probe::new(&code).with(&[counter, 0xffff_ffff]);
        all.push(Look::new(format!("arm64.pmxevtyper-el0.{counter}.writable"), probe, Take::Value));
    }
    let counters = [PMCNTENSET.msr(0), ISB, PMCNTENSET.mrs(1), PMCNTENCLR.msr(0), 0xaa01_03e0];
    let probe = Probe::new(&counters).with(&[0xffff_ffff]);
    all.push(Look::new("arm64.pmcntenset-el0.writable", probe, Take::Value));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_and_running_registers_are_known_ones() {
        let names: Vec<String> = known().into_iter().map(name).collect();
        for wanted in OWN.iter().chain(&RUNNING) {
            assert!(names.iter().any(|n| n == wanted), "{wanted}");
        }
        assert!(is_pmu("arm64.pmcr-el0") && is_pmu("arm64.pmselr-el0"));
        assert!(!is_pmu("arm64.pmscr-el1") && !is_pmu("arm64.pmbidr-el1") && !is_pmu("arm64.pm"));
    }
}
