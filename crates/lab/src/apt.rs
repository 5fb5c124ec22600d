//! An apt root of our own: signatures are checked as always, and the machine's packages are not touched.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
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

    /// Downloads `entry` to `file`, going on with what is there of it where the server lets us. `progress` is told
    /// how many bytes there are.
    pub fn download(&self, entry: &Entry, file: &Path, progress: &mut dyn FnMut(u64)) -> Result<(), Error> {
        let mut command = Command::new("setpriv");
        // apt's worker goes on alone when its parent is gone. `timeout` ends a whole group of processes, and it is
        // told to when this process is gone.
        command.args(["--pdeathsig", "TERM", "--", "timeout", "--kill-after=5", LONGEST, HELPER, "-q"]);
        command.arg("-c").arg(self.root.join("lab.conf"));
        command.args(["-o", "Debug::Acquire::http=1", "-o", "Debug::Acquire::https=1"]);
        command.arg("download-file").arg(&entry.uri).arg(file).arg(format!("SHA256:{}", entry.sha256));
        let words = MemFile::new("words", b"")?;
        command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(words.output()?).stderr(words.output()?);
        let mut beginning = Beginning { file, dated: false };
        beginning.restore();
        let mut child = Download(command.spawn().map_err(|e| tool::missing(&command, "util-linux", &e))?);
        let status = loop {
            let have = fs::metadata(file).map_or(0, |meta| meta.len());
            beginning.date(&words);
            progress(have.min(entry.size));
            if let Some(status) = child.0.try_wait().map_err(Error::io("wait for", HELPER))? {
                break status;
            }
            std::thread::sleep(LOOK);
        };
        if status.success() {
            let _ = fs::remove_file(beside(file, ".date"));
            return Ok(());
        }
        // What does not have the digest is no beginning of the package either.
        let _ = fs::remove_file(beside(file, ".FAILED"));
        if !file.exists() {
            let _ = fs::remove_file(beside(file, ".date"));
        }
        let words = words.text();
        let errors: Vec<&str> = words.lines().filter(|line| line.starts_with("E: ")).collect();
        let words = if errors.is_empty() { tool::tail(&words, 6) } else { errors.join("; ") };
        Err(Error::Fetch {
            what: format!("{} {}", entry.package, entry.version),
            why: format!("{status}: {words}"),
            hint: "fetch again: it goes on with what is there",
        })
    }
}

/// A file that is not whole yet. A server goes on with it only if it has the date that the server gave it, and apt sets
/// that at the end: too late for a lab that is killed. So the date is kept beside the file as soon as it is known.
struct Beginning<'a> {
    file: &'a Path,
    dated: bool,
}

impl Beginning<'_> {
    /// Gives the file its date back.
    fn restore(&self) {
        if let Ok(date) = fs::read_to_string(beside(self.file, ".date"))
            && self.file.exists()
        {
            // Without a date it is downloaded from the beginning, which is no error.
            let _ = tool::output(Command::new("touch").arg("-d").arg(date).arg(self.file), "coreutils");
        }
    }

    /// Keeps the date if the server has told it.
    fn date(&mut self, words: &MemFile) {
        if self.dated {
            return;
        }
        let words = words.text();
        let fields = words.lines().filter_map(|line| line.split_once(':'));
        let date = fields.filter(|(name, _)| name.eq_ignore_ascii_case("last-modified")).last();
        if let Some((_, date)) = date {
            self.dated = fs::write(beside(self.file, ".date"), date.trim()).is_ok();
        }
    }
}

/// `file` with an ending.
fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(ending);
    name.into()
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

    use std::collections::BTreeMap;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};

    /// A server of one file, slow and with a date. It remembers the ranges that it was asked for.
    fn server(content: Vec<u8>) -> (String, Arc<Mutex<Vec<Option<usize>>>>) {
        const DATE: &str = "Mon, 01 Jan 2024 00:00:00 GMT";
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/kernel.deb", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<Option<usize>>>> = Arc::default();
        let ranges = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut fields = BTreeMap::new();
                for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                    let Some((name, value)) = line.unwrap_or_default().split_once(": ").map(own) else {
                        if fields.is_empty() {
                            continue;
                        }
                        break;
                    };
                    fields.insert(name.to_lowercase(), value);
                }
                let range = fields
                    .get("range")
                    .and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
                let range = range.filter(|_| fields.get("if-range").is_none_or(|date| date == DATE));
                ranges.lock().unwrap().push(range);
                let start = range.unwrap_or(0);
                let status = match range {
                    None => "200 OK".to_owned(),
                    Some(at) => {
                        let (last, all) = (content.len() - 1, content.len());
                        format!("206 Partial Content\r\nContent-Range: bytes {at}-{last}/{all}")
                    }
                };
                let length = content.len() - start;
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\nLast-Modified: {DATE}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                );
                for piece in content[start..].chunks(20_000) {
                    if stream.write_all(piece).is_err() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        });
        (address, asked)
    }

    fn own((name, value): (&str, &str)) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    fn apt(root: &Path) -> Apt {
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

    fn entry(uri: &str, content: &[u8], folder: &Path) -> Entry {
        fs::write(folder.join("whole"), content).unwrap();
        Entry {
            package: "linux-image-x".to_owned(),
            version: "1".to_owned(),
            arch: None,
            suite: "s".to_owned(),
            uri: uri.to_owned(),
            size: content.len() as u64,
            sha256: crate::fetch::sha256(&folder.join("whole")).unwrap(),
        }
    }

    #[test]
    fn an_interrupted_download_is_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..2_000_000_u32).map(|i| (i.wrapping_mul(i) >> 3) as u8).collect();
        let (uri, asked) = server(content.clone());
        let (apt, entry) = (apt(folder.path()), entry(&uri, &content, folder.path()));
        let file = folder.path().join("kernel.deb");
        // The lab goes while it downloads.
        let interrupted = std::panic::catch_unwind(|| {
            apt.download(&entry, &file, &mut |done| {
                assert!(done < 400_000, "interrupted");
            })
        });
        assert!(interrupted.is_err());
        let begun = fs::metadata(&file).unwrap().len();
        assert!((400_000..2_000_000).contains(&begun), "{begun}");
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(fs::metadata(&file).unwrap().len(), begun, "nobody writes to it any more");
        let mut seen = Vec::new();
        apt.download(&entry, &file, &mut |done| seen.push(done)).unwrap();
        assert!(fs::read(&file).unwrap() == content);
        assert!(seen[0] >= begun && seen.is_sorted(), "{seen:?}");
        assert_eq!(*asked.lock().unwrap(), [None, Some(begun as usize)]);
    }

    #[test]
    fn what_has_another_digest_does_not_stay() {
        let folder = tempfile::tempdir().unwrap();
        let (uri, _) = server(b"something else".to_vec());
        let (apt, entry) = (apt(folder.path()), entry(&uri, b"the kernel", folder.path()));
        let file = folder.path().join("kernel.deb");
        let error = apt.download(&entry, &file, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("linux-image-x"), "{error}");
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("kernel.deb")), "{left:?}");
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
