//! The engine of the side that the guest leaves.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use evenkeel_handover::wire::Frame;
use evenkeel_handover::{Digest, Epoch, Input, Message, Output, Reason, Source, SourceAt as At, Token};

use crate::connection::Event;
use crate::memory::{PIECE, Sum, frames, pieces};
use crate::{
    Connection, GuestError, Journaling, Leaving, NotSent, Phase, Policy, Progress, Range, Sent, Slow, Stream,
};

struct Sender<'a> {
    guest: &'a mut dyn Leaving,
    journal: &'a mut dyn Journaling,
    policy: Policy,
    watch: &'a mut dyn FnMut(&Progress) -> bool,
    automaton: Source,
    connection: Option<Connection>,
    offer: Vec<u8>,
    sum: Sum,
    /// Why the attempt ended, the first that went wrong.
    why: Option<String>,
    refused: Option<String>,
    stands: Option<GuestError>,
    paused: Option<Instant>,
    rounds: u32,
    bytes: u64,
}

/// Moves a guest away. `token` is random; `epoch` is that of its storage here; `connect` is asked for a connection at the beginning
/// and, after the commit, whenever one is lost. `watch` sees how far it is and says whether to go on.
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
    let begin = Instant::now();
    let goes_on = |why: String| NotSent::Failed(why);
    let offer = guest.offer().map_err(|e| goes_on(e.to_string()))?;
    let mut sender = Sender {
        guest,
        journal,
        policy,
        watch,
        automaton: Source::new(epoch),
        connection: None,
        offer,
        sum: Sum::default(),
        why: None,
        refused: None,
        stands: None,
        paused: None,
        rounds: 0,
        bytes: 0,
    };
    sender.connect(connect).map_err(|e| goes_on(format!("no connection: {e}")))?;
    sender.feed(Input::Start(token));
    sender.run(connect, begin, token)
}

/// What became of a guest whose source crashed and took it along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// No right to run was on its way: the guest ended with the process.
    Lost,
    /// The destination runs it.
    Runs,
    /// The destination never ran it, and its memory went with the process here.
    NeverRan,
    /// The destination cannot be reached.
    Undecided(NotSent),
}

/// What a process does first that is started after a crash: if the journal says that the right to run was given away, the
/// destination has to hear of it.
pub fn settle(
    journal: &mut dyn Journaling,
    connect: &mut dyn FnMut() -> io::Result<Box<dyn Stream>>,
    policy: Policy,
) -> Settled {
    let (automaton, _) = Source::recover(journal.records(), false);
    let At::Committed(token) = automaton.at() else {
        return if matches!(automaton.at(), At::Gone(_)) { Settled::Runs } else { Settled::Lost };
    };
    let mut nothing = Nothing;
    let mut sender = Sender {
        guest: &mut nothing,
        journal,
        policy,
        watch: &mut |_| true,
        automaton,
        connection: None,
        offer: Vec::new(),
        sum: Sum::default(),
        why: None,
        refused: None,
        stands: None,
        paused: None,
        rounds: 0,
        bytes: 0,
    };
    match sender.run(connect, Instant::now(), token) {
        Ok(_) => Settled::Runs,
        Err(undecided @ NotSent::Undecided { .. }) => Settled::Undecided(undecided),
        Err(_) => Settled::NeverRan,
    }
}

/// A guest that is not here any more.
struct Nothing;

impl Leaving for Nothing {
    fn offer(&mut self) -> Result<Vec<u8>, GuestError> {
        Ok(Vec::new())
    }
    fn memory(&self) -> Vec<Range> {
        Vec::new()
    }
    fn track(&mut self) -> Result<(), GuestError> {
        Err(gone())
    }
    fn written(&mut self) -> Result<Vec<Range>, GuestError> {
        Err(gone())
    }
    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), GuestError> {
        Err(gone())
    }
    fn pause(&mut self) -> Result<(), GuestError> {
        Err(gone())
    }
    fn state(&mut self) -> Result<Vec<crate::Section>, GuestError> {
        Err(gone())
    }
    fn resume(&mut self) -> Result<(), GuestError> {
        Err(gone())
    }
    fn free(&mut self) {}
}

fn gone() -> GuestError {
    GuestError("the guest went with the process that had it".to_owned())
}

