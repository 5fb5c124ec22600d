//! A machine into a capsule.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use evenkeel_capsule::{Exposed, Layout, Provenance, Region};
use evenkeel_contract::{Contract, document};
use evenkeel_monitor::pc::Pc;
use evenkeel_state::{Guest, Noting};
use evenkeel_surface::Surface;

use super::failed;
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
}

/// Pauses a machine and saves it. It stays paused: whoever has the capsule may run it elsewhere.
pub fn save<W: Write + Send>(
    pc: &Pc<'_, '_, W>,
    noting: &Noting<'_>,
    luggage: &Luggage,
    path: &Path,
    compress: bool,
) -> Result<(), Failure> {
    let paused = pc.life().pause().map_err(|e| failed(&e))?;
    let begin = Instant::now();
    let manifest = noting.manifest(0).unwrap_or_default();
    let saved = pc.save(&manifest).map_err(|e| failed(&e))?;
    let took = begin.elapsed();
    let items = saved.saved.image.items.len();
    let mut guest = Guest::new(random()?, saved.saved.image);
    guest.machine = saved.sections;
    guest.contract = Some(document::print(&luggage.contract).into_bytes());
    guest.provenance = Some(Provenance {
        tool: concat!("evenkeel ", env!("CARGO_PKG_VERSION")).to_owned(),
        kernel: luggage.kernel.clone(),
        saved_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
        exposure: luggage.exposure.clone(),
    });
    let ram = pc.ram();
    let regions = vec![Region { address: 0, length: ram.len() as u64 }];
    let layout = Layout { level: compress.then_some(1), ..Layout::eager(regions) };
    let draft = guest.draft().map_err(|e| crate::commands::capsule::refused(path, &e))?;
    let memory = |address: u64, into: &mut [u8]| {
        let at = usize::try_from(address).map_err(std::io::Error::other)?;
        ram.read(at, into).map_err(std::io::Error::other)
    };
    let written = evenkeel_files::replace(path, |file| {
        let written = draft.write_with(&mut *file, &layout, memory).map_err(std::io::Error::other)?;
        file.flush().map(|()| written)
    });
    let written = written.map_err(|e: std::io::Error| Failure::file(path, &e))?;
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
    for gap in &saved.saved.gaps {
        anstream::eprintln!("not saved: {}: {}: {}", gap.gap, gap.owner, gap.what);
    }
    Ok(())
}
