//! The lab: real host kernels, booted under an emulator that gives them a CPU with virtualization, so that one
//! machine can ask many kernels the same question.
//!
//! A [`Host`] is a kernel in a [`Lane`], an emulated CPU. [`run`] boots it with nothing but our init and KVM's modules
//! in its memory, hands it a [`Job`] (one static program with its arguments and files), and brings back the program's
//! exit status, its output and the files it wrote. A [`Machine`] is a host that stays up for more than one job, which
//! not every lane has ([`Lane::one_job`]).
//! Nothing is installed: the kernels are Debian's packages, unpacked under [`Cache`], and the emulated host has no
//! disk and no network.
//!
//! ```no_run
//! use evenkeel_lab::{Cache, Job, Options, fetch, host, kernels, run};
//!
//! let cache = Cache::locate()?;
//! let host = host("debian-6.12", kernels())?;
//! fetch(&[&host.kernel], &cache, &mut |line| eprintln!("{line}"))?;
//! let job = Job::new("target/static/x86_64/evenkeel").arg("capture").arg("-o").arg("surface.json").output("surface.json");
//! let run = run(&host, &job, &Options::new(cache)?)?;
//! println!("{} bytes", run.output.files["surface.json"].len());
//! # Ok::<(), evenkeel_lab::Error>(())
//! ```

#![forbid(unsafe_code)]

mod apt;
mod cache;
mod channel;
mod cpio;
mod emulator;
mod error;
mod fetch;
pub mod frame;
mod host;
mod initramfs;
mod iso;
mod job;
mod kernel;
mod machine;
mod memfile;
mod modules;
mod options;
mod tool;

pub use cache::{Cache, Installed};
pub use error::Error;
pub use fetch::fetch;
pub use host::{Host, Lane, host, hosts};
pub use initramfs::paths;
pub use job::{Exit, Job, Output};
pub use kernel::{Arch, Kernel, Origin, Package, kernel, kernels};
pub use machine::{Machine, Run, run};
pub use options::Options;
