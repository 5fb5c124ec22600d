//! One file from the archive: downloaded by apt's own tool, gone on with after an interruption, ended with this process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::apt::{Apt, HELPER};
use crate::error::Error;
use crate::index::Entry;
use crate::memfile::MemFile;
use crate::tool;

/// The longest that one package may take to download, in seconds.
const LONGEST: &str = "3600";

/// How often a download is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Downloads `entry` to `file`, going on with what is there of it where the server lets us. `progress` is told
/// how many bytes there are.
pub(crate) fn download(
    apt: &Apt,
    entry: &Entry,
    file: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    let mut command = Command::new("setpriv");
    // apt's worker goes on alone when its parent is gone. `timeout` ends a whole group of processes, and it is
    // told to when this process is gone.
    command.args(["--pdeathsig", "TERM", "--", "timeout", "--kill-after=5", LONGEST, HELPER, "-q"]);
    command.arg("-c").arg(apt.configuration());
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
        let mut fields = words.lines().filter_map(|line| line.split_once(':'));
        let date = fields.rfind(|(name, _)| name.eq_ignore_ascii_case("last-modified"));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apt::tests::apt;
    use std::collections::BTreeMap;
    use std::io::Write as _;
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
            download(&apt, &entry, &file, &mut |done| {
                assert!(done < 400_000, "interrupted");
            })
        });
        assert!(interrupted.is_err());
        let begun = fs::metadata(&file).unwrap().len();
        assert!((400_000..2_000_000).contains(&begun), "{begun}");
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(fs::metadata(&file).unwrap().len(), begun, "nobody writes to it any more");
        let mut seen = Vec::new();
        download(&apt, &entry, &file, &mut |done| seen.push(done)).unwrap();
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
        let error = download(&apt, &entry, &file, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("linux-image-x"), "{error}");
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("kernel.deb")), "{left:?}");
    }
}
