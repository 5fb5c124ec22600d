//! `evenkeel restore`: a witness out of a capsule, on this host.

use std::fmt::Write as _;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use evenkeel_capsule::Reader;
use evenkeel_contract::View;
use evenkeel_files::Claim;
use evenkeel_state::file::{self, Guest};
use evenkeel_state::translate::{Destination, Refusal, Rewrite, translate};
use evenkeel_state::{Elapsed, Image, compare as state_compare, view};
use evenkeel_surface::Surface;
use evenkeel_witness::compare::{Difference, compare};
use evenkeel_witness::moved::{MoveError, SEEN, STOPPED};
use evenkeel_witness::observation;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::moving::{self, ARCH};
use crate::failure::Failure;
use crate::{Format, Global, output};

/// Restores the guest in a capsule here, reads everything back, lets it go on, and asks it what it sees.
#[derive(clap::Args)]
pub struct Restore {
    /// The capsules.
    #[arg(required = true, value_name = "FILE.capsule")]
    capsules: Vec<PathBuf>,
    /// Restore what was restored before: the copies must not meet.
    #[arg(long)]
    pub(super) clone: bool,
    /// Set the state as it was saved, also what this host is known to refuse.
    #[arg(long)]
    no_translators: bool,
    /// Where to write what became of it, as JSON.
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    #[command(flatten)]
    pub(super) machine: super::restore_machine::Options,
}

/// What became of guests that were restored.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Restored {
    /// `evenkeel.restored/1`.
    pub schema: String,
    /// `uname -r` here.
    pub kernel: String,
    /// One for each capsule, in their order.
    pub guests: Vec<One>,
}

/// What became of one guest.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct One {
    /// The capsule's name without its folder.
    pub capsule: String,
    /// `uname -r` where it was saved.
    pub from: String,
    /// Why it was not restored: nothing was set. Each line names what, and why.
    pub refused: Vec<String>,
    /// What was rewritten for this host, by the part that it is about.
    pub translated: Vec<Change>,
    /// Parts that hold what was saved, that run, and that are implied by others.
    pub parts: [u32; 3],
    /// Parts that do not.
    pub not_kept: Vec<Change>,
    /// Parts that are here and were not saved.
    pub unsaved: Vec<String>,
    /// Where the state that was saved from it again differs from what was set.
    pub second: Vec<String>,
    /// Where a third saving differs from the second.
    pub third: Vec<String>,
    /// What of that which was pending the guest met otherwise than it should.
    #[serde(default)]
    pub met: Vec<String>,
    /// How many things the guest saw as before.
    pub alike: usize,
    /// What it saw otherwise.
    pub otherwise: Vec<Change>,
    /// Microseconds from making the VM until everything was read back.
    pub took_us: u64,
}

/// One thing that is otherwise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// What: an item of state, or a facet.
    pub what: String,
    /// What became of it, or the ledger's entry.
    pub how: String,
    /// What it was.
    pub before: String,
    /// What it is.
    pub after: String,
}

impl One {
    /// Nothing was lost, and the guest saw no difference.
    pub fn whole(&self) -> bool {
        let lists = [&self.refused, &self.second, &self.third, &self.met];
        lists.into_iter().all(Vec::is_empty) && self.not_kept.is_empty() && self.otherwise.is_empty()
    }
}

impl Restore {
    /// Restores each.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        // First of all: what was passed is what this host is asked through.
        let operator = self.machine.run.then(|| self.machine.running.operator()).transpose()?;
        // Of this host is asked once, and only if something may have to be rewritten.
        let here = if self.no_translators { None } else { Some(evenkeel_hosts::capture_here()?) };
        let mut told = Restored {
            schema: "evenkeel.restored/1".to_owned(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            guests: Vec::new(),
        };
        if let Some(operator) = operator {
            let [path] = &self.capsules[..] else {
                return Err(Failure::bad(format!("{} capsules to run", self.capsules.len()), "name one"));
            };
            return self.go_on(path, here.as_ref(), operator, told);
        }
        for path in &self.capsules {
            told.guests.push(self.one(path, here.as_ref(), &told.kernel)?);
        }
        if let Some(path) = &self.output {
            let text = serde_json::to_string(&told).unwrap_or_default();
            output::write(path, text + "\n")?;
        }
        match global.format {
            Format::Json if self.output.is_none() => output::json(&told)?,
            Format::Json => {}
            Format::Text => output::print(&text(&told))?,
        }
        Ok(u8::from(!told.guests.iter().all(One::whole)))
    }