impl Sender<'_> {
    fn run(
        &mut self,
        connect: &mut dyn FnMut() -> io::Result<Box<dyn Stream>>,
        begin: Instant,
        token: Token,
    ) -> Result<Sent, NotSent> {
        let mut away: Option<Instant> = None;
        loop {
            if let Some(error) = self.stands.take() {
                return Err(NotSent::Stands(error));
            }
            match self.automaton.at() {
                At::Owner | At::Lost => {
                    let why = self.why.take().unwrap_or_else(|| "the attempt ended".to_owned());
                    return Err(self.refused.take().map_or(NotSent::Failed(why), NotSent::Refused));
                }
                At::Gone(_) => {
                    let paused = self.paused.map(|at| at.elapsed()).unwrap_or_default();
                    let bytes = self.bytes + self.connection.as_ref().map_or(0, |c| c.sent);
                    return Ok(Sent {
                        paused,
                        took: begin.elapsed(),
                        rounds: self.rounds,
                        bytes,
                        verified: None,
                        late: 0,
                        throttle: 0,
                    });
                }
                At::Moving(_) => {
                    if let Err(why) = self.copy() {
                        self.fail(why);
                    }
                }
                At::Committed(_) | At::Doubtful(_) if self.connection.is_none() => {
                    let since = *away.get_or_insert_with(Instant::now);
                    if since.elapsed() > self.policy.decide {
                        let why = self.why.take().unwrap_or_default();
                        return Err(NotSent::Undecided { token, why });
                    }
                    match self.connect(connect) {
                        Ok(()) => self.feed(Input::Connected),
                        Err(error) => {
                            self.note(format!("no connection: {error}"));
                            std::thread::sleep(Duration::from_millis(20));
                        }
                    }
                }
                _ => {
                    if self.connection.is_some() {
                        self.hear(self.policy.patience, true);
                    } else {
                        self.feed(Input::Disconnected);
                    }
                }
            }
        }
    }

    fn connect(&mut self, connect: &mut dyn FnMut() -> io::Result<Box<dyn Stream>>) -> io::Result<()> {
        let mut connection = Connection::new(connect()?, self.policy.patience)?;
        connection.put(&Frame::Hello(self.offer.clone()))?;
        connection.flush()?;
        self.connection = Some(connection);
        Ok(())
    }

    fn note(&mut self, why: String) {
        self.why.get_or_insert(why);
    }

    fn fail(&mut self, why: String) {
        self.note(why);
        self.feed(Input::Failed(Reason::Engine));
    }

    fn lose(&mut self, why: String) {
        self.note(format!("the connection is lost: {why}"));
        if let Some(connection) = self.connection.take() {
            self.bytes += connection.sent;
        }
        self.feed(Input::Disconnected);
    }

    /// Looks for something from the peer; with `wanted`, silence is a loss.
    fn hear(&mut self, wait: Duration, wanted: bool) {
        let Some(connection) = &self.connection else { return };
        match connection.event(wait) {
            None if wanted => self.lose(format!("nothing was heard for {wait:?}")),
            None => {}
            Some(Event::Lost(why)) => self.lose(why),
            Some(Event::Frame(Frame::Control(message))) => {
                if let Message::Refuse(_, reason) = message {
                    let words = match reason {
                        Reason::Preflight => None,
                        other => Some(format!("the destination gave up: {other:?}")),
                    };
                    words.into_iter().for_each(|why| self.note(why));
                }
                self.feed(Input::Received(message));
            }
            // What the destination found, before it refuses.
            Some(Event::Frame(Frame::Hello(words))) => {
                self.refused = Some(String::from_utf8_lossy(&words).into_owned()).filter(|w| !w.is_empty());
            }
            Some(Event::Frame(other)) => {
                self.lose(format!("a destination does not send this: {}", kind(&other)));
            }
        }
    }

    /// Tells the automaton, and does what it says.
    fn feed(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for output in self.automaton.step(input) {
                match output {
                    Output::Send(message) => {
                        let said = self.connection.as_mut().map(|c| c.say(message));
                        if let Some(Err(error)) = said {
                            self.note(format!("the connection is lost: {error}"));
                            self.connection = None;
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
                        self.paused = None;
                        self.stands = self.guest.resume().err();
                    }
                    Output::Free => self.guest.free(),
                    // Copying begins where the loop finds that memory is on its way; why it is stuck was noted.
                    Output::Stream | Output::Stuck(_) | Output::Run(_) | Output::Discard => {}
                }
            }
        }
    }

    /// All rounds of memory, the pause, and the state. The automaton may have gone elsewhere meanwhile.
    fn copy(&mut self) -> Result<(), String> {
        let words = |e: GuestError| e.to_string();
        self.guest.track().map_err(words)?;
        let mut ranges = self.guest.memory();
        let begin = Instant::now();
        let mut done = 0;
        loop {
            done += match self.round(&ranges, done, begin)? {
                Some(bytes) => bytes,
                None => return Ok(()),
            };
            ranges = self.guest.written().map_err(words)?;
            let left: u64 = ranges.iter().map(|r| r.length).sum();
            let downtime = downtime(left, rate(done, begin));
            if downtime <= self.policy.downtime {
                break;
            }
            if self.rounds >= self.policy.rounds {
                if self.policy.slow == Slow::Pause {
                    break;
                }
                return Err(format!(
                    "after {} rounds {left} bytes are left, which take {downtime:?}: the guest writes too fast",
                    self.rounds
                ));
            }
        }
        self.paused = Some(Instant::now());
        let paused = self.guest.pause().and_then(|()| self.guest.written());
        // What was written before the last look and is in `ranges` was not sent yet.
        ranges.extend(paused.map_err(|e| self.unpause(&e))?);
        let state = self.guest.state().map_err(|e| self.unpause(&e))?;
        if self.round(&ranges, done, begin).map_err(|e| self.unpause(&GuestError(e)))?.is_none() {
            // The attempt ended while the guest stood, and the automaton did not know that it stands.
            self.stands = self.guest.resume().err();
            return Ok(());
        }
        let digest = self.sections(&state);
        if matches!(self.automaton.at(), At::Moving(_)) {
            self.feed(Input::Still(digest));
        } else {
            self.stands = self.guest.resume().err();
        }
        Ok(())
    }

    /// The automaton does not know of the pause yet.
    fn unpause(&mut self, why: &GuestError) -> String {
        self.paused = None;
        self.stands = self.guest.resume().err();
        why.to_string()
    }

    /// Sends this memory. `None`: the attempt ended meanwhile.
    fn round(&mut self, ranges: &[Range], done: u64, begin: Instant) -> Result<Option<u64>, String> {
        let bytes: u64 = ranges.iter().map(|r| r.length).sum();
        let (mut now, mut buffer) = (0, vec![0; PIECE]);
        for piece in pieces(ranges) {
            self.hear(Duration::ZERO, false);
            if !matches!(self.automaton.at(), At::Moving(_)) {
                return Ok(None);
            }
            let into = &mut buffer[..piece.length as usize];
            self.guest.read(piece.address, into).map_err(|e| e.to_string())?;
            for frame in frames(self.rounds, piece.address, into) {
                self.put(&frame);
            }
            now += piece.length;
            let rate = rate(done + now, begin);
            let downtime = downtime(bytes - now, rate);
            let progress = Progress {
                phase: Phase::Copying,
                round: self.rounds,
                bytes,
                done: now,
                remaining: bytes - now,
                rate,
                downtime,
                throttle: 0,
            };
            if self.paused.is_none() && !(self.watch)(&progress) {
                self.note("it was cancelled".to_owned());
                self.feed(Input::Cancel);
            }
        }
        self.rounds += 1;
        Ok(matches!(self.automaton.at(), At::Moving(_)).then_some(bytes))
    }

    fn sections(&mut self, state: &[crate::Section]) -> Digest {
        for section in state {
            let total = section.bytes.len() as u64;
            // One that is empty is there as well.
            let count = section.bytes.len().div_ceil(PIECE).max(1);
            for n in 0..count {
                let at = n * PIECE;
                let bytes = section.bytes[at..section.bytes.len().min(at + PIECE)].to_vec();
                self.put(&Frame::Section { name: section.name.clone(), at: at as u64, total, bytes });
            }
        }
        let flushed = self.connection.as_mut().map(Connection::flush);
        if let Some(Err(error)) = flushed {
            self.lose(error.to_string());
        }
        self.sum.digest()
    }

    fn put(&mut self, frame: &Frame) {
        self.sum.add(frame);
        let put = self.connection.as_mut().map(|c| c.put(frame));
        if let Some(Err(error)) = put {
            self.lose(error.to_string());
        }
    }
}

fn rate(bytes: u64, since: Instant) -> u64 {
    (bytes as f64 / since.elapsed().as_secs_f64().max(1e-6)) as u64
}

fn downtime(bytes: u64, rate: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64)
}

fn kind(frame: &Frame) -> &'static str {
    match frame {
        Frame::Hello(_) => "a greeting",
        Frame::Control(_) => "a message",
        Frame::Section { .. } => "state",
        Frame::Memory { .. } => "memory",
    }
}
