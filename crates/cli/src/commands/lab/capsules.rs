//! `evenkeel lab capsules`: a guest of each kernel, saved into a capsule, on every kernel, beside what was predicted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use evenkeel_capsule::Reader;
use evenkeel_contract::view::ItemKey;
use evenkeel_contract::{View, registers};
use evenkeel_lab::{Arch as LabArch, Cache, Host, Options};
use evenkeel_state::arm64::register_name;
use evenkeel_state::file::{self, Guest};
use evenkeel_state::translate::{Destination, fates, translate};
use evenkeel_state::{Image, Owner, entries};
use evenkeel_surface::{Arch, Write};
use schemars::JsonSchema;
use serde::Serialize;

use super::run;
use crate::commands::restore::{One, Restored};
use crate::failure::Failure;
use crate::{Format, Global, output};

/// A guest saved on each kernel goes on on every other: as it was saved, and rewritten where that loses nothing.
#[derive(clap::Args)]
pub struct Capsules {
    /// Kernels by name, of one architecture; all of the lane that are fetched when none is named.
    pub kernels: Vec<String>,
    /// The lane, where no kernel is named.
    #[arg(long, default_value = "svm", value_parser = ["svm", "arm64"])]
    pub lane: String,
    /// The machine's shape: kernel, split or none on x86, min, pmu or full on arm64. kernel or full, if not given.
    #[arg(long, value_parser = ["kernel", "split", "none", "min", "pmu", "full"])]
    shape: Option<String>,
    /// What the guest is stopped in (arm64): timer-expired, lpi, wfi and others. Between two batches, if not given.
    #[arg(long, value_name = "SCENARIO")]
    stopped_in: Option<String>,
    /// Where the capsules and capsules.json go.
    #[arg(short, long, value_name = "FOLDER", default_value = ".")]
    output: PathBuf,
}

/// All pairs.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CapsuleSquare {
    /// `evenkeel.lab-capsules/1`.
    pub schema: &'static str,
    /// The shape.
    pub shape: String,
    /// Digest of what was predicted before anything was restored.
    pub predicted: String,
    /// The pairs.
    pub pairs: Vec<Pair>,
}

/// A guest of one kernel on another.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Pair {
    /// Where it was saved.
    pub from: String,
    /// Where it was restored.
    pub on: String,
    /// What was said before.
    pub predicted: Predicted,
    /// What of the state as it was saved was refused or altered.
    pub forced: Vec<String>,
    /// What the guest then saw otherwise, with the ledger's entry where there is one.
    pub forced_seen: Vec<String>,
    /// Of the rewritten state: why it was refused.
    pub refused: Vec<String>,
    /// What of it was lost all the same, differed when it was saved again, or was met otherwise.
    pub lost: Vec<String>,
    /// What the guest then saw otherwise.
    pub seen: Vec<String>,
    /// Predicted and not measured, measured and not predicted.
    pub disagree: Vec<String>,
}

/// What captures say of a pair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Predicted {
    /// Items that will not be taken as they were saved.
    pub not_taken: BTreeSet<String>,
    /// Items that cannot be rewritten without a loss either.
    pub refused: BTreeSet<String>,
    /// Something is not known.
    pub unknown: BTreeSet<String>,
    /// Registers of the first vCPU that are there and were not saved (arm64).
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub unsaved: BTreeSet<String>,
}

const CAPSULE: &str = "guest.capsule";
const RESULT: &str = "result.json";