    /// The right to restore it, which is given once.
    pub(super) fn claim(&self, path: &Path, guest: &Guest, kernel: &str) -> Result<Option<Claim>, Failure> {
        if self.clone {
            return Ok(None);
        }
        let claim = Claim::take(path, &guest.id.to_string(), &format!("evenkeel on {kernel}\n"));
        let hint = "--clone restores it once more: two guests that believe to be the same one";
        claim.map(Some).map_err(|e| Failure { exit: 1, ..Failure::bad(e.to_string(), hint) })
    }

    fn one(&self, path: &Path, here: Option<&Surface>, kernel: &str) -> Result<One, Failure> {
        let refused = |e: &evenkeel_capsule::Refused| super::capsule::refused(path, e);
        let (mut reader, guest) = open(path)?;
        if !guest.machine.is_empty() {
            let what = format!("{} holds a guest with a machine around it", path.display());
            return Err(Failure::bad(what, "--run lets it go on"));
        }
        // Everything is verified before a VM is made.
        reader.verify().map_err(|e| refused(&e))?;
        reader.read_index().map_err(|e| refused(&e))?;
        let mut memory = memory(&mut reader).map_err(|e| refused(&e))?;
        memory.retain(|(_, bytes)| !bytes.is_empty());
        let mut one = one_of(path, &guest);

        let mut image = guest.image.clone();
        let views = here.map(|here| View::all(here, "here")).unwrap_or_default();
        let shape = image.manifest.shape();
        let view = views.iter().find(|view| view.shape == shape);
        let to = here.zip(view).map(|(here, view)| Destination { view, offer: &here.offer });
        if let Some(to) = &to {
            match translate(&image, to) {
                Ok(done) => {
                    one.translated = done.log.iter().map(rewritten).collect();
                    image = done.image;
                }
                Err(why) => {
                    one.refused = why.iter().map(lost).collect();
                    return Ok(one);
                }
            }
        }
        let claim = self.claim(path, &guest, kernel)?;
        let begin = Instant::now();
        let section = |name: &str| guest.carried.iter().find(|s| s.name == name).map(|s| s.bytes.as_slice());
        let taken = match moving::take(&image, &memory, section(STOPPED)) {
            Ok(taken) => taken,
            Err(error) => {
                // It never ran.
                if let (Some(claim), MoveError::Refused(_) | MoveError::Stopped(_)) = (claim, &error) {
                    claim.release().map_err(|e| Failure::file(path, &e))?;
                }
                one.refused.push(error.to_string());
                return Ok(one);
            }
        };
        let report = &taken.report;
        one.parts = [report.kept, report.running, report.implied];
        one.not_kept = report.not_kept.iter().map(|part| not_kept(part, &image)).collect();
        let unsaved = report.unsaved.iter();
        one.unsaved = unsaved.map(|u| format!("{}/{}/{}", u.owner, u.item, u.field)).collect();
        // What was left out is in a machine all the same: it is left out of both.
        let again = to.as_ref().and_then(|to| translate(&taken.image, to).ok());
        let again = again.map_or(taken.image, |done| done.image);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let saved = guest.provenance.as_ref().map_or(now, |p| Duration::from_secs(p.saved_at));
        // The wall clock here may be behind, and then only the time that it took here went by.
        let since = Elapsed::of(now.saturating_sub(saved) + begin.elapsed() + Duration::from_secs(2));
        let again = state_compare(&image, &again, since);
        // What only one of the two kernels has was read back already: here it is about what both have.
        let both = again.iter().filter(|d| d.before.is_some() && d.after.is_some());
        one.second = both.map(ToString::to_string).collect();
        one.third = taken.third.iter().map(ToString::to_string).collect();
        one.took_us = u64::try_from(taken.took.as_micros()).unwrap_or(u64::MAX);
        one.met = taken.met;
        if let Some(bytes) = section(SEEN) {
            let before = observation::read(bytes)
                .map_err(|e| Failure::bad(format!("{}: {SEEN}: {e}", path.display()), ""))?;
            let compared = compare(&before, &taken.seen);
            one.alike = compared.alike;
            let differences = compared.differences.iter().chain(&compared.undetermined);
            one.otherwise = differences.map(otherwise).collect();
        }
        Ok(one)
    }
}

/// A capsule of this architecture, and the guest in it without its memory.
pub(super) fn open(path: &Path) -> Result<(Reader<BufReader<File>>, Guest), Failure> {
    let refused = |e: &evenkeel_capsule::Refused| super::capsule::refused(path, e);
    let io = File::open(path).map_err(|e| Failure::file(path, &e))?;
    let mut reader = Reader::open(BufReader::new(io), &file::known).map_err(|e| refused(&e))?;
    if reader.header().arch != ARCH {
        let words = format!("{} is of {}", path.display(), reader.header().arch.name());
        return Err(Failure::bad(words, "restore it on a host of that architecture"));
    }
    let guest = Guest::read(&mut reader).map_err(|e| refused(&e))?;
    Ok((reader, guest))
}

