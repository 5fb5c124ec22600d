//! A guest that is made up is moved while something goes wrong: afterwards exactly one copy runs, or what a crash leaves, and it never
//! noticed. `cargo test` runs a sample; `EVENKEEL_FAULTS=all cargo test -p evenkeel-migrate --test faults -- --nocapture` runs all.

#[path = "../common/mod.rs"]
mod common;
mod killed;
mod liars;
mod matrix;
mod proxy;

use std::collections::BTreeMap;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::guest::{Copy, Truth};
use common::moved_with;
use evenkeel_handover::{Epoch, Record, Token};
use evenkeel_migrate::{
    JournalFile, Journaling, NotSent, Policy, Progress, Received, Sent, Slow, Stream, send,
};
use liars::{DestinationLie, SourceLie};
use matrix::{Engine, Scenario};
use proxy::{Fault, Place, Plan, Proxy, Way};

const POLICY: Policy = Policy { patience: Duration::from_millis(500), ..common::POLICY };
const TOKEN: Token = Token([5; 16]);

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

fn accepts(listener: &TcpListener) -> impl FnMut(Duration) -> io::Result<Option<Box<dyn Stream>>> + Send {
    listener.set_nonblocking(true).unwrap();
    move |wait| {
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
    }
}

struct Outcome {
    sent: Result<Sent, NotSent>,
    received: Received,
    carried: [u64; 2],
    happened: bool,
}

/// A move over a proxy; what has to be true after every one is looked at there.
fn over(
    plan: Option<Plan>,
    policy: Policy,
    (fails, durable): ([u32; 2], bool),
    watch: &mut dyn FnMut(&Progress) -> bool,
    change: impl FnOnce(&mut Copy, &mut Copy),
) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::new(listener.local_addr().unwrap(), plan);
    let journal = |name: &str, left: u32| Failing {
        file: JournalFile::open(&folder.path().join(name)).unwrap(),
        left,
        durable,
    };
    let (mut ours, mut theirs) =
        (journal("source.journal", fails[0]), journal("destination.journal", fails[1]));
    let mut accept = accepts(&listener);
    let mut connect = || -> io::Result<Box<dyn Stream>> { Ok(Box::new(TcpStream::connect(proxy.address)?)) };
    let (sent, received) =
        moved_with(&mut ours, &mut theirs, policy, &mut accept, &mut connect, watch, change);
    let carried = [0, 1].map(|n| proxy.carried[n].load(Ordering::SeqCst));
    Outcome { sent, received, carried, happened: proxy.happened.load(Ordering::SeqCst) }
}

/// A move once more that came to nothing because a side of it had no turn for half a second, on a busy machine. What has to be true
/// after every move was looked at all the same.
fn patiently(go: impl Fn() -> Outcome) -> Outcome {
    let waited = |outcome: &Outcome| {
        let why = outcome.sent.as_ref().err().map(ToString::to_string).unwrap_or_default();
        !outcome.happened && why.contains("nothing was heard for")
    };
    (0..3).map(|_| go()).find(|outcome| !waited(outcome)).unwrap_or_else(go)
}

fn plain(policy: Policy, change: impl Fn(&mut Copy, &mut Copy)) -> Result<Sent, NotSent> {
    patiently(|| over(None, policy, ([0, 0], false), &mut |_| true, &change)).sent
}

/// Post-copy after one round.
fn late() -> Policy {
    Policy { slow: Slow::PostCopy, rounds: 1, downtime: Duration::ZERO, ..POLICY }
}

/// A guest that writes to all its memory, faster than it is sent.
fn fast(source: &mut Copy) {
    source.fill();
    source.writes(1024, 512);
}

