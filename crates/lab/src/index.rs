//! What Debian's archive serves: the kernels that its package indexes name.

use std::collections::BTreeMap;
use std::io::{self, BufRead};

use crate::image::is_name;
use crate::kernel::{Arch, Kernel, Origin, Package};
use crate::version::compare_versions;

/// A package of a kernel, as an index names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub package: String,
    pub version: String,
    /// Nothing: built once for all architectures.
    pub arch: Option<Arch>,
    /// The suite whose index this is from.
    pub suite: String,
    /// Where the file is.
    pub uri: String,
    /// The file's length in bytes.
    pub size: u64,
    pub sha256: String,
}

/// Packages of kernels, from all indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    entries: Vec<Entry>,
}

/// Names that packages of kernels begin with, in the order in which a kernel's packages are listed.
const KINDS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];

impl Index {
    /// Reads one index: `suite` is its name, `base` the address that the files' names are relative to.
    pub fn add(&mut self, text: impl BufRead, suite: &str, base: &str) -> io::Result<()> {
        let mut paragraph = Paragraph::default();
        let mut text = text;
        let mut line = Vec::new();
        loop {
            line.clear();
            let end = text.read_until(b'\n', &mut line)? == 0;
            let line = line.trim_ascii_end();
            if line.is_empty() {
                self.entries.extend(std::mem::take(&mut paragraph).entry(suite, base));
            } else {
                paragraph.line(line);
            }
            if end {
                return Ok(());
            }
        }
    }

    /// Takes what another has.
    pub fn append(&mut self, mut other: Index) {
        self.entries.append(&mut other.entries);
    }

    /// What is in it, as an index; `base` is what it was read with.
    pub fn text(&self, base: &str) -> String {
        let paragraph = |e: &Entry| {
            let file = e.uri.strip_prefix(base.trim_end_matches('/')).unwrap_or(&e.uri);
            format!(
                "Package: {}\nVersion: {}\nArchitecture: {}\nFilename: {}\nSize: {}\nSHA256: {}\n\n",
                e.package,
                e.version,
                e.arch.map_or("all", Arch::debian),
                file.trim_start_matches('/'),
                e.size,
                e.sha256
            )
        };
        self.entries.iter().map(paragraph).collect()
    }

    /// The entry with this digest.
    pub fn find(&self, sha256: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.sha256 == sha256)
    }

    /// Every kernel of a flavour (`cloud-amd64`) for `arch`, ascending by version: the newest version of each release.
    pub fn kernels(&self, arch: Arch, flavour: &str) -> Vec<Kernel> {
        let mut newest: BTreeMap<&str, [Option<&Entry>; 3]> = BTreeMap::new();
        for entry in self.entries.iter().filter(|entry| entry.arch == Some(arch)) {
            let of_kind = |kind: &&str| entry.package.strip_prefix(*kind);
            let Some((kind, release)) =
                KINDS.iter().enumerate().find_map(|(i, kind)| Some((i, of_kind(kind)?)))
            else {
                continue;
            };
            // `linux-image-6.12-cloud-amd64` is a name for the newest one, and holds none.
            if flavour_of(release) != Some(flavour) || !is_release(release) {
                continue;
            }
            let slot = &mut newest.entry(release).or_default()[kind];
            if slot.is_none_or(|known| compare_versions(&known.version, &entry.version).is_lt()) {
                *slot = Some(entry);
            }
        }
        let mut kernels: Vec<Kernel> =
            newest.into_iter().filter_map(|(release, packages)| kernel(release, arch, packages)).collect();
        kernels.sort_by(|a, b| compare_versions(version(a), version(b)).then_with(|| a.name.cmp(&b.name)));
        kernels
    }
}

/// The version of a kernel's packages.
fn version(kernel: &Kernel) -> &str {
    match &kernel.origin {
        Origin::Debian { version, .. } => version,
        Origin::Added { .. } => "",
    }
}

