//! Which instructions execute, also those that the ID registers do not offer.

use super::{Look, Take};
use crate::aarch64::abi::SCRATCH;
use crate::aarch64::probe::Probe;

/// Words, by what an assembler calls them. X0 points at memory, X1 is 1, X2 is 0.
const INSTRUCTIONS: &[(&str, &[u32])] = &[
    // X2 as the end of the wait: long past.
    ("wfet", &[0xd503_1002]),
    ("wfit", &[0xd503_1022]),
    ("sb", &[0xd503_30ff]),
    ("irg", &[0x9adf_1000]),
    ("addg", &[0x9180_0400]),
    ("stg", &[0xd920_0800]),
    ("dc-gva", &[0xd50b_7460]),
    ("dc-zva", &[0xd50b_7420]),
    ("dc-cvap", &[0xd50b_7c20]),
    ("dc-cvadp", &[0xd50b_7d20]),
    ("dc-cigdvac", &[0xd50b_7ea0]),
    // Level 1, set 0, way 0.
    ("dc-csw", &[0xd508_7a42]),
    ("tlbi-vmalle1os", &[0xd508_811f]),
    ("tlbi-rvae1is", &[0xd508_8222]),
    ("at-s1e1r", &[0xd508_7800]),
    ("at-s1e1rp", &[0xd508_7900]),
    ("at-s1e1a", &[0xd508_7940]),
    ("cfp-rctx", &[0xd50b_7382]),
    ("cosp-rctx", &[0xd50b_73c2]),
    ("brb-iall", &[0xd509_729f]),
    // And off again.
    ("smstart-sm", &[0xd503_437f, 0xd503_427f]),
    ("paciza", &[0xdac1_23e0]),
    ("xpaci", &[0xdac1_43e0]),
    ("ldaddal", &[0xf8e1_0002]),
    ("ldapr", &[0xf8bf_c001]),
    ("crc32b", &[0x1ac1_4000]),
    ("rmif", &[0xba00_0400]),
    ("setf8", &[0x3a00_080d]),
    ("sha512h", &[0xce62_8020]),
    // No bytes.
    ("cpyfp", &[0xaa00_03e1, 0x1901_0440]),
    ("tcommit", &[0xd503_307f]),
    ("svc", &[0xd400_0001]),
    ("brk", &[0xd420_0000]),
    ("smc", &[0xd400_0003]),
    ("hvc-1", &[0xd400_0022]),
];

pub(super) fn looks() -> Vec<Look> {
    let mut all: Vec<Look> = INSTRUCTIONS
        .iter()
        .map(|(name, code)| {
            let call = *name == "smc" || *name == "hvc-1";
            // SMCCC_VERSION, for those that call.
            let probe = Probe::new(code).with(&[if call { 0x8000_0000 } else { SCRATCH }, 1, 0]);
            Look::new(format!("insn.{name}"), probe, if call { Take::Value } else { Take::Whether })
        })
        .collect();
    // The length of SVE's vectors, in bytes: RDVL X0, #1.
    all.push(Look::new("insn.rdvl", Probe::new(&[0x04bf_5020]), Take::Value));
    all
}