#[test]
fn a_guest_moves() {
    let outcome = over(None, POLICY, ([0, 0], false), &mut |_| true, |_, _| {});
    let sent = outcome.sent.unwrap();
    println!("{sent:?}, {:?}", outcome.received);
    assert!(sent.rounds >= 2 && sent.bytes > 0);
    assert!(outcome.carried.iter().all(|bytes| *bytes > 100));
    let verified = plain(Policy { verify: true, ..POLICY }, |_, _| {}).unwrap();
    assert!(verified.verified.unwrap() < verified.paused);
    // What compresses is sent in less; what does not is sent all the same.
    let bytes = |compress, noise: bool| {
        let policy = Policy { compress, streams: 2, ..POLICY };
        let change = |source: &mut Copy, _: &mut Copy| if noise { source.fill() } else { source.pattern() };
        plain(policy, change).unwrap().bytes
    };
    let (packed, not, noise) = (bytes(true, false), bytes(false, false), bytes(true, true));
    assert!(packed < not / 2 && noise > 4 << 20, "{packed} {not} {noise}");
}

#[test]
fn progress_is_told_and_is_a_line_of_json() {
    let mut lines = Vec::new();
    let mut watch = |progress: &Progress| {
        lines.push(serde_json::to_string(progress).unwrap());
        true
    };
    let sent = over(None, POLICY, ([0, 0], false), &mut watch, |source, _| source.fill()).sent.unwrap();
    assert!(lines.len() > 8 && lines.iter().all(|line| !line.contains('\n')));
    let one: serde_json::Value = serde_json::from_str(&lines[3]).unwrap();
    assert_eq!((&one["phase"], &one["round"]), (&"copying".into(), &0.into()));
    assert_eq!(one["bytes"].as_u64(), Some(4 << 20));
    assert_eq!(one["done"].as_u64().unwrap() + one["remaining"].as_u64().unwrap(), 4 << 20);
    assert!(one["rate"].as_u64().unwrap() > 0 && one["downtime_us"].is_u64() && one["throttle"] == 0);
    assert!(lines.iter().any(|line| line.contains("\"pausing\"")));
    let sent: serde_json::Value = serde_json::to_value(sent).unwrap();
    assert!(sent["paused_us"].as_u64().unwrap() > 0 && sent["verified_us"].is_null());
}

/// How a scenario ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Moved,
    Stayed,
    /// The process that had it was killed, and it ended with it: nobody runs an old one.
    Killed,
}

fn end(sent: &Result<Sent, NotSent>) -> End {
    if sent.is_ok() { End::Moved } else { End::Stayed }
}

fn run(scenario: Scenario) -> (End, bool) {
    let failed = |sent: Result<Sent, NotSent>, words: &str| {
        let said = sent.unwrap_err().to_string();
        assert!(said.contains(words), "{scenario}: {said}");
        (End::Stayed, true)
    };
    match scenario {
        Scenario::Link { plan, streams, late: post_copy } => {
            let policy = if post_copy { late() } else { Policy { streams, ..POLICY } };
            let change =
                |source: &mut Copy, _: &mut Copy| if post_copy { fast(source) } else { source.fill_half() };
            let outcome = patiently(|| over(Some(plan), policy, ([0, 0], false), &mut |_| true, change));
            // What does not harm, or is behind the commit, ends with a guest that moved.
            let harmless = plan.fault == Fault::Trickle || !outcome.happened;
            if harmless {
                assert!(outcome.sent.is_ok(), "{scenario}: {:?}", outcome.sent);
            }
            (end(&outcome.sent), outcome.happened)
        }
        Scenario::Journal { source, record, durable } => {
            let fails = if source { [record, 0] } else { [0, record] };
            let outcome = patiently(|| over(None, POLICY, (fails, durable), &mut |_| true, |_, _| {}));
            // The commit: it stays where it is. Anything else is written again, or is of no consequence.
            assert_eq!(outcome.sent.is_err(), source && record == 1, "{scenario}: {:?}", outcome.sent);
            (end(&outcome.sent), true)
        }
        Scenario::Crash { source, record, after } => (killed::at_record(source, record, after), true),
        Scenario::Killed(millis) => (killed::after(Duration::from_millis(millis)), true),
        Scenario::Source(lie) => (lied_to(lie), true),
        Scenario::Destination(lie) => (lying(lie), true),
        Scenario::Cancelled(at) => {
            let mut looks = 0;
            let mut watch = |_: &Progress| {
                looks += 1;
                looks <= at
            };
            let sent = over(None, POLICY, ([0, 0], false), &mut watch, |_, _| {}).sent;
            match &sent {
                Err(error) => assert!(error.to_string().contains("it was cancelled"), "{error}"),
                // It was over by then.
                Ok(_) => assert!(at >= 12, "{scenario}"),
            }
            (end(&sent), true)
        }
        Scenario::Engine(engine) => match engine {
            Engine::Lock => {
                failed(plain(POLICY, |_, to| to.cannot.lock = true), "its lock is held by another")
            }
            Engine::ReadBack => {
                failed(plain(POLICY, |_, to| to.cannot.restore = true), "not read back as set")
            }
            Engine::Pause => {
                failed(plain(POLICY, |from, _| from.cannot.pause = true), "vCPU 0 does not stop")
            }
            Engine::DirtyLost { streams } => {
                let policy = Policy { verify: true, streams, ..POLICY };
                failed(plain(policy, |from, _| from.loses(17)), "a change of it was not sent")
            }
            Engine::TooFast(slow) => {
                let policy = Policy { slow, rounds: 3, downtime: Duration::from_millis(2), ..POLICY };
                let sent = plain(policy, |from, _| from.storms());
                match slow {
                    Slow::Stop => return failed(sent, "the guest writes too fast; allow a longer pause"),
                    Slow::Pause => assert!(sent.unwrap().throttle == 0),
                    Slow::PostCopy => assert!(sent.unwrap().late > 0),
                    Slow::Throttle => assert!(sent.unwrap().throttle >= 75),
                }
                (End::Moved, true)
            }
            Engine::CannotThrottle => {
                let policy = Policy {
                    slow: Slow::Throttle,
                    rounds: 2,
                    downtime: Duration::from_micros(100),
                    ..POLICY
                };
                let change = |from: &mut Copy, _: &mut Copy| {
                    from.storms();
                    from.cannot.throttle = true;
                };
                failed(plain(policy, change), "cannot be slowed down")
            }
        },
    }
}

