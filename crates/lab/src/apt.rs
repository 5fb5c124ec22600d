//! An apt root of our own: signatures are checked as always, and the machine's packages are not touched.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::cache::Cache;
use crate::error::Error;
use crate::kernel::{Arch, Kernel, Origin, Package, kernels};
use crate::tool;

/// The keyring that Debian's `debian-archive-keyring` installs; it verifies old suites and new ones.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Names by which a sources list can call a Debian suite, without `-security`, `-updates` and the like.
const SUITES: &[&str] = &[
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "sid",
    "experimental",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// Where the machine gets Debian's packages from.
#[derive(Debug, PartialEq, Eq)]
struct Mirrors {
    /// The archive.
    main: String,
    /// The archive of the `-security` suites.
    security: Option<String>,
}

impl Mirrors {
    /// From lines of "URI, tab, suite", which is what the machine's apt answers.
    fn parse(lines: &str) -> Option<Mirrors> {
        let mut main = None;
        let mut security = None;
        for line in lines.lines() {
            let Some((uri, suite)) = line.split_once('\t') else { continue };
            let base = suite.split(['-', '/']).next().unwrap_or_default();
            if !SUITES.contains(&base) {
                continue;
            }
            let slot = if suite.contains("security") || suite.contains("/updates") {
                &mut security
            } else {
                &mut main
            };
            slot.get_or_insert_with(|| uri.to_owned());
        }
        Some(Mirrors { main: main?, security })
    }

    fn of_this_machine() -> Result<Mirrors, Error> {
        let mut command = Command::new("apt-get");
        command.args(["indextargets", "--format", "$(REPO_URI)\t$(RELEASE)", "Created-By: Packages"]);
        let lines = tool::output(&mut command, "apt")?;
        Mirrors::parse(&String::from_utf8_lossy(&lines)).ok_or(Error::Fetch {
            what: "package indexes".to_owned(),
            why: "apt's configuration on this machine names no Debian archive".to_owned(),
            hint: "add Debian's archive to apt's sources, on a Debian machine",
        })
    }
}

/// The apt root in a cache.
pub(crate) struct Apt {
    root: PathBuf,
}

impl Apt {
    /// Writes the root's configuration: the suites that the list of kernels names, on the machine's own mirrors.
    pub fn set_up(cache: &Cache) -> Result<Apt, Error> {
        let root = cache.root().join("apt");
        for folder in [
            "etc/apt/apt.conf.d",
            "etc/apt/preferences.d",
            "var/lib/dpkg",
            "var/lib/apt/lists/partial",
            "var/cache/apt/archives/partial",
        ] {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).map_err(Error::io("create", folder))?;
        }
        let mirrors = Mirrors::of_this_machine()?;
        let write = |name: &str, text: String| {
            let path = root.join(name);
            fs::write(&path, text).map_err(Error::io("write", path))
        };
        write("var/lib/dpkg/status", String::new())?;
        write("etc/apt/sources.list", sources(&mirrors))?;
        write("lab.conf", configuration(&root))?;
        Ok(Apt { root })
    }

    fn command(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.arg("-q").arg("-c").arg(self.root.join("lab.conf"));
        command
    }

    /// Whether the indexes were ever read.
    pub fn has_indexes(&self) -> bool {
        let lists = fs::read_dir(self.root.join("var/lib/apt/lists"));
        lists.is_ok_and(|mut entries| {
            entries.any(|e| e.is_ok_and(|e| e.file_name().to_string_lossy().contains("Packages")))
        })
    }

    /// Reads the indexes anew.
    pub fn update(&self) -> Result<(), Error> {
        tool::output(self.command().arg("update"), "apt").map(drop)
    }

    /// Downloads one package of `kernel` into `folder` and returns the file.
    pub fn download(&self, kernel: &Kernel, package: &Package, folder: &Path) -> Result<PathBuf, Error> {
        let Kernel { arch, origin: Origin::Debian { version, .. }, .. } = kernel else {
            return Err(Error::Fetch {
                what: kernel.name.clone(),
                why: "no archive has it: a user brought it".to_owned(),
                hint: "evenkeel lab add, or evenkeel lab import",
            });
        };
        let wanted = format!("{}:{}={version}", package.name, arch.debian());
        tool::output(self.command().arg("download").arg(&wanted).current_dir(folder), "apt").map_err(
            |e| {
                let why = e.to_string();
                let why = why.split("\nhint:").next().unwrap_or_default().to_owned();
                let hint = "the archive may have dropped this version; data/kernels.toml of the lab pins it";
                Error::Fetch { what: wanted.clone(), why, hint }
            },
        )?;
        // A package without an architecture is built once for all of them.
        let stem = format!("{}_{}", package.name, version.replace(':', "%3a"));
        let files = [arch.debian(), "all"].map(|arch| folder.join(format!("{stem}_{arch}.deb")));
        if let Some(file) = files.into_iter().find(|file| file.is_file()) {
            return Ok(file);
        }
        Err(Error::Fetch {
            what: wanted,
            why: format!("apt succeeded and left no {stem}_*.deb in {}", folder.display()),
            hint: "look into that folder",
        })
    }
}

