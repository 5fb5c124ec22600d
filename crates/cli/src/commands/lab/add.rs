//! `evenkeel lab add`, `import` and `remove`: kernels that a user brings.

use std::path::{Path, PathBuf};

use evenkeel_lab::{Addition, Arch, Cache, Error, Kernel, Kernels, add, import, show_bytes};
use serde::Serialize;

use super::failed;
use super::fetch::Teller;
use crate::failure::Failure;
use crate::{Format, Global, output};

/// Add a kernel that you built: it becomes a host of the lab like the others.
#[derive(clap::Args)]
pub struct Add {
    /// What it shall be called.
    name: String,
    /// The image: arch/x86/boot/bzImage or arch/arm64/boot/Image of a build, or a vmlinuz.
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// Its modules: the folder that `make modules_install INSTALL_MOD_PATH=` filled, or one with *.ko in it.
    #[arg(long, value_name = "FOLDER")]
    modules: Option<PathBuf>,
    /// What it is built for; the image tells, this only checks: x86_64 or aarch64.
    #[arg(long, value_parser = arch)]
    arch: Option<Arch>,
    /// What `uname -r` says under it, where neither the image nor the modules tell.
    #[arg(long)]
    release: Option<String>,
    /// Take the place of a kernel that was added under this name.
    #[arg(long)]
    replace: bool,
}

fn arch(name: &str) -> Result<Arch, String> {
    let known = |arch: &Arch| arch.name() == name || arch.debian() == name;
    Arch::ALL.into_iter().find(known).ok_or_else(|| "x86_64 or aarch64".to_owned())
}

impl Add {
    /// Adds it.
    pub fn run(self, cache: &Cache, global: Global) -> Result<u8, Failure> {
        let mut teller = Teller::default();
        not_bundled(&self.name)?;
        let addition = Addition {
            name: &self.name,
            image: &self.image,
            modules: self.modules.as_deref(),
            arch: self.arch,
            release: self.release.as_deref(),
            from: None,
            replace: self.replace,
        };
        let kernel = add(&addition, cache, &mut |p| teller.say(p)).map_err(refused)?;
        added(&[kernel], global).map(|()| 0)
    }
}

/// Add a kernel from Debian package files, also from those that `make bindeb-pkg` builds.
///
/// Packages that the lab's list names complete that kernel; all others together are one kernel.
#[derive(clap::Args)]
pub struct Import {
    /// linux-image, or linux-binary and linux-modules.
    #[arg(required = true, value_name = "FILE.deb")]
    files: Vec<PathBuf>,
    /// What it shall be called; its release otherwise.
    #[arg(long)]
    name: Option<String>,
    /// Take the place of a kernel that was added under this name.
    #[arg(long)]
    replace: bool,
}

impl Import {
    /// Imports them.
    pub fn run(self, cache: &Cache, global: Global) -> Result<u8, Failure> {
        let mut teller = Teller::default();
        if let Some(name) = &self.name {
            not_bundled(name)?;
        }
        let files: Vec<&Path> = self.files.iter().map(PathBuf::as_path).collect();
        let imported = import(&files, self.name.as_deref(), self.replace, cache, &mut |p| teller.say(p))
            .map_err(refused)?;
        added(&imported.kernels, global)?;
        for (kernel, missing) in &imported.incomplete {
            anstream::eprintln!(
                "{}: kept; still missing {}: import it too, or `evenkeel lab fetch {}`",
                kernel.name,
                missing.join(", "),
                kernel.name
            );
        }
        Ok(if imported.incomplete.is_empty() { 0 } else { 3 })
    }
}

/// Names of bundled captures mean these.
fn not_bundled(name: &str) -> Result<(), Failure> {
    match evenkeel_hosts::BUNDLED.iter().any(|bundled| bundled.name == name) {
        true => Err(Failure::bad(format!("`{name}` is the name of a bundled capture"), "another name")),
        false => Ok(()),
    }
}

fn refused(e: Error) -> Failure {
    let bad = matches!(e, Error::Refused { .. } | Error::Kernel { .. } | Error::Io { .. });
    Failure { exit: if bad { 2 } else { 3 }, ..failed(e) }
}

/// A kernel that was added.
#[derive(Serialize)]
struct Added<'a> {
    name: &'a str,
    arch: &'a str,
    release: &'a str,
}

fn added(kernels: &[Kernel], global: Global) -> Result<(), Failure> {
    let all: Vec<Added<'_>> =
        kernels.iter().map(|k| Added { name: &k.name, arch: k.arch.name(), release: &k.release }).collect();
    match global.format {
        Format::Json => output::json(&all),
        Format::Text => {
            let lines = all.iter().map(|k| format!("{}: {} for {}\n", k.name, k.release, k.arch));
            output::print(&lines.collect::<String>())
        }
    }
}

/// Remove a kernel that was added or imported.
#[derive(clap::Args)]
pub struct Remove {
    /// Its name.
    name: String,
}

impl Remove {
    /// Removes it.
    pub fn run(self, cache: &Cache) -> Result<u8, Failure> {
        let stored = cache.stored().map_err(failed)?;
        if !stored.iter().any(|stored| stored.added && stored.name == self.name) {
            let names: Vec<&str> = stored.iter().filter(|s| s.added).map(|s| s.name.as_str()).collect();
            let hint = match (Kernels::load(cache).host(&self.name).is_ok(), names.is_empty()) {
                (true, _) => format!("it was fetched: `evenkeel lab cache --remove {}`", self.name),
                (_, true) => "`evenkeel lab add` and `evenkeel lab import` add kernels".to_owned(),
                _ => format!("one of {}", names.join(", ")),
            };
            return Err(Failure::bad(format!("no kernel `{}` was added", self.name), hint));
        }
        let bytes = cache.remove(&self.name).map_err(failed)?;
        anstream::eprintln!("{} is removed: {} are free again", self.name, show_bytes(bytes));
        Ok(0)
    }
}
