//! Calls of SMCCC: versions, features, PSCI, random numbers, stolen time and KVM's own services.

use super::{Look, Take};
use crate::aarch64::probe::Probe;

/// PSCI CPU_ON, 64 bits.
pub const CPU_ON: u32 = 0xc400_0003;

const ARCH_FEATURES: u32 = 0x8000_0001;
const PSCI_FEATURES: u32 = 0x8400_000a;
const TRNG_FEATURES: u32 = 0x8400_0051;
const PV_TIME_FEATURES: u32 = 0xc500_0020;

/// What is asked of SMCCC_ARCH_FEATURES: itself, the SoC's id, feature availability, workarounds 1 to 4, stolen time.
const ARCH: [u32; 9] = [
    0x8000_0000,
    0x8000_0001,
    0x8000_0002,
    0x8000_0003,
    0x8000_8000,
    0x8000_7fff,
    0x8000_3fff,
    0x8000_0004,
    PV_TIME_FEATURES,
];
/// The last number of a function of PSCI (SYSTEM_OFF2 is 0x15, later ones are asked for too).
const PSCI_LAST: u32 = 0x1f;

/// Calls with an answer in X0 that stays.
const CALLS: &[(u32, &[u64])] = &[
    // SMCCC_VERSION, the SoC's id, PSCI_VERSION, AFFINITY_INFO of both vCPUs, MIGRATE_INFO_TYPE, one that nobody has.
    (0x8000_0000, &[]),
    (0x8000_0002, &[0]),
    (0x8000_0002, &[1]),
    (0x8400_0000, &[]),
    (0x8400_0004, &[0, 0]),
    (0x8400_0004, &[0x7f, 0]),
    (0x8400_0006, &[]),
    (0x8400_00ff, &[]),
    // TRNG_VERSION.
    (0x8400_0050, &[]),
    // Calls, revision and (old) features of the owners: architecture, CPU, SiP, standard, hypervisor, vendor's hypervisor.
    (0x8000_ff00, &[]),
    (0x8100_ff01, &[]),
    (0x8200_ff01, &[]),
    (0x8400_ff01, &[]),
    (0x8500_ff01, &[]),
    (0x8600_ff00, &[]),
    (0x8600_ff03, &[]),
    // The list of implementations, protected memory, MMIO guard.
    (0xc600_0040, &[]),
    (0xc600_0041, &[0]),
    (0xc600_0002, &[]),
    (0xc600_0005, &[]),
    // Not from a range that anybody has.
    (0xb000_0000, &[]),
];

/// Calls with four words.
const FOUR: &[u32] = &[0x8600_ff01, 0x8600_0000, 0x8400_0052];

/// Calls whose answer runs or is random: PTP with both counters, TRNG_RND.
const ANSWERS: &[(u32, &[u64])] =
    &[(0x8600_0001, &[0]), (0x8600_0001, &[1]), (0x8400_0053, &[32]), (0xc400_0053, &[64])];

/// Calls that end the guest where they exist: SYSTEM_OFF, SYSTEM_RESET, SYSTEM_RESET2, SYSTEM_SUSPEND, SYSTEM_OFF2.
const ENDINGS: &[(u32, &[u64])] = &[
    (0x8400_0008, &[]),
    (0x8400_0012, &[0, 0]),
    (0xc400_000e, &[0, 0]),
    (0x8400_0015, &[1, 0]),
    (0x8400_0009, &[]),
];

fn name(function: u32, arguments: &[u64]) -> String {
    let arguments: String = arguments.iter().map(|a| format!(".{a:x}")).collect();
    format!("smccc.{function:08x}{arguments}")
}

fn look(function: u32, arguments: &[u64], take: Take) -> Look {
    Look::new(name(function, arguments), Probe::call(function, arguments), take)
}

pub(super) fn looks() -> Vec<Look> {
    let arch = ARCH.iter().map(|f| (ARCH_FEATURES, *f));
    let psci = (0..=PSCI_LAST).flat_map(|n| [0x8400_0000 | n, 0xc400_0000 | n]).chain([0x8000_0000]);
    let psci = psci.map(|f| (PSCI_FEATURES, f));
    let trng = [0x8400_0050, 0x8400_0051, 0x8400_0052, 0x8400_0053, 0xc400_0053];
    let trng = trng.into_iter().map(|f| (TRNG_FEATURES, f));
    let time = [0xc500_0020, 0xc500_0021, 0xc500_0022].into_iter().map(|f| (PV_TIME_FEATURES, f));
    let features = arch.chain(psci).chain(trng).chain(time);
    let features = features.map(|(function, asked)| look(function, &[u64::from(asked)], Take::Value));
    let calls = CALLS.iter().map(|(function, arguments)| look(*function, arguments, Take::Value));
    let four = FOUR.iter().map(|function| look(*function, &[], Take::Four));
    let answers = ANSWERS.iter().map(|(function, arguments)| look(*function, arguments, Take::Answer));
    features.chain(calls).chain(four).chain(answers).collect()
}

/// The calls that end the guest. The last one is a reset.
pub fn endings() -> Vec<Look> {
    ENDINGS.iter().map(|(function, arguments)| look(*function, arguments, Take::Value)).collect()
}
