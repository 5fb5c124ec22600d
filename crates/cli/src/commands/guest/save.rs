//! A machine into a capsule.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use evenkeel_capsule::{Draft, Exposed, Layout, Provenance, Region, Written};
use evenkeel_contract::{Contract, document};
use evenkeel_monitor::board::{MEMORY_BEGINS, Runs};
use evenkeel_state::{Found, Guest, Image, Noting};
use evenkeel_surface::Surface;
use evenkeel_sys::Ram;

use super::failed;
use crate::commands::moving::ARCH;
use crate::commands::snapshot::random;
use crate::failure::Failure;

/// What travels with a guest beside its state.
pub struct Luggage {
    /// What it was promised.
    pub contract: Contract,
    /// The hosts that it ran on since it was reset, this one last.
    pub exposure: Vec<Exposed>,
    /// `uname -r` here.
    pub kernel: String,
}

impl Luggage {
    /// Of a guest that ran on these hosts before it came here.
    pub fn new(contract: Contract, before: &[Exposed], here: &Surface) -> Luggage {
        let kernel = here.provenance.kernel.release.clone();
        let own = Exposed {
            offer: here.digests.offer.clone(),
            contract: document::digest(&contract),
            kernel: kernel.clone(),
        };
        let mut exposure = before.to_vec();
        if !exposure.contains(&own) {
            exposure.push(own);
        }
        Luggage { contract, exposure, kernel }
    }

    fn onto(&self, guest: &mut Guest) {
        guest.contract = Some(document::print(&self.contract).into_bytes());
        guest.provenance = Some(Provenance {
            tool: concat!("evenkeel ", env!("CARGO_PKG_VERSION")).to_owned(),
            kernel: self.kernel.clone(),
            saved_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
            exposure: self.exposure.clone(),
        });
    }
}

/// What is saved of a paused machine beside its memory.
pub struct Packed {
    /// All of it but memory.
    pub guest: Guest,
    /// How long that took.
    took: Duration,
    gaps: Vec<Found>,
}

/// Asks a paused machine.
pub fn pack(pc: &impl Runs, noting: &Noting<'_>, luggage: &Luggage) -> Result<Packed, Failure> {
    let begin = Instant::now();
    let manifest = noting.manifest(0).unwrap_or_default();
    let saved = pc.save(&manifest).map_err(|e| failed(&e))?;
    let took = begin.elapsed();
    let mut guest = Guest::new(random()?, saved.saved.image);
    guest.machine = saved.sections;
    luggage.onto(&mut guest);
    Ok(Packed { guest, took, gaps: saved.saved.gaps })
}

/// The same of a machine wherever it is, without what it is at: what another host has to know to say whether it can take it.
pub fn outline(pc: &impl Runs, noting: &Noting<'_>, luggage: &Luggage) -> Result<Guest, Failure> {
    let image = Image { arch: ARCH, manifest: noting.manifest(0).unwrap_or_default(), items: Vec::new() };
    let mut guest = Guest::new(random()?, image);
    guest.machine = pc.sections();
    luggage.onto(&mut guest);
    Ok(guest)
}

/// Writes a capsule with the memory of a machine that stands. `progress` hears bytes done and bytes in all.
pub fn write(
    draft: &Draft,
    ram: &Ram,
    file: &mut File,
    (compress, alone): (bool, bool),
    progress: &dyn Fn(u64, u64),
) -> io::Result<Written> {
    let of = ram.len() as u64;
    let regions = vec![Region { address: MEMORY_BEGINS, length: of }];
    let layout = Layout { level: compress.then_some(1), alone, ..Layout::eager(regions) };
    let memory = |address: u64, into: &mut [u8]| {
        let begin = address - MEMORY_BEGINS;
        let at = usize::try_from(begin).map_err(io::Error::other)?;
        ram.read(at, into).map_err(io::Error::other)?;
        progress((begin + into.len() as u64).min(of), of);
        Ok(())
    };
    let written = draft.write_with(&mut *file, &layout, memory).map_err(io::Error::other)?;
    file.flush().map(|()| written)
}

/// Pauses a machine and saves it. It stays paused: whoever has the capsule may run it elsewhere.
pub fn save(
    pc: &impl Runs,
    noting: &Noting<'_>,
    luggage: &Luggage,
    path: &Path,
    compress: bool,
) -> Result<(), Failure> {
    let paused = pc.life().pause().map_err(|e| failed(&e))?;
    let begin = Instant::now();
    let Packed { guest, took, gaps } = pack(pc, noting, luggage)?;
    let items = guest.image.items.len();
    let draft = guest.draft().map_err(|e| crate::commands::capsule::refused(path, &e))?;
    let written =
        evenkeel_files::replace(path, |file| write(&draft, pc.ram(), file, (compress, false), &|_, _| {}));
    let written = written.map_err(|e: io::Error| Failure::file(path, &e))?;
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    anstream::eprintln!(
        "{}: paused in {:.2} ms, {items} items of state in {:.2} ms, {} bytes in {:.1} s\n{}",
        path.display(),
        ms(paused),
        ms(took),
        written.length,
        begin.elapsed().as_secs_f64(),
        written.root
    );
    for gap in &gaps {
        anstream::eprintln!("not saved: {}: {}: {}", gap.gap, gap.owner, gap.what);
    }
    Ok(())
}
