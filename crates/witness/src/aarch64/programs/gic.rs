//! The GICv3's frames: identification, and what a guest can change in them.

use evenkeel_monitor::aarch64::{GIC_DISTRIBUTOR, GIC_ITS, GIC_REDISTRIBUTOR, GIC_REDISTRIBUTOR_BYTES};

use super::{Look, Take};
use crate::aarch64::probe::{DSB, Probe, eor, ldr_w, mvn, str_w};

/// The page of a redistributor that has the private interrupts.
const SGI: u64 = 0x1_0000;

/// Name, address, and whether it has 64 bits.
const FRAMES: &[(&str, u64, bool)] = &[
    ("gicd.ctlr", GIC_DISTRIBUTOR, false),
    ("gicd.typer", GIC_DISTRIBUTOR + 4, false),
    ("gicd.iidr", GIC_DISTRIBUTOR + 8, false),
    ("gicd.typer2", GIC_DISTRIBUTOR + 0xc, false),
    ("gicd.statusr", GIC_DISTRIBUTOR + 0x10, false),
    ("gicd.pidr2", GIC_DISTRIBUTOR + 0xffe8, false),
    ("gicr.ctlr", GIC_REDISTRIBUTOR, false),
    ("gicr.iidr", GIC_REDISTRIBUTOR + 4, false),
    ("gicr.typer", GIC_REDISTRIBUTOR + 8, true),
    ("gicr.statusr", GIC_REDISTRIBUTOR + 0x10, false),
    ("gicr.waker", GIC_REDISTRIBUTOR + 0x14, false),
    ("gicr.mpamidr", GIC_REDISTRIBUTOR + 0x18, false),
    ("gicr.propbaser", GIC_REDISTRIBUTOR + 0x70, true),
    ("gicr.pendbaser", GIC_REDISTRIBUTOR + 0x78, true),
    ("gicr.syncr", GIC_REDISTRIBUTOR + 0xc0, false),
    ("gicr.pidr2", GIC_REDISTRIBUTOR + 0xffe8, false),
    ("gicr.1.typer", GIC_REDISTRIBUTOR + GIC_REDISTRIBUTOR_BYTES + 8, true),
    ("gits.ctlr", GIC_ITS, false),
    ("gits.iidr", GIC_ITS + 4, false),
    ("gits.typer", GIC_ITS + 8, true),
    ("gits.cbaser", GIC_ITS + 0x80, true),
    ("gits.baser.0", GIC_ITS + 0x100, true),
    ("gits.baser.1", GIC_ITS + 0x108, true),
    ("gits.baser.2", GIC_ITS + 0x110, true),
    ("gits.pidr2", GIC_ITS + 0xffe8, false),
];

/// Words in which every bit is turned over, looked at, and put back.
const WRITTEN: &[(&str, u64)] = &[
    ("gicd.ctlr", GIC_DISTRIBUTOR),
    ("gicd.igroupr.1", GIC_DISTRIBUTOR + 0x84),
    ("gicd.ipriorityr.8", GIC_DISTRIBUTOR + 0x420),
    ("gicd.icfgr.2", GIC_DISTRIBUTOR + 0xc08),
    ("gicd.igrpmodr.1", GIC_DISTRIBUTOR + 0xd04),
    ("gicr.igroupr.0", GIC_REDISTRIBUTOR + SGI + 0x80),
    ("gicr.ipriorityr.0", GIC_REDISTRIBUTOR + SGI + 0x400),
    ("gicr.icfgr.0", GIC_REDISTRIBUTOR + SGI + 0xc00),
    ("gicr.icfgr.1", GIC_REDISTRIBUTOR + SGI + 0xc04),
];

/// Whether it is about a frame that is there only with a GIC.
pub fn is_frame(name: &str) -> bool {
    name.starts_with("arm64.gic") || name.starts_with("arm64.gits")
}

pub(super) fn looks() -> Vec<Look> {
    let reads = FRAMES.iter().map(|(name, address, long)| {
        let probe = if *long { Probe::load_64(*address) } else { Probe::load(*address) };
        Look::new(format!("arm64.{name}"), probe, Take::Value)
    });
    let writes = WRITTEN.iter().map(|(name, address)| {
        // X1 is the old value, X3 the one after all bits were turned over.
        let code = [ldr_w(1, 0), mvn(2, 1), str_w(2, 0), DSB, ldr_w(3, 0), str_w(1, 0), DSB, eor(0, 1, 3)];
        Look::new(format!("arm64.{name}.writable"), Probe::new(&code).with(&[*address]), Take::Value)
    });
    reads.chain(writes).collect()
}
