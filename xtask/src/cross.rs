//! `cargo xtask cross`: static binaries, for this architecture and for arm64.
//!
//! x86 is built by the toolchain that the repository pins. The standard library for arm64 comes from Debian, and a
//! library works with the compiler that it was built by: so Debian's compiler builds arm64, and cargo is told so.

use std::fs;
use std::path::Path;
use std::process::Command;

use clap::Args;

use crate::{Result, root, static_binaries};

/// Arguments of `cargo xtask cross`.
#[derive(Args)]
pub struct Cross {
    /// Only this architecture: x86_64 or aarch64.
    #[arg(long, value_name = "ARCH")]
    pub arch: Vec<String>,
    /// Only this binary: evenkeel or evenkeel-lab-init.
    #[arg(long, value_name = "NAME")]
    pub bin: Vec<String>,
}

/// The binaries: package, name.
const BINARIES: &[(&str, &str)] = &[("evenkeel", "evenkeel"), ("evenkeel-lab", "evenkeel-lab-init")];

/// Debian's compiler, and the packages that cross-building with it takes.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_LIBRARY: &str = "/usr/lib/rustlib/aarch64-unknown-linux-gnu/lib";
const DEBIAN_LINKER: &str = "aarch64-linux-gnu-gcc";
const DEBIAN_COMMANDS: &str = "dpkg --add-architecture arm64 && apt-get update && apt-get install \
    --no-install-recommends rustc-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross";

impl Cross {
    /// Builds every binary that was asked for.
    pub fn run(self) -> Result {
        for arch in ["x86_64", "aarch64"] {
            if self.arch.is_empty() || self.arch.iter().any(|wanted| wanted == arch) {
                for (package, bin) in BINARIES {
                    if self.bin.is_empty() || self.bin.iter().any(|wanted| wanted == bin) {
                        build(arch, package, bin)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn build(arch: &str, package: &str, bin: &str) -> Result {
    let target = format!("{arch}-unknown-linux-gnu");
    // A target folder for each compiler: sharing one would rebuild everything at each change between them.
    let folder = root().join("target/cross").join(arch);
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root()).args(["build", "--release", "--package", package, "--bin", bin]);
    // The target is always named: else the flag would reach procedural macros too, and break them.
    cargo.args(["--target", &target, "--target-dir"]).arg(&folder);
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    let variable = target.to_uppercase().replace('-', "_");
    cargo.env(format!("CARGO_TARGET_{variable}_RUSTFLAGS"), "-Ctarget-feature=+crt-static -Cstrip=debuginfo");
    if arch == "aarch64" {
        debian_is_there()?;
        cargo
            .env("RUSTC", DEBIAN_RUSTC)
            .env(format!("CARGO_TARGET_{variable}_LINKER"), DEBIAN_LINKER)
            .env("CC_aarch64_unknown_linux_gnu", DEBIAN_LINKER);
    }
    let status = cargo.status().map_err(|e| format!("cannot start cargo: {e}"))?;
    if !status.success() {
        return Err(format!("{bin} for {arch} did not build ({status})"));
    }
    let from = folder.join(&target).join("release").join(bin);
    let to = static_binaries().join(arch).join(bin);
    copy(&from, &to)?;
    eprintln!("{}: {} KiB", to.display(), fs::metadata(&to).map_or(0, |data| data.len() / 1024));
    Ok(())
}

fn debian_is_there() -> Result {
    let mut missing = Vec::new();
    for path in [DEBIAN_RUSTC, DEBIAN_LIBRARY] {
        if !Path::new(path).exists() {
            missing.push(path);
        }
    }
    if Command::new(DEBIAN_LINKER).arg("--version").output().is_err() {
        missing.push(DEBIAN_LINKER);
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "no cross-compiler for arm64: {} missing\nhint: on Debian: {DEBIAN_COMMANDS}\n\
         hint: cargo xtask cross --arch x86_64 builds without it",
        missing.join(", ")
    ))
}

/// A file that somebody may be running cannot be written to: a new one takes its place.
fn copy(from: &Path, to: &Path) -> Result {
    let words = |what: &str, path: &Path, e| format!("cannot {what} {}: {e}", path.display());
    let folder = to.parent().unwrap_or(to);
    fs::create_dir_all(folder).map_err(|e| words("create", folder, e))?;
    let partial = to.with_extension("partial");
    fs::copy(from, &partial).map_err(|e| words("copy", from, e))?;
    fs::rename(&partial, to).map_err(|e| words("create", to, e))
}
