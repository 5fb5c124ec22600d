//! What was decided when a machine was made, and what its devices are and are at: as a capsule holds it.
//!
//! Sections: `board`, CBOR of [`Board`]; `device.NAME`, CBOR of [`Record`], for each device in the board's list. All of them are
//! critical: a guest whose device a reader does not know cannot go on there.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use evenkeel_capsule::Section;
use evenkeel_capsule::cbor::{self, Bytes};
use evenkeel_state::{Manifest, Saved};
use evenkeel_sys::{Marks, Ram, Slot, Vm};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::confine::Confinement;
use crate::control::metrics::{self, Metrics};
use crate::devices::plug::Plug;
use crate::life::{End, Life};

/// The section of the board.
pub const BOARD: &str = "board";
/// How the sections of devices begin.
pub const DEVICE: &str = "device.";

/// What was decided when a machine was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Board {
    /// Bytes of memory: on x86 from guest-physical address 0 on, on arm64 from [`crate::aarch64::MEMORY_BASE`].
    pub memory: u64,
    /// How many vCPUs KVM has, plugged or not.
    pub vcpus: u32,
    /// The irqchip's name: `kernel` or `split`, on arm64 `gicv3`.
    pub irqchip: String,
    /// The devices, in order.
    pub devices: Vec<Placed>,
}

/// A device, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Placed {
    /// Its name: that of its section behind `device.`.
    pub name: String,
    /// What it is: `serial`, `keyboard`, `ioapic`, `virtio-block`.
    pub kind: String,
    /// Where its registers are: a guest-physical address, or a port.
    pub at: u64,
    /// Its pin of the IOAPIC, or its shared interrupt of the GIC; 0 without one.
    pub irq: u32,
}

/// What a device is and what it is at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Record {
    /// As on the board.
    pub kind: String,
    /// What it is: CBOR of its own.
    pub config: Bytes,
    /// What it is at: CBOR of its own.
    pub state: Bytes,
}

/// What the devices of a machine are at, by name.
pub type Records = BTreeMap<String, Record>;

/// What is saved of a machine beside its memory.
#[derive(Debug)]
pub struct SavedMachine {
    /// The state that KVM keeps.
    pub saved: Saved,
    /// The board and its devices: critical sections.
    pub sections: Vec<Section>,
}

/// A disk that a guest may write to.
#[derive(Debug)]
pub struct Disk {
    /// Its name, as the guest can ask for it.
    pub name: String,
    /// What is on it. Where it is at in it is shared with the device, which does not care.
    pub file: File,
    /// Its length in bytes.
    pub length: u64,
}

/// A machine on any board, as whoever drives and saves it sees it.
pub trait Runs: Sync {
    /// What pauses, resumes and stops it.
    fn life(&self) -> &Life;

    /// Runs it to its end.
    fn run(&self, limit: Option<Duration>) -> End;

    /// What it is at beside its memory, while it is paused, which it stays. Memory is to be copied afterwards.
    ///
    /// # Errors
    /// It is not paused, or KVM gives something away that it should not.
    fn save(&self, manifest: &Manifest) -> Result<SavedMachine, Error>;

    /// Its memory.
    fn ram(&self) -> &Arc<Ram>;

    /// The VM: for its log of what vCPUs write (KVM_GET_DIRTY_LOG).
    fn vm(&self) -> &Vm<'_>;

    /// Its memory as KVM has it: each slot, which is logged when it is set again with KVM_MEM_LOG_DIRTY_PAGES, and what is in it.
    fn slots(&self) -> Vec<(Slot, Arc<Ram>)> {
        let length = self.ram().len() as u64;
        let slot = Slot { number: 0, flags: 0, guest: MEMORY_BEGINS, offset: 0, length };
        vec![(slot, self.ram().clone())]
    }

    /// What its devices wrote, which KVM does not log: by the offset in [`Runs::ram`].
    fn marks(&self) -> &Marks {
        self.ram().marks()
    }

    /// What it is.
    fn board(&self) -> Board;

    /// The disks that its guest may write to.
    ///
    /// # Errors
    /// There is no descriptor left.
    fn disks(&self) -> Result<Vec<Disk>, Error>;

    /// Another process may use what is behind its devices, until [`Runs::claim`]: see
    /// [`crate::devices::virtio::Device::release`]. It stands.
    ///
    /// # Errors
    /// As a device says.
    fn release(&self) -> Result<(), Error>;

    /// What is behind its devices is used here, and by nobody else. Before it goes on.
    ///
    /// # Errors
    /// As a device says: it must not go on.
    fn claim(&self) -> Result<(), Error>;

    /// Its board and devices as a capsule has them, as they are now.
    fn sections(&self) -> Vec<Section>;

    /// Its threads confine themselves by this before the guest executes anything, and so does the one that calls
    /// [`Runs::run`]. The first word counts.
    fn confine(&self, confinement: Confinement);

    /// What plugs its vCPUs; none: all that it can have are there.
    fn plug(&self) -> Option<&Plug> {
        None
    }

    /// Its counters.
    fn metrics(&self) -> &Arc<Metrics>;

    /// What its devices did; as they were asked the last time, if one of them is at work.
    fn device_counts(&self) -> Vec<metrics::Device>;
}

/// The guest-physical address at which the memory of this architecture's boards begins.
pub const MEMORY_BEGINS: u64 = if cfg!(target_arch = "aarch64") { crate::aarch64::MEMORY_BASE } else { 0 };

