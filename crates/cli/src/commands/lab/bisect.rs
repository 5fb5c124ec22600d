//! `evenkeel lab bisect`: the first kernel that changes something.

use std::collections::BTreeMap;

use evenkeel_contract::View;
use evenkeel_contract::diff::{Difference, diff};
use evenkeel_lab::{
    Bisection, Cache, End, Error, Exit, Host, Job, Kernel, Kernels, Measured, Options, Origin, bisect,
    compare_versions, fetch, run, served,
};
use evenkeel_surface::{Limits, Surface, read};
use schemars::JsonSchema;
use serde::Serialize;

use super::failed;
use super::fetch::Teller;
use crate::failure::Failure;
use crate::{Format, Global, output};

/// Find the first kernel that changes a facet or an item of state.
///
/// Between GOOD and BAD lie, if no list is given, all kernels of the same flavour that Debian's archive serves, that the
/// list of the lab names or that the cache has, in the order of their versions. Each step fetches one, boots it,
/// captures it and halves what is left. A kernel that does not boot is skipped. Exit codes: 0 found, 2 there is nothing
/// to find, 3 GOOD or BAD could not be measured.
#[derive(clap::Args)]
pub struct Bisect {
    /// As `evenkeel diff` and `evenkeel explain` name it: `cpuid.7.0.ecx.shstk`, `msr.1db`, `cap.235`, `reg.…`.
    facet: String,
    /// A host of the lab that shows the old value.
    good: String,
    /// A host of the lab that shows another.
    bad: String,
    /// The kernels to look at, in order, instead of the archive's: for example some that you added.
    #[arg(long, value_delimiter = ',', value_name = "HOST,…")]
    kernels: Vec<String>,
    /// Boot also those kernels of which a capture is bundled.
    #[arg(long)]
    fresh: bool,
    /// Seconds that a kernel may take.
    #[arg(long)]
    timeout: Option<u64>,
}

/// A capture, ready to be compared.
struct Capture {
    surface: Surface,
    views: Vec<View>,
}

impl Capture {
    fn read(name: &str, bytes: &[u8]) -> Result<Capture, String> {
        let surface = read::surface(bytes, &Limits::default())
            .map_err(|e| e.diagnostics.first().map_or("no capture".to_owned(), |d| d.message.clone()))?;
        let views = View::all(&surface, name);
        Ok(Capture { surface, views })
    }
}

/// What the facet shows on a kernel: every difference to GOOD that is about it. None: the same as GOOD.
type Value = BTreeMap<(String, String), String>;

/// A step of the search.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Step {
    /// The host of the lab.
    host: String,
    /// What `uname -r` says under it.
    release: String,
    /// The version of Debian's packages.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// `booted`, `bundled` (a capture made earlier) or `skipped`.
    how: &'static str,
    /// The facet's value; why it was skipped.
    value: String,
}

/// What was found.
#[derive(Serialize, JsonSchema)]
pub struct BisectReport {
    /// `evenkeel.bisect/1`.
    schema: &'static str,
    /// The facet or item, as `diff` names it.
    facet: String,
    /// The host that the search began with.
    good: String,
    /// The host that it ended with.
    bad: String,
    /// How many hosts there are from GOOD to BAD, with both.
    candidates: usize,
    /// All that was looked at, in that order.
    steps: Vec<Step>,
    /// The last one with the value of GOOD.
    last_old: Step,
    /// The first one with another.
    first_new: Step,
    /// Candidates between the two that could not be measured.
    between: Vec<String>,
    /// Whether what was measured changes once and stays.
    monotonic: bool,
    /// Entries of the ledger that explain the change.
    causes: Vec<&'static str>,
}

