//! The engine of the side that the guest comes to.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver as Events, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use evenkeel_handover::greeting::Features;
use evenkeel_handover::postcopy::{Fetcher, Input as Fetched};
use evenkeel_handover::wire::Frame;
use evenkeel_handover::{Destination, DestinationAt as At, Input, Message, Output, Reason};

use crate::connection::{AHEAD, Connection, Event, What};
use crate::fetch::Late;
use crate::intake::{Bad, Intake};
use crate::lobby::{Lobby, Primary};
use crate::{Arriving, GuestError, Journaling, Policy, Stream};

/// How a reception ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// The guest runs here. So long did it take from when everything was restored until it ran.
    Runs(Duration),
    /// No guest came to stay; why the last one did not, if there was one.
    Nothing(Option<String>),
    /// The right to run is here, and the guest does not.
    Stranded(GuestError),
}

/// What accepts connections: one that came within the time that it is given.
pub(crate) type Accept<'a> = &'a mut dyn FnMut(Duration) -> io::Result<Option<Box<dyn Stream>>>;

/// How long nothing is looked for but what came.
const LOOK: Duration = Duration::from_millis(10);
/// Likewise, where a guest runs and its source may still come to ask.
const ASKED: Duration = Duration::from_millis(100);

pub(crate) struct Receiver<'a> {
    guest: &'a mut dyn Arriving,
    journal: &'a mut dyn Journaling,
    policy: Policy,
    automaton: Destination,
    lobby: Lobby,
    /// The source, on all its streams.
    primary: Option<Primary>,
    intake: Option<Intake>,
    why: Option<String>,
    stranded: Option<GuestError>,
    prepared: Option<Instant>,
    waited: Option<Duration>,
    late: Option<Arc<Late>>,
    fetcher: Option<Fetcher>,
    heard: Instant,
}

/// Waits for a guest and takes it. `accept` returns a connection that came within the time that it is given; it is asked again for
/// as long as it does not fail and `go_on` says so. A guest that is prepared waits, also without a connection: then `go_on` decides
/// whether it is given up; and so does a guest that runs here and lacks memory that only the source has.
pub fn receive(
    guest: &mut dyn Arriving,
    journal: &mut dyn Journaling,
    accept: &mut dyn FnMut(Duration) -> io::Result<Option<Box<dyn Stream>>>,
    policy: Policy,
    go_on: &mut dyn FnMut(At) -> bool,
) -> Received {
    let automaton = Destination::new(journal.records());
    let (sender, events): (SyncSender<Event>, Events<Event>) = sync_channel(AHEAD);
    let mut receiver = Receiver {
        guest,
        journal,
        policy,
        automaton,
        lobby: Lobby::new(sender, policy.patience),
        primary: None,
        intake: None,
        why: None,
        stranded: None,
        prepared: None,
        waited: None,
        late: None,
        fetcher: None,
        heard: Instant::now(),
    };
    loop {
        if let Some(end) = receiver.ended(go_on) {
            return end;
        }
        if let Some(end) = receiver.invite(accept) {
            return end;
        }
        receiver.wait(&events);
    }
}

