//! `evenkeel rounds`: what the lab runs on emulated arm64 hosts.

use evenkeel_monitor::aarch64::Shape;
use evenkeel_witness::aarch64::rounds::{Scenario, Spoilt, Told, Trial, Turned};

use crate::failure::Failure;
use crate::{Format, Global, output};

/// Saves and restores a guest stopped in states that are hard to save, and asks it whether it noticed (arm64).
#[derive(clap::Args)]
pub struct Rounds {
    /// What the vCPUs are made with: min, pmu, full; all of them, if not given.
    #[arg(long, value_parser = shape)]
    shape: Vec<Shape>,
    /// How many vCPUs; 1, 2 and 4, if not given.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=6))]
    vcpus: Vec<u64>,
    /// What the guest is stopped in; everything, if not given.
    #[arg(long, value_parser = scenario)]
    scenario: Vec<Scenario>,
    /// Spoil every so many-th call, one a run.
    #[arg(long, value_name = "STEP", conflicts_with = "edges")]
    faults: Option<usize>,
    /// Turn each edge of the order, one a run.
    #[arg(long)]
    edges: bool,
}

fn shape(name: &str) -> Result<Shape, String> {
    Shape::by_name(name).ok_or_else(|| "one of min, pmu, full".to_owned())
}

/// The scenario of this name.
pub fn scenario(name: &str) -> Result<Scenario, String> {
    let names: Vec<&str> = Scenario::all().map(Scenario::name).collect();
    Scenario::by_name(name).ok_or_else(|| format!("one of {}", names.join(", ")))
}

impl Rounds {
    /// Tries all of them. Exits with 1 where one was not good, with 3 where one came to no end.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        let shapes =
            if self.shape.is_empty() { vec![Shape::Min, Shape::Pmu, Shape::Full] } else { self.shape };
        let vcpus = if self.vcpus.is_empty() { vec![1, 2, 4] } else { self.vcpus };
        let scenarios = if self.scenario.is_empty() { Scenario::all().collect() } else { self.scenario };
        let mut exit = 0;
        let mut trials = Vec::new();
        for &shape in &shapes {
            for &vcpus in &vcpus {
                trials.extend(scenarios.iter().map(|&scenario| Trial { shape, vcpus, scenario }));
            }
        }
        for trial in trials {
            if self.faults.is_some() || self.edges {
                let kept = live::keep(trial);
                let told = kept.and_then(|kept| match self.faults {
                    Some(step) => live::spoil(&kept, step).map(|told| spoilt(&told)),
                    None => live::turn(&kept).map(|told| turned(&told)),
                });
                let (code, text) = told.unwrap_or_else(|error| (3, format!("no end: {error}\n")));
                output::print(&format!("{}:\n{text}", name(trial)))?;
                exit = exit.max(code);
            } else {
                exit = exit.max(show(&name(trial), &live::go(trial), global)?);
            }
        }
        Ok(exit)
    }
}

/// Faults in words. Exits with 1 where one was missed.
fn spoilt(all: &[Spoilt]) -> (u8, String) {
    let mut text = String::new();
    for s in all {
        text += &format!(
            "  {}: {} calls, {} spoilt: {} refused, {} named, {} harmless, {} missed, {} harmed\n",
            s.what,
            s.calls,
            s.tried,
            s.refused,
            s.named,
            s.harmless,
            s.missed.len(),
            s.harmed.len()
        );
        text.extend(s.missed.iter().map(|line| format!("    missed: {line}\n")));
        text.extend(s.harmed.iter().map(|line| format!("    harmed: {line}\n")));
    }
    (u8::from(all.iter().any(|s| !s.missed.is_empty() || !s.harmed.is_empty())), text)
}

