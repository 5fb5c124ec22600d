//! **Capture**: ask a host everything that it can show a guest, and everything that it can save and accept, and write
//! it down as a [`Surface`].
//!
//! Scratch VMs are made, one in each shape, and never run: nothing here needs guest memory. What is asked goes through
//! [`evenkeel_sys::Backend`], so a capture can be recorded on one machine and replayed on another of any architecture.
//!
//! A capture is never silently short. What fails is in [`Offer::unread`](evenkeel_surface::Offer::unread) with the call
//! and the reason; only a host without KVM at all is an [`Error`].
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use evenkeel_surface::{Arch, Digests, Measured, Offer, Provenance, SCHEMA, Surface, Volatile};
use evenkeel_sys::{Backend, Source, System};

mod arm64;
mod book;
mod capabilities;
mod error;
mod graves;
mod host;
mod measured;
mod net;
mod registers;
mod shapes;
mod x86;

pub use error::Error;

use book::Book;
use graves::Graves;

/// What to ask and how to sign it.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program that captures, with its version: goes into `volatile.tool`.
    pub tool: String,
    /// Also make a tap interface for a moment, to see which offloads it takes. Needs CAP_NET_ADMIN; udev will notice.
    pub network: bool,
    /// Measure the network in a thread beside the rest. The calls then come in no certain order: not for recordings.
    pub side_by_side: bool,
    /// MSRs to ask for besides those that the host lists (x86): those that the catalog says to ask.
    pub msrs: Vec<u32>,
}

impl Default for Options {
    fn default() -> Self {
        let asked = evenkeel_catalog::MSRS.iter().filter(|m| m.ask);
        Options {
            tool: concat!("evenkeel-capture ", env!("CARGO_PKG_VERSION")).to_owned(),
            network: true,
            side_by_side: false,
            msrs: asked.flat_map(|m| m.msr..=m.last.unwrap_or(m.msr)).collect(),
        }
    }
}

/// How long the parts of a capture took, in the order in which they were done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Part and time. `system` is all that is asked on `/dev/kvm` itself.
    pub phases: Vec<(&'static str, Duration)>,
}

impl Timings {
    /// The time of the whole.
    pub fn whole(&self) -> Duration {
        self.phases.iter().map(|(_, time)| *time).sum()
    }

    fn phase<T>(&mut self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = work();
        self.phases.push((name, start.elapsed()));
        done
    }
}

/// Captures the host behind `backend`.
///
/// Fails only when there is no KVM to ask, or when a replayed log has other answers than were asked for.
pub fn capture(backend: &dyn Backend, options: &Options) -> Result<Surface, Error> {
    capture_timed(backend, options).map(|(surface, _)| surface)
}

/// [`capture`], and how long its parts took.
pub fn capture_timed(backend: &dyn Backend, options: &Options) -> Result<(Surface, Timings), Error> {
    std::thread::scope(|scope| {
        // Closing a tap waits for the kernel longer than all of KVM's answers take.
        let beside = (options.network && options.side_by_side).then(|| {
            scope.spawn(|| {
                let mut parts = Parts::default();
                net::measure(backend, &mut parts);
                std::mem::take(&mut parts.graves).close();
                (parts.offer.measured, parts.book)
            })
        });
        ask(backend, options, || match beside {
            Some(thread) => thread.join().ok(),
            None => None,
        })
    })
}

/// Asks in order. `beside` waits for what was measured beside, if anything was.
fn ask(
    backend: &dyn Backend,
    options: &Options,
    beside: impl FnOnce() -> Option<(Vec<Measured>, Book)>,
) -> Result<(Surface, Timings), Error> {
    let mut timings = Timings::default();
    let mut parts = Parts::default();

    let arch = timings.phase("open", || host::architecture(backend))?;
    let system = timings.phase("open", || open(backend))?;
    match arch {
        Arch::X86_64 => x86::capture(&system, options, &mut parts, &mut timings)?,
        Arch::Aarch64 => arm64::capture(&system, &mut parts, &mut timings)?,
    }
    if options.network && !options.side_by_side {
        timings.phase("network", || net::measure(backend, &mut parts));
    }
    timings.phase("host", || host::provenance(backend, arch, &mut parts));

    let Parts { mut offer, provenance, mut volatile, mut book, graves } = parts;
    timings.phase("close", || graves.close());
    if let Some((measured, notes)) = timings.phase("network", beside) {
        offer.measured.extend(measured);
        book.absorb(notes);
    }
    offer.unread = book.finish()?;
    volatile.tool.clone_from(&options.tool);
    let mut surface =
        Surface { schema: SCHEMA.to_owned(), arch, digests: Digests::default(), offer, provenance, volatile };
    timings.phase("seal", || seal(&mut surface));
    Ok((surface, timings))
}

/// What is filled in along the way.
#[derive(Default)]
struct Parts<'b> {
    offer: Offer,
    provenance: Provenance,
    volatile: Volatile,
    book: Book,
    graves: Graves<'b>,
}

fn open(backend: &dyn Backend) -> Result<System<'_>, Error> {
    let system = System::open(backend).map_err(|e| Error::new("system", e))?;
    match system.api_version() {
        Ok(12) => Ok(system),
        Ok(other) => Err(Error::new(
            "system",
            evenkeel_sys::Error {
                ioctl: "KVM_GET_API_VERSION",
                argument: String::new(),
                why: evenkeel_sys::Refusal::Nonsense(format!(
                    "version {other} of KVM's interface; 12 is the only one known"
                )),
            },
        )),
        Err(e) => Err(Error::new("system", e)),
    }
}

fn seal(surface: &mut Surface) {
    evenkeel_surface::canonical::seal(surface);
}

/// A little-endian or native word that a source gave.
fn number(backend: &dyn Backend, source: Source<'_>, book: &mut Book, what: &str) -> Option<u64> {
    let bytes = book.read(backend, source, what)?;
    let mut word = [0u8; 8];
    let taken = bytes.len().min(8);
    word[..taken].copy_from_slice(&bytes[..taken]);
    Some(u64::from_ne_bytes(word))
}
