//! `evenkeel registers`.

use std::path::{Path, PathBuf};

use evenkeel_state::registers::{
    Became, FILE_SCHEMA, FileLoad, GicRevisions, LoadReport, Loaded, MAX_BYTES, RegisterFile, Shape,
};
use evenkeel_surface::canonical::Canonical;

use crate::failure::Failure;
use crate::{Format, Global, output};

/// Registers of an arm64 vCPU: save them here, or see what this host makes of those that another saved.
#[derive(clap::Args)]
pub struct Registers {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Save all registers of a fresh vCPU, of each shape.
    Save {
        /// What the vCPU is made with: min, pmu or full. Several may be given; all of them when none is.
        #[arg(long, value_parser = shape)]
        shape: Vec<Shape>,
        /// Also save a second vCPU of each shape, whose registers were given other values first.
        #[arg(long)]
        fill: bool,
        /// Where to write the registers; standard output otherwise.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Set saved registers on a fresh vCPU, read each back, and say which were not kept. Exits with 1 if any was not.
    Load {
        /// What `registers save` wrote, here or on another host.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Where to write the report as JSON.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

/// A shape by name.
pub fn shape(name: &str) -> Result<Shape, String> {
    Shape::by_name(name).ok_or_else(|| "one of min, pmu, full".to_owned())
}

impl Registers {
    /// Saves or loads.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        let kvm = evenkeel_sys::Live::new();
        match self.what {
            What::Save { shape, fill, output: to } => {
                let shapes = if shape.is_empty() { Shape::ALL.to_vec() } else { shape };
                let file = evenkeel_state::registers::save(&kvm, &shapes, fill).map_err(failed)?;
                super::deliver(&print(&file), to.as_ref())?;
                for vcpu in &file.vcpus {
                    let unread = vcpu.registers.iter().filter(|r| r.value.is_none()).count();
                    anstream::eprintln!(
                        "{}{}: {} registers, {unread} of them unreadable",
                        vcpu.shape.name(),
                        if vcpu.filled { ", filled" } else { "" },
                        vcpu.registers.len()
                    );
                }
                Ok(0)
            }
            What::Load { files, output: to } => load(&kvm, &files, to.as_deref(), global),
        }
    }
}

fn load(
    kvm: &evenkeel_sys::Live,
    files: &[PathBuf],
    to: Option<&Path>,
    global: Global,
) -> Result<u8, Failure> {
    // All of them before any is loaded: a bad one is bad use, not a finding.
    let files =
        files.iter().map(|path| Ok((short(path), read(path)?))).collect::<Result<Vec<_>, Failure>>()?;
    let report = evenkeel_state::registers::load_all(kvm, &files).map_err(failed)?;
    if let Some(path) = to {
        output::write(path, report.canonical() + "\n")?;
    }
    match global.format {
        Format::Json => output::json(&report)?,
        Format::Text => output::print(&text(&report, global.all))?,
    }
    let all_kept = |load: &FileLoad| {
        load.loaded.as_ref().is_some_and(|l| l.not_kept.is_empty() && l.overwritten.is_empty())
    };
    Ok(if report.loads.iter().any(|l| l.failed.is_some()) {
        3
    } else {
        u8::from(!report.loads.iter().all(all_kept))
    })
}

/// A file's name without its folder.
fn short(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// A file that `registers save` wrote.
pub fn read(path: &Path) -> Result<RegisterFile, Failure> {
    let meta = std::fs::metadata(path).map_err(|e| Failure::file(path, &e))?;
    if !meta.is_file() || meta.len() > MAX_BYTES as u64 {
        return Err(Failure::file(path, &format!("not a regular file of at most {MAX_BYTES} bytes")));
    }
    let bytes = std::fs::read(path).map_err(|e| Failure::file(path, &e))?;
    evenkeel_state::registers::parse_file(&bytes).map_err(|e| Failure {
        hint: format!("`evenkeel registers save` writes such a file ({FILE_SCHEMA})"),
        ..Failure::file(path, &e)
    })
}

/// The text of a file: a line for each register.
fn print(file: &RegisterFile) -> String {
    let mut text = format!(
        "{{\n\"schema\":{},\n\"arch\":{},\n\"kernel\":{},\n\"vcpus\":[",
        file.schema.canonical(),
        file.arch.canonical(),
        file.kernel.canonical()
    );
    for (index, vcpu) in file.vcpus.iter().enumerate() {
        text += if index == 0 { "\n" } else { ",\n" };
        text += &vcpu.canonical();
    }
    text + "\n]\n}\n"
}

fn failed(e: evenkeel_state::registers::Error) -> Failure {
    Failure { exit: 3, ..Failure::bad(e.to_string(), e.hint()) }
}

/// The report for a person.
fn text(report: &LoadReport, all: bool) -> String {
    let mut text = String::new();
    for load in &report.loads {
        match (&load.loaded, &load.failed) {
            (Some(loaded), _) => text += &one(load, loaded, all),
            (None, why) => {
                let why = why.as_deref().unwrap_or("not loaded");
                text += &format!("{} ({}), {}: {why}\n", load.file, load.from, load.shape.name());
            }
        }
    }
    text + &gic(&report.gic)
}

fn one(load: &FileLoad, loaded: &Loaded, all: bool) -> String {
    let count = |became: &[Became]| loaded.not_kept.iter().filter(|n| became.contains(&n.became)).count();
    let mut text = format!(
        "{} ({}), {}{}: {} kept, {} running, {} refused, {} altered, {} here but not in the file\n",
        load.file,
        load.from,
        loaded.shape.name(),
        if loaded.filled { ", filled" } else { "" },
        loaded.kept,
        loaded.running,
        count(&[Became::Refused, Became::Unlisted]),
        count(&[Became::Altered, Became::Unreadable]) + loaded.overwritten.len(),
        loaded.unsaved.len(),
    );
    let shown = |value: &Option<evenkeel_state::registers::Value>| {
        value.as_ref().map_or("-".to_owned(), |v| v.to_string())
    };
    for n in &loaded.not_kept {
        let why = match (n.became, n.errno.as_deref().unwrap_or("")) {
            (Became::Unlisted, errno) => format!("not listed here, {errno}"),
            (Became::Refused, errno) => format!("refused, {errno}"),
            (Became::Altered, _) => "altered".to_owned(),
            (Became::Unreadable, errno) => format!("set, and cannot be read: {errno}"),
            (Became::NotSaved, errno) => format!("was not saved: {errno}"),
        };
        text += &format!("  {:<40} {why}: saved {}, now {}\n", name(n.id.0), shown(&n.saved), shown(&n.now));
    }
    for o in &loaded.overwritten {
        text += &format!("  {:<40} changed later: saved {}, now {}\n", name(o.id.0), o.saved, o.now);
    }
    if all {
        for id in &loaded.settled {
            text += &format!("  {:<40} right only once others were set\n", name(id.0));
        }
        for id in &loaded.unsaved {
            text += &format!("  {:<40} not in the file\n", name(id.0));
        }
    }
    text
}

/// What people call a register.
pub fn name(id: u64) -> String {
    match evenkeel_catalog::reg(id) {
        Some(reg) if reg.last.is_none() => reg.name.to_owned(),
        Some(reg) => format!("{} ({id:#x})", reg.name),
        None => {
            let facet = evenkeel_catalog::REGISTERS.iter().find(|r| r.at.reg == Some(id));
            facet.map_or_else(|| format!("{id:#x}"), |r| r.name.to_owned())
        }
    }
}

/// What became of the interrupt controller's revisions, in a line each.
pub fn gic(revisions: &GicRevisions) -> String {
    let mut text = format!("GICD_IIDR {}\n", revisions.iidr);
    for a in &revisions.attempts {
        let when = match a.when {
            evenkeel_state::registers::Moment::BeforeInit => "before",
            evenkeel_state::registers::Moment::AfterInit => "after",
        };
        let what = match (&a.errno, a.now) {
            (Some(errno), _) => format!("refused, {errno}"),
            (None, Some(now)) if now == a.revision => "kept".to_owned(),
            (None, Some(now)) => format!("accepted and ignored: it is {now}"),
            (None, None) => "accepted, and cannot be read back".to_owned(),
        };
        text += &format!("  revision {} {when} initialization: {what}\n", a.revision);
    }
    text
}
