//! What the guest is told of its machine: ACPI tables (ACPI 6.5, chapters 5 and 6). Hardware-reduced: no fixed registers, so none
//! to emulate.

use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Path, ResourceTemplate};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::{Aml, rsdp::Rsdp, sdt::Sdt, xsdt::XSDT};

const OEM: [u8; 6] = *b"EVKEEL";
const TABLE: [u8; 8] = *b"EVENKEEL";
/// IAPC_BOOT_ARCH: no VGA, and no CMOS clock.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;

/// A virtio device on MMIO: its registers and its interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Guest-physical address.
    pub address: u32,
    /// The IOAPIC's pin.
    pub irq: u32,
}

/// The tables, from `at` on; the root pointer is first.
pub fn tables(at: u64, apic_ids: &[u8], devices: &[Place], length: u32) -> Vec<u8> {
    let mut bytes = vec![0; Rsdp::len().next_multiple_of(16)];
    let mut add = |table: &dyn Aml| -> u64 {
        let place = at + bytes.len() as u64;
        table.to_aml_bytes(&mut bytes);
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        place
    };
    let dsdt = add(&dsdt(devices, length));
    let mut fadt = FADTBuilder::new(OEM, TABLE, 1).dsdt_64(dsdt).flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    let fadt = add(&fadt.finalize());
    let mut madt = MADT::new(OEM, TABLE, 1, LocalInterruptController::Address(LOCAL_APIC));
    for (uid, id) in (0..).zip(apic_ids) {
        madt.add_structure(ProcessorLocalApic::new(uid, *id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    let madt = add(&madt);
    let mut xsdt = XSDT::new(OEM, TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = add(&xsdt);
    let mut root = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut root);
    bytes[..root.len()].copy_from_slice(&root);
    bytes
}

/// The serial port and the virtio devices.
fn dsdt(devices: &[Place], length: u32) -> Sdt {
    let mut aml = Vec::new();
    Device::new(
        "_SB_.COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &0_u8),
            &Name::new("_STA".into(), &0xf_u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Interrupt::new(true, true, false, false, 4),
                    &IO::new(0x3f8, 0x3f8, 1, 8),
                ]),
            ),
        ],
    )
    .to_aml_bytes(&mut aml);
    for (index, place) in (0_u8..).zip(devices) {
        let path = format!("_SB_.V{index:03}");
        Device::new(
            Path::new(&path),
            vec![
                &Name::new("_HID".into(), &"LNRO0005"),
                &Name::new("_UID".into(), &index),
                &Name::new("_CCA".into(), &1_u8),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &Memory32Fixed::new(true, place.address, length),
                        &Interrupt::new(true, false, false, false, place.irq),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(&mut aml);
    }
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, 1);
    table.append_slice(&aml);
    table
}
