//! An apt root of our own: signatures are checked as always, and the machine's packages are not touched.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::cache::Cache;
use crate::error::Error;
use crate::index::{Entry, Index};
use crate::kernel::{Kernel, Origin, kernels};
use crate::memfile::MemFile;
use crate::tool;

/// apt's tool for one file at a time; not on the search path.
const HELPER: &str = "/usr/lib/apt/apt-helper";

/// The longest that one package may take to download.
const LONGEST: &str = "3600";

/// How often a download is looked at.
const LOOK: Duration = Duration::from_millis(100);

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

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
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
            // apt keeps them compressed, by a method of its choice; its helper knows which.
            let mut cat = self.command(HELPER);
            tool::stream(cat.arg("cat-file").arg(file), "apt", |text| index.add(text, suite, base))?;
        }
        Ok(index)
    }

    /// Downloads `entry` to `file`, going on with what is there of it where the server lets us. `progress` is told
    /// how many bytes there are.
    pub fn download(&self, entry: &Entry, file: &Path, progress: &mut dyn FnMut(u64)) -> Result<(), Error> {
        let mut command = Command::new("setpriv");
        // apt's worker goes on alone when its parent is gone. `timeout` ends a whole group of processes, and it is
        // told to when this process is gone. A worker that is asked to end leaves the file with the server's date,
        // without which no server goes on with it.
        command.args(["--pdeathsig", "TERM", "--", "timeout", "--kill-after=5", LONGEST, HELPER, "-q"]);
        command.arg("-c").arg(self.root.join("lab.conf"));
        command.arg("download-file").arg(&entry.uri).arg(file).arg(format!("SHA256:{}", entry.sha256));
        let words = MemFile::new("words", b"")?;
        command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(words.output()?).stderr(words.output()?);
        let mut child = Download(command.spawn().map_err(|e| tool::missing(&command, "util-linux", &e))?);
        let status = loop {
            let have = fs::metadata(file).map_or(0, |meta| meta.len());
            progress(have.min(entry.size));
            if let Some(status) = child.0.try_wait().map_err(Error::io("wait for", HELPER))? {
                break status;
            }
            std::thread::sleep(LOOK);
        };
        if status.success() {
            return Ok(());
        }
        // What does not have the digest is no beginning of the package either.
        let mut refused = file.as_os_str().to_owned();
        refused.push(".FAILED");
        let _ = fs::remove_file(refused);
        Err(Error::Fetch {
            what: format!("{} {}", entry.package, entry.version),
            why: format!("{status}: {}", tool::tail(&words.text(), 6)),
            hint: "fetch again: it goes on with what is there",
        })
    }
}

/// A running download: it ends with this value, and what it has got so far stays.
struct Download(Child);

impl Drop for Download {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            if let Some(id) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process(id, Signal::TERM);
            }
            let _ = self.0.wait();
        }
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
