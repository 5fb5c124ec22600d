//! After a crash of the source: what its journal says, and who has to hear of it.

use std::io;

use evenkeel_handover::{Source, SourceAt as At};

use crate::send::Sender;
use crate::{GuestError, Journaling, Leaving, NotSent, Policy, Range, Section, Slow, Stream};

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
    let (mut nothing, mut watch) = (Nothing, |_: &crate::Progress| true);
    // There is no memory here to send or to compare.
    let policy = Policy { streams: 1, verify: false, slow: Slow::Pause, ..policy };
    let about = (Vec::new(), Vec::new());
    let mut sender =
        Sender::new(&mut nothing, journal, (connect, &mut watch), policy, automaton, token, about);
    match sender.run() {
        Ok(_) => Settled::Runs,
        Err(undecided @ NotSent::Undecided { .. }) => Settled::Undecided(undecided),
        Err(_) => Settled::NeverRan,
    }
}

/// A guest that is not here any more.
struct Nothing;

fn gone<T>() -> Result<T, GuestError> {
    Err(GuestError("the guest went with the process that had it".to_owned()))
}

impl Leaving for Nothing {
    fn offer(&mut self) -> Result<Vec<u8>, GuestError> {
        Ok(Vec::new())
    }
    fn memory(&self) -> Vec<Range> {
        Vec::new()
    }
    fn track(&mut self) -> Result<(), GuestError> {
        gone()
    }
    fn written(&mut self) -> Result<Vec<Range>, GuestError> {
        gone()
    }
    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), GuestError> {
        gone()
    }
    fn pause(&mut self) -> Result<(), GuestError> {
        gone()
    }
    fn state(&mut self) -> Result<Vec<Section>, GuestError> {
        gone()
    }
    fn resume(&mut self) -> Result<(), GuestError> {
        gone()
    }
    fn free(&mut self) {}
}
