//! `evenkeel snapshot`: a witness, saved into a capsule.

use std::io::Write as _;
use std::path::PathBuf;

use evenkeel_capsule::{Id, Layout, Provenance, Region, Section, Slices};
use evenkeel_monitor::control::protocol::{self as control, Disks};
use evenkeel_state::file::Guest;
use evenkeel_witness::moved::{SEEN, STOPPED};

use super::moving::{self, Wanted};
use crate::failure::Failure;
use crate::{Format, Global, output};

/// Starts a guest that looks at everything, and saves it into a capsule; or saves a machine that runs.
#[derive(clap::Args)]
pub struct Snapshot {
    /// Where to write the capsule.
    #[arg(short, long, value_name = "FILE.capsule")]
    output: PathBuf,
    /// Save the machine that has this control socket instead: one that runs is paused for a moment, and goes on.
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["contract", "shape", "vcpus", "lazy", "compress"])]
    control: Option<PathBuf>,
    /// Copy a disk of the machine into this file, as it is at the instant of the snapshot: one for each disk, in their order.
    #[arg(long, value_name = "FILE", requires = "control")]
    disk_copy: Vec<PathBuf>,
    /// The guest goes on writing to its disks, and they are not copied: whoever restores has to have them as they were.
    #[arg(long, requires = "control", conflicts_with = "disk_copy")]
    leave_disks: bool,
    /// Run the guest under this contract, in its shape.
    #[arg(long, value_name = "FILE", conflicts_with = "shape")]
    contract: Option<PathBuf>,
    /// The machine's shape. On x86 kernel, split or none; `kernel`, if not given. On arm64 min, pmu or full; `full`, if not
    /// given.
    #[arg(long)]
    shape: Option<String>,
    /// How many vCPUs; the first runs.
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=6))]
    vcpus: u32,
    /// Memory as it is, page-aligned, to be mapped instead of read.
    #[arg(long, conflicts_with = "compress")]
    lazy: bool,
    /// Compress memory.
    #[arg(long)]
    compress: bool,
    #[command(flatten)]
    stop: moving::Stop,
}

/// `evenkeel snapshot --format json`.
#[derive(Clone, Debug, serde::Serialize, schemars::JsonSchema)]
pub struct Snapshotted {
    /// `evenkeel.snapshot/1`.
    pub schema: &'static str,
    /// The capsule's identity.
    pub root: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// Items of state in it.
    pub items: usize,
    /// Microseconds that saving took; memory apart.
    pub saved_us: u64,
    /// State that KVM cannot save, and that the guest had.
    pub gaps: Vec<String>,
}

impl Snapshot {
    /// Saves.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        if let Some(socket) = &self.control {
            let disks = match (self.disk_copy.is_empty(), self.leave_disks) {
                (false, _) => Disks::Copy,
                (true, true) => Disks::Leave,
                (true, false) => Disks::Refuse,
            };
            let what = control::Snapshot { path: None, disks };
            return super::control::snapshot(socket, &self.output, what, &self.disk_copy, global);
        }
        let contract = self.contract.as_deref().map(super::contract).transpose()?;
        let wanted = Wanted {
            contract: contract.as_ref(),
            shape: self.shape.as_deref(),
            vcpus: self.vcpus,
            stop: &self.stop,
        };
        let (kept, shape) = moving::keep(&wanted)?;
        let mut guest = Guest::new(random()?, kept.saved.image);
        guest.contract = contract.as_ref().map(|c| evenkeel_contract::document::print(c).into_bytes());
        guest.provenance = Some(Provenance {
            tool: concat!("evenkeel ", env!("CARGO_PKG_VERSION")).to_owned(),
            kernel: kept.seen.volatile.kernel.clone(),
            saved_at: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |now| now.as_secs()),
            exposure: Vec::new(),
        });
        guest.carried.push(Section::new(SEEN, false, kept.seen.print().into_bytes()));
        guest.carried.extend(kept.stopped.map(|stopped| Section::new(STOPPED, false, stopped)));
        let slices: Vec<(u64, &[u8])> =
            kept.memory.iter().map(|(at, bytes)| (*at, bytes.as_slice())).collect();
        let regions =
            slices.iter().map(|(address, bytes)| Region { address: *address, length: bytes.len() as u64 });
        let layout = match self.lazy {
            true => Layout::lazy(regions.collect()),
            false => Layout { level: self.compress.then_some(1), ..Layout::eager(regions.collect()) },
        };
        let draft = guest.draft().map_err(|e| super::capsule::refused(&self.output, &e))?;
        let written = evenkeel_files::replace(&self.output, |file| {
            let written =
                draft.write_with(&mut *file, &layout, Slices(&slices)).map_err(std::io::Error::other)?;
            file.flush().map(|()| written)
        });
        let written = written.map_err(|e: std::io::Error| Failure::file(&self.output, &e))?;
        let told = Snapshotted {
            schema: "evenkeel.snapshot/1",
            root: written.root.to_string(),
            bytes: written.length,
            items: guest.image.items.len(),
            saved_us: u64::try_from(kept.took.as_micros()).unwrap_or(u64::MAX),
            gaps: kept.saved.gaps.iter().map(|g| format!("{}: {}: {}", g.gap, g.owner, g.what)).collect(),
        };
        match global.format {
            Format::Json => output::json(&told)?,
            Format::Text => output::print(&format!(
                "{}: {} bytes, {} items of state, shape {shape}, saved in {} µs\n{}\n{}",
                self.output.display(),
                told.bytes,
                told.items,
                told.saved_us,
                told.root,
                told.gaps.iter().map(|gap| format!("not saved: {gap}\n")).collect::<String>()
            ))?,
        }
        Ok(0)
    }
}

/// An identity for what is saved.
pub fn random() -> Result<Id, Failure> {
    let failed =
        |e| Failure { exit: 3, ..Failure::bad(format!("the kernel gives no random bytes: {e}"), "") };
    evenkeel_files::random_id().map(Id).map_err(failed)
}
