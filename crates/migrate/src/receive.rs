//! The engine of the side that the guest comes to.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use evenkeel_handover::wire::{Content, Frame};
use evenkeel_handover::{Destination, DestinationAt as At, Input, Message, Output, Reason};

use crate::connection::Event;
use crate::memory::Sum;
use crate::{Arriving, Connection, GuestError, Journaling, Policy, Section, Stream};

/// The most bytes of state that a source may send; memory apart.
const MOST_STATE: u64 = 256 << 20;

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

struct Receiver<'a> {
    guest: &'a mut dyn Arriving,
    journal: &'a mut dyn Journaling,
    automaton: Destination,
    connection: Option<Connection>,
    offer: Option<Vec<u8>>,
    sum: Sum,
    state: Vec<Section>,
    /// What is still to come of the last section.
    due: u64,
    why: Option<String>,
    stranded: Option<GuestError>,
    prepared: Option<Instant>,
    waited: Option<Duration>,
}

/// Waits for a guest and takes it. `accept` returns a connection that came within the time that it is given; it is asked again for
/// as long as it does not fail and `go_on` says so. A guest that is prepared waits, also without a connection: then `go_on` decides
/// whether it is given up.
pub fn receive(
    guest: &mut dyn Arriving,
    journal: &mut dyn Journaling,
    accept: &mut dyn FnMut(Duration) -> io::Result<Option<Box<dyn Stream>>>,
    policy: Policy,
    go_on: &mut dyn FnMut(At) -> bool,
) -> Received {
    let automaton = Destination::new(journal.records());
    let mut receiver = Receiver {
        guest,
        journal,
        automaton,
        connection: None,
        offer: None,
        sum: Sum::default(),
        state: Vec::new(),
        due: 0,
        why: None,
        stranded: None,
        prepared: None,
        waited: None,
    };
    receiver.run(accept, policy, go_on)
}

