//! A source, a destination, their disks and a network that loses, doubles, delays and reorders: all that can happen to them.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::hash::Hash;

use evenkeel_handover::{Digest, Epoch, Input, Journal, Message, Output, Reason, Record, Token};

/// The automaton of a source: the shipped one, or a naive one.
pub trait Sends: Clone + Eq + Hash + Debug {
    fn new() -> Self;
    fn recover(journal: &Journal, memory: bool) -> (Self, Vec<Output>);
    fn step(&mut self, input: Input) -> Vec<Output>;
    /// An attempt can begin.
    fn is_owner(&self) -> bool;
    /// Memory is on its way.
    fn is_moving(&self) -> bool;
}

/// The automaton of a destination.
pub trait Receives: Clone + Eq + Hash + Debug {
    fn new(journal: &Journal) -> Self;
    fn step(&mut self, input: Input) -> Vec<Output>;
    fn is_receiving(&self, token: Token) -> bool;
}

/// How much may go wrong on one way.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub attempts: u8,
    pub crashes: u8,
    pub failed_writes: u8,
    /// The guest's memory outlives a crash of the source.
    pub memory_stays: bool,
}

/// A copy of the guest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Copy {
    None,
    /// It stands. The number is that of the last run that it knows of.
    Stands(u8),
    Runs(u8),
}

/// One side: its process, if there is one, the guest in it, and its disk.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Side<A> {
    pub process: Option<A>,
    pub copy: Copy,
    disk: Vec<u8>,
    pending: Option<Record>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct World<S, D> {
    pub source: Side<S>,
    pub destination: Side<D>,
    /// Everything that was ever sent: it may be lost, and may come once more at any time. To the destination, to the source.
    net: (BTreeSet<Message>, BTreeSet<Message>),
    /// How often a copy began to run: only the newest copy may.
    runs: u8,
    attempts: u8,
    crashes: u8,
    failed_writes: u8,
    /// The side that had the right to run crashed, and the guest with it, as with any host that crashes.
    pub died: bool,
}

/// What happened that never may.
pub type Violation = String;

type After<S, D> = (String, Result<World<S, D>, Violation>);

impl<S: Sends, D: Receives> World<S, D> {
    pub fn new() -> Self {
        let journal = Journal::default();
        let source = Side { process: Some(S::new()), copy: Copy::Runs(0), disk: Vec::new(), pending: None };
        let process = Some(D::new(&journal));
        let destination = Side { process, copy: Copy::None, disk: Vec::new(), pending: None };
        World {
            source,
            destination,
            net: Default::default(),
            runs: 0,
            attempts: 0,
            crashes: 0,
            failed_writes: 0,
            died: false,
        }
    }

    /// All that can happen next.
    pub fn next(&self, limits: Limits) -> Vec<After<S, D>> {
        let mut all = Vec::new();
        let mut add = |what: String, world: Result<Self, Violation>| all.push((what, world));
        if let Some(process) = &self.source.process {
            if process.is_owner() && self.attempts < limits.attempts {
                let mut world = self.clone();
                world.attempts += 1;
                add("start".to_owned(), world.source_hears(Input::Start(Token([self.attempts + 1; 16]))));
            }
            if process.is_moving() && matches!(self.source.copy, Copy::Runs(_)) {
                add("still".to_owned(), self.clone().stand_still());
            }
            for input in [Input::Connected, Input::Disconnected, Input::Cancel] {
                add(format!("source: {input:?}"), self.clone().source_hears(input));
            }
            for message in &self.net.1 {
                add(
                    format!("source hears {message:?}"),
                    self.clone().source_hears(Input::Received(*message)),
                );
            }
        }
        if let Some(process) = &self.destination.process {
            for input in
                [Input::Connected, Input::Disconnected, Input::Cancel, Input::Failed(Reason::Preflight)]
            {
                add(format!("destination: {input:?}"), self.clone().destination_hears(input));
            }
            for message in &self.net.0 {
                let what = format!("destination hears {message:?}");
                match message {
                    Message::Complete(token, digest) if process.is_receiving(*token) => {
                        add(what, self.clone().restored(*digest));
                    }
                    _ => add(what, self.clone().destination_hears(Input::Received(*message))),
                }
            }
        }
        self.disks(limits, &mut add);
        all
    }

    fn disks(&self, limits: Limits, add: &mut impl FnMut(String, Result<Self, Violation>)) {
        for side in ["source", "destination"] {
            let (up, pending) = match side {
                "source" => (self.source.process.is_some(), self.source.pending),
                _ => (self.destination.process.is_some(), self.destination.pending),
            };
            if pending.is_some() {
                add(format!("{side}: durable"), self.clone().write(side, 64).tell(side, Input::Written));
            }
            // A record that was being written is there, is not, or in part; and so are those that nobody waits for.
            let cuts: &[usize] = if pending.is_some() { &[0, 20, 63, 64] } else { &[0] };
            for cut in cuts {
                if pending.is_some() && self.failed_writes < limits.failed_writes {
                    let mut world = self.clone().write(side, *cut);
                    world.failed_writes += 1;
                    let what = format!("{side}: the write fails, {cut} bytes are there");
                    add(what, world.tell(side, Input::WriteFailed));
                }
                if up && self.crashes < limits.crashes {
                    let world = self.clone().write(side, *cut).crash(side, limits);
                    add(format!("{side} crashes, {cut} bytes are there"), Ok(world));
                }
            }
            if !up {
                add(format!("{side} is started"), self.clone().restart(side));
            }
        }
    }

