//! `evenkeel observe`.

use std::fmt::Write as _;
use std::path::PathBuf;

use evenkeel_surface::Arch;
use evenkeel_witness::compare::{Comparison, compare};
use evenkeel_witness::observation::{self, Observation, Saw};

use crate::failure::Failure;
use crate::{Format, Global, output};

/// The shape, when nobody says which.
const USUAL: &str = if cfg!(target_arch = "aarch64") { "full" } else { "kernel" };

/// What does a guest see here? Runs one that looks at everything.
#[derive(clap::Args)]
pub struct Observe {
    /// Run the guest under this contract, in its shape, and say what it saw otherwise than promised.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["shape", "from", "against"])]
    contract: Option<PathBuf>,
    /// The machine's shape: where its interrupt controllers are (x86: kernel, split, none), what its vCPUs have (arm64:
    /// min, pmu, full). `kernel` and `full`, if not given.
    #[arg(long, value_parser = ["kernel", "split", "none", "min", "pmu", "full"])]
    shape: Option<String>,
    /// Where to write the observation.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Compare with another observation, facet by facet.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Compare this observation instead of making one.
    #[arg(long, value_name = "FILE", requires = "against", conflicts_with_all = ["shape", "output"])]
    from: Option<PathBuf>,
}

fn load(path: &PathBuf) -> Result<Observation, Failure> {
    let bytes = std::fs::read(path).map_err(|e| Failure::file(path, &e))?;
    observation::read(&bytes).map_err(|e| {
        Failure::bad(
            format!("{} is no usable observation: {e}", path.display()),
            "`evenkeel observe -o FILE` writes one",
        )
    })
}

impl Observe {
    /// Observes, and compares.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        if let Some(path) = &self.contract {
            let (observed, seen) = super::observe_contract::observe(&super::contract(path)?)?;
            if let Some(path) = &self.output {
                output::write(path, seen.print())?;
            }
            match global.format {
                Format::Json => output::json(&observed)?,
                Format::Text => output::print(&observed.text())?,
            }
            return Ok(observed.code());
        }
        // What cannot be compared is told before a guest runs.
        let other = self.against.as_ref().map(load).transpose()?;
        let seen = match &self.from {
            Some(path) => load(path)?,
            None => here(self.shape.as_deref().unwrap_or(USUAL))?,
        };
        if let Some(path) = &self.output {
            output::write(path, seen.print())?;
        }
        let Some(other) = other else {
            let json = global.format == Format::Json && self.output.is_none();
            return output::print(&if json { seen.print() } else { summary(&seen, global.all) }).map(|()| 0);
        };
        if other.arch != seen.arch {
            let name = |path: &Option<PathBuf>| {
                path.as_ref().map_or("this machine".to_owned(), |path| path.display().to_string())
            };
            let (a, b) = (name(&self.against), name(&self.from));
            return Err(Failure::architectures((&a, other.arch.name()), (&b, seen.arch.name())));
        }
        let compared = compare(&other, &seen);
        match global.format {
            Format::Json => output::json(&compared)?,
            Format::Text => output::print(&text(&compared, global.all))?,
        }
        Ok(match (compared.differences.is_empty(), compared.undetermined.is_empty()) {
            (false, _) => 1,
            (true, false) => 3,
            (true, true) => 0,
        })
    }
}

/// Differences for people: those without a known cause last, MSRs without a value in runs.
fn text(compared: &Comparison, all: bool) -> String {
    let mut w = String::new();
    let [before, after] = &compared.kernels;
    let [x, y] = &compared.shapes;
    let shape = if x == y { x.clone() } else { format!("{x} against {y}") };
    let _ = writeln!(
        w,
        "{before} → {after}, shape {shape}: {} seen alike, {} otherwise, {} seen by one only",
        compared.alike,
        compared.differences.len(),
        compared.undetermined.len()
    );
    let (known, unknown): (Vec<_>, Vec<_>) = compared.differences.iter().partition(|d| d.cause.is_some());
    for (head, list) in [
        ("With an entry in the ledger", known),
        ("Without one", unknown),
        ("Undetermined", compared.undetermined.iter().collect()),
    ] {
        if list.is_empty() {
            continue;
        }
        let _ = writeln!(w, "\n{head}");
        let most = if all { usize::MAX } else { 60 };
        for d in list.iter().take(most) {
            let cause = d.cause.as_ref().map_or(String::new(), |id| format!("  [{id}: {}]", d.cause_title));
            let title = if d.title.is_empty() || d.cause.is_some() {
                String::new()
            } else {
                format!("  ({})", d.title)
            };
            let _ = writeln!(w, "  {}: {} → {}{cause}{title}", d.name, d.before, d.after);
        }
        if list.len() > most {
            let _ = writeln!(w, "  and {} more: --all", list.len() - most);
        }
    }
    w
}

