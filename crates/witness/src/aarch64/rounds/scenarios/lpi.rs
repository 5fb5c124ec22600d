//! One LPI: an ITS with one device and one event.

use evenkeel_monitor::aarch64::{GIC_ITS, GIC_REDISTRIBUTOR, MEMORY_BASE, Machine};
use evenkeel_sys::Ram;
use evenkeel_sys::requests::KVM_SIGNAL_MSI;

use super::Error;
use super::probes::{LPI, all, write_w, write_x};
use crate::aarch64::probe::{Probe, ldr_x};
use crate::aarch64::session::Session;

/// Where the tables for LPIs are: 64 KiB each.
const TABLES: u64 = MEMORY_BASE + 0x30_0000;
const DEVICES: u64 = TABLES;
const COLLECTIONS: u64 = TABLES + 0x1_0000;
const COMMANDS: u64 = TABLES + 0x2_0000;
const PROPERTIES: u64 = TABLES + 0x3_0000;
const PENDING: u64 = TABLES + 0x4_0000;
const TRANSLATIONS: u64 = TABLES + 0x5_0000;
const DEVICE: u64 = 7;
const EVENT: u64 = 1;

/// Sets up the ITS: one device with one event, that is one LPI of the first vCPU.
pub(super) fn set_up(ram: &Ram, session: &mut Session<'_, '_, '_>) -> Result<(), Error> {
    let commands: [[u64; 4]; 4] = [
        // MAPD: an event id has two bits.
        [DEVICE << 32 | 8, 1, 1 << 63 | TRANSLATIONS, 0],
        // MAPC: collection 0 is of the first vCPU.
        [9, 0, 1 << 63, 0],
        // MAPTI.
        [DEVICE << 32 | 10, LPI << 32 | EVENT, 0, 0],
        // INV.
        [DEVICE << 32 | 12, EVENT, 0, 0],
    ];
    let bytes: Vec<u8> = commands.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
    ram.write((COMMANDS - MEMORY_BASE) as usize, &bytes)?;
    // Priority 0xa0, enabled.
    ram.write((PROPERTIES - MEMORY_BASE) as usize, &[0xa1])?;
    // Valid, 64 KiB pages, one of them.
    let table = |address: u64| 1 << 63 | address | 2 << 8;
    all(
        session,
        &[
            write_x(GIC_REDISTRIBUTOR + 0x70, PROPERTIES | 15),
            write_x(GIC_REDISTRIBUTOR + 0x78, PENDING),
            write_w(GIC_REDISTRIBUTOR, 1),
            write_x(GIC_ITS + 0x100, table(DEVICES)),
            write_x(GIC_ITS + 0x108, table(COLLECTIONS)),
            write_x(GIC_ITS + 0x80, 1 << 63 | COMMANDS | 15),
            write_w(GIC_ITS, 1),
            write_x(GIC_ITS + 0x88, bytes.len() as u64),
            Probe::new(&[ldr_x(0, 0)]).with(&[GIC_ITS + 0x90]),
        ],
    )
    .map(drop)
}

/// Sends the device's message.
pub(super) fn signal(machine: &Machine<'_, '_>) -> Result<(), Error> {
    // struct kvm_msi: address, data, flags (KVM_MSI_VALID_DEVID), device.
    let mut msi = [0; 32];
    msi[..8].copy_from_slice(&(GIC_ITS + 0x1_0040).to_ne_bytes());
    msi[8..12].copy_from_slice(&(EVENT as u32).to_ne_bytes());
    msi[12..16].copy_from_slice(&1_u32.to_ne_bytes());
    msi[16..20].copy_from_slice(&(DEVICE as u32).to_ne_bytes());
    machine.vm().set(&KVM_SIGNAL_MSI, &msi)?;
    Ok(())
}
