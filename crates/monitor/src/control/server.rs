//! Serves the clients: who is there, whose turn it is, what is answered at once.

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::connection::{Connection, is_ours};
use super::mover::Mover;
use super::protocol::{
    Answer, Code, Command, Disks, Event, Happened, Leave, Line, Metrics as Text, Nothing, PROTOCOL, Phase,
    Phased, Refused, Reply, Request, Status, Work,
};
use super::{About, Done, Job, Metrics, Operated, Shared, Targets, Task, lock};
use crate::confine::Mode;

/// As many clients are served at once.
pub const CLIENTS: usize = 16;
/// As many are let in, or turned away, before the others have a turn.
const AT_ONCE: usize = 32;
/// Looks at the machine at least so often: nobody tells when it resets itself.
const LOOK: Duration = Duration::from_millis(250);

/// Serves the control socket.
pub struct Server {
    listener: UnixListener,
    about: About,
    metrics: Arc<Metrics>,
    shared: Arc<Shared>,
    jobs: SyncSender<Job>,
    done: Receiver<Done>,
    clients: Vec<Connection>,
    next: u64,
    pid: u32,
    /// What was last told of the machine.
    told: Option<Phase>,
    told_work: Option<Work>,
}

impl Server {
    pub(super) fn new(
        listener: UnixListener,
        about: About,
        metrics: Arc<Metrics>,
        shared: Arc<Shared>,
        jobs: SyncSender<Job>,
        done: Receiver<Done>,
    ) -> Server {
        let clients = Vec::with_capacity(CLIENTS);
        Server {
            listener,
            about,
            metrics,
            shared,
            jobs,
            done,
            clients,
            next: 0,
            pid: std::process::id(),
            told: None,
            told_work: None,
        }
    }

    /// Serves, until the machine is over.
    pub fn run(mut self, machine: &dyn Operated) {
        loop {
            let over = *lock(&self.shared.over);
            if over.is_some_and(|until| {
                Instant::now() >= until
                    || !self.clients.iter().any(Connection::owes) && self.told == Some(Phase::Ended)
            }) {
                return;
            }
            self.wait(over);
            self.let_in();
            self.hear(machine);
            self.report(machine);
            self.clients.retain_mut(|client| client.send().is_ok());
            self.deserted();
        }
    }

