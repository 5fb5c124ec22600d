//! What an arm64 guest is told of its machine: a flattened device tree (Devicetree Specification 0.4; the bindings are those of
//! `Documentation/devicetree/bindings` in the kernel).

use vm_fdt::{Error, FdtWriter};

use crate::aarch64::{
    GIC_DISTRIBUTOR, GIC_REDISTRIBUTOR, GIC_REDISTRIBUTOR_BYTES, MEMORY_BASE, PMU_INTERRUPT, mpidr,
};

/// The number by which others name the interrupt controller.
const GIC: u32 = 1;
const GIC_DISTRIBUTOR_BYTES: u64 = 0x1_0000;
/// The first cell of an interrupt: shared, or of each CPU.
const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
/// The third cell.
const EDGE: u32 = 1;
const HIGH: u32 = 4;
/// Private interrupts begin here.
const FIRST_PRIVATE: u32 = 16;
/// The controller's own interrupt, and those of the timers as KVM has them: secure, non-secure, virtual, EL2.
const MAINTENANCE: u32 = 25;
const TIMERS: [u32; 4] = [29, 30, 27, 26];
/// A PC's serial clock: nothing depends on it.
const SERIAL_CLOCK: u32 = 1_843_200;

/// A device on MMIO: its registers and its interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes of registers.
    pub length: u64,
    /// The shared interrupt: 0 is the GIC's 32.
    pub spi: u32,
}

/// What the tree tells.
#[derive(Clone, Debug)]
pub struct Told<'t> {
    /// Bytes of memory, from [`MEMORY_BASE`] on.
    pub memory: u64,
    /// How many vCPUs.
    pub vcpus: u64,
    /// They have a PMU.
    pub pmu: bool,
    /// The kernel's command line.
    pub command_line: &'t str,
    /// Where the initial file system begins and ends.
    pub initramfs: Option<(u64, u64)>,
    /// Random bytes for the guest's own source: it need not wait for some.
    pub seed: &'t [u8],
    /// The serial port.
    pub serial: Place,
    /// Virtio devices.
    pub virtio: &'t [Place],
}

/// The tree.
///
/// # Errors
/// A string has a NUL in it.
pub fn tree(told: &Told<'_>) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC)?;
    chosen(&mut fdt, told)?;
    let memory = fdt.begin_node(&format!("memory@{MEMORY_BASE:x}"))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[MEMORY_BASE, told.memory])?;
    fdt.end_node(memory)?;
    cpus(&mut fdt, told)?;
    controller(&mut fdt, told)?;
    for place in told.virtio {
        let node = fdt.begin_node(&format!("virtio_mmio@{:x}", place.address))?;
        fdt.property_string("compatible", "virtio,mmio")?;
        fdt.property_array_u64("reg", &[place.address, place.length])?;
        fdt.property_array_u32("interrupts", &[SHARED, place.spi, HIGH])?;
        fdt.property_null("dma-coherent")?;
        fdt.end_node(node)?;
    }
    serial(&mut fdt, told.serial)?;
    fdt.end_node(root)?;
    fdt.finish()
}

fn chosen(fdt: &mut FdtWriter, told: &Told<'_>) -> Result<(), Error> {
    let chosen = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", told.command_line)?;
    fdt.property_string("stdout-path", &serial_path(told.serial))?;
    if let Some((begin, end)) = told.initramfs {
        fdt.property_u64("linux,initrd-start", begin)?;
        fdt.property_u64("linux,initrd-end", end)?;
    }
    if !told.seed.is_empty() {
        fdt.property("rng-seed", told.seed)?;
    }
    fdt.end_node(chosen)
}

