//! Processes that are killed: before and after each record is durable, and at any moment; then started again.

use std::io::{self, BufRead as _, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use evenkeel_handover::{Epoch, Journal, Record, Token};
use evenkeel_migrate::{
    JournalFile, Journaling, NotSent, Policy, Received, Settled, Stream, receive, send, settle,
};

use crate::common::guest::{Copy, Truth};

use crate::{End, POLICY as FAST};

const POLICY: Policy =
    Policy { patience: Duration::from_millis(400), decide: Duration::from_secs(8), rounds: 2, ..FAST };

/// Where a process dies: at its n-th record, before or after it is durable.
struct Dying {
    file: JournalFile,
    at: Option<(u32, bool)>,
}

impl Journaling for Dying {
    fn records(&self) -> &Journal {
        self.file.records()
    }
    fn append(&mut self, record: Record) -> io::Result<()> {
        if let Some((left, after)) = &mut self.at {
            *left -= 1;
            if *left == 0 {
                if *after {
                    self.file.append(record)?;
                }
                std::process::abort();
            }
        }
        self.file.append(record)
    }
}

/// Not a test by itself: one side, in a process of its own, when it is told to be one.
#[test]
fn side() {
    let Ok(side) = std::env::var("EVENKEEL_TEST_SIDE") else { return };
    let folder = std::path::PathBuf::from(std::env::var_os("EVENKEEL_TEST_FOLDER").unwrap());
    let dies = std::env::var("EVENKEEL_TEST_DIES").ok().and_then(|text| {
        let (count, when) = text.split_once(' ')?;
        Some((count.parse().ok()?, when == "after"))
    });
    let journal = folder.join(format!("{side}.journal"));
    let mut journal = Dying { file: JournalFile::open(&journal).unwrap(), at: dies };
    let truth = Arc::new(Truth::within(&folder));
    let mut copy = Copy::empty(&truth);
    let socket = folder.join("socket");
    let mut connect = || -> io::Result<Box<dyn Stream>> { Ok(Box::new(UnixStream::connect(&socket)?)) };
    let outcome = match side.as_str() {
        "source" => {
            copy.start();
            std::thread::sleep(Duration::from_millis(5));
            println!("RUNS");
            let token = (Token([9; 16]), Epoch(3));
            let outcome = match send(&mut copy, &mut journal, &mut connect, POLICY, token, &mut |_| true) {
                Ok(_) => "sent",
                Err(NotSent::Failed(_) | NotSent::Refused(_)) => "goes on",
                Err(_) => "undecided",
            };
            // It works for a while yet, if it is here.
            std::thread::sleep(Duration::from_millis(20));
            outcome
        }
        "source-again" => {
            let path = folder.join("source.journal");
            let mut journal = JournalFile::open(&path).unwrap();
            match settle(&mut journal, &mut connect, POLICY) {
                Settled::Lost => "lost",
                Settled::Runs => "sent",
                Settled::NeverRan => "never ran",
                Settled::Undecided(_) => "undecided",
            }
        }
        _ => {
            let _ = std::fs::remove_file(&socket);
            let listener = UnixListener::bind(&socket).unwrap();
            println!("LISTENS");
            let mut accept = |wait: Duration| -> io::Result<Option<Box<dyn Stream>>> {
                listener.set_nonblocking(true)?;
                let begin = Instant::now();
                loop {
                    match listener.accept() {
                        Ok((stream, _)) => {
                            stream.set_nonblocking(false)?;
                            return Ok(Some(Box::new(stream)));
                        }
                        Err(_) if begin.elapsed() > wait => return Ok(None),
                        Err(_) => std::thread::sleep(Duration::from_millis(1)),
                    }
                }
            };
            // The operator gives up what nobody asks for.
            let over = folder.join("over");
            let mut go_on = |_| !over.exists();
            match receive(&mut copy, &mut journal, &mut accept, POLICY, &mut go_on) {
                Received::Runs(_) => "runs",
                Received::Nothing(_) => "nothing",
                Received::Stranded(_) => "stranded",
            }
        }
    };
    copy.stop();
    println!("OUTCOME {outcome}");
}

fn start(folder: &Path, side: &str, dies: Option<&str>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "killed::side", "--nocapture", "--test-threads=1"]);
    command.env("EVENKEEL_TEST_SIDE", side).env("EVENKEEL_TEST_FOLDER", folder);
    match dies {
        Some(dies) => command.env("EVENKEEL_TEST_DIES", dies),
        None => command.env_remove("EVENKEEL_TEST_DIES"),
    };
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits for a line that begins so; `None` if the process ends before.
fn line(child: &mut Child, begins: &str) -> Option<String> {
    let out = child.stdout.as_mut().unwrap();
    let mut lines = BufReader::with_capacity(1, out).lines();
    lines.find_map(|line| line.ok().filter(|line| line.contains(begins)))
}