/// What was seen, in short: all facets that only behaviour shows, and how much there is of the rest.
fn summary(seen: &Observation, all: bool) -> String {
    let mut w = String::new();
    let v = &seen.volatile;
    let _ = writeln!(
        w,
        "{} in shape {}: {} things seen, {} that run, {} not asked; {} probes in {} ms",
        v.kernel,
        seen.shape,
        observation::unfold(&seen.seen).len(),
        seen.running.len(),
        seen.unasked.len(),
        v.probes,
        v.took_ms
    );
    let _ = writeln!(w, "{}", seen.digest);
    let values = observation::unfold(&seen.seen);
    let choices = values.iter().filter_map(|(name, saw)| {
        let choice = evenkeel_catalog::choice(name)?;
        let Saw::Value(number) = saw else { return None };
        let value = choice.values.iter().find(|v| v.value == number.0)?;
        Some((choice, value))
    });
    let _ = writeln!(w, "\nBehaviours");
    for (choice, value) in choices {
        let _ = writeln!(w, "  {}: {} ({})", choice.name, value.name, value.means);
    }
    let count = |prefix: &str, test: &dyn Fn(&Saw) -> bool| {
        values
            .iter()
            .filter(|(name, saw)| name.starts_with(prefix) && !name.contains('@') && test(saw))
            .count()
    };
    let value = |saw: &Saw| matches!(saw, Saw::Value(_));
    let fault = |saw: &Saw| matches!(saw, Saw::Fault { .. } | Saw::Exception { .. });
    let _ = writeln!(w, "\nThe rest");
    if seen.arch == Arch::X86_64 {
        let _ = writeln!(w, "  {} words of CPUID that are not 0", count("cpuid.", &value));
        let plain = |name: &str| name.strip_prefix("msr.").is_some_and(|n| !n.contains(['.', '@']));
        let msrs = |test: &dyn Fn(&Saw) -> bool| values.iter().filter(|(n, s)| plain(n) && test(s)).count();
        let _ = writeln!(w, "  {} MSRs that can be read, {} that fault", msrs(&value), msrs(&fault));
    } else {
        let [x, y] = [count("arm64.", &value), count("arm64.", &fault)];
        let _ = writeln!(w, "  {x} registers that can be read, {y} that raise an exception");
        let _ = writeln!(w, "  {} answers of SMCCC", count("smccc.", &value));
    }
    let executes = count("insn.", &|saw| matches!(saw, Saw::Executes | Saw::Value(_)));
    let _ = writeln!(w, "  {executes} instructions that are executed, {} that fault", count("insn.", &fault));
    for (name, saw) in values.iter().filter(|(_, saw)| matches!(saw, Saw::Ends(_))) {
        let _ = writeln!(w, "  {name}: {saw}");
    }
    if all {
        let _ = writeln!(w, "\nEverything");
        for (name, saw) in &values {
            let _ = writeln!(w, "  {name}: {saw}");
        }
        for u in &seen.unasked {
            let _ = writeln!(w, "  {}: not asked: {}", u.name, u.why);
        }
    }
    w
}

/// The shape of this name.
pub(super) fn known<T>(name: &str, by_name: impl Fn(&str) -> Option<T>) -> Result<T, Failure> {
    by_name(name)
        .ok_or_else(|| Failure::bad(format!("no machine here has the shape `{name}`"), "leave --shape out"))
}

/// What a guest sees on this machine, in a machine of this shape.
#[cfg(target_arch = "x86_64")]
pub fn here(shape: &str) -> Result<Observation, Failure> {
    use evenkeel_monitor::Irqchip;
    use evenkeel_sys::{Live, System};
    use evenkeel_witness::programs::x86_64::{Configure, offered_cpuid};

    let live = Live::new();
    // Of the VM's own system fd there is none to be had in the closure.
    let system = System::open(&live).map_err(|e| Failure { exit: 3, ..Failure::bad(e.to_string(), HINT) })?;
    let configure = Configure {
        vm: &|_| Ok(()),
        vcpu: &|vcpu, id| vcpu.set_cpuid(&offered_cpuid(&system, id)?),
        ran: &|_, _| Ok(()),
        reset: &|_, _| Ok(()),
        later: false,
    };
    under(known(shape, Irqchip::by_name)?, &configure)
        .map_err(|e| Failure { exit: 3, ..Failure::bad(format!("nothing was observed: {e}"), HINT) })
}

/// What a guest sees on a machine that was set up in this way.
#[cfg(target_arch = "x86_64")]
pub fn under(
    irqchip: evenkeel_monitor::Irqchip,
    configure: &evenkeel_witness::programs::x86_64::Configure<'_>,
) -> Result<Observation, evenkeel_witness::Error> {
    let live = evenkeel_sys::Live::new();
    let system = evenkeel_sys::System::open(&live)?;
    evenkeel_witness::programs::x86_64::observe(&system, irqchip, configure, volatile())
}

const HINT: &str = "this needs a usable /dev/kvm";

/// Whose guest it is.
fn volatile() -> observation::Volatile {
    observation::Volatile {
        tool: concat!("evenkeel ", env!("CARGO_PKG_VERSION")).to_owned(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        ..observation::Volatile::default()
    }
}

/// What a guest sees on this machine, in a machine of this shape.
#[cfg(target_arch = "aarch64")]
pub fn here(shape: &str) -> Result<Observation, Failure> {
    use evenkeel_monitor::aarch64::{Configure, Shape};

    under(known(shape, Shape::by_name)?, &Configure::default())
        .map_err(|e| Failure { exit: 3, ..Failure::bad(format!("nothing was observed: {e}"), HINT) })
}

/// What a guest sees on a machine that was set up in this way.
#[cfg(target_arch = "aarch64")]
pub fn under(
    shape: evenkeel_monitor::aarch64::Shape,
    configure: &evenkeel_monitor::aarch64::Configure<'_>,
) -> Result<Observation, evenkeel_witness::Error> {
    let live = evenkeel_sys::Live::new();
    let system = evenkeel_sys::System::open(&live)?;
    let image = evenkeel_witness::guests::image();
    evenkeel_witness::aarch64::programs::observe(&system, image, shape, configure, volatile())
}
