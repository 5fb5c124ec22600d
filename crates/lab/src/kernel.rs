//! The kernels that the lab can boot: the list that is compiled in, and those that a user brought.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// An architecture that the lab emulates hosts of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arch {
    /// x86.
    X86_64,
    /// arm64.
    Aarch64,
}

impl Arch {
    /// Both.
    pub const ALL: [Arch; 2] = [Arch::X86_64, Arch::Aarch64];

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Short name: `debian-6.12`; listed arm64 kernels end in `-arm64`.
    pub name: String,
    /// What it was built for.
    pub arch: Arch,
    /// What `uname -r` says under it.
    pub release: String,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a kernel comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Debian's archive.
    Debian {
        /// The version of its packages.
        version: String,
        /// The suite whose index names them.
        suite: String,
        /// The packages that hold it: one up to 6.18, image and modules apart from then on.
        packages: Vec<Package>,
    },
    /// A user, who added an image or packages.
    Added {
        /// What was added, as the user named it.
        from: String,
    },
}

impl Kernel {
    /// The packages that hold it; none of a kernel that a user brought.
    pub fn packages(&self) -> &[Package] {
        match &self.origin {
            Origin::Debian { packages, .. } => packages,
            Origin::Added { .. } => &[],
        }
    }
}

/// One Debian package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Its name in the index.
    pub name: String,
    /// SHA-256 of the .deb file, in hexadecimal.
    pub sha256: String,
}

/// A kernel as `data/kernels.toml` writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    name: String,
    arch: Arch,
    release: String,
    version: String,
    suite: String,
    #[serde(rename = "package")]
    packages: Vec<Package>,
    /// Lanes that are looked at besides the usual one of the architecture.
    #[serde(default)]
    lanes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    kernel: Vec<Listed>,
}

/// The list with, for each kernel, the further lanes that it is looked at in.
pub(crate) static LISTED: LazyLock<Vec<(Kernel, Vec<String>)>> = LazyLock::new(|| {
    let list: List = toml::from_str(include_str!("../data/kernels.toml"))
        .expect("kernels.toml is compiled in, and a test of this crate reads it");
    let kernel = |l: Listed| {
        let Listed { name, arch, release, version, suite, packages, lanes } = l;
        (Kernel { name, arch, release, origin: Origin::Debian { version, suite, packages } }, lanes)
    };
    list.kernel.into_iter().map(kernel).collect()
});

/// Every listed kernel: x86 first, ascending.
pub fn kernels() -> impl Iterator<Item = &'static Kernel> {
    LISTED.iter().map(|(kernel, _)| kernel)
}

/// The listed kernel with this short name.
pub fn kernel(name: &str) -> Result<&'static Kernel, Error> {
    kernels().find(|kernel| kernel.name == name).ok_or_else(|| Error::UnknownHost {
        name: name.to_owned(),
        known: kernels().map(|kernel| kernel.name.as_str()).collect::<Vec<_>>().join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sound() {
        let mut names: Vec<_> = kernels().map(|kernel| &kernel.name).collect();
        let count = names.len();
        assert!(count >= 10);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "two kernels share a name");
        for kernel in kernels() {
            assert_eq!(kernel.name.ends_with("-arm64"), kernel.arch == Arch::Aarch64, "{}", kernel.name);
            assert!(kernel.release.ends_with(&format!("-cloud-{}", kernel.arch.debian())), "{}", kernel.name);
            assert!(!kernel.packages().is_empty(), "{}", kernel.name);
            for package in kernel.packages() {
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