fn outcome(mut child: Child) -> String {
    let told = line(&mut child, "OUTCOME");
    child.wait().unwrap();
    told.map_or("died".to_owned(), |line| line.split_once("OUTCOME ").unwrap().1.to_owned())
}

/// Both sides, of which one dies as it is told and is started again. Returns how it ended on either side.
fn scenario(
    source_dies: Option<&str>,
    destination_dies: Option<&str>,
    kill_source_after: Option<Duration>,
) -> [String; 2] {
    let folder = tempfile::tempdir().unwrap();
    let mut destination = start(folder.path(), "destination", destination_dies);
    line(&mut destination, "LISTENS").unwrap();
    let mut source = start(folder.path(), "source", source_dies);
    let killed = kill_source_after.is_some();
    if let Some(after) = kill_source_after {
        line(&mut source, "RUNS");
        std::thread::sleep(after);
        source.kill().unwrap();
    }
    let again = destination_dies.map(|_| {
        destination.wait().unwrap();
        let mut again = start(folder.path(), "destination", None);
        line(&mut again, "LISTENS").unwrap();
        again
    });
    let mut at_source = outcome(source);
    if killed || source_dies.is_some() {
        at_source = outcome(start(folder.path(), "source-again", None));
    }
    std::fs::write(folder.path().join("over"), "").unwrap();
    let at_destination = outcome(again.unwrap_or(destination));
    let wrong = Truth::within(folder.path()).wrong();
    assert_eq!(wrong, Vec::<String>::new(), "{at_source}, {at_destination}");
    [at_source, at_destination]
}

/// A side dies at its n-th record, before or after that is durable.
pub fn at_record(source: bool, record: u32, after: bool) -> End {
    let dies = format!("{record} {}", if after { "after" } else { "before" });
    let ends = if source { scenario(Some(&dies), None, None) } else { scenario(None, Some(&dies), None) };
    let (expected, end) = match (source, record, after) {
        // The source, before its commit is durable: the guest ends with it, as with any host that crashes, and nobody runs an old one.
        (true, 1, false) => (["lost", "nothing"], End::Killed),
        // After it: the next process tells the destination. Before and after it writes that it is gone: nothing is open any more.
        (true, ..) => (["sent", "runs"], End::Moved),
        // The destination, before it is durable that it runs: it never ran, and the guest goes on at the source.
        (false, _, false) => (["goes on", "nothing"], End::Stayed),
        // After it: the guest ended with the process that had the right to run it.
        (false, _, true) => (["sent", "nothing"], End::Killed),
    };
    assert_eq!(ends, expected, "{dies}");
    end
}

/// The source is killed so long after it began.
pub fn after(time: Duration) -> End {
    let ends = scenario(None, None, Some(time));
    match [ends[0].as_str(), ends[1].as_str()] {
        ["lost", "nothing"] => End::Killed,
        ["sent", "runs"] => End::Moved,
        other => panic!("{other:?}"),
    }
}
