//! `evenkeel observe`.

use std::path::PathBuf;

use evenkeel_witness::observation::{self, Observation};

use crate::failure::Failure;
use crate::{Format, Global, output};

/// What does a guest see here? Runs one that looks at everything.
#[derive(clap::Args)]
pub struct Observe {
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
        // What cannot be compared is told before a guest runs.
        let other = self.against.as_ref().map(load).transpose()?;
        let seen = match &self.from {
            Some(path) => load(path)?,
            None => here(self.shape.as_deref())?,
        };
        if let Some(path) = &self.output {
            output::write(path, seen.print())?;
        }
        match (other, global.format) {
            (None, Format::Json) if self.output.is_none() => output::print(&seen.print()).map(|()| 0),
            (None, _) => output::print(&summary(&seen)).map(|()| 0),
            (Some(_), _) => Ok(0),
        }
    }
}

fn summary(seen: &Observation) -> String {
    format!(
        "{} things seen in shape {}, {} ms, {} probes; {}\n",
        seen.seen.len(),
        seen.shape,
        seen.volatile.took_ms,
        seen.volatile.probes,
        seen.digest
    )
}

fn shape<T: Default>(name: Option<&str>, by_name: impl Fn(&str) -> Option<T>) -> Result<T, Failure> {
    let Some(name) = name else { return Ok(T::default()) };
    by_name(name)
        .ok_or_else(|| Failure::bad(format!("no machine here has the shape `{name}`"), "leave --shape out"))
}

#[cfg(target_arch = "x86_64")]
fn here(name: Option<&str>) -> Result<Observation, Failure> {
    use evenkeel_monitor::Irqchip;
    use evenkeel_sys::{Live, System};
    use evenkeel_witness::programs::x86_64::{Configure, observe, offered_cpuid};

    let cannot = |e: &dyn std::fmt::Display| Failure {
        exit: 3,
        ..Failure::bad(format!("nothing was observed: {e}"), "this needs a usable /dev/kvm")
    };
    let live = Live::new();
    let system = System::open(&live).map_err(|e| cannot(&e))?;
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let volatile = observation::Volatile {
        tool: concat!("evenkeel ", env!("CARGO_PKG_VERSION")).to_owned(),
        kernel: release,
        ..observation::Volatile::default()
    };
    let configure =
        Configure { vm: &|_| Ok(()), vcpu: &|vcpu, id| vcpu.set_cpuid(&offered_cpuid(&system, id)?) };
    let irqchip = shape(name, Irqchip::by_name)?;
    observe(&system, irqchip, &configure, volatile).map_err(|e| cannot(&e))
}

#[cfg(target_arch = "aarch64")]
fn here(name: Option<&str>) -> Result<Observation, Failure> {
    use evenkeel_monitor::aarch64::{Configure, Shape};
    use evenkeel_sys::{Live, System};
    use evenkeel_witness::aarch64::{guest, programs};

    let cannot = |e: &dyn std::fmt::Display| Failure {
        exit: 3,
        ..Failure::bad(format!("nothing was observed: {e}"), "this needs a usable /dev/kvm")
    };
    let shape = shape(name, Shape::by_name)?;
    let live = Live::new();
    let system = System::open(&live).map_err(|e| cannot(&e))?;
    let volatile = observation::Volatile {
        tool: concat!("evenkeel ", env!("CARGO_PKG_VERSION")).to_owned(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        ..observation::Volatile::default()
    };
    programs::observe(&system, guest::image(), shape, &Configure::default(), volatile).map_err(|e| cannot(&e))
}