/// Nothing became of it yet.
pub(super) fn one_of(path: &Path, guest: &Guest) -> One {
    let capsule = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let from = guest.provenance.as_ref().map_or(String::new(), |p| p.kernel.clone());
    One { capsule, from, ..One::default() }
}

/// All of a guest's memory.
fn memory(reader: &mut Reader<BufReader<File>>) -> Result<Vec<(u64, Vec<u8>)>, evenkeel_capsule::Refused> {
    let regions = reader.index().map(|index| index.regions.clone()).unwrap_or_default();
    let mut memory: Vec<(u64, Vec<u8>)> =
        regions.iter().map(|r| (r.address, vec![0; usize::try_from(r.length).unwrap_or(0)])).collect();
    reader.load(|address, bytes| {
        let place = memory.iter_mut().find_map(|(begin, region)| {
            let from = usize::try_from(address.checked_sub(*begin)?).ok()?;
            region.get_mut(from..from.checked_add(bytes.len())?)
        });
        place.ok_or_else(|| std::io::Error::other("memory that is in no region"))?.copy_from_slice(bytes);
        Ok(())
    })?;
    Ok(memory)
}

fn number(bytes: &[u8]) -> String {
    if bytes.len() > 16 {
        return format!("{} bytes", bytes.len());
    }
    let digits: String = bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect();
    match digits.trim_start_matches('0') {
        "" => "0x0".to_owned(),
        digits => format!("0x{digits}"),
    }
}

pub(super) fn rewritten(r: &Rewrite) -> Change {
    let after = r.after.as_deref().map_or("left out".to_owned(), number);
    Change {
        what: format!("{}/{}", r.owner, r.part),
        how: r.translator.clone(),
        before: number(&r.before),
        after,
    }
}

pub(super) fn lost(r: &Refusal) -> String {
    format!("{}/{} ({}), which holds {}: {}", r.owner, r.part, r.title, number(&r.value), r.because)
}

/// A part that was not kept, as it is told.
pub fn not_kept(part: &evenkeel_state::NotKept, image: &Image) -> Change {
    // MSRs by number, as in captures and in the catalog.
    let msr = || {
        let item = image.item(part.owner, &part.item).filter(|item| item.name == "msrs")?;
        let named = view(item).ok()?.into_iter().find(|named| named.name == part.field)?;
        Some(format!("{}/msr.{:x}", part.owner, named.raw))
    };
    let whole = || match part.field.as_str() {
        field if field.starts_with("msr.") => format!("{}/{field}", part.owner),
        "" => format!("{}/{}", part.owner, part.item),
        field => format!("{}/{}/{field}", part.owner, part.item),
    };
    Change {
        what: msr().unwrap_or_else(whole),
        how: part.became.name().to_owned(),
        before: number(&part.wanted),
        after: part.now.as_deref().map_or_else(|| part.error.clone().unwrap_or_default(), number),
    }
}

fn otherwise(d: &Difference) -> Change {
    Change {
        what: d.name.clone(),
        how: d.cause.clone().unwrap_or_default(),
        before: d.before.clone(),
        after: d.after.clone(),
    }
}

pub(super) fn text(told: &Restored) -> String {
    let mut w = String::new();
    for one in &told.guests {
        let _ = writeln!(w, "{}: {} → {}", one.capsule, one.from, told.kernel);
        for why in &one.refused {
            let _ = writeln!(w, "  refused: {why}");
        }
        if !one.refused.is_empty() {
            continue;
        }
        let [kept, running, implied] = one.parts;
        let _ = writeln!(
            w,
            "  {kept} parts kept, {running} running, {implied} implied, {} not kept; set and read back in {} µs",
            one.not_kept.len(),
            one.took_us
        );
        for (head, list) in
            [("rewritten", &one.translated), ("not kept", &one.not_kept), ("the guest sees", &one.otherwise)]
        {
            for c in list {
                let how = if c.how.is_empty() { String::new() } else { format!(" ({})", c.how) };
                let _ = writeln!(w, "  {head}: {}{how}: {} → {}", c.what, c.before, c.after);
            }
        }
        for (head, list) in
            [("saved again", &one.second), ("saved a third time", &one.third), ("the guest met", &one.met)]
        {
            for line in list {
                let _ = writeln!(w, "  {head}: {line}");
            }
        }
        let _ =
            writeln!(w, "  the guest saw {} things as before, {} otherwise", one.alike, one.otherwise.len());
    }
    w
}
