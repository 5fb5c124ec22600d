//! A saved machine goes on here.

use std::fs::File;
use std::io::BufReader;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use evenkeel_capsule::{Reader, cbor};
use evenkeel_memory::{Loading, Place};
use evenkeel_monitor::board::{Board, MEMORY_BEGINS, Records};
use evenkeel_monitor::confine::preflight::Need;
use evenkeel_monitor::devices::virtio::{Device, block, entropy::Entropy, net};
use evenkeel_state::{Guest, Image, Noting};
use evenkeel_surface::Surface;
use evenkeel_sys::{Live, Ram, Slot, System};

use super::contract::{carried, plan, preflight, setup};
use super::engine::{self, Again};
use super::save::Luggage;
use super::{Console, Running, drive, failed};
use crate::commands::operate::Operator;
use crate::commands::restore::{One, not_kept};
use crate::failure::Failure;

/// A saved machine, with its memory, that was claimed to be run here.
pub struct Found<'p> {
    /// Where it was saved.
    pub path: &'p Path,
    /// All of it but memory.
    pub guest: &'p Guest,
    /// Its state as it is to be set here.
    pub image: &'p Image,
    /// Its board and devices.
    pub board: Board,
    /// What they are at.
    pub records: Records,
    /// Its memory.
    pub ram: Arc<Ram>,
    /// What fills it, if it is not there yet.
    pub loading: Option<Loading>,
}

/// Memory out of a capsule, each chunk verified before it is there.
pub fn memory(reader: &mut Reader<BufReader<File>>, board: &Board, path: &Path) -> Result<Arc<Ram>, Failure> {
    let refused = |e: &evenkeel_capsule::Refused| super::super::capsule::refused(path, e);
    reader.read_index().map_err(|e| refused(&e))?;
    let length = usize::try_from(board.memory).map_err(|e| failed(&e))?;
    let ram = Ram::new(length).map_err(|e| failed(&format!("memory for the guest: {e:?}")))?;
    let put = |address: u64, bytes: &[u8]| {
        let at = usize::try_from(address - MEMORY_BEGINS).map_err(std::io::Error::other)?;
        ram.write(at, bytes).map_err(std::io::Error::other)
    };
    reader.load(put).map_err(|e| refused(&e))?;
    Ok(Arc::new(ram))
}

/// Memory that is taken out of a capsule when somebody wants it, each chunk verified before it is there.
pub fn lazily(
    reader: &mut Reader<BufReader<File>>,
    board: &Board,
    path: &Path,
    device: Option<BorrowedFd<'_>>,
) -> Result<(Arc<Ram>, Loading), Failure> {
    let refused = |e: &evenkeel_capsule::Refused| super::super::capsule::refused(path, e);
    reader.read_index().map_err(|e| refused(&e))?;
    let length = usize::try_from(board.memory).map_err(|e| failed(&e))?;
    let ram = Ram::new(length).map_err(|e| failed(&format!("memory for the guest: {e:?}")))?;
    let ram = Arc::new(ram);
    let place = Place { guest: MEMORY_BEGINS, ram: ram.clone(), offset: 0, length: board.memory };
    let file = File::open(path).map_err(|e| Failure::file(path, &e))?;
    let guest = evenkeel_memory::Guest::new(vec![place]).map_err(|e| failed(&e))?;
    let loading = Loading::new(reader, &file, guest, device).map_err(|e| match e {
        evenkeel_memory::Error::NoUffd(why) => {
            let missing = Need::Userfaultfd.missing(why);
            let hint = format!("{}; without --lazy all of it is loaded first", missing.remedy);
            Failure { exit: 3, ..Failure::bad(format!("--lazy: {}", missing.why), hint) }
        }
        other => Failure::file(path, &other),
    })?;
    Ok((ram, loading))
}

