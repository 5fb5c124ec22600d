//! What HOST means: `here`, a capture file, a bundled capture, or one of these under another kernel (`here@debian-7.3`).
#![forbid(unsafe_code)]

mod fleet;

use std::path::{Path, PathBuf};

use evenkeel_contract::View;
use evenkeel_contract::predict::{Prediction, Unpredictable, predict};
use evenkeel_surface::{Limits, ReadError, Surface, read};

pub use fleet::{Fleet, Member, load_fleet};

/// A capture that is part of the program.
#[derive(Clone, Copy, Debug)]
pub struct Bundled {
    /// Its name: the kernel's distribution and series, `-arm64` for that architecture, `-vmx` for that lane.
    pub name: &'static str,
    /// The capture file.
    pub text: &'static str,
}

impl Bundled {
    /// The lab's lane that it was made in: captures of different lanes are of different emulated CPUs, and differ by more
    /// than their kernels.
    pub fn lane(&self) -> &'static str {
        lane_of(self.name)
    }

    /// What emulated it.
    pub fn emulator(&self) -> &'static str {
        emulator_of(self.name)
    }
}

/// The lane of a lab host, which is the end of its name.
fn lane_of(name: &str) -> &'static str {
    let ends = |end: &str| name.ends_with(end);
    match () {
        () if ends("-vmx") => "vmx",
        () if ends("-nvhe") => "arm64-nvhe",
        () if ends("-arm64") => "arm64",
        () => "svm",
    }
}

fn emulator_of(name: &str) -> &'static str {
    if lane_of(name) == "vmx" { "Bochs" } else { "QEMU" }
}

include!(concat!(env!("OUT_DIR"), "/bundled.rs"));

/// A host, ready to be judged.
#[derive(Clone, Debug)]
pub struct Host {
    /// As the user wrote it.
    pub name: String,
    /// What that stands for, in words.
    pub stands_for: String,
    /// The capture, or the predicted one.
    pub surface: Surface,
    /// What is not determined, when it is predicted.
    pub prediction: Option<Prediction>,
    /// One a shape.
    pub views: Vec<View>,
}

/// Why there is no host of that name.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The document is not a capture.
    #[error("{name} is not a usable capture")]
    Read {
        /// The file.
        name: String,
        /// Its text, as far as it is text.
        text: String,
        /// What is wrong with it.
        #[source]
        error: ReadError,
    },
    /// The file cannot be read.
    #[error("cannot read {}: {error}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// Neither a file nor a bundled capture.
    #[error("`{name}` is neither a file nor a bundled capture")]
    Nobody {
        /// The name.
        name: String,
    },
    /// This machine cannot be captured.
    #[error("{0}")]
    Capture(#[source] evenkeel_capture::Error),
    /// There is no prediction.
    #[error("cannot predict {name}: {why}")]
    Predict {
        /// The name.
        name: String,
        /// Why.
        #[source]
        why: Unpredictable,
    },
}

impl Error {
    /// What to do about it; may be empty.
    pub fn hint(&self) -> String {
        match self {
            Error::Read { .. } => "`evenkeel capture -o FILE` writes a capture".to_owned(),
            Error::File { .. } => String::new(),
            Error::Nobody { .. } => {
                let names: Vec<&str> = BUNDLED.iter().map(|b| b.name).collect();
                format!("a capture file, `here`, `here@KERNEL`, or one of: {}", names.join(", "))
            }
            Error::Capture(e) => e.hint().to_owned(),
            Error::Predict { .. } => "capture the host again with this version".to_owned(),
        }
    }
}

/// Captures this machine.
///
/// # Errors
/// There is no usable KVM.
pub fn capture_here() -> Result<Surface, Error> {
    let tool = concat!("evenkeel ", env!("CARGO_PKG_VERSION")).to_owned();
    let options =
        evenkeel_capture::Options { tool, side_by_side: true, ..evenkeel_capture::Options::default() };
    evenkeel_capture::capture(&evenkeel_sys::Live::new(), &options).map_err(Error::Capture)
}