/// A destination that was lied to takes a guest afterwards.
fn lied_to(lie: SourceLie) -> End {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let journal = |name: &str| JournalFile::open(&folder.path().join(name)).unwrap();
    let (mut ours, mut theirs) = (journal("source.journal"), journal("destination.journal"));
    let mut accept = accepts(&listener);
    let mut lied = None;
    let mut connect = || -> io::Result<Box<dyn Stream>> {
        lied.get_or_insert_with(|| {
            let words = liars::to_destination(lie, address, Duration::from_secs(4));
            // Until it is seen that it went.
            std::thread::sleep(Duration::from_millis(100));
            words
        });
        Ok(Box::new(TcpStream::connect(address)?))
    };
    let watch = &mut |_: &Progress| true;
    let (sent, _) = moved_with(&mut ours, &mut theirs, POLICY, &mut accept, &mut connect, watch, |_, _| {});
    sent.unwrap_or_else(|error| panic!("{lie:?}: {error}"));
    let words = lied.unwrap();
    let expected = match lie {
        SourceLie::OtherProtocol => "the protocols 7 to 9",
        SourceLie::NoStreams => "0 streams are wanted",
        SourceLie::AnotherGuest => "facet x: another guest",
        SourceLie::StrangeStream => "belongs to no move that is under way",
        SourceLie::StateFirst => "came before memory was complete",
        SourceLie::MemoryOutside => "outside of memory",
        SourceLie::PartOfAPage => "are no pages",
        SourceLie::Overlap => "came twice in one round",
        SourceLie::MoreThanItHas => "more memory in one round",
        SourceLie::OldRound => "memory of round 0 while round 1",
        SourceLie::WrongBarrier => "round 5 ends",
        SourceLie::ShortSection | SourceLie::HugeSection => "more than a guest's state is",
        SourceLie::LongSection => "longer than it said",
        SourceLie::SectionTwice => "came twice",
        SourceLie::MissingNotAgreed => "post-copy was not agreed on",
        SourceLie::VerifyNotAgreed => "not agreed on",
        SourceLie::WrongDigest => "not what was sent",
        SourceLie::CompleteAtOnce => "and it was not",
        SourceLie::TinyFrames => "more than a guest's state is",
        // The connection ends, or nothing is to be said.
        _ => "",
    };
    assert!(words.contains(expected), "{lie:?}: {words}");
    End::Moved
}