/// The devices that the board names, with the backends that were given again.
pub fn devices(board: &Board, records: &Records, running: &Running) -> Result<Vec<Box<dyn Device>>, Failure> {
    let mut files = running.files()?.into_iter();
    let mut devices: Vec<Box<dyn Device>> = Vec::new();
    let mut cards = 0;
    for placed in board.virtio() {
        let record = records.get(&placed.name);
        devices.push(match (placed.kind.as_str(), record) {
            ("virtio-block", Some(record)) => {
                let config: block::Config = cbor::read(&record.config.0)
                    .map_err(|(at, what)| failed(&format!("{}: byte {at}: {what}", placed.name)))?;
                let (path, file) = files.next().ok_or_else(|| {
                    let what = format!("no file for {}, a disk of {} bytes", config.id, config.bytes);
                    Failure::bad(
                        what,
                        "--disk FILE, for each disk and in the order in which they were given at first",
                    )
                })?;
                Box::new(block::Block::with(file, config).map_err(|e| Failure::file(&path, &e))?)
            }
            ("virtio-net", Some(record)) => {
                let config: net::Config = cbor::read(&record.config.0)
                    .map_err(|(at, what)| failed(&format!("{}: byte {at}: {what}", placed.name)))?;
                cards += 1;
                running.links.card(cards - 1, config)?
            }
            ("virtio-console", _) => running.links.console()?,
            ("virtio-entropy", _) => Box::new(Entropy::new().map_err(|e| failed(&e))?),
            (kind, _) => return Err(failed(&format!("{}: this version makes no {kind}", placed.name))),
        });
    }
    if let Some(link) = running.links.net.get(cards) {
        return Err(Failure::bad(format!("--net {link}: the guest has no such card"), ""));
    }
    match files.next() {
        Some((path, _)) => Err(Failure::bad(format!("{}: the guest has no such disk", path.display()), "")),
        None => Ok(devices),
    }
}

/// What becomes of a machine that is to go on here.
pub struct Here<'h> {
    /// The capture of this host.
    pub surface: &'h Surface,
    /// Facets of the contract that may differ.
    pub waive: &'h [String],
    /// Parts of the state that need not be kept.
    pub accept: &'h [String],
    /// How it runs.
    pub running: &'h Running,
}

/// Does work that touches memory which may not be there yet.
fn touching<T>(loading: Option<&Loading>, work: impl FnOnce() -> T) -> Result<T, Failure> {
    match loading {
        None => Ok(work()),
        Some(loading) => loading.serve_while(work).map_err(|e| failed(&format!("memory: {e}"))),
    }
}

/// Makes the machine again, sets its state, reads it back, and lets it go on to its end. `told` hears what became of its state
/// before the guest executes anything; nothing of it runs if that refuses. `ran` is set when it begins to run.
pub fn revive(
    found: Found<'_>,
    here: &Here<'_>,
    mut one: One,
    ran: &mut bool,
    operator: Operator,
    told: impl FnOnce(&One) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let Found { path, guest, image, board, records, ram, loading } = found;
    let contract = guest.contract.as_deref().ok_or_else(|| {
        Failure::bad(
            format!("{}: a machine without a contract", path.display()),
            "it was not saved by `evenkeel run`",
        )
    })?;
    let contract = carried(contract, path)?;
    preflight(&plan(&contract, here.surface, setup(board.vcpus), here.waive)?)?;
    let before = guest.provenance.as_ref().map_or(&[][..], |p| &p.exposure);
    let luggage = Luggage::new(contract, before, here.surface);
    let devices = devices(&board, &records, here.running)?;

    let begin = Instant::now();
    let live = Live::new();
    let noting = Noting::new(&live);
    let system = System::open(&noting).map_err(|e| failed(&e))?;
    let slot = Slot { number: 0, flags: 0, guest: MEMORY_BEGINS, offset: 0, length: ram.len() as u64 };
    let made = Again::make(&system, &image.manifest, slot, &ram).map_err(|e| failed(&e))?;
    // Setting state touches memory: the clocks that a guest shares with KVM are there.
    let (made, report) = touching(loading.as_ref(), || made.set(&system, image))?.map_err(|e| failed(&e))?;
    one.took_us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
    one.parts = [report.kept, report.running, report.implied];
    one.not_kept = report.not_kept.iter().map(|part| not_kept(part, image)).collect();
    let unsaved = report.unsaved.iter();
    one.unsaved = unsaved.map(|u| format!("{}/{}/{}", u.owner, u.item, u.field)).collect();
    told(&one)?;
    let lost: Vec<String> = one
        .not_kept
        .iter()
        .filter(|change| !here.accept.iter().any(|accepted| change.what.ends_with(accepted.as_str())))
        .map(|change| format!("{} ({}): {} → {}", change.what, change.how, change.before, change.after))
        .collect();
    if !lost.is_empty() {
        let message = format!("this host does not keep the guest's state:\n  {}", lost.join("\n  "));
        let hint = "nothing of the guest ran; --accept PART goes on without it";
        return Err(Failure { exit: 1, ..Failure::bad(message, hint) });
    }

    let (console, heard) = Console::new(here.running.snapshot_at.as_deref());
    let machine = engine::machine(&system, made, ram, &board, image)?;
    let machine = touching(loading.as_ref(), || engine::board(&machine, &board, &records, devices, console))?;
    let machine = machine.map_err(|e| failed(&e))?;
    *ran = true;
    drive(&machine, &noting, &luggage, here.running, &heard, operator, loading)
}