impl Bisect {
    /// Searches.
    pub fn run(self, cache: Cache, global: Global) -> Result<u8, Failure> {
        let mut options = Options::new(cache).map_err(failed)?;
        options.timeout = self.timeout.map(std::time::Duration::from_secs);
        let (hosts, reversed) = self.candidates(&options.cache)?;
        let facet = facet(&self.facet);
        let last = hosts.len() - 1;
        let mut search = Search { options: &options, fresh: self.fresh, facet, captures: Vec::new() };
        search.captures.resize_with(hosts.len(), || None);
        let (good, bad) = (&hosts[0], &hosts[last]);
        anstream::eprintln!(
            "{}: {} candidates from {} to {}{}",
            search.facet,
            hosts.len(),
            good.name,
            bad.name,
            if reversed { ", backwards: BAD is the older one" } else { "" }
        );

        for (end, host) in [(0, good), (last, bad)] {
            search.measure(end, host).map_err(|why| match why {
                Why::Fatal(failure) => failure,
                Why::Skip(why) => Failure {
                    exit: 3,
                    ..Failure::bad(
                        format!("{} could not be measured: {why}", host.name),
                        "name another kernel",
                    )
                },
            })?;
        }
        let whole = search.differences(0, last);
        let ours: Vec<&Difference> = whole.iter().filter(|d| about(d, &search.facet)).collect();
        if ours.is_empty() {
            return Err(nothing(&search.facet, good, bad, &whole));
        }
        let old = text(ours.iter().map(|d| (d.subject.as_str(), d.before.as_str())));
        let mut known: Vec<Option<Value>> = Vec::new();
        known.resize_with(hosts.len(), || None);
        (known[0], known[last]) = (Some(Value::new()), Some(search.value(last)));
        let mut steps: Vec<Step> = Vec::new();
        let mut tell = |step: Step, left: usize| {
            let left = if left > 0 { format!("  (one of {left} in question)") } else { String::new() };
            let version = step.version.as_deref().unwrap_or(&step.release);
            anstream::eprintln!("{:<28} {:<22} {:<8} {}{left}", step.host, version, step.how, step.value);
            steps.push(step);
        };
        tell(step(good, search.how(0), old.clone()), 0);
        tell(step(bad, search.how(last), show(&old, &search.value(last))), 0);
        for (i, host) in hosts.iter().enumerate().take(last).skip(1) {
            // Measured by others before: costs nothing, and tells whether it changes more than once.
            if search.bundled(i, host) {
                let value = search.value(i);
                tell(step(host, "bundled", show(&old, &value)), 0);
                known[i] = Some(value);
            }
        }

        let mut teller = |i: usize, left: usize| -> Result<Measured<Value>, Failure> {
            let host = &hosts[i];
            match search.measure(i, host) {
                Ok(()) => {
                    let value = search.value(i);
                    tell(step(host, search.how(i), show(&old, &value)), left);
                    Ok(Measured::Value(value))
                }
                Err(Why::Skip(why)) => {
                    tell(step(host, "skipped", why.clone()), left);
                    Ok(Measured::Skipped(why))
                }
                Err(Why::Fatal(failure)) => Err(failure),
            }
        };
        let Bisection { measured, end } = bisect(known, &mut teller)?;
        let End::Between { old: before, new: after, monotonic } = end else {
            return Err(nothing(&search.facet, good, bad, &whole));
        };
        let value = |i: usize| match &measured[i] {
            Some(Measured::Value(value)) => show(&old, value),
            _ => String::new(),
        };
        let mut causes: Vec<&'static str> = search
            .differences(before, after)
            .iter()
            .filter(|d| about(d, &search.facet))
            .filter_map(|d| d.cause)
            .collect();
        causes.sort_unstable();
        causes.dedup();
        let report = BisectReport {
            schema: "evenkeel.bisect/1",
            facet: search.facet.clone(),
            good: good.name.clone(),
            bad: bad.name.clone(),
            candidates: hosts.len(),
            last_old: step(&hosts[before], search.how(before), value(before)),
            first_new: step(&hosts[after], search.how(after), value(after)),
            between: hosts[before + 1..after].iter().map(|h| h.name.clone()).collect(),
            monotonic,
            causes,
            steps,
        };
        match global.format {
            Format::Json => output::json(&report)?,
            Format::Text => output::print(&words(&report))?,
        }
        Ok(0)
    }

