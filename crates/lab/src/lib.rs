//! The lab: real host kernels, booted under an emulator that gives them a CPU with virtualization, so that one
//! machine can ask many kernels the same question.
//!
//! A [`Job`] is one static program with its arguments; [`run`] boots a [`Kernel`] with nothing else in its memory,
//! loads KVM, runs the program as root and brings back its exit status, its output and the files it wrote.
//! Nothing is installed: the kernels are Debian's packages, unpacked under [`Cache`], and the emulated host has no
//! disk and no network.
//!
//! ```no_run
//! use evenkeel_lab::{Cache, Job, Options, fetch, kernel, run};
//!
//! let cache = Cache::locate()?;
//! let kernel = kernel("debian-6.12")?;
//! fetch(&[kernel], &cache, &mut |line| eprintln!("{line}"))?;
//! let job = Job::new("target/static/x86_64/evenkeel").arg("capture").arg("-o").arg("surface.json").output("surface.json");
//! let output = run(kernel, &job, &Options::new(cache)?)?;
//! println!("{} bytes", output.files["surface.json"].len());
//! # Ok::<(), evenkeel_lab::Error>(())
//! ```

#![forbid(unsafe_code)]

mod apt;
mod cache;
mod cpio;
mod emulator;
mod error;
mod fetch;
pub mod frame;
mod initramfs;
mod job;
mod kernel;
mod modules;
mod run;
mod tool;

pub use cache::{Cache, Installed};
pub use error::Error;
pub use fetch::fetch;
pub use initramfs::paths;
pub use job::{Durations, Exit, Job, Output};
pub use kernel::{Arch, Kernel, Package, kernel, kernels};
pub use run::{Options, run};