impl Apt {
    /// Downloads the newest version of a package that is no kernel, and unpacks it into a folder that goes away with
    /// the value. What it holds is vouched for by the archive's signature.
    pub fn unpack(&self, package: &str, arch: Arch, cache: &Cache) -> Result<TempDir, Error> {
        let folder = tempfile::Builder::new()
            .prefix(".tool-")
            .tempdir_in(cache.root())
            .map_err(Error::io("create a folder in", cache.root()))?;
        let wanted = format!("{package}:{}", arch.debian());
        tool::output(self.command().arg("download").arg(&wanted).current_dir(folder.path()), "apt")?;
        let entries = fs::read_dir(folder.path()).map_err(Error::io("read", folder.path()))?;
        let deb = entries.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some());
        let deb = deb.ok_or_else(|| Error::Fetch {
            what: wanted,
            why: "apt succeeded and left no file".to_owned(),
            hint: "look into the cache's folder apt",
        })?;
        tool::output(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(folder.path()), "dpkg")?;
        Ok(folder)
    }
}

fn sources(mirrors: &Mirrors) -> String {
    let suites: BTreeSet<&str> = kernels().filter_map(suite).collect();
    let mut text = String::new();
    for suite in suites {
        let uri = match (suite.ends_with("-security"), &mirrors.security) {
            (false, _) => &mirrors.main,
            (true, Some(uri)) => uri,
            // A machine without security updates can still have every other kernel.
            (true, None) => continue,
        };
        text += &format!("deb [arch=amd64,arm64 target=Packages signed-by={KEYRING}] {uri} {suite} main\n");
    }
    text
}

fn suite(kernel: &Kernel) -> Option<&str> {
    match &kernel.origin {
        Origin::Debian { suite, .. } => Some(suite),
        Origin::Added { .. } => None,
    }
}

/// One file instead of many `-o`: only a file can clear lists such as the machine's hooks, which would act on the
/// machine.
fn configuration(root: &Path) -> String {
    let root = root.display();
    format!(
        r#"#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
Dir "{root}";
Dir::State::status "{root}/var/lib/dpkg/status";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; "arm64"; }};
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "http://elsewhere.example/node\tnodistro\n\
        http://mirror.example/debian/\tbookworm\n\
        http://mirror.example/debian/\tbookworm-updates\n\
        http://security.example/debian-security/\tbookworm-security\n";

    #[test]
    fn mirrors_come_from_the_machine() {
        let mirrors = Mirrors::parse(ANSWER).unwrap();
        assert_eq!(mirrors.main, "http://mirror.example/debian/");
        assert_eq!(mirrors.security.as_deref(), Some("http://security.example/debian-security/"));
        assert_eq!(Mirrors::parse("http://elsewhere.example/node\tnodistro\n"), None);
    }

    #[test]
    fn every_suite_is_listed_on_its_mirror() {
        let text = sources(&Mirrors::parse(ANSWER).unwrap());
        for suite in kernels().filter_map(suite) {
            let line = text.lines().find(|line| line.contains(&format!(" {suite} main"))).unwrap();
            assert_eq!(line.contains("security.example"), suite.ends_with("-security"), "{line}");
            assert!(line.contains("signed-by="), "{line}");
        }
    }
}