impl Capsules {
    /// Does both rounds. Exits with 0 where all was as predicted and nothing that was rewritten was lost, with 1 where not,
    /// with 3 where a kernel could not be run.
    pub fn run(self, hosts: &[Host], cache: Cache, global: Global) -> Result<u8, Failure> {
        let Some(arch) = hosts.first().map(|host| host.kernel.arch) else {
            return Err(Failure::bad("no kernel: nothing ran", "evenkeel lab fetch"));
        };
        if let Some(other) = hosts.iter().find(|h| h.kernel.arch != arch) {
            let why = format!("{} is of another architecture than {}", other.name, hosts[0].name);
            return Err(Failure::bad(why, "a guest stays on its architecture"));
        }
        let usual = if arch == LabArch::X86_64 { "kernel" } else { "full" };
        let shape = self.shape.clone().unwrap_or_else(|| usual.to_owned());
        let mut options = Options::new(cache).map_err(super::failed)?;
        options.timeout = Some(std::time::Duration::from_secs(1800));
        std::fs::create_dir_all(&self.output).map_err(|e| Failure::file(&self.output, &e))?;
        let mut failed = 0;
        let mut capsules: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut args = vec!["snapshot", "-o", CAPSULE, "--compress", "--shape", &shape];
        args.extend(self.stopped_in.iter().flat_map(|scenario| ["--stopped-in", scenario]));
        super::registers::round(
            ("round 1, saving", hosts),
            |host| run::document(host, args.iter().copied(), &[], CAPSULE, &[0], &options),
            |host, bytes| {
                output::write(&self.output.join(format!("{}.capsule", host.name)), &bytes)?;
                capsules.insert(host.name.clone(), bytes);
                Ok(())
            },
            &mut failed,
        );
        let takers: Vec<Host> = hosts.iter().filter(|h| capsules.contains_key(&h.name)).cloned().collect();

        // Before anything is restored, and not changed after.
        let mut predictions: BTreeMap<(String, String), Predicted> = BTreeMap::new();
        for (from, bytes) in &capsules {
            let image = image(from, bytes)?;
            for on in &takers {
                predictions.insert((from.clone(), on.name.clone()), predict(&image, &on.name, &shape)?);
            }
        }
        let text: String =
            predictions.iter().map(|((from, on), p)| format!("{from} on {on}: {p:?}\n")).collect();
        let predicted = evenkeel_surface::canonical::digest(&text);
        output::write(&self.output.join("predicted.txt"), text)?;
        anstream::eprintln!("predicted before restoring: {predicted}");

        let files: Vec<(String, Vec<u8>)> =
            capsules.iter().map(|(name, bytes)| (format!("{name}.capsule"), bytes.clone())).collect();
        let names = || files.iter().map(|(name, _)| name.as_str());
        let forced: Vec<&str> =
            ["restore", "--clone", "--no-translators", "-o", RESULT].into_iter().chain(names()).collect();
        let usual: Vec<&str> = ["restore", "--clone", "-o", RESULT].into_iter().chain(names()).collect();
        let mut pairs = Vec::new();
        super::registers::round(
            ("round 2, restoring", &takers),
            |host| {
                let one = run::document(host, forced.iter().copied(), &files, RESULT, &[0, 1], &options)?;
                let two = run::document(host, usual.iter().copied(), &files, RESULT, &[0, 1], &options)?;
                Ok([one, vec![b'\n'], two].concat())
            },
            |host, bytes| {
                let mut lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
                let mut next = || -> Result<Restored, Failure> {
                    let line = lines.next().unwrap_or_default();
                    serde_json::from_slice(line).map_err(|e| Failure::bad(format!("{}: {e}", host.name), ""))
                };
                let (forced, usual) = (next()?, next()?);
                for (forced, usual) in forced.guests.iter().zip(&usual.guests) {
                    let from = forced.capsule.trim_end_matches(".capsule").to_owned();
                    let predicted = predictions.get(&(from.clone(), host.name.clone())).cloned();
                    pairs.push(pair(from, &host.name, predicted.unwrap_or_default(), forced, usual));
                }
                Ok(())
            },
            &mut failed,
        );
        pairs.sort_by(|a, b| (&a.from, &a.on).cmp(&(&b.from, &b.on)));
        let square = CapsuleSquare { schema: "evenkeel.lab-capsules/1", shape, predicted, pairs };
        let text = serde_json::to_string_pretty(&square).unwrap_or_default() + "\n";
        output::write(&self.output.join("capsules.json"), text)?;
        match global.format {
            Format::Json => output::json(&square)?,
            Format::Text => output::print(&text_of(&square, global.all))?,
        }
        if square.pairs.is_empty() || failed > 0 {
            return Ok(3);
        }
        let good = |p: &Pair| p.disagree.is_empty() && p.lost.is_empty();
        Ok(u8::from(!square.pairs.iter().all(good)))
    }
}