    /// Waits for a socket, the bell, or some time.
    fn wait(&mut self, over: Option<Instant>) {
        let left = over.map_or(LOOK, |until| until.saturating_duration_since(Instant::now()).min(LOOK));
        // A line that is there already waits for nobody.
        let left = if self.clients.iter().any(Connection::has_line) { Duration::ZERO } else { left };
        let mut fds = Vec::with_capacity(CLIENTS + 2);
        fds.push(PollFd::new(&self.listener, PollFlags::IN));
        fds.push(PollFd::new(&self.shared.bell, PollFlags::IN));
        for client in &self.clients {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, client.hears());
            flags.set(PollFlags::OUT, client.owes());
            fds.push(PollFd::new(client, flags));
        }
        let limit = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
        // Interrupted, or not: who is ready is found out by trying.
        let _ = poll(&mut fds, Some(&limit));
        let ready: Vec<PollFlags> = fds[2..].iter().map(PollFd::revents).collect();
        if fds[1].revents().contains(PollFlags::IN) {
            let _ = rustix::io::read(&self.shared.bell, &mut [0; 8]);
        }
        let mut ready = ready.into_iter();
        self.clients.retain_mut(|client| {
            let what = ready.next().unwrap_or(PollFlags::empty());
            if what.contains(PollFlags::IN) {
                return client.receive().is_ok();
            }
            // One that hung up, and is not listened to because it does not read either.
            !what.intersects(PollFlags::HUP | PollFlags::ERR)
        });
    }

    fn let_in(&mut self) {
        for _ in 0..AT_ONCE {
            let socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // Somebody who is gone already, or there are no descriptors left: later.
                Err(_) => return,
            };
            let ours = is_ours(&socket).unwrap_or(false);
            self.next += 1;
            let mut client = Connection::new(self.next, socket);
            let refused = if ours {
                let room = self.clients.len() < CLIENTS || self.evict();
                (!room).then(|| {
                    Refused::new(Code::TooManyClients, format!("{CLIENTS} clients are served already"))
                        .hinting("try again when one of them has gone")
                })
            } else {
                Some(Refused::new(Code::NotYou, "this machine belongs to another user"))
            };
            self.metrics.client(refused.is_none());
            match refused {
                None => self.clients.push(client),
                Some(why) => {
                    client.close(why);
                    // It has room for a line; who does not get it sees that it is closed.
                    let _ = client.send();
                }
            }
        }
    }

    /// Makes room: closes the client that has been silent for longest, of those who wait for nothing and did not subscribe.
    fn evict(&mut self) -> bool {
        let idle = |client: &&mut Connection| !client.subscribed && client.waits == 0;
        let longest = self.clients.iter_mut().filter(idle).min_by_key(|client| client.active);
        let Some(number) = longest.map(|client| {
            client.close(Refused::new(
                Code::TooManyClients,
                "others came, and this client was silent for longest",
            ));
            let _ = client.send();
            client.number
        }) else {
            return false;
        };
        self.clients.retain(|client| client.number != number);
        true
    }

    /// Whether this client may ask for this while a guest moves.
    fn may(&self, at: usize, command: &Command) -> Result<(), Refused> {
        let mut mover = lock(&self.shared.mover);
        Mover::hears(&mut mover, self.clients[at].number, command)
    }

    /// A mover that is gone without a word has left the guest here, unless the right to run was on its way by then.
    fn deserted(&mut self) {
        let mut mover = lock(&self.shared.mover);
        let gone = |mover: &Mover| !self.clients.iter().any(|client| client.number == mover.client);
        if mover.as_ref().is_some_and(|mover| mover.token.is_none() && gone(mover)) {
            let job = Job { client: 0, id: None, task: Task::Leave(Leave::Back(None), None) };
            // Where there is no room for it, it is tried again.
            if self.jobs.try_send(job).is_ok() {
                *mover = None;
            }
        }
    }

    /// One line of each client.
    fn hear(&mut self, machine: &dyn Operated) {
        for at in 0..self.clients.len() {
            let Some(line) = self.clients[at].line() else { continue };
            let (id, answer) = match serde_json::from_slice::<Request>(&line) {
                Ok(request) => (request.id, self.answer(at, request, machine)),
                Err(e) => {
                    let why = Refused::new(Code::Malformed, e.to_string()).hinting(
                        "a request is a line like {\"id\":1,\"do\":\"status\"}; see docs/control.md",
                    );
                    (None, Some(Answer::Error(why)))
                }
            };
            if let Some(reply) = answer {
                self.clients[at].say(&Line::Reply(Reply { id, reply }));
            }
        }
    }

    /// The answer, if there is one at once.
    fn answer(&mut self, at: usize, request: Request, machine: &dyn Operated) -> Option<Answer> {
        if let Err(why) = self.may(at, &request.command) {
            return Some(Answer::Error(why));
        }
        let client = &mut self.clients[at];
        let task = match request.command {
            Command::Status => return Some(Answer::Status(self.status(machine))),
            Command::Metrics => {
                let text =
                    self.metrics.text(machine.phase().0, self.shared.began.elapsed(), &machine.devices());
                return Some(Answer::Metrics(Text { text }));
            }
            Command::Subscribe => {
                client.subscribed = true;
                return Some(Answer::Subscribed(Nothing {}));
            }
            Command::Stop => {
                machine.stop();
                return Some(Answer::Stopping(Nothing {}));
            }
            Command::Plug(wanted) => {
                return Some(match machine.plug(wanted.vcpus) {
                    Ok(vcpus) => Answer::Plugged(vcpus),
                    Err(why) => Answer::Error(
                        Refused::new(Code::Failed, why.to_string())
                            .hinting("`evenkeel run --most-vcpus` says how many there can be"),
                    ),
                });
            }
            Command::Leave(step) => match step {
                Leave::Offer | Leave::Written | Leave::State => match client.targets() {
                    Ok(files) => Task::Leave(step, files.into_iter().next()),
                    Err(why) => return Some(Answer::Error(why)),
                },
                _ => Task::Leave(step, None),
            },
            Command::Pause => Task::Pause,
            Command::Resume => Task::Resume,
            Command::Snapshot(to) => match to.path {
                None => match client.targets() {
                    Ok(mut files) => {
                        let copies = files.split_off(1);
                        match files.pop() {
                            Some(file) => Task::Save(Targets { file, disks: to.disks, copies }),
                            None => return None,
                        }
                    }
                    Err(why) => return Some(Answer::Error(why)),
                },
                Some(_) if self.about.confinement.mode != Mode::Off => {
                    let why = Refused::new(Code::Confined, "this process cannot open paths any more");
                    return Some(Answer::Error(why.hinting("pass an open file with the line (SCM_RIGHTS)")));
                }
                Some(path) => match (to.disks, client.targets()) {
                    (Disks::Copy, Ok(copies)) => Task::SaveUnder(path, to.disks, copies),
                    (Disks::Copy, Err(why)) => return Some(Answer::Error(why)),
                    (disks, _) => Task::SaveUnder(path, disks, Vec::new()),
                },
            },
        };
        match self.jobs.try_send(Job { client: client.number, id: request.id, task }) {
            Ok(()) => {
                client.waits += 1;
                None
            }
            Err(TrySendError::Full(_)) => Some(Answer::Error(
                Refused::new(Code::Busy, "as much waits to be done as is kept").hinting("ask again later"),
            )),
            Err(TrySendError::Disconnected(_)) => {
                Some(Answer::Error(Refused::new(Code::Phase, "the machine is over")))
            }
        }
    }

    fn status(&self, machine: &dyn Operated) -> Status {
        let (phase, end) = machine.phase();
        let vcpus = machine.vcpus();
        Status {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: self.pid,
            phase,
            end,
            uptime_seconds: self.shared.began.elapsed().as_secs_f64(),
            vcpus: vcpus.map_or(self.about.vcpus, |vcpus| vcpus.vcpus),
            most_vcpus: vcpus.map(|vcpus| vcpus.most),
            memory_bytes: self.about.memory_bytes,
            epoch: self.about.epoch,
            leaving: lock(&self.shared.mover).as_ref().map(Mover::told),
            work: lock(&self.shared.work).clone(),
            confinement: self.about.confinement.clone(),
        }
    }

    /// Tells what happened since the last time, and what came of jobs: in the order in which it happened.
    fn report(&mut self, machine: &dyn Operated) {
        let at = self.shared.began.elapsed().as_secs_f64();
        let work = lock(&self.shared.work).clone();
        let mut events = Vec::new();
        if work != self.told_work {
            self.told_work.clone_from(&work);
            events.extend(work.map(Happened::Progress));
        }
        let (phase, end) = machine.phase();
        if self.told != Some(phase) {
            self.told = Some(phase);
            events.push(Happened::Phase(Phased { phase, end }));
        }
        for event in events {
            let event = Event { at, event };
            self.clients.iter_mut().for_each(|client| client.tell(&event));
        }
        while let Ok(done) = self.done.try_recv() {
            // Who asked may be gone.
            if let Some(client) = self.clients.iter_mut().find(|client| client.number == done.client) {
                client.waits -= 1;
                client.say_with(&Line::Reply(Reply { id: done.id, reply: done.answer }), done.fd);
            }
        }
    }
}