    fn tell(self, side: &str, input: Input) -> Result<Self, Violation> {
        if side == "source" { self.source_hears(input) } else { self.destination_hears(input) }
    }

    fn source_hears(mut self, input: Input) -> Result<Self, Violation> {
        let Some(process) = &mut self.source.process else { return Ok(self) };
        let outputs = process.step(input);
        self.source_does(outputs)
    }

    fn source_does(mut self, outputs: Vec<Output>) -> Result<Self, Violation> {
        for output in outputs {
            match output {
                Output::Send(message) => drop(self.net.0.insert(message)),
                Output::Write(record) => self.source.pend(record)?,
                Output::Resume => match self.source.copy {
                    Copy::Stands(knows) => self.source.copy = self.begins(knows)?,
                    other => return Err(format!("the source resumes a copy that is {other:?}")),
                },
                Output::Free => self.source.copy = Copy::None,
                Output::Run(_) | Output::Discard => return Err(format!("a source said {output:?}")),
                Output::Stream | Output::Stuck(_) => {}
            }
        }
        self.checked()
    }

    fn destination_hears(mut self, input: Input) -> Result<Self, Violation> {
        let Some(process) = &mut self.destination.process else { return Ok(self) };
        for output in process.step(input) {
            match output {
                Output::Send(message) => drop(self.net.1.insert(message)),
                Output::Write(record) => self.destination.pend(record)?,
                Output::Run(_) => match self.destination.copy {
                    Copy::Stands(knows) => self.destination.copy = self.begins(knows)?,
                    other => return Err(format!("the destination runs a copy that is {other:?}")),
                },
                Output::Discard => self.destination.copy = Copy::None,
                Output::Resume | Output::Free | Output::Stream => {
                    return Err(format!("a destination said {output:?}"));
                }
                Output::Stuck(_) => {}
            }
        }
        self.checked()
    }

    /// A copy that knows of so many runs begins to run.
    fn begins(&mut self, knows: u8) -> Result<Copy, Violation> {
        if knows != self.runs {
            return Err(format!("a copy that knows of {knows} runs goes on after {} runs", self.runs));
        }
        self.runs += 1;
        Ok(Copy::Runs(self.runs))
    }

    fn checked(self) -> Result<Self, Violation> {
        match (self.source.copy, self.destination.copy) {
            (Copy::Runs(_), Copy::Runs(_)) => Err("two copies run".to_owned()),
            _ => Ok(self),
        }
    }

    fn stand_still(mut self) -> Result<Self, Violation> {
        if let Copy::Runs(knows) = self.source.copy {
            self.source.copy = Copy::Stands(knows);
        }
        let digest = Digest([self.runs; 32]);
        self.source_hears(Input::Still(digest))
    }

    /// All memory arrived, with the message that says so.
    fn restored(mut self, digest: Digest) -> Result<Self, Violation> {
        self.destination.copy = Copy::Stands(digest.0[0]);
        self.destination_hears(Input::Restored(digest))
    }

    fn write(mut self, side: &str, bytes: usize) -> Self {
        if side == "source" {
            self.source.write(bytes)
        } else {
            self.destination.write(bytes)
        }
        self
    }

    fn crash(mut self, side: &str, limits: Limits) -> Self {
        self.crashes += 1;
        if side == "source" && limits.memory_stays {
            self.source.process = None;
            if let Copy::Runs(knows) = self.source.copy {
                self.source.copy = Copy::Stands(knows);
            }
        } else if side == "source" {
            let last = self.source.journal().records.last().copied();
            self.died |= self.source.copy != Copy::None && !matches!(last, Some(Record::Committed(..)));
            (self.source.process, self.source.copy) = (None, Copy::None);
        } else {
            let last = self.destination.journal().records.last().copied();
            self.died |=
                matches!(last, Some(Record::Running(..))) || matches!(self.destination.copy, Copy::Runs(_));
            (self.destination.process, self.destination.copy) = (None, Copy::None);
        }
        self
    }

    fn restart(mut self, side: &str) -> Result<Self, Violation> {
        if side == "source" {
            self.source.cut();
            let memory = self.source.copy != Copy::None;
            let (process, outputs) = S::recover(&self.source.journal(), memory);
            self.source.process = Some(process);
            return self.source_does(outputs);
        } else {
            self.destination.cut();
            self.destination.process = Some(D::new(&self.destination.journal()));
        }
        self.checked()
    }

    /// Somebody has to be able to run it: both sides live, the newest copy is there, and no crash took the guest.
    fn must_run(&self) -> bool {
        let up = self.source.process.is_some() && self.destination.process.is_some();
        let newest = |copy| matches!(copy, Copy::Stands(knows) | Copy::Runs(knows) if knows == self.runs);
        up && !self.died && (newest(self.source.copy) || newest(self.destination.copy))
    }

