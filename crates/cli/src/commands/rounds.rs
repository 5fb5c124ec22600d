//! `evenkeel rounds`: what the lab runs on emulated arm64 hosts.

use evenkeel_monitor::aarch64::Shape;
use evenkeel_witness::aarch64::rounds::{Scenario, Told, Trial, go};

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
}

fn shape(name: &str) -> Result<Shape, String> {
    Shape::by_name(name).ok_or_else(|| "one of min, pmu, full".to_owned())
}

fn scenario(name: &str) -> Result<Scenario, String> {
    let names: Vec<&str> = Scenario::all().map(Scenario::name).collect();
    Scenario::by_name(name).ok_or_else(|| format!("one of {}", names.join(", ")))
}

impl Rounds {
    /// Tries all of them. Exits with 1 where one was not good, with 3 where one came to no end.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        let all = |given: Vec<Shape>| {
            if given.is_empty() { vec![Shape::Min, Shape::Pmu, Shape::Full] } else { given }
        };
        let vcpus = if self.vcpus.is_empty() { vec![1, 2, 4] } else { self.vcpus };
        let scenarios = if self.scenario.is_empty() { Scenario::all().collect() } else { self.scenario };
        let mut exit = 0;
        for shape in all(self.shape) {
            for &vcpus in &vcpus {
                for &scenario in &scenarios {
                    let trial = Trial { shape, vcpus, scenario };
                    let code = one(trial, global)?;
                    exit = exit.max(code);
                }
            }
        }
        Ok(exit)
    }
}

#[cfg(target_arch = "aarch64")]
fn tried(trial: Trial) -> Result<Told, String> {
    let kvm = evenkeel_sys::Live::new();
    go(&kvm, evenkeel_witness::guests::image(), trial).map_err(|error| error.to_string())
}

#[cfg(not(target_arch = "aarch64"))]
fn tried(trial: Trial) -> Result<Told, String> {
    // The guest for arm64 is in the program for arm64 only.
    let _ = (trial, go);
    Err("this is not arm64".to_owned())
}

fn one(trial: Trial, global: Global) -> Result<u8, Failure> {
    let name = format!("{} {} {}", trial.shape.name(), trial.vcpus, trial.scenario.name());
    match tried(trial) {
        Err(error) => {
            output::print(&format!("{name}: no end: {error}\n"))?;
            Ok(3)
        }
        Ok(told) => {
            match global.format {
                Format::Json => output::json(&told)?,
                Format::Text => output::print(&format!("{name}: {}", text(&told)))?,
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