    /// The hosts to look at, from GOOD to BAD, and whether that is against the order of their versions.
    fn candidates(&self, cache: &Cache) -> Result<(Vec<Host>, bool), Failure> {
        let known = Kernels::load(cache);
        let host = |name: &String| known.host(name).map_err(|e| Failure { exit: 2, ..failed(e) });
        let (good, bad) = (host(&self.good)?, host(&self.bad)?);
        if good.lane != bad.lane {
            let message =
                format!("{} and {} are in the lanes {} and {}", good.name, bad.name, good.lane, bad.lane);
            return Err(Failure::bad(message, "two CPUs make two offers: name hosts of one lane"));
        }
        if good.name == bad.name {
            return Err(Failure::bad("GOOD and BAD are one host", "name two"));
        }
        if !self.kernels.is_empty() {
            let mut hosts: Vec<Host> = self.kernels.iter().map(host).collect::<Result<_, _>>()?;
            if let Some(other) = hosts.iter().find(|host| host.lane != good.lane) {
                let message = format!("{} is in the lane {}", other.name, other.lane);
                return Err(Failure::bad(message, format!("name hosts of the lane {}", good.lane)));
            }
            hosts.retain(|host| host.name != good.name && host.name != bad.name);
            hosts.insert(0, good);
            hosts.push(bad);
            return Ok((hosts, false));
        }
        let (Some(from), Some(to)) = (version(&good.kernel), version(&bad.kernel)) else {
            return Err(Failure::bad(
                "the order of kernels that a user added is not known",
                "--kernels A,B,C names them in order",
            ));
        };
        let reversed = compare_versions(from, to).is_gt();
        let (oldest, newest) = if reversed { (to, from) } else { (from, to) };
        // The known ones go first: they have the shorter names, and some of them are bundled.
        let mut kernels: Vec<Kernel> = known.iter().cloned().collect();
        let mut teller = Teller::default();
        match served(&good.kernel.release, cache, &mut |p| teller.say(p)) {
            Ok(served) => kernels.extend(served),
            Err(e) => {
                failed(e).print();
                anstream::eprintln!("only kernels that are listed or in the cache are looked at");
            }
        }
        let mut hosts: Vec<Host> = Vec::new();
        for kernel in kernels {
            let Some(version) = version(&kernel) else { continue };
            let between =
                compare_versions(oldest, version).is_le() && compare_versions(version, newest).is_le();
            let same = flavour(&kernel.release) == flavour(&good.kernel.release);
            let new = !hosts.iter().any(|host| host.kernel.release == kernel.release);
            if between && same && new {
                hosts.extend(Host::new(&kernel, good.lane).ok());
            }
        }
        hosts.retain(|host| host.name != good.name && host.name != bad.name);
        hosts.sort_by(|a, b| {
            compare_versions(version(&a.kernel).unwrap_or(""), version(&b.kernel).unwrap_or(""))
        });
        if reversed {
            hosts.reverse();
        }
        hosts.insert(0, good);
        hosts.push(bad);
        Ok((hosts, reversed))
    }
}

/// Why a kernel was not measured.
enum Why {
    /// It is its own fault, or the archive's.
    Skip(String),
    /// No kernel can be measured here.
    Fatal(Failure),
}

struct Search<'a> {
    options: &'a Options,
    fresh: bool,
    facet: String,
    /// What was captured, and how.
    captures: Vec<Option<(Capture, &'static str)>>,
}

