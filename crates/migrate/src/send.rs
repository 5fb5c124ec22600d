//! The engine of the side that the guest leaves: its connection, and who has the right to run.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver as Events, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use evenkeel_handover::greeting::{Features, Greeting, PROTOCOL};
use evenkeel_handover::postcopy::{Input as Served, Server};
use evenkeel_handover::wire::Frame;
use evenkeel_handover::{Epoch, Input, Message, Output, Reason, Source, SourceAt as At, Token};

use crate::connection::{AHEAD, Connection, Event, What};
use crate::ranges::bytes;
use crate::serve::Pages;
use crate::spread::Spread;
use crate::{
    GuestError, Journaling, Leaving, MOST_STREAMS, NotSent, PROGRAM, Phase, Policy, Progress, Range, Sent,
    Slow, Stream,
};

/// What opens connections.
pub(crate) type Connect<'a> = &'a mut dyn FnMut() -> io::Result<Box<dyn Stream>>;
/// What sees how far it is, and says whether to go on.
pub(crate) type Watch<'a> = &'a mut dyn FnMut(&Progress) -> bool;

pub(crate) struct Sender<'a> {
    pub guest: &'a mut dyn Leaving,
    journal: &'a mut dyn Journaling,
    connect: Connect<'a>,
    watch: Watch<'a>,
    pub policy: Policy,
    pub automaton: Source,
    token: Token,
    offer: Vec<u8>,
    pub memory: Vec<Range>,
    events: (SyncSender<Event>, Events<Event>),
    /// The connection: the first stream, and those for memory only.
    pub links: Vec<Connection>,
    next: u64,
    /// What the destination said first.
    pub answer: Option<Greeting>,
    pub spread: Option<Spread>,
    /// Why the attempt ended, the first that went wrong.
    why: Option<String>,
    /// What the destination found.
    words: Option<String>,
    stands: Option<GuestError>,
    /// Written pages are remembered, or the guest stands, or is slowed down.
    pub touched: bool,
    pub paused: Option<Instant>,
    pub begin: Instant,
    /// What the destination runs, if it said so.
    ran: Option<Duration>,
    pub rounds: u32,
    /// So many of them are with the destination.
    pub there: u32,
    bytes: u64,
    pub verified: Option<Duration>,
    pub throttle: u8,
    /// Memory that the destination gets later.
    pub late: Option<Pages>,
    pub server: Option<Server>,
    pub progress: Progress,
}

/// Moves a guest away. `token` is random; `epoch` is that of its storage here; `connect` is asked for a connection a stream at the
/// beginning and, after the commit, whenever one is lost. `watch` sees how far it is and says whether to go on; once the right to run
/// is given away, that ends nothing, but for a post-copy, whose guest then lacks memory.
///
/// # Errors
/// See [`NotSent`]: each says where the guest is.
pub fn send(
    guest: &mut dyn Leaving,
    journal: &mut dyn Journaling,
    connect: &mut dyn FnMut() -> io::Result<Box<dyn Stream>>,
    policy: Policy,
    (token, epoch): (Token, Epoch),
    watch: &mut dyn FnMut(&Progress) -> bool,
) -> Result<Sent, NotSent> {
    let goes_on = |why: String| NotSent::Failed(why);
    if !(1..=MOST_STREAMS).contains(&policy.streams) {
        return Err(goes_on(format!("{} streams, and 1 to {MOST_STREAMS} can be", policy.streams)));
    }
    if policy.verify && policy.slow == Slow::PostCopy {
        let why = "all memory cannot be verified in the pause and come after it: leave out one of the two";
        return Err(goes_on(why.to_owned()));
    }
    let offer = guest.offer().map_err(|e| goes_on(e.to_string()))?;
    let memory = guest.memory();
    let mut sender =
        Sender::new(guest, journal, (connect, watch), policy, Source::new(epoch), token, (offer, memory));
    if let Err(error) = sender.connect() {
        return Err(goes_on(format!("no connection: {}", sender.told(&error.to_string()))));
    }
    sender.feed(Input::Start(token));
    sender.run()
}

