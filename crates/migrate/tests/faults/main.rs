//! A guest that is made up is moved over a link on which something goes wrong, everywhere: afterwards exactly one copy runs, and it
//! never noticed.

#[path = "../common/mod.rs"]
mod common;
mod killed;
mod proxy;

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::guest::{Copy, Truth};
use evenkeel_handover::{Epoch, Record, Token};
use evenkeel_migrate::{
    JournalFile, Journaling, NotSent, Policy, Received, Sent, Slow, Stream, receive, send,
};
use proxy::{FAULTS, Fault, Proxy, Way};

const POLICY: Policy = Policy {
    downtime: Duration::from_millis(20),
    rounds: 3,
    slow: Slow::Pause,
    streams: 1,
    compress: false,
    verify: false,
    patience: Duration::from_millis(250),
    decide: Duration::from_secs(20),
};

/// A journal that cannot be written at its n-th record, which is durable all the same or not.
struct Failing {
    file: JournalFile,
    left: u32,
    durable: bool,
}

impl Journaling for Failing {
    fn records(&self) -> &evenkeel_handover::Journal {
        self.file.records()
    }
    fn append(&mut self, record: Record) -> io::Result<()> {
        self.left = self.left.wrapping_sub(1);
        if self.left == 0 {
            if self.durable {
                self.file.append(record)?;
            }
            return Err(io::Error::other("no space left on device"));
        }
        self.file.append(record)
    }
}

struct Outcome {
    sent: Result<Sent, NotSent>,
    received: Received,
    carried: [u64; 2],
}

/// One move, and what has to be true after every one.
fn moved(plan: Option<(Fault, Way, u64)>, fails: [u32; 2], durable: bool) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let truth = Arc::new(Truth::default());
    let mut source = Copy::empty(&truth);
    source.start();
    std::thread::sleep(Duration::from_millis(3));
    let listener = UnixListener::bind(folder.path().join("destination")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let proxy = Proxy::new(folder.path(), folder.path().join("destination"), plan);
    let over = AtomicBool::new(false);
    let journal = |name: &str, left: u32| Failing {
        file: JournalFile::open(&folder.path().join(name)).unwrap(),
        left,
        durable,
    };
    let (mut ours, mut theirs) =
        (journal("source.journal", fails[0]), journal("destination.journal", fails[1]));
    let mut destination = Copy::empty(&truth);
    let (sent, received) = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let mut accept = |wait: Duration| -> io::Result<Option<Box<dyn Stream>>> {
                let begin = Instant::now();
                loop {
                    match listener.accept() {
                        Ok((stream, _)) => {
                            stream.set_nonblocking(false)?;
                            return Ok(Some(Box::new(stream)));
                        }
                        Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
                        Err(_) if begin.elapsed() > wait => return Ok(None),
                        Err(_) => std::thread::sleep(Duration::from_millis(1)),
                    }
                }
            };
            let mut go_on = |_| !over.load(Ordering::SeqCst);
            receive(&mut destination, &mut theirs, &mut accept, POLICY, &mut go_on)
        });
        let mut connect =
            || -> io::Result<Box<dyn Stream>> { Ok(Box::new(UnixStream::connect(&proxy.path)?)) };
        let sent =
            send(&mut source, &mut ours, &mut connect, POLICY, (Token([5; 16]), Epoch(3)), &mut |_| true);
        over.store(true, Ordering::SeqCst);
        (sent, receiving.join().unwrap())
    });
    let what = format!("{plan:?} {fails:?}: {sent:?}, {received:?}");
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(truth.most.load(Ordering::SeqCst), 1, "{what}");
    assert_eq!(truth.wrong(), Vec::<String>::new(), "{what}");
    let running = (source.runs(), destination.runs());
    match (&sent, &received) {
        (Ok(_), Received::Runs(_)) => {
            assert_eq!((running, destination.epoch), ((false, true), Some(4)), "{what}");
        }
        (Err(NotSent::Failed(_) | NotSent::Refused(_)), Received::Nothing(_)) => {
            assert_eq!(running, (true, false), "{what}");
        }
        _ => panic!("{what}"),
    }
    let carried = [0, 1].map(|n| proxy.carried[n].load(Ordering::SeqCst));
    Outcome { sent, received, carried }
}

#[test]
fn a_guest_moves() {
    let outcome = moved(None, [0, 0], false);
    let sent = outcome.sent.unwrap();
    println!("{sent:?}, {:?}", outcome.received);
    assert!(sent.rounds >= 2 && sent.bytes > 0);
    assert!(outcome.carried.iter().all(|bytes| *bytes > 100));
}

#[test]
fn one_copy_runs_whatever_happens_to_the_link() {
    let clean = moved(None, [0, 0], false).carried;
    let begin = Instant::now();
    let (mut moves, mut stays) = (0, 0);
    for fault in FAULTS {
        for (way, length) in [(Way::ToDestination, clean[0]), (Way::ToSource, clean[1])] {
            // In the greeting, in the first message, among memory, in the last message (88 bytes with its header) and before it.
            for place in [3, 60, length / 2, length - 100, length - 80, length - 1] {
                let outcome = moved(Some((fault, way, place)), [0, 0], false);
                if outcome.sent.is_ok() { moves += 1 } else { stays += 1 }
            }
        }
    }
    println!(
        "{} scenarios: {moves} moved, {stays} stayed, none lost, none doubled, {:?}",
        moves + stays,
        begin.elapsed()
    );
    assert!(moves > 5 && stays > 5);
}

#[test]
fn a_journal_that_fails_loses_and_doubles_nothing() {
    for durable in [false, true] {
        // The source's first record: the commit. It stays where it is.
        assert!(moved(None, [1, 0], durable).sent.is_err());
        // The destination's first: that it runs. It is written again.
        assert!(moved(None, [0, 1], durable).sent.is_ok());
    }
}