impl Search<'_> {
    fn how(&self, i: usize) -> &'static str {
        self.captures[i].as_ref().map_or("skipped", |(_, how)| how)
    }

    /// All differences between two candidates that were captured.
    fn differences(&self, old: usize, new: usize) -> Vec<Difference> {
        match (&self.captures[old], &self.captures[new]) {
            (Some((o, _)), Some((n, _))) => diff((&o.surface, &o.views), (&n.surface, &n.views)),
            _ => Vec::new(),
        }
    }

    fn value(&self, i: usize) -> Value {
        let all = self.differences(0, i).into_iter().filter(|d| about(d, &self.facet));
        all.map(|d| ((d.subject, d.shape), d.after)).collect()
    }

    /// Takes a bundled capture, if there is one.
    fn bundled(&mut self, i: usize, host: &Host) -> bool {
        if let Some(capture) = bundled(host).filter(|_| !self.fresh) {
            self.captures[i] = Some((capture, "bundled"));
            return true;
        }
        false
    }

    fn measure(&mut self, i: usize, host: &Host) -> Result<(), Why> {
        if self.bundled(i, host) {
            return Ok(());
        }
        let skip = |e: Error| match e {
            Error::NoBinary { .. } | Error::Tool { .. } | Error::Io { .. } => Why::Fatal(failed(e)),
            other => Why::Skip(first_line(&other.to_string())),
        };
        let mut teller = Teller::default();
        let fetched = fetch(&[&host.kernel], &self.options.cache, &mut |p| teller.say(p)).map_err(skip)?;
        drop(teller);
        for (_, done) in fetched {
            done.map_err(skip)?;
        }
        let binary = self.options.binary("evenkeel", host.kernel.arch).map_err(skip)?;
        let job = Job::new(binary).arg("capture").arg("-o").arg("surface.json").output("surface.json");
        let run = match run(host, &job, self.options) {
            // An emulator that crashed says nothing of the kernel; one that crashes twice may.
            Err(Error::Died { .. } | Error::Timeout { .. } | Error::Damaged { .. }) => {
                anstream::eprintln!("{}: no results; once more", host.name);
                run(host, &job, self.options)
            }
            done => done,
        };
        let mut out = run.map_err(skip)?.output;
        let words = String::from_utf8_lossy(&out.stderr).into_owned();
        if out.exit != Exit::Code(0) {
            return Err(Why::Skip(format!("the capture failed: {}", first_line(&words))));
        }
        let surface = out
            .files
            .remove("surface.json")
            .ok_or_else(|| Why::Skip("the capture left no file".to_owned()))?;
        let capture = Capture::read(&host.name, &surface).map_err(Why::Skip)?;
        self.captures[i] = Some((capture, "booted"));
        Ok(())
    }
}

/// The bundled capture of this very kernel.
fn bundled(host: &Host) -> Option<Capture> {
    let bundled = evenkeel_hosts::BUNDLED.iter().find(|b| b.name == host.name)?;
    let capture = Capture::read(bundled.name, bundled.text.as_bytes()).ok()?;
    let kernel = &capture.surface.provenance.kernel;
    let version = version(&host.kernel)?;
    // What a name of the list stands for moves on, and captures follow later.
    let this = kernel.release == host.kernel.release
        && kernel.version.split_whitespace().any(|word| word == version);
    this.then_some(capture)
}

/// The name as `diff` has it.
fn facet(name: &str) -> String {
    use evenkeel_catalog as catalog;
    let name = name.trim();
    if let Some(cap) = catalog::CAPABILITIES.iter().find(|c| c.name == name) {
        return format!("cap.{}", cap.cap);
    }
    if let Some(reg) = catalog::REGS.iter().find(|r| r.name.eq_ignore_ascii_case(name)) {
        return format!("reg.{:x}", reg.id);
    }
    if let Some(msr) = catalog::MSRS.iter().find(|m| m.name.eq_ignore_ascii_case(name)) {
        return format!("msr.{:x}", msr.msr);
    }
    name.to_owned()
}

/// Whether a difference is about a facet, or about a part of the word that it names.
fn about(d: &Difference, facet: &str) -> bool {
    d.subject.strip_prefix(facet).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

fn nothing(facet: &str, good: &Host, bad: &Host, whole: &[Difference]) -> Failure {
    let known = evenkeel_report::explain(facet).is_some();
    let last = facet.rsplit('.').next().unwrap_or(facet).to_lowercase();
    let mut near: Vec<&str> =
        whole.iter().map(|d| d.subject.as_str()).filter(|s| s.contains(&last)).collect();
    if near.is_empty() {
        near = whole.iter().map(|d| d.subject.as_str()).collect();
    }
    near.sort_unstable();
    near.dedup();
    let count = near.len();
    near.truncate(6);
    let message = match known {
        true => format!("`{facet}` is the same on {} and {}: there is nothing to find", good.name, bad.name),
        false => format!("nothing called `{facet}` differs between {} and {}", good.name, bad.name),
    };
    let hint = match count {
        0 => "the two captures do not differ at all".to_owned(),
        _ => format!(
            "these differ: {}{}",
            near.join(", "),
            if count > near.len() { format!(" and {} more", count - near.len()) } else { String::new() }
        ),
    };
    Failure::bad(message, hint)
}

/// Subjects and values in a line; the subject is left out where there is one.
fn text<'a>(values: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut all: Vec<(&str, &str)> = values.collect();
    all.sort_unstable();
    all.dedup();
    match all.as_slice() {
        [(_, value)] => (*value).to_owned(),
        several => several.iter().map(|(s, v)| format!("{s}={v}")).collect::<Vec<_>>().join(" "),
    }
}