/// The kernel whose packages these are. From 6.19 on the image is in `linux-binary` and `linux-image` is empty.
fn kernel(release: &str, arch: Arch, [image, binary, modules]: [Option<&Entry>; 3]) -> Option<Kernel> {
    let first = binary.or(image)?;
    let packages = match binary {
        Some(binary) => vec![Some(binary), modules.filter(|m| m.version == binary.version)],
        None => vec![image],
    };
    let package = |e: &Entry| Package { name: e.package.clone(), sha256: e.sha256.clone() };
    Some(Kernel {
        name: release.to_owned(),
        arch,
        release: release.to_owned(),
        origin: Origin::Debian {
            version: first.version.clone(),
            suite: first.suite.clone(),
            packages: packages.into_iter().flatten().map(package).collect(),
        },
    })
}

/// `cloud-amd64` of `6.12.85+deb12-cloud-amd64`, `amd64` of `6.1.0-56-amd64`: what follows the last number.
pub(crate) fn flavour_of(release: &str) -> Option<&str> {
    let digit = |part: &str| part.starts_with(|c: char| c.is_ascii_digit());
    let mut rest = release;
    while digit(rest) {
        rest = rest.split_once('-')?.1;
    }
    Some(rest)
}

/// Whether it has three numbers at least, as releases do.
fn is_release(text: &str) -> bool {
    let numbers = text.split(|c: char| !c.is_ascii_digit()).take_while(|part| !part.is_empty());
    is_name(text) && numbers.count() >= 3
}

/// The lines of a paragraph that matter.
#[derive(Default)]
struct Paragraph {
    package: Option<String>,
    fields: [String; 5],
}

const FIELDS: [&[u8]; 5] = [b"Version: ", b"Architecture: ", b"Filename: ", b"Size: ", b"SHA256: "];