impl<'a> Sender<'a> {
    pub fn new(
        guest: &'a mut dyn Leaving,
        journal: &'a mut dyn Journaling,
        (connect, watch): (Connect<'a>, Watch<'a>),
        policy: Policy,
        automaton: Source,
        token: Token,
        (offer, memory): (Vec<u8>, Vec<Range>),
    ) -> Sender<'a> {
        let progress = Progress {
            phase: Phase::Copying,
            round: 0,
            bytes: 0,
            done: 0,
            remaining: 0,
            rate: 0,
            downtime: Duration::ZERO,
            throttle: 0,
        };
        Sender {
            guest,
            journal,
            connect,
            watch,
            policy,
            automaton,
            token,
            offer,
            memory,
            events: sync_channel(AHEAD),
            links: Vec::new(),
            next: 0,
            answer: None,
            spread: None,
            why: None,
            words: None,
            stands: None,
            touched: false,
            paused: None,
            begin: Instant::now(),
            ran: None,
            rounds: 0,
            there: 0,
            bytes: 0,
            verified: None,
            throttle: 0,
            late: None,
            server: None,
            progress,
        }
    }

    pub fn run(&mut self) -> Result<Sent, NotSent> {
        let mut away: Option<Instant> = None;
        loop {
            if let Some(error) = self.stands.take() {
                return Err(self.stands(error));
            }
            match self.automaton.at() {
                At::Owner | At::Lost => return self.ended(),
                At::Gone(_) if matches!(self.server, Some(Server::Serving(_))) => {
                    self.serve()?;
                }
                At::Gone(_) => return Ok(self.sent()),
                At::Moving(_) => {
                    if let Err(why) = self.copy() {
                        self.fail(why);
                    }
                }
                At::Committed(_) | At::Doubtful(_) if self.links.is_empty() => {
                    let since = *away.get_or_insert_with(Instant::now);
                    if since.elapsed() > self.policy.decide {
                        let why = self.why.take().unwrap_or_default();
                        return Err(NotSent::Undecided { token: self.token, why });
                    }
                    match self.connect() {
                        Ok(()) => self.feed(Input::Connected),
                        Err(error) => {
                            self.note(format!("no connection: {error}"));
                            std::thread::sleep(Duration::from_millis(20));
                        }
                    }
                }
                _ if self.links.is_empty() => self.feed(Input::Disconnected),
                _ => self.listen(),
            }
        }
    }

    /// It does not go on; what went wrong before that may say why.
    fn stands(&mut self, error: GuestError) -> NotSent {
        NotSent::Stands(match self.why.take() {
            Some(why) => GuestError(format!("{error} (before that: {why})")),
            None => error,
        })
    }

    fn ended(&mut self) -> Result<Sent, NotSent> {
        if std::mem::take(&mut self.touched)
            && let Err(error) = self.guest.resume()
        {
            return Err(self.stands(error));
        }
        let why = self.why.take().unwrap_or_else(|| "the attempt ended".to_owned());
        Err(match self.words.take() {
            Some(words) if self.answer.is_none() || self.rounds == 0 && self.progress.bytes == 0 => {
                NotSent::Refused(words)
            }
            Some(words) => NotSent::Failed(format!("{why}: {words}")),
            None => NotSent::Failed(why),
        })
    }

    fn sent(&self) -> Sent {
        let on = self.links.iter().filter_map(|link| link.writing().ok()).map(|w| w.sent).sum::<u64>();
        Sent {
            paused: self.ran.unwrap_or_default(),
            took: self.begin.elapsed(),
            rounds: self.rounds,
            bytes: self.bytes + on,
            verified: self.verified,
            late: self.late.as_ref().map_or(0, |late| late.sent),
            throttle: self.throttle,
        }
    }

    /// Waits for the peer, and lets the user end what can still be ended.
    fn listen(&mut self) {
        let begin = Instant::now();
        let before = self.automaton.at();
        while self.automaton.at() == before && !self.links.is_empty() {
            if begin.elapsed() > self.policy.patience {
                return self.lose(format!("nothing was heard for {:?}", self.policy.patience));
            }
            self.hear(Duration::from_millis(20));
            self.give();
            if matches!(before, At::Paused(..)) {
                self.progress.phase = Phase::Restoring;
                self.look();
            }
        }
    }

    /// The first stream.
    pub fn connect(&mut self) -> io::Result<()> {
        self.spread = None;
        self.links.clear();
        self.answer = None;
        self.link(0)
    }

    /// One more stream.
    pub fn link(&mut self, number: u8) -> io::Result<()> {
        let stream = (self.connect)()?;
        self.next += 1;
        let (id, events) = ((self.next, u16::from(number)), self.events.0.clone());
        let connection = Connection::new(stream, id, events, self.policy.patience)?;
        let features = Features::default()
            .with(Features::LZ4, self.policy.compress)
            .with(Features::VERIFY, self.policy.verify)
            .with(Features::POST_COPY, self.policy.slow == Slow::PostCopy);
        let greeting = Greeting {
            protocols: (PROTOCOL, PROTOCOL),
            stream: number,
            streams: self.policy.streams,
            features,
            token: self.token,
            memory: bytes(&self.memory),
            offer: if number == 0 { self.offer.clone() } else { Vec::new() },
            program: PROGRAM.to_owned(),
        };
        let told = connection.tell(&Frame::Hello(greeting.encode()));
        self.links.push(connection);
        told
    }

    /// Nothing can be sent any more: what the peer said last, or how its stream ended, tells more than that.
    pub fn told(&mut self, error: &str) -> String {
        const AFTER: Duration = Duration::from_millis(200);
        let begin = Instant::now();
        while let Ok(event) = self.events.1.recv_timeout(AFTER.saturating_sub(begin.elapsed())) {
            match event.what {
                What::Frame(Frame::Words(words), _) => self.words = Some(words),
                What::Lost(why) if self.links.iter().any(|link| link.id == event.from) => return why,
                _ => {}
            }
        }
        error.to_owned()
    }

    pub fn note(&mut self, why: String) {
        self.why.get_or_insert(why);
    }

    pub fn why(&mut self) -> String {
        self.why.take().unwrap_or_else(|| "it was given up here".to_owned())
    }

    fn fail(&mut self, why: String) {
        self.note(why);
        self.feed(Input::Failed(Reason::Engine));
    }

    pub fn lose(&mut self, why: String) {
        self.note(format!("the connection is lost: {why}"));
        self.unlink();
        self.feed(Input::Disconnected);
    }

    fn unlink(&mut self) {
        // What the threads send on is closed first: they end at once.
        let writers: Vec<_> = self.links.drain(..).map(|link| link.writer.clone()).collect();
        self.spread = None;
        self.bytes += writers.iter().map(|writer| crate::connection::locked(writer).sent).sum::<u64>();
    }

    /// The user sees how far it is; if he does not want it any more, it ends.
    pub fn look(&mut self) {
        self.progress.throttle = self.throttle;
        if !(self.watch)(&self.progress) {
            self.note("it was cancelled".to_owned());
            self.feed(Input::Cancel);
        }
    }

    /// As [`Sender::look`], where nothing ends by it: whether to go on.
    pub fn still_wanted(&mut self) -> bool {
        (self.watch)(&self.progress)
    }

    /// Looks for something from the peer.
    pub fn hear(&mut self, wait: Duration) {
        let event = if wait.is_zero() {
            self.events.1.try_recv().ok()
        } else {
            self.events.1.recv_timeout(wait).ok()
        };
        let Some(event) = event else { return };
        // What an earlier connection has left.
        let Some(place) = self.links.iter().position(|link| link.id == event.from) else { return };
        match event.what {
            // All memory is there and verified: what the destination says comes on the first stream, and who runs the guest may be
            // done with the others before that is read.
            What::Lost(_)
                if place > 0
                    && self.late.is_none()
                    && matches!(self.automaton.at(), At::Committed(_) | At::Doubtful(_)) => {}
            What::Lost(why) => {
                // Why may have come on the first stream, before the others were closed.
                while let Ok(event) = self.events.1.try_recv() {
                    if let What::Frame(frame @ (Frame::Words(_) | Frame::Control(Message::Refuse(..))), _) =
                        event.what
                    {
                        self.heard(frame);
                    }
                }
                self.lose(why);
            }
            What::Frame(frame, _) if place == 0 => self.heard(frame),
            What::Frame(..) | What::Whole => self.lose("a destination does not send this".to_owned()),
        }
    }

    fn heard(&mut self, frame: Frame) {
        match frame {
            Frame::Hello(greeting) => match Greeting::decode(&greeting) {
                Ok(answer) if answer.token == self.token => {
                    self.answer = Some(answer);
                    self.links.iter().for_each(Connection::pass);
                }
                Ok(_) => self.lose("the destination answers to another token".to_owned()),
                Err(why) => self.lose(why),
            },
            Frame::Words(words) => self.words = Some(words).filter(|words| !words.is_empty()),
            Frame::Control(message) => {
                if let Message::Refuse(_, reason) = message {
                    match reason {
                        Reason::Preflight => {}
                        Reason::Busy => {
                            self.note("the destination has a guest, or waits for another".to_owned())
                        }
                        other => self.note(format!("the destination gave up ({other:?})")),
                    }
                }
                if let (Message::Running(_), Some(paused), None) = (message, self.paused, self.ran) {
                    self.ran = Some(paused.elapsed());
                }
                self.feed(Input::Received(message));
                self.served(Served::Received(message));
            }
            Frame::Barrier(round) if round == self.there && round < self.rounds => {
                self.there += 1;
                self.links.first().into_iter().for_each(Connection::pass);
            }
            Frame::Want(page) if self.late.is_some() => {
                self.late.iter_mut().for_each(|late| late.want(page));
            }
            Frame::Missing(ranges) if self.late.is_some() => {
                self.late.iter_mut().for_each(|late| late.again(&ranges));
            }
            _ => self.lose("a destination does not send this".to_owned()),
        }
    }

    fn served(&mut self, input: Served) {
        let outputs = self.server.as_mut().map(|server| server.step(input)).unwrap_or_default();
        if outputs.contains(&Output::Free) {
            self.guest.free();
        }
    }

    /// Tells the automaton, and does what it says.
    pub fn feed(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for output in self.automaton.step(input) {
                match output {
                    Output::Send(message) => {
                        if let Some(Err(error)) = self.links.first().map(|link| link.say(message)) {
                            let why = self.told(&error.to_string());
                            self.note(format!("the connection is lost: {why}"));
                            self.unlink();
                            inputs.push_back(Input::Disconnected);
                        }
                    }
                    Output::Write(record) => match self.journal.append(record) {
                        Ok(()) => inputs.push_front(Input::Written),
                        Err(error) => {
                            self.note(format!("the journal cannot be written: {error}"));
                            inputs.push_front(Input::WriteFailed);
                        }
                    },
                    Output::Resume => {
                        (self.paused, self.touched) = (None, false);
                        self.stands = self.guest.resume().err();
                    }
                    // What is served must be here.
                    Output::Free if self.late.as_ref().is_some_and(|late| late.left() > 0) => {
                        self.server = Some(Server::new(self.token));
                    }
                    Output::Free => self.guest.free(),
                    // Copying begins where the loop finds that memory is on its way; why it is stuck was noted.
                    Output::Stream | Output::Stuck(_) | Output::Run(_) | Output::Discard => {}
                }
            }
        }
    }
}