/// A virtio device's kind in words: the names of the specification, section 5.
pub(crate) fn virtio_kind(number: u32) -> String {
    match number {
        1 => "virtio-net".to_owned(),
        2 => "virtio-block".to_owned(),
        3 => "virtio-console".to_owned(),
        4 => "virtio-entropy".to_owned(),
        other => format!("virtio-{other}"),
    }
}

impl Board {
    /// The virtio devices, whose backends have to be given again.
    pub fn virtio(&self) -> impl Iterator<Item = &Placed> {
        self.devices.iter().filter(|device| device.kind.starts_with("virtio-"))
    }

    /// The first thing in which another one is otherwise.
    pub(crate) fn unlike(&self, other: &Board) -> String {
        let plain = |b: &Board| (b.memory, b.vcpus, b.irqchip.clone());
        if plain(self) != plain(other) {
            let (a, b) = (plain(self), plain(other));
            return format!("{b:?} was saved, {a:?} is here");
        }
        let pair = self.devices.iter().zip(&other.devices).find(|(a, b)| a != b);
        match pair {
            Some((a, b)) => format!("{b:?} was saved, {a:?} is here"),
            None => format!("{} devices were saved, {} are here", other.devices.len(), self.devices.len()),
        }
    }

    /// A machine that was saved on this board goes on only on the same one.
    ///
    /// # Errors
    /// `own` is another.
    pub(crate) fn goes_on(&self, own: &Board) -> Result<(), Error> {
        if own == self {
            return Ok(());
        }
        Err(Error::Device(format!("the guest was saved on another board: {}", own.unlike(self))))
    }

    /// The sections of a machine.
    pub fn sections(&self, records: &Records) -> Vec<Section> {
        let device = |(name, record): (&String, &Record)| {
            Section::new(format!("{DEVICE}{name}"), true, cbor::print(record))
        };
        let board = Section::new(BOARD, true, cbor::print(self));
        std::iter::once(board).chain(records.iter().map(device)).collect()
    }

    /// The machine in these sections; none: they are not of a machine with a board.
    ///
    /// # Errors
    /// A section is not CBOR, or board and devices do not fit together.
    pub fn read(sections: &[Section]) -> Result<Option<(Board, Records)>, Error> {
        let wrong = |name: &str, what: String| Error::Device(format!("section {name}: {what}"));
        let Some(board) = sections.iter().find(|section| section.name == BOARD) else { return Ok(None) };
        let parse = |(at, what): (u64, String)| format!("byte {at}: {what}");
        let board: Board = cbor::read(&board.bytes).map_err(|e| wrong(BOARD, parse(e)))?;
        let mut records = Records::new();
        for section in sections {
            let Some(name) = section.name.strip_prefix(DEVICE) else { continue };
            let record: Record = cbor::read(&section.bytes).map_err(|e| wrong(&section.name, parse(e)))?;
            match board.devices.iter().find(|device| device.name == name) {
                Some(device) if device.kind == record.kind => drop(records.insert(name.to_owned(), record)),
                Some(device) => {
                    return Err(wrong(
                        &section.name,
                        format!("a {}, on the board a {}", record.kind, device.kind),
                    ));
                }
                None => return Err(wrong(&section.name, "it is not on the board".to_owned())),
            }
        }
        match board.devices.iter().find(|device| !records.contains_key(&device.name)) {
            Some(device) => Err(wrong(BOARD, format!("{} has no section", device.name))),
            None => Ok(Some((board, records))),
        }
    }
}

/// Devices that are set to these records are those that were saved.
///
/// # Errors
/// One was not saved, or was another.
pub(crate) fn alike(own: &Records, saved: &Records) -> Result<(), Error> {
    for (name, own) in own {
        let other = |what: &str| Error::Device(format!("{name}: {what}"));
        let saved = saved.get(name).ok_or_else(|| other("it was not saved"))?;
        if saved.config != own.config {
            return Err(other("it is another device than the one that was saved"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board() -> (Board, Records) {
        let device =
            |name: &str, kind: &str| Placed { name: name.to_owned(), kind: kind.to_owned(), at: 1, irq: 2 };
        let devices = vec![device("serial", "serial"), device("virtio0", "virtio-block")];
        let record =
            |kind: &str| Record { kind: kind.to_owned(), config: Bytes(vec![1]), state: Bytes(vec![2]) };
        let records = devices.iter().map(|d| (d.name.clone(), record(&d.kind))).collect();
        (Board { memory: 1 << 20, vcpus: 2, irqchip: "split".to_owned(), devices }, records)
    }

    #[test]
    fn a_board_is_read_as_it_was_written() {
        let (board, records) = board();
        let sections = board.sections(&records);
        assert_eq!(Board::read(&sections).unwrap(), Some((board, records)));
        assert_eq!(Board::read(&[]).unwrap(), None);
    }

    #[test]
    fn devices_that_are_missing_too_many_or_of_another_kind_refuse() {
        let (board, records) = board();
        let sections = board.sections(&records);
        let refused = |sections: &[Section]| Board::read(sections).unwrap_err().to_string();
        assert!(refused(&sections[..2]).contains("virtio0 has no section"));
        let mut more = sections.clone();
        more.push(Section { name: "device.other".to_owned(), ..sections[1].clone() });
        assert!(refused(&more).contains("device.other: it is not on the board"));
        let mut swapped = sections.clone();
        swapped[1].bytes.clone_from(&sections[2].bytes);
        assert!(refused(&swapped).contains("a virtio-block, on the board a serial"));
        let mut cut = sections;
        cut[0].bytes.pop();
        assert!(refused(&cut).contains("section board"));
    }
}
