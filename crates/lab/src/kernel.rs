//! The list of kernels, compiled in from `data/kernels.toml`.

use std::sync::LazyLock;

use serde::Deserialize;

use crate::error::Error;

/// An architecture that the lab emulates hosts of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arch {
    /// x86 with AMD's SVM and nested paging, as QEMU emulates them.
    X86_64,
    /// arm64 with EL2 and a GICv3, as QEMU emulates them.
    Aarch64,
}

impl Arch {
    /// The name that `uname -m` and Rust's targets use.
    pub fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }

    /// Debian's name for it.
    pub fn debian(self) -> &'static str {
        match self {
            Arch::X86_64 => "amd64",
            Arch::Aarch64 => "arm64",
        }
    }
}

/// A kernel that the lab can boot.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Short name: `debian-6.12`; arm64 kernels end in `-arm64`.
    pub name: String,
    /// The architecture of the emulated host.
    pub arch: Arch,
    /// What `uname -r` says under it.
    pub release: String,
    /// The version of its packages.
    pub version: String,
    /// The suite whose index names them.
    pub suite: String,
    /// The packages that hold it: one up to 6.18, image and modules apart from then on.
    #[serde(rename = "package")]
    pub packages: Vec<Package>,
}

/// One Debian package.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Its name in the index.
    pub name: String,
    /// SHA-256 of the .deb file, in hexadecimal.
    pub sha256: String,
}

static KERNELS: LazyLock<Vec<Kernel>> = LazyLock::new(|| {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct List {
        kernel: Vec<Kernel>,
    }
    let list: List = toml::from_str(include_str!("../data/kernels.toml"))
        .expect("kernels.toml is compiled in, and a test of this crate reads it");
    list.kernel
});

/// Every kernel of the list: x86 first, ascending.
pub fn kernels() -> &'static [Kernel] {
    &KERNELS
}

/// The kernel with this short name.
pub fn kernel(name: &str) -> Result<&'static Kernel, Error> {
    kernels().iter().find(|kernel| kernel.name == name).ok_or_else(|| Error::UnknownKernel {
        name: name.to_owned(),
        known: kernels().iter().map(|kernel| kernel.name.as_str()).collect::<Vec<_>>().join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sound() {
        let mut names: Vec<_> = kernels().iter().map(|kernel| &kernel.name).collect();
        assert!(names.len() >= 10);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), kernels().len(), "two kernels share a name");
        for kernel in kernels() {
            assert_eq!(kernel.name.ends_with("-arm64"), kernel.arch == Arch::Aarch64, "{}", kernel.name);
            assert!(kernel.release.ends_with(&format!("-cloud-{}", kernel.arch.debian())), "{}", kernel.name);
            for package in &kernel.packages {
                let headers = package.name == "linux-libc-dev";
                assert!(headers || package.name.ends_with(&kernel.release), "{}", package.name);
                assert_eq!(package.sha256.len(), 64, "{}", package.name);
                assert!(package.sha256.bytes().all(|b| b.is_ascii_hexdigit()), "{}", package.name);
            }
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_those_there_are() {
        let error = kernel("debian-2.6").unwrap_err().to_string();
        assert!(error.contains("debian-2.6") && error.contains("debian-6.12"), "{error}");
    }
}