    fn runs(&self) -> bool {
        matches!(self.source.copy, Copy::Runs(_)) || matches!(self.destination.copy, Copy::Runs(_))
    }

    /// From here on nothing goes wrong any more: does the guest run in the end? What was under way is lost first.
    fn comes_to_run(&self) -> Result<(), Violation> {
        let mut world = self.clone();
        world.net = Default::default();
        for _ in 0..12 {
            world = world.source_hears(Input::Connected)?.destination_hears(Input::Connected)?;
            let (to_destination, to_source) = std::mem::take(&mut world.net);
            for message in to_source {
                world = world.source_hears(Input::Received(message))?;
            }
            for message in to_destination {
                let process = world.destination.process.as_ref();
                world = match message {
                    Message::Complete(token, digest) if process.is_some_and(|p| p.is_receiving(token)) => {
                        world.restored(digest)?
                    }
                    _ => world.destination_hears(Input::Received(message))?,
                };
            }
            for side in ["source", "destination"] {
                let waits = if side == "source" { world.source.pending } else { world.destination.pending };
                if waits.is_some() {
                    world = world.write(side, 64).tell(side, Input::Written)?;
                }
            }
            if world.runs() {
                return Ok(());
            }
        }
        Err("both sides live, and nobody can ever run it".to_owned())
    }
}

impl<A> Side<A> {
    fn pend(&mut self, record: Record) -> Result<(), Violation> {
        match self.pending.replace(record) {
            None => Ok(()),
            Some(before) => Err(format!("{record:?} is written while {before:?} is")),
        }
    }

    /// So many bytes of the record that is being written reach the disk.
    fn write(&mut self, bytes: usize) {
        if let Some(record) = self.pending.take() {
            self.cut();
            self.disk.extend_from_slice(&record.encode()[..bytes]);
        }
    }

    /// What is no whole record is cut off before more is appended.
    fn cut(&mut self) {
        let whole = self.journal().bytes;
        self.disk.truncate(whole);
    }

    fn journal(&self) -> Journal {
        Journal::read(&self.disk).expect("only torn ends")
    }
}

/// What an exploration found.
#[derive(Debug)]
pub struct Found {
    pub states: usize,
    pub steps: usize,
    /// States in which both sides live and somebody must be able to run it.
    pub live: usize,
    pub violation: Option<(Violation, Vec<String>)>,
}

/// Everything that can happen, until something happens that never may.
pub fn explore<S: Sends, D: Receives>(limits: Limits) -> Found {
    let first = World::<S, D>::new();
    let mut known = HashMap::from([(first.clone(), 0)]);
    let mut worlds = vec![first];
    // How each came about: from which, and by what.
    let mut from: Vec<(usize, String)> = vec![(0, String::new())];
    let (mut steps, mut live) = (0, 0);
    let trace = |from: &[(usize, String)], mut at: usize, last: String| {
        let mut way = vec![last];
        while at != 0 {
            way.push(from[at].1.clone());
            at = from[at].0;
        }
        way.reverse();
        way
    };
    let mut at = 0;
    while at < worlds.len() {
        if worlds[at].must_run() {
            live += 1;
            if let Err(what) = worlds[at].comes_to_run() {
                let violation = Some((what, trace(&from, at, format!("and from here on {:?}", worlds[at]))));
                return Found { states: worlds.len(), steps, live, violation };
            }
        }
        for (what, world) in worlds[at].next(limits) {
            steps += 1;
            match world {
                Err(violation) => {
                    let violation = Some((violation, trace(&from, at, what)));
                    return Found { states: worlds.len(), steps, live, violation };
                }
                Ok(world) => {
                    if !known.contains_key(&world) {
                        known.insert(world.clone(), worlds.len());
                        worlds.push(world);
                        from.push((at, what));
                    }
                }
            }
        }
        at += 1;
    }
    Found { states: worlds.len(), steps, live, violation: None }
}

/// The shipped automata.
impl Sends for evenkeel_handover::Source {
    fn new() -> Self {
        evenkeel_handover::Source::new(Epoch(7))
    }
    fn recover(journal: &Journal, memory: bool) -> (Self, Vec<Output>) {
        evenkeel_handover::Source::recover(journal, memory)
    }
    fn step(&mut self, input: Input) -> Vec<Output> {
        evenkeel_handover::Source::step(self, input)
    }
    fn is_owner(&self) -> bool {
        self.at() == evenkeel_handover::SourceAt::Owner
    }
    fn is_moving(&self) -> bool {
        matches!(self.at(), evenkeel_handover::SourceAt::Moving(_))
    }
}

impl Receives for evenkeel_handover::Destination {
    fn new(journal: &Journal) -> Self {
        evenkeel_handover::Destination::new(journal)
    }
    fn step(&mut self, input: Input) -> Vec<Output> {
        evenkeel_handover::Destination::step(self, input)
    }
    fn is_receiving(&self, token: Token) -> bool {
        self.at() == evenkeel_handover::DestinationAt::Receiving(token)
    }
}
