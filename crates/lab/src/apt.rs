//! An apt root of our own: signatures are checked as always, and the machine's packages are not touched.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::cache::Cache;
use crate::error::Error;
use crate::index::Index;
use crate::kernel::{Arch, Kernel, Origin, kernels};
use crate::store::Changes;
use crate::tool;

/// apt's tool for one file at a time; not on the search path.
pub(crate) const HELPER: &str = "/usr/lib/apt/apt-helper";

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

    /// A program of apt's, with the root's configuration.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-q").arg("-c").arg(self.root.join("lab.conf"));
        command
    }

    /// The root's configuration.
    pub fn configuration(&self) -> PathBuf {
        self.root.join("lab.conf")
    }

    /// Whether the indexes were ever read.
    pub fn has_indexes(&self) -> bool {
        let lists = fs::read_dir(self.root.join("var/lib/apt/lists"));
        lists.is_ok_and(|mut entries| {
            entries.any(|e| e.is_ok_and(|e| e.file_name().to_string_lossy().contains("Packages")))
        })
    }

    /// Reads the indexes anew. apt checks their signatures.
    pub fn update(&self) -> Result<(), Error> {
        tool::output(self.command("apt-get").arg("update"), "apt").map(drop)
    }

    /// What the indexes say of kernels, as they were last read.
    pub fn index(&self) -> Result<Index, Error> {
        let mut targets = self.command("apt-get");
        let format = "$(FILENAME)\t$(RELEASE)\t$(REPO_URI)";
        targets.args(["indextargets", "--format", format, "Created-By: Packages"]);
        let targets = tool::output(&mut targets, "apt")?;
        let mut index = Index::default();
        for line in String::from_utf8_lossy(&targets).lines() {
            let mut parts = line.split('\t');
            let (Some(file), Some(suite), Some(base)) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            self.add(&mut index, Path::new(file), suite, base)?;
        }
        Ok(index)
    }

    /// Reads one index: from what was kept of it when it was last read, unless it changed since.
    fn add(&self, index: &mut Index, file: &Path, suite: &str, base: &str) -> Result<(), Error> {
        let stamp = match fs::metadata(file) {
            Ok(meta) => format!("{} {:?} {suite} {base}\n", meta.len(), meta.modified().ok()),
            // An index that the archive does not have: a suite without one of the architectures.
            Err(_) => return Ok(()),
        };
        let folder = self.root.join("kernels");
        let kept = folder.join(file.file_name().unwrap_or(file.as_os_str()));
        if let Ok(text) = fs::read_to_string(&kept)
            && let Some(text) = text.strip_prefix(&stamp)
        {
            return index.add(text.as_bytes(), suite, base).map_err(Error::io("read", kept));
        }
        // apt keeps them compressed, by a method of its choice; its helper knows which.
        let mut cat = self.command(HELPER);
        let mut new = Index::default();
        tool::stream(cat.arg("cat-file").arg(file), "apt", |text| new.add(text, suite, base))?;
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let mut whole = tempfile::NamedTempFile::new_in(&folder).map_err(Error::io("create", &folder))?;
        let text = stamp + &new.text(base);
        whole.write_all(text.as_bytes()).map_err(Error::io("write", &kept))?;
        whole.persist(&kept).map_err(|e| Error::io("write", kept)(e.error))?;
        index.append(new);
        Ok(())
    }
}

impl Apt {
    /// Downloads the newest version of a package that is no kernel, and unpacks it into a folder that goes away with
    /// the value. What it holds is vouched for by the archive's signature.
    pub fn unpack(&self, package: &str, arch: Arch, changes: &Changes<'_>) -> Result<TempDir, Error> {
        // Swept by the next lab when this one is killed.
        let folder = changes.work()?;
        let wanted = format!("{package}:{}", arch.debian());
        tool::output(self.command("apt-get").arg("download").arg(&wanted).current_dir(folder.path()), "apt")?;
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
pub(crate) mod tests {
    use super::*;

    /// An apt root that uses no proxy.
    pub(crate) fn apt(root: &Path) -> Apt {
        for folder in
            ["var/lib/dpkg", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "etc/apt"]
        {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
        let direct = "Acquire::http::Proxy \"DIRECT\";\n";
        fs::write(root.join("lab.conf"), configuration(root) + direct).unwrap();
        Apt { root: root.to_owned() }
    }

    #[test]
    fn an_index_is_read_once_until_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let apt = apt(folder.path());
        let file = folder.path().join("Packages");
        let read = |version: &str| {
            let text = crate::index::tests::paragraph(
                "linux-image-6.1.0-1-cloud-amd64",
                version,
                "amd64",
                "pool/x.deb",
                7,
                &"a".repeat(64),
            );
            fs::write(&file, text).unwrap();
            let mut both = Vec::new();
            for _ in 0..2 {
                let mut index = Index::default();
                apt.add(&mut index, &file, "bookworm", "http://mirror.example/debian").unwrap();
                both.push(index);
            }
            assert_eq!(both[0], both[1]);
            let kernel = both[0].kernels(crate::Arch::X86_64, "cloud-amd64").remove(0);
            match kernel.origin {
                Origin::Debian { version, .. } => version,
                Origin::Added { from } => from,
            }
        };
        assert_eq!(read("6.1.9-1"), "6.1.9-1");
        assert_eq!(read("6.1.10-1"), "6.1.10-1");
        let mut none = Index::default();
        apt.add(&mut none, &folder.path().join("gone"), "x", "y").unwrap();
        assert_eq!(none, Index::default());
    }

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