impl Receiver<'_> {
    fn ended(&mut self, go_on: &mut dyn FnMut(At) -> bool) -> Option<Received> {
        if let Some(error) = self.stranded.take() {
            return Some(Received::Stranded(error));
        }
        if go_on(self.automaton.at()) {
            return None;
        }
        match self.automaton.at() {
            // Whether this side may give it up is the source's to say now.
            At::Starting(..) | At::Doubtful(..) | At::Declining(_) => None,
            At::Runs(_) => Some(match self.late.as_ref().map_or(0, |late| late.left()) {
                0 => Received::Runs(self.waited.unwrap_or_default()),
                left => Received::Stranded(GuestError(format!(
                    "it lacks {left} bytes of memory that only the source has, and was given up here"
                ))),
            }),
            At::Empty | At::Lost(_) => Some(Received::Nothing(self.why.take())),
            At::Receiving(_) | At::Prepared(..) => {
                self.note("it was given up here");
                self.feed(Input::Cancel);
                None
            }
        }
    }

    /// Lets connections in; without a source and without anybody who may be one, waits for them.
    fn invite(&mut self, accept: Accept<'_>) -> Option<Received> {
        let idle = self.primary.is_none() && self.lobby.is_empty();
        let wait = match (idle, self.automaton.at()) {
            (false, _) => Duration::ZERO,
            (true, At::Runs(_)) if self.late.is_none() => ASKED,
            (true, _) => LOOK,
        };
        while self.lobby.has_room() {
            match accept(wait) {
                Ok(Some(stream)) => {
                    if let Err(error) = self.lobby.enter(stream) {
                        self.note(&format!("a connection was lost at once: {error}"));
                    }
                    if idle {
                        return None;
                    }
                }
                Ok(None) => return None,
                Err(error) => {
                    self.note(&format!("no connection: {error}"));
                    let over = matches!(self.automaton.at(), At::Empty | At::Lost(_));
                    if self.primary.is_none() && self.lobby.is_empty() {
                        if over {
                            return Some(Received::Nothing(self.why.take()));
                        }
                        std::thread::sleep(LOOK);
                    }
                    return None;
                }
            }
        }
        None
    }

    fn wait(&mut self, events: &Events<Event>) {
        if self.primary.is_none() {
            // However it went: there is nobody to ask for memory.
            self.fetched(Fetched::Disconnected);
            if self.lobby.is_empty() {
                return;
            }
        }
        match events.recv_timeout(LOOK) {
            Ok(event) => self.heard(event),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        self.lobby.tidy();
        if self.primary.is_some() && self.heard.elapsed() > self.policy.patience {
            self.lose("the source is silent");
        }
    }

    fn heard(&mut self, event: Event) {
        let stream = self.primary.as_ref().and_then(|p| p.links.iter().position(|c| c.id == event.from));
        match (stream, event.what) {
            (Some(_), What::Lost(why)) => self.lose(&why),
            (Some(_), What::Whole) => self.fetched(Fetched::LastPage),
            (Some(stream), What::Frame(frame, digest)) => {
                let taken = self.take(frame, digest, stream);
                // What took this side long was not the source's silence.
                self.heard = Instant::now();
                if let Err(Bad(reason, why)) = taken {
                    self.tell(&why);
                    self.fail(reason, &why);
                    self.dismiss();
                }
            }
            (None, What::Frame(Frame::Hello(bytes), _)) => {
                let (at, late) = (self.automaton.at(), self.late.is_some());
                match self.lobby.greeted(event.from, &bytes, &mut self.primary, at, late) {
                    Ok(true) => self.welcome(),
                    Ok(false) => self.heard = Instant::now(),
                    Err(why) => self.note(&format!("a connection was refused: {why}")),
                }
            }
            // Who left before it said anything, or said what nobody asked it for.
            (None, What::Lost(_) | What::Frame(..) | What::Whole) => self.lobby.leave(event.from),
        }
    }

    /// There is a source, perhaps instead of an older connection of the same one.
    fn welcome(&mut self) {
        self.heard = Instant::now();
        let Some(primary) = &self.primary else { return };
        if let (Some(late), Some(link)) = (&self.late, primary.links.first()) {
            link.fetch(late);
            let frames = late.reconnected(Some(&link.writer));
            let told = frames.iter().try_for_each(|frame| link.tell(frame));
            if let Err(error) = told {
                return self.lose(&error.to_string());
            }
        }
        self.feed(Input::Connected);
        self.fetched(Fetched::Connected);
        if let Some(Primary { links, .. }) = &self.primary {
            links.iter().for_each(Connection::pass);
        }
    }

    fn note(&mut self, why: &str) {
        self.why = Some(why.to_owned());
    }

    fn lose(&mut self, why: &str) {
        self.note(&format!("the connection is lost: {why}"));
        self.primary = None;
        if let Some(late) = &self.late {
            late.reconnected(None);
            if let Some(broken) = late.broken() {
                self.stranded = Some(GuestError(broken));
            }
        }
        self.feed(Input::Disconnected);
        self.fetched(Fetched::Disconnected);
    }

    /// It may read why, and nobody waits for it.
    fn dismiss(&mut self) {
        if let Some(primary) = self.primary.take() {
            primary.links.into_iter().for_each(|link| self.lobby.dismiss(link));
            self.feed(Input::Disconnected);
        }
    }

    fn fail(&mut self, reason: Reason, why: &str) {
        self.note(why);
        self.feed(Input::Failed(reason));
    }

    fn take(
        &mut self,
        frame: Frame,
        digest: Option<evenkeel_handover::Digest>,
        stream: usize,
    ) -> Result<(), Bad> {
        let at = self.automaton.at();
        match frame {
            Frame::Control(_) | Frame::Words(_) | Frame::Hello(_) if stream != 0 => {
                self.lose("the source speaks on a stream that is for memory");
            }
            Frame::Control(Message::Offer(token, epoch)) => self.offered(Message::Offer(token, epoch)),
            Frame::Control(Message::Complete(token, said)) if at == At::Receiving(token) => {
                let Some(intake) = &mut self.intake else { return Ok(()) };
                let (state, missing) = intake.complete(said, digest)?;
                if let (false, Some(primary)) = (missing.is_empty(), &self.primary) {
                    let make = |ranges: &[crate::Range], ask| self.guest.missing(ranges, ask);
                    let late = Late::new(&missing, &primary.links[0].writer, make)?;
                    primary.links[0].fetch(&late);
                    self.late = Some(late);
                }
                self.guest.restore(state)?;
                self.prepared = Some(Instant::now());
                self.feed(Input::Restored(said));
            }
            Frame::Control(message) => {
                self.feed(Input::Received(message));
                self.fetched(Fetched::Received(message));
            }
            // The rest of an attempt that is over: its streams go on, and nobody looks at what they carry.
            Frame::Barrier(_) if !matches!(at, At::Receiving(_)) => {
                let link = self.primary.as_ref().and_then(|primary| primary.links.get(stream));
                link.into_iter().for_each(Connection::pass);
            }
            frame if !matches!(at, At::Receiving(_)) => drop(frame),
            frame => {
                if let (Some(intake), Some(primary)) = (&mut self.intake, &self.primary) {
                    let round = if let Frame::Barrier(round) = frame { Some(round) } else { None };
                    if intake.take(self.guest, frame, digest, stream)? {
                        primary.links.iter().for_each(Connection::pass);
                        // The source pauses its guest only when what was sent is here.
                        if let Some(round) = round {
                            self.send(&Frame::Barrier(round));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The preflight, before a byte of memory.
    fn offered(&mut self, message: Message) {
        let Some(primary) = &self.primary else { return };
        if matches!(self.automaton.at(), At::Empty) {
            if primary.greeting.token != message.token() {
                return self.lose("the source greets with one token, and offers another");
            }
            if let Err(error) = self.guest.accepts(&primary.greeting.offer) {
                self.note(&error.to_string());
                self.tell(&error.to_string());
                self.say(Message::Refuse(message.token(), Reason::Preflight));
                return self.dismiss();
            }
            self.intake = Some(Intake::new(&primary.greeting, primary.granted, primary.streams));
        }
        self.feed(Input::Received(message));
    }

    /// Words for the source's user.
    fn tell(&mut self, words: &str) {
        self.send(&Frame::Words(words.to_owned()));
    }

    fn say(&mut self, message: Message) {
        self.send(&Frame::Control(message));
    }

    fn send(&mut self, frame: &Frame) {
        let told = self.primary.as_ref().and_then(|p| p.links.first()).map(|link| link.tell(frame));
        if let Some(Err(error)) = told {
            self.lose(&error.to_string());
        }
    }

    fn feed(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for output in self.automaton.step(input) {
                match output {
                    Output::Send(message) => {
                        let link = self.primary.as_ref().and_then(|p| p.links.first());
                        if let Some(Err(error)) = link.map(|link| link.say(message)) {
                            self.note(&format!("the connection is lost: {error}"));
                            self.primary = None;
                            inputs.push_back(Input::Disconnected);
                        }
                    }
                    Output::Write(record) => inputs.push_front(match self.journal.append(record) {
                        Ok(()) => Input::Written,
                        Err(error) => {
                            self.note(&format!("the journal cannot be written: {error}"));
                            Input::WriteFailed
                        }
                    }),
                    Output::Run(epoch) => {
                        self.stranded = self.guest.run(epoch.0).err();
                        self.waited = self.prepared.map(|at| at.elapsed());
                        if let (At::Runs(token), Some(late)) = (self.automaton.at(), &self.late) {
                            self.fetcher = Some(Fetcher::new(token, epoch));
                            if late.left() == 0 {
                                self.fetched(Fetched::LastPage);
                            } else if self.primary.is_none() {
                                self.fetched(Fetched::Disconnected);
                            }
                        }
                    }
                    Output::Discard => {
                        self.guest.discard();
                        (self.intake, self.late) = (None, None);
                    }
                    Output::Stuck(_) | Output::Stream | Output::Resume | Output::Free => {}
                }
            }
        }
    }

    /// After the commit of a post-copy.
    fn fetched(&mut self, input: Fetched) {
        let Some(fetcher) = &mut self.fetcher else { return };
        for output in fetcher.step(input) {
            match output {
                // Its epoch is in force: it was held.
                Output::Run(_) => {
                    if let Err(error) = self.guest.go_on() {
                        self.stranded = Some(error);
                    }
                }
                Output::Stuck(_) => {
                    if let Err(error) = self.guest.hold() {
                        self.note(&format!("{error}: it runs on, and stands at the memory that it lacks"));
                    }
                }
                Output::Send(message) => self.say(message),
                _ => {}
            }
        }
        if matches!(self.fetcher, Some(Fetcher::Whole(_))) {
            // The token is answered by the automaton; nothing is missing any more.
            if self.late.as_ref().is_some_and(|late| late.left() == 0) {
                self.late = None;
            }
        }
    }
}

/// What this side can do for a source.
pub(crate) fn supported() -> Features {
    Features::LZ4.with(Features::VERIFY, true).with(Features::POST_COPY, true)
}
