//! What the guest is told of its machine: ACPI tables (ACPI 6.5, chapters 5 and 6). Hardware-reduced: no fixed registers, so none
//! to emulate.

use acpi_tables::aml::{
    BufferData, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule,
    IO, If, Interrupt, Memory32Fixed, Method, Name, Notify, ONE, OpRegion, OpRegionSpace, Path,
    ResourceTemplate, Return, Store, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::{Aml, rsdp::Rsdp, sdt::Sdt, xsdt::XSDT};

use crate::devices::plug::{MOST, PORTS};

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

/// vCPUs, by the numbers of their APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vcpus {
    /// How many there are at first.
    pub first: u8,
    /// How many there can be.
    pub most: u8,
    /// The IOAPIC's pin that tells of more, where there can be more.
    pub irq: u32,
}

/// The tables, from `at` on; the root pointer is first.
pub fn tables(at: u64, vcpus: Vcpus, devices: &[Place], length: u32) -> Vec<u8> {
    let mut bytes = vec![0; Rsdp::len().next_multiple_of(16)];
    let mut add = |table: &dyn Aml| -> u64 {
        let place = at + bytes.len() as u64;
        table.to_aml_bytes(&mut bytes);
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        place
    };
    let dsdt = add(&dsdt(vcpus, devices, length));
    let mut fadt = FADTBuilder::new(OEM, TABLE, 1).dsdt_64(dsdt).flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    let fadt = add(&fadt.finalize());
    let mut madt = MADT::new(OEM, TABLE, 1, LocalInterruptController::Address(LOCAL_APIC));
    for id in 0..vcpus.most {
        let may_come = EnabledStatus::DisabledOnlineCapable;
        let status = if id < vcpus.first { EnabledStatus::Enabled } else { may_come };
        madt.add_structure(ProcessorLocalApic::new(id, id, status));
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

/// The serial port, the virtio devices, and vCPUs that may come.
fn dsdt(vcpus: Vcpus, devices: &[Place], length: u32) -> Sdt {
    let mut aml = Vec::new();
    if vcpus.most > vcpus.first {
        plug(vcpus, &mut aml);
    }
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

/// vCPUs that may come: a generic event device, whose method looks into the registers of [`crate::devices::plug`] for news, and a device
/// a processor, which is there when its bit is set. A one that is written clears one bit, so zeroes are written around it.
fn plug(vcpus: Vcpus, aml: &mut Vec<u8>) {
    let plugged = |id: u8| format!("\\_SB_.PLUG.P{id:03}");
    let news = |id: u8| format!("\\_SB_.PLUG.N{id:03}");
    let processor = |id: u8| format!("\\_SB_.C{id:03}");
    let length = PORTS.end - PORTS.start;
    let region = OpRegion::new("REGS".into(), OpRegionSpace::SystemIO, &PORTS.start, &length);
    let bits = |letter: char| {
        let name = move |id: u8| {
            let mut name = [0; 4];
            name.copy_from_slice(format!("{letter}{id:03}").as_bytes());
            name
        };
        let unused = usize::from(MOST as u8 - vcpus.most);
        let named = (0..vcpus.most).map(move |id| FieldEntry::Named(name(id), 1));
        named.chain((unused > 0).then_some(FieldEntry::Reserved(unused)))
    };
    let field = Field::new(
        "REGS".into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        bits('P').chain(bits('N')).collect(),
    );
    let paths: Vec<(Path, Path)> =
        (0..vcpus.most).map(|id| (Path::new(&news(id)), Path::new(&processor(id)))).collect();
    let told: Vec<_> = paths
        .iter()
        .map(|(news, processor)| {
            (Equal::new(news, &ONE), Store::new(news, &ONE), Notify::new(processor, &ONE))
        })
        .collect();
    let told: Vec<If<'_>> = told.iter().map(|(is, clear, notify)| If::new(is, vec![clear, notify])).collect();
    let told = told.iter().map(|told| told as &dyn Aml).collect();
    Device::new(
        "_SB_.PLUG".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Interrupt::new(true, false, false, false, vcpus.irq)]),
            ),
            &region,
            &field,
            &Method::new("_EVT".into(), 1, true, told),
        ],
    )
    .to_aml_bytes(aml);
    for id in 0..vcpus.most {
        let is_plugged = Path::new(&plugged(id));
        let apic = BufferData::new([&[0, 8, id, id], &1_u32.to_le_bytes()[..]].concat());
        let there = Return::new(&0xf_u8);
        Device::new(
            Path::new(&processor(id)),
            vec![
                &Name::new("_HID".into(), &"ACPI0007"),
                &Name::new("_UID".into(), &id),
                &Method::new(
                    "_STA".into(),
                    0,
                    false,
                    vec![&If::new(&Equal::new(&is_plugged, &ONE), vec![&there]), &Return::new(&ZERO)],
                ),
                &Method::new("_MAT".into(), 0, false, vec![&Return::new(&apic)]),
            ],
        )
        .to_aml_bytes(aml);
    }
}
