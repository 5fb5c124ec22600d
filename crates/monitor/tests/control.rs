//! The control socket, with a machine that does what it is told, and clients that do not.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use evenkeel_monitor::Error;
use evenkeel_monitor::confine::{Mode, Report};
use evenkeel_monitor::control::client::ClientError;
use evenkeel_monitor::control::protocol::{
    Answer, Code, Event, Happened, LONGEST, Leave, Left, Phase, Plug, Saved, Snapshot, Vcpus,
};
use evenkeel_monitor::control::{About, Client, Command, Ending, Metrics, Operated, Targets, listen, serve};

/// A machine whose guest counts: it must go on counting, whatever clients do.
struct Counting {
    phase: Mutex<(Phase, Option<String>)>,
    beats: Arc<AtomicU64>,
    stands: Arc<AtomicBool>,
    plugged: AtomicU32,
    /// How long a pause and a snapshot take.
    slow: Duration,
}

impl Operated for Counting {
    fn phase(&self) -> (Phase, Option<String>) {
        self.phase.lock().unwrap().clone()
    }

    fn pause(&self) -> Result<Duration, Error> {
        std::thread::sleep(self.slow);
        let mut phase = self.phase.lock().unwrap();
        if phase.0 == Phase::Ended {
            return Err(Error::Control("it has ended".to_owned()));
        }
        self.stands.store(true, Ordering::SeqCst);
        phase.0 = Phase::Paused;
        Ok(Duration::from_millis(3))
    }

    fn resume(&self) -> Result<(), Error> {
        self.stands.store(false, Ordering::SeqCst);
        self.phase.lock().unwrap().0 = Phase::Running;
        Ok(())
    }

    fn stop(&self) {
        *self.phase.lock().unwrap() = (Phase::Ended, Some("stopped".to_owned()));
    }

    fn vcpus(&self) -> Option<Vcpus> {
        Some(Vcpus { vcpus: self.plugged.load(Ordering::SeqCst), most: 4 })
    }

    fn plug(&self, vcpus: u32) -> Result<Vcpus, Error> {
        if vcpus > 4 {
            return Err(Error::Device("at most 4".to_owned()));
        }
        self.plugged.store(vcpus, Ordering::SeqCst);
        Ok(Vcpus { vcpus, most: 4 })
    }

    fn devices(&self) -> Vec<evenkeel_monitor::control::metrics::Device> {
        Vec::new()
    }

    fn save(&self, to: &mut Targets, progress: &dyn Fn(u64, u64)) -> Result<Saved, Error> {
        for done in 0..=4 {
            progress(done * 100, 400);
            std::thread::sleep(self.slow / 4);
        }
        to.file.write_all(b"all of it").map_err(|e| Error::Control(e.to_string()))?;
        Ok(Saved { bytes: 9, paused_seconds: 0.25, ..Saved::default() })
    }

    fn leave(&self, step: &Leave, to: Option<&mut File>) -> Result<(u64, Option<OwnedFd>), Error> {
        let failed = |e: std::io::Error| Error::Control(e.to_string());
        match (step, to) {
            (Leave::Memory, _) => {
                let mut file = tempfile::tempfile().map_err(failed)?;
                file.write_all(b"memory").map_err(failed)?;
                Ok((6, Some(file.into())))
            }
            (Leave::State, Some(to)) => to.write_all(b"state").map(|()| (5, None)).map_err(failed),
            _ => Ok((0, None)),
        }
    }
}

struct Setting {
    dir: tempfile::TempDir,
    machine: Arc<Counting>,
    ending: Ending,
    threads: Vec<JoinHandle<()>>,
}