impl Paragraph {
    fn line(&mut self, line: &[u8]) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if let Some(name) = line.strip_prefix(b"Package: ") {
            // Most of an index is about other things: the rest of such a paragraph is not looked at.
            let name = text(name);
            let ours = KINDS.iter().any(|kind| name.starts_with(kind)) || name == "linux-libc-dev";
            self.package = ours.then_some(name);
        } else if self.package.is_some() {
            for (field, value) in FIELDS.iter().zip(&mut self.fields) {
                if let Some(found) = line.strip_prefix(*field) {
                    *value = text(found);
                }
            }
        }
    }

    fn entry(self, suite: &str, base: &str) -> Option<Entry> {
        let [version, arch, file, size, sha256] = self.fields;
        let arch = Arch::ALL.into_iter().find(|known| known.debian() == arch);
        let digest = sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit());
        let uri = format!("{}/{file}", base.trim_end_matches('/'));
        let entry = Entry {
            package: self.package?,
            version,
            arch,
            suite: suite.to_owned(),
            uri,
            size: size.parse().ok()?,
            sha256: sha256.to_ascii_lowercase(),
        };
        (digest && !file.is_empty()).then_some(entry)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A paragraph of an index.
    pub(crate) fn paragraph(
        package: &str,
        version: &str,
        arch: &str,
        file: &str,
        size: u64,
        sha: &str,
    ) -> String {
        format!(
            "Package: {package}\nVersion: {version}\nArchitecture: {arch}\nDescription: some\n more\n\
             Filename: {file}\nSize: {size}\nSHA256: {sha}\n\n"
        )
    }

    fn sha(n: u8) -> String {
        format!("{n:064x}")
    }

    fn index(packages: &[(&str, &str)]) -> Index {
        let mut text = paragraph("bash", "5.2", "amd64", "pool/bash.deb", 1, &sha(0));
        for (i, (package, version)) in packages.iter().enumerate() {
            text +=
                &paragraph(package, version, "amd64", &format!("pool/{i}.deb"), 1 << 20, &sha(i as u8 + 1));
        }
        let mut index = Index::default();
        index.add(text.as_bytes(), "trixie", "http://mirror.example/debian/").unwrap();
        index
    }

    #[test]
    fn kernels_are_found_in_the_order_of_their_versions() {
        let index = index(&[
            ("linux-image-6.12-cloud-amd64", "6.12.85-1~bpo12+1"),
            ("linux-image-6.12.100+deb12-cloud-amd64", "6.12.100-1~bpo12+1"),
            ("linux-image-6.12.85+deb12-cloud-amd64", "6.12.85-1~bpo12+1"),
            ("linux-image-6.12.85+deb12-amd64", "6.12.85-1~bpo12+1"),
            ("linux-image-6.12.85+deb12-rt-amd64", "6.12.85-1~bpo12+1"),
            ("linux-image-cloud-amd64", "6.12.85-1~bpo12+1"),
            ("linux-image-6.1.0-56-cloud-amd64", "6.1.190-1"),
            ("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2"),
        ]);
        assert_eq!(index.entries.len(), 8, "and nothing of bash");
        let kernels = index.kernels(Arch::X86_64, "cloud-amd64");
        let releases: Vec<&str> = kernels.iter().map(|k| k.release.as_str()).collect();
        let expected = ["6.1.0-56-cloud-amd64", "6.12.85+deb12-cloud-amd64", "6.12.100+deb12-cloud-amd64"];
        assert_eq!(releases, expected);
        assert_eq!(version(&kernels[0]), "6.1.192-2");
        assert!(index.kernels(Arch::Aarch64, "cloud-arm64").is_empty());
        assert_eq!(index.find(&sha(3)).unwrap().uri, "http://mirror.example/debian/pool/2.deb");
    }

    #[test]
    fn new_kernels_are_in_two_packages() {
        let index = index(&[
            ("linux-image-7.2.12+deb13-cloud-amd64", "7.2.12-1"),
            ("linux-binary-7.2.12+deb13-cloud-amd64", "7.2.12-1"),
            ("linux-modules-7.2.12+deb13-cloud-amd64", "7.2.12-1"),
            ("linux-binary-unsigned-7.2.12+deb13-cloud-amd64", "7.2.12-1"),
            ("linux-binary-7.0.13+deb13-cloud-amd64", "7.0.13-1"),
        ]);
        let kernels = index.kernels(Arch::X86_64, "cloud-amd64");
        let names = |k: &Kernel| k.packages().iter().map(|p| p.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&kernels[0]), ["linux-binary-7.0.13+deb13-cloud-amd64"]);
        let both = ["linux-binary-7.2.12+deb13-cloud-amd64", "linux-modules-7.2.12+deb13-cloud-amd64"];
        assert_eq!(names(&kernels[1]), both);
        assert_eq!(kernels.len(), 2);
    }

    #[test]
    fn flavours_are_what_follows_the_last_number() {
        assert_eq!(flavour_of("6.12.85+deb12-cloud-amd64"), Some("cloud-amd64"));
        assert_eq!(flavour_of("5.10.0-32-cloud-arm64"), Some("cloud-arm64"));
        assert_eq!(flavour_of("6.1.0-0.deb11.44-cloud-arm64"), Some("cloud-arm64"));
        assert_eq!(flavour_of("6.1.0-56-amd64"), Some("amd64"));
        assert_eq!(flavour_of("6.1.0"), None);
    }

    #[test]
    fn any_text_is_read_without_harm() {
        let good = paragraph("linux-image-6.1.0-1-cloud-amd64", "6.1", "amd64", "../../x", 7, &sha(1));
        for at in 0..good.len() {
            let mut damaged = good.clone().into_bytes();
            damaged[at] = 0xff;
            let mut index = Index::default();
            index.add(&damaged[..], "s", "b").unwrap();
            index.add(&damaged[..at], "s", "b").unwrap();
        }
        let evil = paragraph("linux-image-6.1.0-../../x-cloud-amd64", "6.1", "amd64", "x", 7, &sha(1));
        let mut index = Index::default();
        index.add(evil.as_bytes(), "s", "b").unwrap();
        assert!(index.kernels(Arch::X86_64, "cloud-amd64").is_empty());
        assert!(index.kernels(Arch::X86_64, "../x-cloud-amd64").is_empty());
    }
}
