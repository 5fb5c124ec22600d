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
//! fetch(&[&host.kernel], &cache, &mut |progress| eprintln!("{progress:?}"))?;
//! let job = Job::new("target/static/x86_64/evenkeel").arg("capture").arg("-o").arg("surface.json").output("surface.json");
//! let run = run(&host, &job, &Options::new(cache)?)?;
//! println!("{} bytes", run.output.files["surface.json"].len());
//! # Ok::<(), evenkeel_lab::Error>(())
//! ```

#![forbid(unsafe_code)]

mod added;
mod apt;
mod bisect;
mod cache;
mod channel;
mod cpio;
mod download;
mod each;
mod emulator;
mod error;
mod fetch;
pub mod frame;
mod guest;
mod host;
mod idle;
mod image;
mod import;
mod index;
mod initramfs;
mod iso;
mod job;
mod kernel;
mod link;
mod machine;
mod memfile;
mod modules;
mod options;
mod shell;
mod store;
mod tool;
mod version;

pub use added::{Addition, Kernels, add};
pub use bisect::{Bisection, End, Measured, bisect};
pub use cache::{Cache, Installed};
pub use each::each;
pub use error::Error;
pub use fetch::{Fetched, Here, Progress, fetch, served};
pub use guest::Guest;
pub use host::{Host, Lane, host, hosts};
pub use image::vmlinux;
pub use import::{Imported, import};
pub use initramfs::paths;
pub use job::{Exit, Job, Output};
pub use kernel::{Arch, Kernel, Origin, Package, kernel, kernels};
pub use link::run_pair;
pub use machine::{Machine, Run, run};
pub use options::Options;
pub use shell::{shell, shell_binary};
pub use store::{Stored, show_bytes};
pub use version::compare_versions;
