//! Rules that look right. Each is the shipped automaton with one thing left out, and each is refuted.

use evenkeel_handover::{
    Destination, DestinationAt, Epoch, Input, Journal, Message, Output, Record, Source, SourceAt, Token,
};

use crate::world::{Receives, Sends};

/// Forwards what a naive source does not change.
macro_rules! naive_source {
    ($name:ident, $why:literal, |$source:ident, $input:ident| $step:expr) => {
        #[doc = $why]
        #[derive(Clone, PartialEq, Eq, Hash, Debug)]
        pub struct $name(Source);

        impl Sends for $name {
            fn new() -> Self {
                $name(Source::new(Epoch(7)))
            }
            fn recover(journal: &Journal, memory: bool) -> (Self, Vec<Output>) {
                let (source, outputs) = Source::recover(journal, memory);
                ($name(source), outputs)
            }
            fn step(&mut self, $input: Input) -> Vec<Output> {
                let $source = &mut self.0;
                $step
            }
            fn is_owner(&self) -> bool {
                self.0.at() == SourceAt::Owner
            }
            fn is_moving(&self) -> bool {
                matches!(self.0.at(), SourceAt::Moving(_))
            }
        }
    };
}

/// Forwards what a naive destination does not change.
macro_rules! naive_destination {
    ($name:ident, $why:literal, |$destination:ident, $input:ident| $step:expr) => {
        #[doc = $why]
        #[derive(Clone, PartialEq, Eq, Hash, Debug)]
        pub struct $name(Destination);

        impl Receives for $name {
            fn new(journal: &Journal) -> Self {
                $name(Destination::new(journal))
            }
            fn step(&mut self, $input: Input) -> Vec<Output> {
                let $destination = &mut self.0;
                $step
            }
            fn is_receiving(&self, token: Token) -> bool {
                self.0.at() == DestinationAt::Receiving(token)
            }
        }
    };
}

naive_source!(
    ResumesOnError,
    "After an error the source goes on, also when it had said that the destination may run.",
    |source, input| {
        let away = matches!(source.at(), SourceAt::Committed(_));
        if away && matches!(input, Input::Disconnected) {
            // Its record says that it came back.
            return source.overrule().unwrap_or_default();
        }
        source.step(input)
    }
);

naive_source!(
    NeverReturns,
    "What was committed stays committed, whatever the destination says.",
    |source, input| match input {
        Input::Received(Message::NeverRan(_)) => Vec::new(),
        input => source.step(input),
    }
);

naive_source!(CommitsFirst, "The commit is said before it is durable.", |source, input| {
    let mut outputs = source.step(input);
    if let Some(Output::Write(Record::Committed(token, epoch))) = outputs.first() {
        outputs.push(Output::Send(Message::Commit(*token, *epoch)));
    }
    outputs
});

naive_destination!(
    RunsWhenPrepared,
    "Everything is here, so it runs: the source paused, after all.",
    |destination, input| {
        let mut outputs = destination.step(input);
        if let DestinationAt::Prepared(token, _) = destination.at() {
            outputs.extend(destination.step(Input::Received(Message::Commit(token, Epoch(8)))));
        }
        outputs
    }
);

naive_destination!(RunsFirst, "It runs, and then writes down that it does.", |destination, input| {
    if let DestinationAt::Starting(..) = destination.at()
        && input == Input::Written
    {
        let outputs = destination.step(input);
        return outputs.into_iter().filter(|o| !matches!(o, Output::Run(_))).collect();
    }
    let mut outputs = destination.step(input);
    if let Some(Output::Write(Record::Running(_, epoch))) = outputs.first() {
        outputs.push(Output::Run(*epoch));
    }
    outputs
});

naive_destination!(
    DeniesFirst,
    "It says that it never ran, without writing it down.",
    |destination, input| {
        let mut outputs = destination.step(input);
        if let Some(Output::Write(Record::NeverRan(token))) = outputs.last().cloned() {
            outputs.pop();
            let token = Message::NeverRan(token);
            outputs.push(Output::Send(token));
            // As though it had been written; a later process knows nothing of it.
            destination.step(Input::WriteFailed);
        }
        outputs
    }
);

naive_destination!(
    GivesUp,
    "When the connection goes, what was prepared is dropped, and the source is not answered about it.",
    |destination, input| match (destination.at(), &input) {
        (DestinationAt::Prepared(..), Input::Disconnected) => {
            *destination = Destination::new(&Journal::default());
            vec![Output::Discard]
        }
        (DestinationAt::Empty, Input::Received(Message::Commit(..))) => Vec::new(),
        _ => destination.step(input),
    }
);