impl Setting {
    fn new(slow: Duration, mode: Mode) -> Setting {
        // The mode of new files is the process's while the socket is made: one test at a time makes any.
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
        let dir = tempfile::tempdir().unwrap();
        let (beats, stands) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let phase = Mutex::new((Phase::Running, None));
        let machine = Arc::new(Counting { phase, beats, stands, plugged: AtomicU32::new(2), slow });
        let listener = listen(&dir.path().join("socket")).unwrap();
        let confinement = Report { mode, ..Report::default() };
        let about = About { vcpus: 2, memory_bytes: 1 << 20, epoch: 1, confinement };
        let (server, worker, ending) = serve(listener, about, Arc::new(Metrics::default())).unwrap();
        let (one, two, guest) = (machine.clone(), machine.clone(), machine.clone());
        let threads = vec![
            std::thread::spawn(move || server.run(&*one)),
            std::thread::spawn(move || worker.run(&*two)),
            std::thread::spawn(move || {
                while guest.phase().0 != Phase::Ended {
                    if !guest.stands.load(Ordering::SeqCst) {
                        guest.beats.fetch_add(1, Ordering::SeqCst);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            }),
        ];
        Setting { dir, machine, ending, threads }
    }

    fn quick() -> Setting {
        Setting::new(Duration::ZERO, Mode::Off)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn client(&self) -> Client {
        let client = Client::connect(&self.path()).unwrap();
        client.set_limit(Some(Duration::from_secs(20))).unwrap();
        client
    }

    fn raw(&self) -> UnixStream {
        let socket = UnixStream::connect(self.path()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket
    }

    /// The guest still runs, and a client that behaves is served soon.
    fn is_well(&self) {
        let before = self.machine.beats.load(Ordering::SeqCst);
        let begin = Instant::now();
        assert!(matches!(ask(&mut self.client(), Command::Status), Ok(Answer::Status(_))));
        assert!(begin.elapsed() < Duration::from_secs(3), "served after {:?}", begin.elapsed());
        std::thread::sleep(Duration::from_millis(20));
        assert!(self.machine.beats.load(Ordering::SeqCst) > before, "the guest stands still");
    }

    fn end(mut self) {
        self.machine.stop();
        self.ending.end(Duration::from_secs(1));
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

fn ask(client: &mut Client, command: Command) -> Result<Answer, ClientError> {
    client.ask(command, &[], &mut |_| {})
}

fn refused(answer: Result<Answer, ClientError>) -> Code {
    match answer {
        Err(ClientError::Refused(refused)) => refused.code,
        other => panic!("{other:?}"),
    }
}

fn line(socket: &UnixStream) -> String {
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line).unwrap();
    line
}

#[test]
fn a_machine_is_paused_resumed_measured_and_stopped() {
    let setting = Setting::quick();
    let mut client = setting.client();
    let Ok(Answer::Status(status)) = ask(&mut client, Command::Status) else { panic!() };
    assert_eq!(
        (status.phase, status.vcpus, status.memory_bytes, status.protocol),
        (Phase::Running, 2, 1 << 20, 1)
    );
    let Ok(Answer::Paused(took)) = ask(&mut client, Command::Pause) else { panic!() };
    assert_eq!(took.seconds, 0.003);
    let Ok(Answer::Status(status)) = ask(&mut client, Command::Status) else { panic!() };
    assert_eq!(status.phase, Phase::Paused);
    let beats = setting.machine.beats.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(30));
    assert!(setting.machine.beats.load(Ordering::SeqCst) <= beats + 1);
    assert!(matches!(ask(&mut client, Command::Resume), Ok(Answer::Resumed(_))));
    let Ok(Answer::Metrics(metrics)) = ask(&mut client, Command::Metrics) else { panic!() };
    for series in [
        "evenkeel_phase{phase=\"running\"} 1",
        "evenkeel_pause_seconds_count 1",
        "evenkeel_pause_seconds_sum 0.003",
        "evenkeel_standstill_seconds_count 1",
    ] {
        assert!(metrics.text.lines().any(|line| line == series), "{series} in\n{}", metrics.text);
    }
    setting.is_well();
    let plug = |vcpus| Command::Plug(Plug { vcpus });
    let four = Vcpus { vcpus: 4, most: 4 };
    assert!(matches!(ask(&mut client, plug(4)), Ok(Answer::Plugged(vcpus)) if vcpus == four));
    let Ok(Answer::Status(status)) = ask(&mut client, Command::Status) else { panic!() };
    assert_eq!((status.vcpus, status.most_vcpus), (4, Some(4)));
    assert_eq!(refused(ask(&mut client, plug(5))), Code::Failed);
    assert!(matches!(ask(&mut client, Command::Stop), Ok(Answer::Stopping(_))));
    assert_eq!(refused(ask(&mut client, Command::Pause)), Code::Phase);
    setting.end();
}

#[test]
fn the_socket_is_the_users_own_and_a_stale_one_is_replaced() {
    let setting = Setting::quick();
    let path = setting.path();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(listen(&path).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    let other = setting.dir.path().join("file");
    std::fs::write(&other, "a file").unwrap();
    assert_eq!(listen(&other).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&other).unwrap(), b"a file");
    let stale = setting.dir.path().join("stale");
    drop(listen(&stale).unwrap());
    assert!(stale.exists());
    drop(listen(&stale).unwrap());
    setting.end();
}

#[test]
fn subscribers_hear_phases_and_progress_in_order() {
    let setting = Setting::new(Duration::from_millis(600), Mode::Off);
    let mut client = setting.client();
    assert!(matches!(ask(&mut client, Command::Subscribe), Ok(Answer::Subscribed(_))));
    let mut seen: Vec<Event> = Vec::new();
    client.ask(Command::Pause, &[], &mut |event| seen.push(event)).unwrap();
    let file = tempfile::tempfile().unwrap();
    let to = Command::Snapshot(Snapshot::default());
    let saved = client.ask(to, &[file.as_fd()], &mut |event| seen.push(event)).unwrap();
    assert!(
        matches!(saved, Answer::Saved(ref saved) if saved.bytes == 9 && saved.seconds > 0.5),
        "{saved:?}"
    );
    assert!(seen.is_sorted_by(|a, b| a.at <= b.at), "{seen:?}");
    let progress: Vec<(u64, u64)> = seen
        .iter()
        .filter_map(|e| match &e.event {
            Happened::Progress(work) if work.name == "snapshot" => Some((work.done, work.of)),
            _ => None,
        })
        .collect();
    assert!(progress.len() >= 3 && progress.is_sorted() && progress.contains(&(400, 400)), "{progress:?}");
    assert!(seen.iter().any(|e| matches!(&e.event, Happened::Phase(p) if p.phase == Phase::Paused)));
    setting.machine.stop();
    setting.ending.end(Duration::from_secs(2));
    // The last thing that it hears is the end.
    let end = loop {
        match client.line() {
            Ok(evenkeel_monitor::control::Line::Event(event)) => {
                if let Happened::Phase(phase) = event.event {
                    break phase;
                }
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((end.phase, end.end.as_deref()), (Phase::Ended, Some("stopped")));
    setting.end();
}

#[test]
fn a_snapshot_goes_to_the_passed_file_and_to_nothing_else() {
    let setting = Setting::new(Duration::ZERO, Mode::Enforce);
    let mut client = setting.client();
    let snapshot = || Command::Snapshot(Snapshot::default());
    let mut to = |fd: Option<&dyn AsFd>| {
        let fd = fd.map(|fd| fd.as_fd());
        client.ask(snapshot(), fd.as_slice(), &mut |_| {})
    };
    assert_eq!(refused(to(None)), Code::Target, "none at all");
    let path = setting.dir.path().join("snapshot");
    let file = File::create(&path).unwrap();
    assert!(matches!(to(Some(&file)), Ok(Answer::Saved(_))));
    assert_eq!(std::fs::read(&path).unwrap(), b"all of it");
    assert_eq!(refused(to(None)), Code::Target, "it was used up");
    let reading = File::open(&path).unwrap();
    assert_eq!(refused(to(Some(&reading))), Code::Target, "not for writing");
    let adding = File::options().append(true).open(&path).unwrap();
    assert_eq!(refused(to(Some(&adding))), Code::Target, "for appending");
    let (pipe, _other) = UnixStream::pair().unwrap();
    assert_eq!(refused(to(Some(&pipe))), Code::Target, "a socket");
    let directory = File::open(setting.dir.path()).unwrap();
    assert_eq!(refused(to(Some(&directory))), Code::Target, "a directory");
    let path = Some(setting.dir.path().join("other").display().to_string());
    assert_eq!(
        refused(ask(&mut client, Command::Snapshot(Snapshot { path, ..Snapshot::default() }))),
        Code::Confined
    );
    setting.end();

    let setting = Setting::quick();
    let path = setting.dir.path().join("other");
    let named = Command::Snapshot(Snapshot { path: Some(path.display().to_string()), ..Snapshot::default() });
    assert!(matches!(ask(&mut setting.client(), named), Ok(Answer::Saved(_))));
    assert_eq!(std::fs::read(&path).unwrap(), b"all of it");
    setting.end();
}

#[test]
fn what_is_no_request_is_refused_and_the_connection_goes_on() {
    let setting = Setting::quick();
    let mut socket = setting.raw();
    let deep = "[".repeat(2000);
    for bad in [
        "",
        "{}",
        "null",
        "[]",
        "status",
        "\"status\"",
        "{\"do\":\"fly\"}",
        "{\"do\":\"status\",\"extra\":1}",
        "{\"do\":\"status\",\"do\":\"stop\"}",
        "{\"id\":-1,\"do\":\"status\"}",
        "{\"id\":1e300,\"do\":\"status\"}",
        "{\"do\":{\"snapshot\":{\"path\":\"x\",\"mode\":7}}}",
        "{\"do\":{\"snapshot\":{},\"stop\":null}}",
        "{\"do\":\"status\"} {\"do\":\"stop\"}",
        "{\"do\":\"status\"",
        "\u{0}\u{0}\u{0}",
        &deep,
    ] {
        socket.write_all(format!("{bad}\n").as_bytes()).unwrap();
        let answer = line(&socket);
        assert!(answer.contains("\"code\":\"malformed\""), "{bad}: {answer}");
    }
    socket.write_all(&[0xff, 0xfe, 0x80, b'\n']).unwrap();
    assert!(line(&socket).contains("malformed"));
    // In pieces, with a pause in each place.
    for byte in b"{\"id\":5,\"do\":\"status\"}\n" {
        socket.write_all(&[*byte]).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(line(&socket).starts_with("{\"id\":5,\"reply\":{\"status\":"));
    assert_eq!(setting.machine.phase().0, Phase::Running);
    setting.is_well();
    setting.end();
}

#[test]
fn a_line_without_end_is_cut_off() {
    let setting = Setting::quick();
    for length in [LONGEST, LONGEST + 1, 10 << 20] {
        let mut socket = setting.raw();
        // It may be closed while this writes.
        let _ = socket.write_all(&vec![b'x'; length]);
        let mut text = String::new();
        let _ = socket.read_to_string(&mut text);
        assert!(text.is_empty() || text.contains("too-long"), "{text}");
        assert!(text.lines().count() <= 1);
    }
    // The longest that is allowed.
    let mut socket = setting.raw();
    let mut longest = b"{\"do\":\"status\"}".to_vec();
    longest.resize(LONGEST - 1, b' ');
    longest.push(b'\n');
    socket.write_all(&longest).unwrap();
    assert!(line(&socket).contains("status"));
    setting.is_well();
    setting.end();
}

#[test]
fn a_client_that_never_reads_is_not_waited_for_nor_kept_for() {
    let setting = Setting::quick();
    let mut deaf = setting.raw();
    deaf.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut sent = 0_u64;
    // Metrics answer with some kilobytes to 15 bytes: until nobody listens to it any more.
    while deaf.write_all(b"{\"do\":\"metrics\"}\n{\"do\":\"subscribe\"}\n").is_ok() {
        sent += 1;
        assert!(sent < 1_000_000, "what it does not read is kept without bound");
    }
    setting.is_well();
    for _ in 0..50 {
        let mut client = setting.client();
        ask(&mut client, Command::Pause).unwrap();
        ask(&mut client, Command::Resume).unwrap();
    }
    setting.is_well();
    // It loses its place.
    std::thread::sleep(Duration::from_secs(11));
    let mut text = Vec::new();
    let _ = deaf.read_to_end(&mut text);
    assert!(text.len() < 2 << 20, "{} bytes were kept for it", text.len());
    setting.is_well();
    setting.end();
}

#[test]
fn a_subscriber_that_reads_late_is_told_how_much_it_missed() {
    let setting = Setting::quick();
    let mut late = setting.client();
    ask(&mut late, Command::Subscribe).unwrap();
    let mut busy = setting.client();
    for _ in 0..4000 {
        ask(&mut busy, Command::Pause).unwrap();
        ask(&mut busy, Command::Resume).unwrap();
    }
    let mut lost = 0;
    let mut heard = 0_u64;
    setting.machine.stop();
    while let Ok(line) = late.line() {
        let evenkeel_monitor::control::Line::Event(event) = line else { panic!() };
        match event.event {
            Happened::Lost(missed) => lost += missed.events,
            Happened::Phase(phase) if phase.phase == Phase::Ended => break,
            _ => heard += 1,
        }
    }
    assert!(heard > 100, "{heard} heard");
    // What its socket and the bound hold is less than what happened.
    assert!(lost > 0 || heard > 4000, "{heard} heard, {lost} lost");
    setting.end();
}

#[test]
fn a_thousand_connections_leave_room_for_one_that_means_it() {
    let setting = Setting::quick();
    let mut crowd: Vec<UnixStream> = Vec::new();
    for _ in 0..1000 {
        crowd.push(setting.raw());
    }
    setting.is_well();
    let mut told = 0;
    for socket in &mut crowd {
        socket.set_nonblocking(true).unwrap();
        let mut text = String::new();
        let _ = socket.read_to_string(&mut text);
        told += usize::from(text.contains("too-many-clients"));
    }
    assert!(told >= 900, "{told} were told that there is no room");
    // Subscribers are not sent away for others; so their number is what others find.
    drop(crowd);
    let mut kept: Vec<Client> = (0..16).map(|_| setting.client()).collect();
    kept.iter_mut().for_each(|client| drop(ask(client, Command::Subscribe).unwrap()));
    assert_eq!(refused(ask(&mut setting.client(), Command::Status)), Code::TooManyClients);
    assert!(matches!(ask(&mut kept[0], Command::Status), Ok(Answer::Status(_))));
    drop(kept);
    std::thread::sleep(Duration::from_millis(50));
    setting.is_well();
    setting.end();
}

#[test]
fn work_that_is_asked_for_without_end_is_refused_and_the_rest_is_done() {
    let setting = Setting::new(Duration::from_millis(50), Mode::Off);
    let mut socket = setting.raw();
    for id in 0..40 {
        socket.write_all(format!("{{\"id\":{id},\"do\":\"pause\"}}\n").as_bytes()).unwrap();
    }
    let mut reader = BufReader::new(&socket);
    let (mut paused, mut busy) = (0, 0);
    for _ in 0..40 {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        paused += usize::from(line.contains("paused"));
        busy += usize::from(line.contains("\"code\":\"busy\""));
    }
    assert_eq!(paused + busy, 40);
    assert!((8..=20).contains(&paused), "{paused}");
    setting.end();
}

#[test]
fn who_goes_away_in_the_middle_of_its_work_is_missed_by_nobody() {
    let setting = Setting::new(Duration::from_millis(100), Mode::Off);
    for _ in 0..5 {
        let mut socket = setting.raw();
        socket.write_all(b"{\"do\":\"pause\"}\n{\"do\":\"resu").unwrap();
    }
    let mut client = setting.client();
    // In turn, after those of others.
    ask(&mut client, Command::Resume).unwrap();
    setting.is_well();
    setting.end();
}

fn step(client: &mut Client, step: Leave, to: Option<&File>) -> Result<Left, Code> {
    match client.ask(Command::Leave(step), &to.map(AsFd::as_fd).into_iter().collect::<Vec<_>>(), &mut |_| {})
    {
        Ok(Answer::Left(left)) => Ok(left),
        Ok(other) => panic!("{other:?}"),
        Err(ClientError::Refused(refused)) => Err(refused.code),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_guest_that_is_moved_gives_its_memory_and_goes_on_when_its_mover_is_gone() {
    let setting = Setting::quick();
    let mut other = Client::connect(&setting.path()).unwrap();
    let mut mover = Client::connect(&setting.path()).unwrap();
    assert_eq!(step(&mut mover, Leave::Memory, None).unwrap().bytes, 6);
    let mut memory = File::from(mover.passed().expect("the file of its memory"));
    let mut held = String::new();
    std::io::Seek::rewind(&mut memory).unwrap();
    memory.read_to_string(&mut held).unwrap();
    assert_eq!(held, "memory");
    step(&mut mover, Leave::Pause, None).unwrap();
    let file = tempfile::tempfile().unwrap();
    assert_eq!(step(&mut mover, Leave::State, Some(&file)).unwrap().bytes, 5);
    assert_eq!(step(&mut mover, Leave::State, None), Err(Code::Target), "no file came");
    // Nobody else has a say meanwhile.
    assert_eq!(step(&mut other, Leave::Back(None), None), Err(Code::Leaving));
    for command in [Command::Resume, Command::Stop, Command::Pause] {
        let refused = other.ask(command, &[], &mut |_| {});
        assert!(matches!(refused, Err(ClientError::Refused(why)) if why.code == Code::Leaving));
    }
    assert_eq!(setting.machine.phase().0, Phase::Paused);
    drop(mover);
    let begin = Instant::now();
    while setting.machine.phase().0 != Phase::Running {
        assert!(begin.elapsed() < Duration::from_secs(10), "it stands though its mover is gone");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(other.ask(Command::Pause, &[], &mut |_| {}).is_ok());
}

#[test]
fn a_guest_that_was_given_away_stands_until_somebody_knows_its_token() {
    let setting = Setting::quick();
    let token = "0123456789abcdef0123456789abcdef".to_owned();
    let mut mover = Client::connect(&setting.path()).unwrap();
    step(&mut mover, Leave::Pause, None).unwrap();
    step(&mut mover, Leave::Commit(token.clone()), None).unwrap();
    drop(mover);
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(setting.machine.phase().0, Phase::Paused);
    let mut other = Client::connect(&setting.path()).unwrap();
    match other.ask(Command::Status, &[], &mut |_| {}).unwrap() {
        Answer::Status(status) => assert_eq!(status.leaving.unwrap().token.as_ref(), Some(&token)),
        other => panic!("{other:?}"),
    }
    assert_eq!(step(&mut other, Leave::Back(None), None), Err(Code::Leaving));
    assert_eq!(step(&mut other, Leave::Gone("f".repeat(32)), None), Err(Code::Leaving));
    step(&mut other, Leave::Back(Some(token)), None).unwrap();
    assert_eq!(setting.machine.phase().0, Phase::Running);
}
