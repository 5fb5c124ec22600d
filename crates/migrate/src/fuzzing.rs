//! The body of the fuzz target `receiver`: whatever a source says, memory is written within the guest only, what is held is bounded, and
//! what is complete is what the source said that it is.

use std::collections::BTreeMap;

use evenkeel_handover::fuzzing::sealed;
use evenkeel_handover::greeting::{Features, Greeting};
use evenkeel_handover::wire::{Content, Decoder, Frame};
use evenkeel_handover::{Destination, DestinationAt as At, Input, Journal, Message, Output, Token};

use crate::connection::unpacked;
use crate::intake::{Intake, combined};
use crate::{Address, Arriving, GuestError, Section};

/// Guest memory in bytes.
const MEMORY: u64 = 16 << 12;
/// The attempt of all scripts.
pub const TOKEN: Token = Token([5; 16]);

/// What was reached: a test that reaches nothing is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Frames that were taken.
    pub taken: u64,
    /// Frames that were refused, which ends an attempt.
    pub refused: u64,
    /// Guests that were complete.
    pub complete: u64,
    /// Guests that were to run.
    pub runs: u64,
}

/// A guest that holds what was written to it.
#[derive(Default)]
struct Guest {
    memory: BTreeMap<u64, Vec<u8>>,
}

impl Guest {
    fn within(address: u64, length: u64) -> Result<(), GuestError> {
        let fits = address.checked_add(length).is_some_and(|end| end <= MEMORY);
        fits.then_some(()).ok_or_else(|| GuestError("outside of memory".to_owned()))
    }
}

impl Arriving for Guest {
    fn accepts(&mut self, _: &[u8]) -> Result<(), GuestError> {
        Ok(())
    }
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), GuestError> {
        Guest::within(address, bytes.len() as u64)?;
        self.memory.insert(address, bytes.to_vec());
        Ok(())
    }
    fn zero(&mut self, address: u64, length: u64) -> Result<(), GuestError> {
        Guest::within(address, length)
    }
    fn restore(&mut self, _: Vec<Section>) -> Result<(), GuestError> {
        Ok(())
    }
    fn run(&mut self, _: u64) -> Result<(), GuestError> {
        Ok(())
    }
    fn discard(&mut self) {
        self.memory.clear();
    }
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), GuestError> {
        Guest::within(address, into.len() as u64)
    }
}

/// The first byte says what was agreed on, and how many streams there are; the rest are frames ([`sealed`]), of which the length of
/// each says which stream it comes on, but for those with state and control.
pub fn receiver(bytes: &[u8]) -> Reached {
    let mut reached = Reached::default();
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(address) = text.parse::<Address>()
    {
        assert_eq!(address.to_string().parse(), Ok(address));
    }
    let Some((first, script)) = bytes.split_first() else { return reached };
    let (granted, streams) = (Features(u32::from(first & 7)), (first >> 3) % 3 + 1);
    let greeting = Greeting {
        protocols: (1, 1),
        stream: 0,
        streams,
        features: granted,
        token: TOKEN,
        memory: MEMORY,
        offer: Vec::new(),
        program: String::new(),
    };
    let (mut guest, mut automaton) = (Guest::default(), Destination::new(&Journal::default()));
    let mut intake = None;
    let mut decoder = Decoder::any();
    let frames = sealed(script, 0);
    let mut left = &frames[..];
    while let Ok(Some(frame)) = decoder.take(&mut left) {
        let at = automaton.at();
        let input = match frame {
            Frame::Control(message @ Message::Offer(..)) => {
                if at == At::Empty {
                    intake = Some(Intake::new(&greeting, granted, streams));
                }
                Input::Received(message)
            }
            Frame::Control(Message::Complete(token, said)) if at == At::Receiving(token) => {
                let Some(intake) = &mut intake else { continue };
                // What a source that does not lie would say: a fuzzer finds no digest.
                let honest = combined(&intake.sums_with(decoder.digest()));
                match intake.complete(if said.0 == [0; 32] { honest } else { said }, Some(decoder.digest())) {
                    Ok((state, missing)) => {
                        let held: usize = state.iter().map(|section| section.bytes.len()).sum();
                        assert!(held <= frames.len());
                        let pages: u64 = missing.iter().map(|range| range.length).sum();
                        assert!(pages <= MEMORY && (missing.is_empty() || granted.has(Features::POST_COPY)));
                        reached.complete += 1;
                        Input::Restored(said)
                    }
                    Err(_) => Input::Failed(evenkeel_handover::Reason::Engine),
                }
            }
            Frame::Control(message) => Input::Received(message),
            frame => {
                let Some(intake) = intake.as_mut().filter(|_| matches!(at, At::Receiving(_))) else {
                    continue;
                };
                if let Some(taken) = one(&mut guest, intake, frame, &decoder, streams) {
                    reached.taken += u64::from(taken);
                    reached.refused += u64::from(!taken);
                    if taken {
                        continue;
                    }
                }
                Input::Failed(evenkeel_handover::Reason::Engine)
            }
        };
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            for output in automaton.step(input) {
                match output {
                    Output::Write(_) => inputs.push(Input::Written),
                    Output::Run(_) => {
                        assert!(reached.complete > 0, "it runs, and was not complete");
                        reached.runs += 1;
                    }
                    Output::Discard => {
                        guest.discard();
                        intake = None;
                    }
                    _ => {}
                }
            }
        }
    }
    assert!(reached.runs <= 1, "two guests run");
    reached
}

/// Whether it was taken; `None`: it was not what it says it is.
fn one(guest: &mut Guest, intake: &mut Intake, frame: Frame, decoder: &Decoder, streams: u8) -> Option<bool> {
    let frame = match frame {
        Frame::Memory { version, address, content } => {
            Frame::Memory { version, address, content: unpacked(content).ok()? }
        }
        other => other,
    };
    let stream = match &frame {
        Frame::Memory { address, .. } | Frame::Verify { address, .. } => (*address >> 12) as usize,
        Frame::Barrier(_) => {
            // All streams come to it.
            let all = (0..usize::from(streams))
                .map(|stream| intake.take(guest, frame.clone(), Some(decoder.digest()), stream))
                .collect::<Result<Vec<bool>, _>>();
            return Some(all.is_ok_and(|all| all.ends_with(&[true])));
        }
        _ => 0,
    };
    let written: usize = guest.memory.values().map(Vec::len).sum();
    let taken =
        intake.take(guest, frame.clone(), Some(decoder.digest()), stream % usize::from(streams)).is_ok();
    if let (false, Frame::Memory { content: Content::Zeros(_), .. }) = (taken, &frame) {
        assert_eq!(written, guest.memory.values().map(Vec::len).sum::<usize>());
    }
    Some(taken)
}