/// A source that is lied to keeps its guest.
fn lying(lie: DestinationLie) -> End {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let truth = Arc::new(Truth::default());
    let mut source = Copy::empty(&truth);
    source.start();
    let mut journal = JournalFile::open(&folder.path().join("source.journal")).unwrap();
    let mut connect = || -> io::Result<Box<dyn Stream>> { Ok(Box::new(TcpStream::connect(address)?)) };
    let sent = std::thread::scope(|scope| {
        scope.spawn(|| liars::destination(lie, &listener, TOKEN));
        send(&mut source, &mut journal, &mut connect, POLICY, (TOKEN, Epoch(3)), &mut |_| true)
    });
    let error = sent.unwrap_err();
    assert!(matches!(error, NotSent::Failed(_) | NotSent::Refused(_)), "{lie:?}: {error}");
    assert!(source.runs() && !source.freed, "{lie:?}: {error}");
    assert!(!journal.records().records.iter().any(|r| matches!(r, Record::Gone(_))), "{lie:?}");
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!((truth.most.load(Ordering::SeqCst), truth.wrong()), (1, Vec::new()), "{lie:?}: {error}");
    End::Stayed
}

#[test]
fn exactly_one_copy_runs_whatever_goes_wrong() {
    let full = std::env::var("EVENKEEL_FAULTS").is_ok_and(|which| which == "all");
    let scenarios = if full { matrix::all() } else { matrix::sample() };
    let begin = Instant::now();
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let (scenarios, next, failed) = (&scenarios, &next, &failed);
    // What takes its time mostly waits.
    let ends: Vec<(Scenario, End, bool)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(move || {
                    let mut ends = Vec::new();
                    while let Some(scenario) = scenarios.get(next.fetch_add(1, Ordering::SeqCst)) {
                        let ended = std::panic::catch_unwind(|| run(*scenario));
                        match ended {
                            Ok((end, happened)) => ends.push((*scenario, end, happened)),
                            Err(_) => {
                                failed.store(true, Ordering::SeqCst);
                                eprintln!("in {scenario}");
                            }
                        }
                    }
                    ends
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let mut table: BTreeMap<&str, BTreeMap<End, u32>> = BTreeMap::new();
    for (scenario, end, _) in &ends {
        *table.entry(scenario.kind()).or_default().entry(*end).or_default() += 1;
    }
    let none = ends.iter().filter(|(_, _, happened)| !happened).count();
    for (kind, ends) in &table {
        println!("{kind}: {ends:?}");
    }
    println!(
        "{} of {} scenarios ran in {:.0?}, {none} of them without their fault (its place was not reached): no guest was lost or doubled",
        ends.len(),
        matrix::all().len(),
        begin.elapsed()
    );
    assert!(!failed.load(Ordering::SeqCst) && ends.len() == scenarios.len() && ends.len() > 150);
    assert!(none * 6 < ends.len(), "{none}");
    let moved = ends.iter().filter(|(_, end, _)| *end == End::Moved).count();
    assert!(moved > 40 && ends.len() - moved > 40, "{moved}");
}

#[test]
fn a_link_that_is_cut_in_a_post_copy_costs_time_only() {
    let commit = Place::Frame { kind: 2, nth: 2, behind: 600_000 };
    let plan = Plan { fault: Fault::Cut, way: Way::ToDestination, place: commit, connection: 0 };
    let mut phases = Vec::new();
    let mut watch = |progress: &Progress| {
        phases.push(progress.phase);
        true
    };
    let outcome = over(Some(plan), late(), ([0, 0], false), &mut watch, |source, _| fast(source));
    let sent = outcome.sent.unwrap();
    assert!(outcome.happened && sent.late > 600_000, "{sent:?}");
    let at = |phase| phases.iter().position(|p| *p == phase);
    let (serving, waiting) = (at(evenkeel_migrate::Phase::Serving), at(evenkeel_migrate::Phase::Waiting));
    assert!(serving < waiting && waiting.is_some(), "{phases:?}");
    println!("{sent:?}");
}