fn image(name: &str, bytes: &[u8]) -> Result<Image, Failure> {
    let wrong = |e: evenkeel_capsule::Refused| Failure::bad(format!("the capsule of {name}: {e}"), "");
    let mut reader = Reader::open(std::io::Cursor::new(bytes), &file::known).map_err(wrong)?;
    Ok(Guest::read(&mut reader).map_err(wrong)?.image)
}

/// What the bundled capture of a kernel says of an image.
fn predict(image: &Image, on: &str, shape: &str) -> Result<Predicted, Failure> {
    let mut said = Predicted::default();
    if !evenkeel_hosts::BUNDLED.iter().any(|bundled| bundled.name == on) {
        said.unknown.insert(format!("there is no capture of {on}"));
        return Ok(said);
    }
    let host = evenkeel_hosts::load(on)?;
    let views = View::all(&host.surface, on);
    let Some(view) = views.iter().find(|view| view.shape == shape) else { return Ok(said) };
    let to = Destination { view, offer: &host.surface.offer };
    let mut saved: BTreeSet<u64> = BTreeSet::new();
    for item in &image.items {
        for entry in entries::of(item).unwrap_or_default() {
            let msr = match entry.key {
                entries::Key::Msr(msr) => msr,
                entries::Key::Reg(id) if image.arch == Arch::Aarch64 => {
                    if matches!(item.owner, Owner::Vm | Owner::Vcpu(0)) {
                        saved.insert(id);
                    }
                    let held = word(&entry.value);
                    let name = format!("{}/{}/{}", item.owner, item.name, register_name(id));
                    match registers::held(view, id, held) {
                        // What shows another register once more is not set where that one is.
                        _ if implied(id) => {}
                        Write::Kept => {}
                        Write::Unasked => drop(said.unknown.insert(name)),
                        Write::Refused | Write::Altered => drop(said.not_taken.insert(name)),
                    }
                    continue;
                }
                entries::Key::Reg(_) => continue,
            };
            let key = ItemKey::Msr(msr);
            let held = entry.value.get(..8).map_or(0, |b| evenkeel_sys::layout::long(b, 0));
            let shows = view.item(key).and_then(|item| item.reset);
            let name = format!("{}/{key}", item.owner);
            match evenkeel_contract::carries::taken(view, key) {
                Some(Write::Refused | Write::Altered) if shows != Some(held) => {
                    said.not_taken.insert(name);
                }
                None => {
                    said.unknown.insert(name);
                }
                _ => {}
            }
        }
        // One that has an older form is set in that form.
        let stands_in = evenkeel_catalog::section(&item.name).is_some_and(|s| !s.instead.is_empty());
        // The offset is carried by the TSC itself where there is no attribute for it.
        if to.lacks_section(&item.name) && !stands_in && item.name != "tsc-offset" {
            said.not_taken.insert(format!("{}/{}", item.owner, item.name));
        }
    }
    for fate in fates(image, &to) {
        let name = format!("{}/{}/{}", fate.owner, fate.section, fate.name);
        match fate.write {
            Write::Kept => {}
            Write::Unasked => drop(said.unknown.insert(name)),
            Write::Refused | Write::Altered => drop(said.not_taken.insert(name)),
        }
    }
    if image.arch == Arch::Aarch64 {
        said.unsaved = registers::unsaved(view, &saved).into_iter().map(register_name).collect();
    }
    if let Err(refused) = translate(image, &to) {
        said.refused = refused.iter().map(|r| format!("{}/{}", r.owner, r.part)).collect();
    }
    Ok(said)
}