/// Turned edges in words.
fn turned(all: &[Turned]) -> (u8, String) {
    let mut text = String::new();
    for t in all {
        let shown = match (&t.shown, t.implied) {
            (Some(shown), _) => shown.as_str(),
            (None, true) => "cannot be turned: others ask for the same",
            (None, false) => "nothing shows",
        };
        text += &format!("  {} {} before {}: {shown}\n", t.phase, t.before, t.after);
    }
    let shown = all.iter().filter(|t| t.shown.is_some()).count();
    (0, text + &format!("  {shown} of {} edges show\n", all.len()))
}

fn name(trial: Trial) -> String {
    format!("{} {} {}", trial.shape.name(), trial.vcpus, trial.scenario.name())
}

/// The guest for arm64 is in the program for arm64 only.
#[cfg(target_arch = "aarch64")]
mod live {
    use evenkeel_witness::aarch64::rounds::{self, Kept, Spoilt, Told, Trial, Turned};
    use evenkeel_witness::guests::image;

    pub fn go(trial: Trial) -> Result<Told, String> {
        rounds::go(&evenkeel_sys::Live::new(), image(), trial).map_err(|error| error.to_string())
    }

    pub fn keep(trial: Trial) -> Result<Kept, String> {
        let live = evenkeel_sys::Live::new();
        let noting = evenkeel_state::Noting::new(&live);
        let configure = evenkeel_monitor::aarch64::Configure::default();
        rounds::keep(&noting, image(), trial, &configure).map_err(|error| error.to_string())
    }

    pub fn spoil(kept: &Kept, step: usize) -> Result<Vec<Spoilt>, String> {
        rounds::spoil(kept, step).map_err(|error| error.to_string())
    }

    pub fn turn(kept: &Kept) -> Result<Vec<Turned>, String> {
        rounds::turn_edges(&evenkeel_sys::Live::new(), kept).map_err(|error| error.to_string())
    }
}

#[cfg(not(target_arch = "aarch64"))]
mod live {
    use evenkeel_witness::aarch64::rounds::{Kept, Spoilt, Told, Trial, Turned};

    const NOT_HERE: &str =
        "this is not arm64: `evenkeel lab run HOST -- evenkeel rounds` does it on emulated hosts";

    pub fn go(_: Trial) -> Result<Told, String> {
        Err(NOT_HERE.to_owned())
    }

    pub fn keep(_: Trial) -> Result<Kept, String> {
        Err(NOT_HERE.to_owned())
    }

    pub fn spoil(_: &Kept, _: usize) -> Result<Vec<Spoilt>, String> {
        Err(NOT_HERE.to_owned())
    }

    pub fn turn(_: &Kept) -> Result<Vec<Turned>, String> {
        Err(NOT_HERE.to_owned())
    }
}

fn show(name: &str, told: &Result<Told, String>, global: Global) -> Result<u8, Failure> {
    match told {
        Err(error) => {
            output::print(&format!("{name}: no end: {error}\n"))?;
            Ok(3)
        }
        Ok(told) => {
            match global.format {
                Format::Json => output::json(told)?,
                Format::Text => output::print(&format!("{name}: {}", text(told)))?,
            }
            Ok(u8::from(!told.good()))
        }
    }
}

fn text(told: &Told) -> String {
    if let Some(lacking) = &told.lacking {
        return format!("not tried: {lacking}\n");
    }
    let [kept, running, implied] = told.parts;
    let mut text = format!(
        "{}, {} items, {kept} kept, {running} running, {implied} implied, {} looks, {} us, {} us\n",
        if told.good() { "good" } else { "NOT GOOD" },
        told.items,
        told.looked,
        told.took_us[0],
        told.took_us[1]
    );
    let lists = [
        ("not kept", &told.not_kept),
        ("unsaved", &told.unsaved),
        ("second", &told.second),
        ("third", &told.third),
        ("met", &told.met),
        ("seen", &told.seen),
    ];
    for (what, lines) in lists {
        for line in lines {
            text += &format!("  {what}: {line}\n");
        }
    }
    text
}