fn cpus(fdt: &mut FdtWriter, told: &Told<'_>) -> Result<(), Error> {
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 0)?;
    for number in 0..told.vcpus {
        let at = mpidr(number);
        let cpu = fdt.begin_node(&format!("cpu@{at:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,arm-v8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u64("reg", at)?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(cpus)?;
    let psci = fdt.begin_node("psci")?;
    fdt.property_string_list("compatible", vec!["arm,psci-1.0".into(), "arm,psci-0.2".into()])?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(psci)?;
    let timer = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    let cells: Vec<u32> = TIMERS.into_iter().flat_map(|ppi| [PRIVATE, ppi - FIRST_PRIVATE, HIGH]).collect();
    fdt.property_array_u32("interrupts", &cells)?;
    fdt.property_null("always-on")?;
    fdt.end_node(timer)?;
    if told.pmu {
        let pmu = fdt.begin_node("pmu")?;
        fdt.property_string("compatible", "arm,armv8-pmuv3")?;
        fdt.property_array_u32("interrupts", &[PRIVATE, PMU_INTERRUPT - FIRST_PRIVATE, HIGH])?;
        fdt.end_node(pmu)?;
    }
    Ok(())
}

fn controller(fdt: &mut FdtWriter, told: &Told<'_>) -> Result<(), Error> {
    let gic = fdt.begin_node(&format!("interrupt-controller@{GIC_DISTRIBUTOR:x}"))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_null("interrupt-controller")?;
    let redistributors = told.vcpus * GIC_REDISTRIBUTOR_BYTES;
    let registers = [GIC_DISTRIBUTOR, GIC_DISTRIBUTOR_BYTES, GIC_REDISTRIBUTOR, redistributors];
    fdt.property_array_u64("reg", &registers)?;
    fdt.property_array_u32("interrupts", &[PRIVATE, MAINTENANCE - FIRST_PRIVATE, HIGH])?;
    fdt.property_u32("phandle", GIC)?;
    fdt.end_node(gic)
}

fn serial_path(place: Place) -> String {
    format!("/serial@{:x}", place.address)
}

fn serial(fdt: &mut FdtWriter, place: Place) -> Result<(), Error> {
    let node = fdt.begin_node(&serial_path(place)[1..])?;
    fdt.property_string("compatible", "ns16550a")?;
    fdt.property_array_u64("reg", &[place.address, place.length])?;
    fdt.property_u32("clock-frequency", SERIAL_CLOCK)?;
    // It raises an edge whenever there is something to do.
    fdt.property_array_u32("interrupts", &[SHARED, place.spi, EDGE])?;
    fdt.end_node(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told<'t>(command_line: &'t str, virtio: &'t [Place]) -> Told<'t> {
        let serial = Place { address: 0x900_0000, length: 0x1000, spi: 0 };
        Told {
            memory: 96 << 20,
            vcpus: 18,
            pmu: false,
            command_line,
            initramfs: None,
            seed: &[],
            serial,
            virtio,
        }
    }

    /// Whether these bytes are in it.
    fn has(tree: &[u8], bytes: &[u8]) -> bool {
        tree.windows(bytes.len()).any(|window| window == bytes)
    }

    #[test]
    fn a_tree_tells_what_there_is_and_nothing_else() {
        let places = [Place { address: 0xa00_0000, length: 0x1000, spi: 1 }];
        let tree = tree(&told("console=ttyS0", &places)).unwrap();
        assert_eq!(tree[..4], [0xd0, 0x0d, 0xfe, 0xed]);
        // The seventeenth vCPU is the first one of the next cluster, as KVM numbers them.
        for there in ["console=ttyS0", "virtio_mmio@a000000", "cpu@f", "cpu@100", "cpu@101", "arm,gic-v3"] {
            assert!(has(&tree, there.as_bytes()), "{there}");
        }
        for not in ["pmuv3", "initrd-start", "rng-seed", "virtio_mmio@a001000", "cpu@10\0"] {
            assert!(!has(&tree, not.as_bytes()), "{not}");
        }
    }

    #[test]
    fn a_command_line_with_a_nul_is_refused() {
        assert!(tree(&told("a\0b", &[])).is_err());
    }
}