/// A register's lowest 64 bits.
fn word(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

fn implied(id: u64) -> bool {
    evenkeel_catalog::reg(id).is_some_and(|reg| reg.alias_of.is_some())
}

/// Registers that are there and were not saved, of those that the prediction is about.
fn unsaved(one: &One) -> BTreeSet<String> {
    let first = one.unsaved.iter().filter_map(|u| u.strip_prefix("vm/").or(u.strip_prefix("vcpu.0/")));
    let register = |(item, name): (&str, &str)| {
        (item.ends_with("registers") || item == "arm64-counters").then(|| name.to_owned())
    };
    first.filter_map(|u| u.split_once('/')).filter_map(register).collect()
}

fn pair(from: String, on: &str, predicted: Predicted, forced: &One, usual: &One) -> Pair {
    let measured: BTreeSet<String> = forced.not_kept.iter().map(|c| c.what.clone()).collect();
    let mut disagree: Vec<String> = Vec::new();
    // A whole section that is refused takes its fields with it.
    let within = |set: &BTreeSet<String>, what: &String| {
        set.contains(what)
            || set.iter().any(|s| what.starts_with(&format!("{s}/")) || s.starts_with(&format!("{what}/")))
    };
    let unmeasured = predicted.not_taken.iter().filter(|p| !within(&measured, p));
    disagree.extend(unmeasured.map(|p| format!("predicted, and was taken: {p}")));
    let surprises =
        measured.iter().filter(|m| !within(&predicted.not_taken, m) && !within(&predicted.unknown, m));
    disagree.extend(surprises.map(|m| format!("not predicted: {m}")));
    let named = |line: &String| line.split(" (").next().unwrap_or_default().to_owned();
    let refused: BTreeSet<String> = usual.refused.iter().map(named).collect();
    let of = |set: &BTreeSet<String>, other: &BTreeSet<String>, what: &str| -> Vec<String> {
        set.difference(other).map(|name| format!("{what}: {name}")).collect()
    };
    disagree.extend(of(&predicted.refused, &refused, "predicted to be refused, and was not"));
    disagree.extend(of(&refused, &predicted.refused, "refused, and not predicted"));
    // Nothing was restored where it came to no end.
    if forced.refused.is_empty() && (!predicted.unsaved.is_empty() || forced.capsule.contains("arm64")) {
        let unsaved = unsaved(forced);
        disagree.extend(of(&predicted.unsaved, &unsaved, "predicted to be there and unsaved, and was not"));
        disagree.extend(of(&unsaved, &predicted.unsaved, "there and unsaved, and not predicted"));
    }
    let seen = |one: &One| -> Vec<String> {
        let entry = |how: &str| if how.is_empty() { "no entry".to_owned() } else { how.to_owned() };
        one.otherwise
            .iter()
            .map(|c| format!("{} ({}): {} → {}", c.what, entry(&c.how), c.before, c.after))
            .collect()
    };
    let lost = usual.not_kept.iter().map(|c| format!("{} {}", c.what, c.how));
    let lost = lost.chain(usual.second.iter().chain(&usual.third).chain(&usual.met).cloned()).collect();
    let forced_lost =
        forced.not_kept.iter().map(|c| format!("{} {}: {} → {}", c.what, c.how, c.before, c.after));
    let forced_lost = forced_lost.chain(forced.refused.iter().chain(&forced.met).cloned()).collect();
    Pair {
        from,
        on: on.to_owned(),
        predicted,
        forced: forced_lost,
        forced_seen: seen(forced),
        refused: usual.refused.clone(),
        lost,
        seen: seen(usual),
        disagree,
    }
}

fn text_of(square: &CapsuleSquare, all: bool) -> String {
    let mut text = format!("shape {}; predicted before restoring: {}\n", square.shape, square.predicted);
    let (mut agree, mut whole) = (0, 0);
    for p in &square.pairs {
        agree += usize::from(p.disagree.is_empty());
        whole += usize::from(p.refused.is_empty() && p.lost.is_empty());
        text += &format!(
            "{} on {}: as saved, {} parts are not taken and {} things are seen otherwise; rewritten, {}{} lost, {} seen otherwise\n",
            p.from,
            p.on,
            p.forced.len(),
            p.forced_seen.len(),
            if p.refused.is_empty() { String::new() } else { format!("refused ({}), ", p.refused.len()) },
            p.lost.len(),
            p.seen.len()
        );
        for (head, list, always) in [
            ("as saved", &p.forced, false),
            ("the guest sees", &p.seen, false),
            ("refused", &p.refused, true),
            ("lost", &p.lost, true),
            ("DISAGREES", &p.disagree, true),
        ] {
            if always || all {
                text.extend(list.iter().map(|line| format!("  {head}: {line}\n")));
            }
        }
    }
    let n = square.pairs.len();
    text + &format!("{agree} of {n} as predicted; {whole} of {n} restored whole once rewritten\n")
}