/// The host that `name` stands for.
///
/// # Errors
/// See [`Error`].
pub fn load(name: &str) -> Result<Host, Error> {
    if let Some((base, kernel)) = name.rsplit_once('@')
        && !Path::new(name).exists()
    {
        let (base, kernel) = (load(base)?, load(kernel)?);
        let prediction = predict(&base.surface, &kernel.surface)
            .map_err(|why| Error::Predict { name: name.to_owned(), why })?;
        let stands_for = format!(
            "this CPU ({}) under {}, predicted",
            cpu_words(&base.surface),
            kernel_words(&kernel.surface)
        );
        let views = prediction.views(name);
        return Ok(Host {
            name: name.to_owned(),
            stands_for,
            surface: prediction.surface.clone(),
            prediction: Some(prediction),
            views,
        });
    }
    if let Some(bundled) = BUNDLED.iter().find(|b| b.name == name) {
        return emulated(name, bundled.text.as_bytes());
    }
    let surface = if name == "here" {
        capture_here()?
    } else {
        let path = Path::new(name);
        let looks_like_a_path = name.contains('/') || path.extension().is_some_and(|e| e == "json");
        match std::fs::metadata(path) {
            Ok(meta) if meta.len() > Limits::default().bytes as u64 => {
                let error = std::io::Error::other(format!("{} bytes are too many for a capture", meta.len()));
                return Err(Error::File { path: path.to_owned(), error });
            }
            Ok(meta) if !meta.is_file() => {
                return Err(Error::File {
                    path: path.to_owned(),
                    error: std::io::Error::other("not a regular file"),
                });
            }
            Ok(_) => {
                let bytes =
                    std::fs::read(path).map_err(|error| Error::File { path: path.to_owned(), error })?;
                parse(name, &bytes)?
            }
            Err(error) if looks_like_a_path => return Err(Error::File { path: path.to_owned(), error }),
            Err(_) => return Err(Error::Nobody { name: name.to_owned() }),
        }
    };
    let origin = if name == "here" { "this machine: " } else { "" };
    let stands_for = format!("{origin}{} on {}", kernel_words(&surface), cpu_words(&surface));
    let views = View::all(&surface, name);
    Ok(Host { name: name.to_owned(), stands_for, surface, prediction: None, views })
}

/// The host of the lab of this name, from its capture. Bundled captures are the lab's, too.
///
/// # Errors
/// The bytes are no capture.
pub fn emulated(name: &str, capture: &[u8]) -> Result<Host, Error> {
    let surface = parse(name, capture)?;
    let emulator = emulator_of(name);
    let stands_for = format!("{} on {}, emulated by {emulator}", kernel_words(&surface), cpu_words(&surface));
    let views = View::all(&surface, name);
    Ok(Host { name: name.to_owned(), stands_for, surface, prediction: None, views })
}

/// The host whose capture this is: one that travelled with something else.
///
/// # Errors
/// The bytes are no capture.
pub fn of_capture(name: &str, capture: &[u8]) -> Result<Host, Error> {
    let surface = parse(name, capture)?;
    let stands_for = format!("{} on {}", kernel_words(&surface), cpu_words(&surface));
    let views = View::all(&surface, name);
    Ok(Host { name: name.to_owned(), stands_for, surface, prediction: None, views })
}

fn parse(name: &str, bytes: &[u8]) -> Result<Surface, Error> {
    read::surface(bytes, &Limits::default()).map_err(|error| Error::Read {
        name: name.to_owned(),
        text: String::from_utf8_lossy(&bytes[..bytes.len().min(Limits::default().bytes)]).into_owned(),
        error,
    })
}

/// The kernel's point release, for people: `6.1.192`. Debian's release names do not tell it, its version does. A hint;
/// empty when nothing tells.
pub fn point_release(surface: &Surface) -> &str {
    let k = &surface.provenance.kernel;
    let debian =
        k.version.split_whitespace().skip_while(|w| *w != "Debian").nth(1).and_then(|v| v.split('-').next());
    debian.unwrap_or_else(|| k.release.split(['-', '+']).next().unwrap_or(""))
}

/// `Linux 6.1.192 (6.1.0-48-cloud-amd64)`.
fn kernel_words(surface: &Surface) -> String {
    let (release, point) = (&surface.provenance.kernel.release, point_release(surface));
    match release.as_str() {
        "" => "an unknown kernel".to_owned(),
        release if release.starts_with(point) => format!("Linux {release}"),
        release => format!("Linux {point} ({release})"),
    }
}

fn cpu_words(surface: &Surface) -> String {
    let cpu = &surface.provenance.cpu;
    let backend = match surface.provenance.kernel.backend.as_str() {
        "" => String::new(),
        backend => format!(", {backend}"),
    };
    let name = match (cpu.name.as_str(), cpu.vendor.as_str()) {
        ("", "") if cpu.id.0 != 0 => format!("a CPU that identifies itself as {}", cpu.id),
        ("", "") => "an unknown CPU".to_owned(),
        ("", vendor) => format!("a CPU by {vendor}"),
        (name, _) => name.split_whitespace().collect::<Vec<_>>().join(" "),
    };
    let has = |leaf, bit: u32| cpu.raw.iter().any(|e| e.leaf.0 == leaf && e.ecx.0 & bit != 0);
    let with = match () {
        () if has(0x8000_0001, 1 << 2) => " with SVM",
        () if has(1, 1 << 5) => " with VMX",
        () => "",
    };
    format!("{name}{with}{backend}")
}