impl Receiver<'_> {
    fn run(
        &mut self,
        accept: &mut dyn FnMut(Duration) -> io::Result<Option<Box<dyn Stream>>>,
        policy: Policy,
        go_on: &mut dyn FnMut(At) -> bool,
    ) -> Received {
        const LOOK: Duration = Duration::from_millis(50);
        let mut heard = Instant::now();
        loop {
            if let Some(error) = self.stranded.take() {
                return Received::Stranded(error);
            }
            if !go_on(self.automaton.at()) {
                match self.automaton.at() {
                    // Whether this side may give it up is the source's to say now.
                    At::Starting(..) | At::Doubtful(..) | At::Declining(_) => {}
                    At::Runs(_) => return Received::Runs(self.waited.unwrap_or_default()),
                    At::Empty | At::Lost(_) => return Received::Nothing(self.why.take()),
                    At::Receiving(_) | At::Prepared(..) => {
                        self.note("it was given up here");
                        self.feed(Input::Cancel);
                    }
                }
            }
            let Some(connection) = &self.connection else {
                // A source that did not hear that its guest runs comes again.
                let wait = if matches!(self.automaton.at(), At::Runs(_)) { policy.patience } else { LOOK };
                match accept(wait) {
                    Ok(Some(stream)) => {
                        self.welcome(stream, policy);
                        heard = Instant::now();
                    }
                    Ok(None) if matches!(self.automaton.at(), At::Runs(_)) => {
                        return Received::Runs(self.waited.unwrap_or_default());
                    }
                    Ok(None) => {}
                    Err(error) => {
                        self.note(&format!("no connection: {error}"));
                        if matches!(self.automaton.at(), At::Empty | At::Receiving(_) | At::Lost(_)) {
                            return Received::Nothing(self.why.take());
                        }
                        std::thread::sleep(LOOK);
                    }
                }
                continue;
            };
            match connection.event(LOOK) {
                None if heard.elapsed() > policy.patience => self.lose("the source is silent"),
                None => {}
                Some(Event::Lost(why)) => self.lose(&why),
                Some(Event::Frame(frame)) => {
                    heard = Instant::now();
                    self.take(frame);
                }
            }
        }
    }

    fn welcome(&mut self, stream: Box<dyn Stream>, policy: Policy) {
        let made = Connection::new(stream, policy.patience).and_then(|mut connection| {
            connection.put(&Frame::Hello(Vec::new()))?;
            connection.flush().map(|()| connection)
        });
        match made {
            Ok(connection) => {
                self.connection = Some(connection);
                self.offer = None;
                self.feed(Input::Connected);
            }
            Err(error) => self.note(&format!("a connection was lost at once: {error}")),
        }
    }

    fn note(&mut self, why: &str) {
        self.why = Some(why.to_owned());
    }

    fn lose(&mut self, why: &str) {
        self.note(&format!("the connection is lost: {why}"));
        self.connection = None;
        self.feed(Input::Disconnected);
    }

    fn fail(&mut self, reason: Reason, why: &str) {
        self.note(why);
        self.feed(Input::Failed(reason));
    }

    fn take(&mut self, frame: Frame) {
        match frame {
            Frame::Hello(offer) => self.offer = Some(offer),
            Frame::Control(Message::Offer(token, epoch)) => self.offered(Message::Offer(token, epoch)),
            Frame::Control(Message::Complete(token, digest))
                if self.automaton.at() == At::Receiving(token) =>
            {
                if self.sum.digest() != digest || self.due != 0 {
                    return self.fail(Reason::Digest, "what came is not what was sent");
                }
                match self.guest.restore(std::mem::take(&mut self.state)) {
                    Ok(()) => {
                        self.prepared = Some(Instant::now());
                        self.feed(Input::Restored(digest));
                    }
                    Err(error) => {
                        self.tell(&error.to_string());
                        self.fail(Reason::Engine, &error.to_string());
                    }
                }
            }
            Frame::Control(message) => self.feed(Input::Received(message)),
            frame if !matches!(self.automaton.at(), At::Receiving(_)) => {
                // The rest of an attempt that is over.
                drop(frame);
            }
            frame => {
                self.sum.add(&frame);
                if let Err(why) = self.put(frame) {
                    self.tell(&why);
                    self.fail(Reason::Engine, &why);
                }
            }
        }
    }

    /// The preflight, before a byte of memory.
    fn offered(&mut self, message: Message) {
        let fresh = matches!(self.automaton.at(), At::Empty);
        if fresh {
            let accepted = match &self.offer {
                Some(offer) => self.guest.accepts(offer),
                None => Err(GuestError("the source did not say what it offers".to_owned())),
            };
            if let Err(error) = accepted {
                self.note(&error.to_string());
                self.tell(&error.to_string());
                return self.say(Message::Refuse(message.token(), Reason::Preflight));
            }
            (self.sum, self.state, self.due) = (Sum::default(), Vec::new(), 0);
        }
        self.feed(Input::Received(message));
    }

    fn put(&mut self, frame: Frame) -> Result<(), String> {
        let words = |e: GuestError| e.to_string();
        match frame {
            Frame::Memory { address, content: Content::Bytes(bytes), .. } => {
                self.guest.write(address, &bytes).map_err(words)
            }
            Frame::Memory { address, content: Content::Zeros(length), .. } => {
                self.guest.zero(address, u64::from(length)).map_err(words)
            }
            Frame::Section { name, at, total, bytes } => self.section(name, at, total, &bytes),
            Frame::Hello(_) | Frame::Control(_) => Ok(()),
        }
    }

    fn section(&mut self, name: String, at: u64, total: u64, bytes: &[u8]) -> Result<(), String> {
        if at == 0 {
            let before: u64 = self.state.iter().map(|s| s.bytes.len() as u64).sum();
            if self.due != 0 || before + total > MOST_STATE {
                return Err(format!("section `{name}` of {total} bytes: more than a guest's state is"));
            }
            if self.state.iter().any(|section| section.name == name) {
                return Err(format!("section `{name}` came twice"));
            }
            self.due = total;
            self.state.push(Section { name: name.clone(), bytes: Vec::new() });
        }
        let section = self.state.last_mut().filter(|s| s.name == name && s.bytes.len() as u64 == at);
        let section = section.ok_or_else(|| format!("section `{name}` does not go on at byte {at}"))?;
        self.due = self.due.checked_sub(bytes.len() as u64).ok_or("a section is longer than it said")?;
        section.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Words for the source's user.
    fn tell(&mut self, words: &str) {
        let put = self.connection.as_mut().map(|c| {
            c.put(&Frame::Hello(words.as_bytes().to_vec()))?;
            c.flush()
        });
        if let Some(Err(error)) = put {
            self.lose(&error.to_string());
        }
    }

    fn say(&mut self, message: Message) {
        if let Some(Err(error)) = self.connection.as_mut().map(|c| c.say(message)) {
            self.lose(&error.to_string());
        }
    }

    fn feed(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for output in self.automaton.step(input) {
                match output {
                    Output::Send(message) => {
                        if let Some(Err(error)) = self.connection.as_mut().map(|c| c.say(message)) {
                            self.note(&format!("the connection is lost: {error}"));
                            self.connection = None;
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
                    }
                    Output::Discard => {
                        self.guest.discard();
                        (self.state, self.due) = (Vec::new(), 0);
                    }
                    Output::Stuck(_) | Output::Stream | Output::Resume | Output::Free => {}
                }
            }
        }
    }
}