fn show(old: &str, value: &Value) -> String {
    if value.is_empty() {
        return old.to_owned();
    }
    text(value.iter().map(|((subject, _), after)| (subject.as_str(), after.as_str())))
}

fn step(host: &Host, how: &'static str, value: String) -> Step {
    Step {
        host: host.name.clone(),
        release: host.kernel.release.clone(),
        version: version(&host.kernel).map(str::to_owned),
        how,
        value,
    }
}

fn version(kernel: &Kernel) -> Option<&str> {
    match &kernel.origin {
        Origin::Debian { version, .. } => Some(version),
        Origin::Added { .. } => None,
    }
}

/// `cloud-amd64` of `6.12.85+deb12-cloud-amd64`.
fn flavour(release: &str) -> &str {
    let mut rest = release;
    while rest.starts_with(|c: char| c.is_ascii_digit()) {
        rest = rest.split_once('-').map_or("", |(_, rest)| rest);
    }
    rest
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn words(report: &BisectReport) -> String {
    let line = |what: &str, step: &Step| {
        let version = step.version.as_deref().unwrap_or(&step.release);
        format!("{what} {} ({version}): {}\n", step.host, step.value)
    };
    let mut text = line("last with the old value: ", &report.last_old);
    text += &line("first with a new value:  ", &report.first_new);
    let booted = report.steps.iter().filter(|s| s.how == "booted").count();
    text += &format!("{} candidates, {booted} booted\n", report.candidates);
    if !report.between.is_empty() {
        let names = report.between.join(", ");
        text += &format!("between the two, not measured, so that it may have been any of them: {names}\n");
    }
    if !report.monotonic {
        text += "it does not change once and stay: this is the first of several changes\n";
    }
    if report.causes.is_empty() {
        text += "no entry of the ledger explains it\n";
    }
    for id in &report.causes {
        let title = evenkeel_catalog::change(id).map_or("", |change| change.title);
        text += &format!("because of {id}: {title} (evenkeel explain {id})\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_facet_is_found_by_any_of_its_names() {
        assert_eq!(facet("KVM_CAP_X2APIC_API"), "cap.129");
        assert_eq!(facet("cpuid.7.0.ecx.shstk"), "cpuid.7.0.ecx.shstk");
        let msr = &evenkeel_catalog::MSRS[0];
        assert_eq!(facet(msr.name), format!("msr.{:x}", msr.msr));
        let reg = &evenkeel_catalog::REGS[0];
        assert_eq!(facet(reg.name), format!("reg.{:x}", reg.id));
    }

    #[test]
    fn a_word_is_about_its_parts_and_not_about_its_neighbours() {
        let (o, n) =
            (evenkeel_hosts::load("debian-6.1").unwrap(), evenkeel_hosts::load("debian-7.3").unwrap());
        let all = diff((&o.surface, &o.views), (&n.surface, &n.views));
        let subject = &all.iter().find(|d| d.subject.starts_with("cpuid.")).unwrap().subject;
        let (word, _) = subject.rsplit_once(['.', '[']).unwrap();
        let of = |facet: &str| all.iter().filter(|d| about(d, facet)).count();
        assert!(of(subject) >= 1 && of(word) >= of(subject));
        assert_eq!(of(&subject[..subject.len() - 1]), 0, "{subject}");
    }

    #[test]
    fn a_bundled_capture_stands_for_its_own_kernel_only() {
        let mut host = evenkeel_lab::hosts().into_iter().find(|h| h.name == "debian-6.12.85").unwrap();
        assert!(bundled(&host).is_some());
        let Origin::Debian { version, .. } = &mut host.kernel.origin else { panic!() };
        version.push_str("+deb12u1");
        assert!(bundled(&host).is_none());
        host.name = "6.12.85+deb12-cloud-amd64".to_owned();
        assert!(bundled(&host).is_none());
    }
}
