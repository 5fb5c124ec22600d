//! What comes to the destination of one attempt: taken in order and within bounds, whatever a source says.

use evenkeel_handover::greeting::{Features, Greeting};
use evenkeel_handover::wire::{Content, Frame};
use evenkeel_handover::{Digest, Reason};

use crate::memory::{PIECE, pieces};
use crate::ranges::{PAGE, Pages, bytes};
use crate::{Arriving, GuestError, Range, Section};

/// The most bytes of state that a source may send; memory apart.
const MOST_STATE: u64 = 256 << 20;
/// The most sections.
const MOST_SECTIONS: usize = 1 << 14;
/// The most rounds of memory.
const MOST_ROUNDS: u32 = 100_000;
/// The most ranges that may be missing.
const MOST_MISSING: usize = 1 << 22;

/// Why what came is not taken.
pub(crate) struct Bad(pub Reason, pub String);

impl From<GuestError> for Bad {
    fn from(error: GuestError) -> Bad {
        Bad(Reason::Engine, error.to_string())
    }
}

fn bad<T>(what: impl Into<String>) -> Result<T, Bad> {
    Err(Bad(Reason::Engine, what.into()))
}

/// One attempt.
pub(crate) struct Intake {
    granted: Features,
    memory: u64,
    streams: usize,
    /// The round that comes, and which memory of it came.
    round: u32,
    seen: Pages,
    /// Where each stream that is at the end of the round was then.
    barriers: Vec<Option<Digest>>,
    /// The last ones.
    sums: Vec<Digest>,
    state: Vec<Section>,
    /// What is still to come of the last section.
    due: u64,
    received: u64,
    compared: Pages,
    missing: Vec<Range>,
}

impl Intake {
    pub fn new(greeting: &Greeting, granted: Features, streams: u8) -> Intake {
        let streams = usize::from(streams);
        Intake {
            granted,
            memory: greeting.memory,
            streams,
            round: 0,
            seen: Pages::default(),
            barriers: vec![None; streams],
            sums: Vec::new(),
            state: Vec::new(),
            due: 0,
            received: 0,
            compared: Pages::default(),
            missing: Vec::new(),
        }
    }

    /// One frame of memory or state, or a barrier, on this stream. Whether all streams are at the barrier, and go on.
    pub fn take(
        &mut self,
        guest: &mut dyn Arriving,
        frame: Frame,
        digest: Option<Digest>,
        stream: usize,
    ) -> Result<bool, Bad> {
        match frame {
            Frame::Barrier(round) => return self.barrier(round, digest, stream),
            Frame::Memory { version, address, content } => self.memory(guest, version, address, &content),
            Frame::Verify { address, length, digest } => self.compare(guest, address, length, &digest),
            Frame::Missing(ranges) if self.granted.has(Features::POST_COPY) => self.lacks(&ranges),
            Frame::Missing(_) => bad("memory is missing, and post-copy was not agreed on"),
            Frame::Section { name, at, total, bytes } if stream == 0 => self.section(name, at, total, &bytes),
            Frame::Section { .. } => bad("state does not come on this stream"),
            Frame::Hello(_) | Frame::Control(_) | Frame::Words(_) | Frame::Want(_) => {
                bad("a source does not send this")
            }
        }
        .map(|()| false)
    }

    fn barrier(&mut self, round: u32, digest: Option<Digest>, stream: usize) -> Result<bool, Bad> {
        if round != self.round || round > MOST_ROUNDS || !self.state.is_empty() {
            return bad(format!("round {round} ends, and round {} was under way", self.round));
        }
        let Some(barrier) = self.barriers.get_mut(stream) else {
            return bad(format!("stream {stream} is none of the {}", self.streams));
        };
        *barrier = digest;
        let all = self.barriers.iter().all(Option::is_some);
        if all {
            self.sums = self.barriers.iter_mut().filter_map(Option::take).collect();
            self.seen.clear();
            self.round += 1;
        }
        Ok(all)
    }

    fn memory(
        &mut self,
        guest: &mut dyn Arriving,
        version: u32,
        address: u64,
        content: &Content,
    ) -> Result<(), Bad> {
        let length = match content {
            Content::Zeros(length) | Content::Packed(length, _) => u64::from(*length),
            Content::Bytes(bytes) => bytes.len() as u64,
        };
        if version != self.round || !self.state.is_empty() {
            return bad(format!("memory of round {version} while round {} is under way", self.round));
        }
        let range = Range { address, length };
        if !(address | length).is_multiple_of(PAGE) {
            return bad(format!("{length} bytes of memory at {address:#x} are no pages"));
        }
        if length > self.memory || self.seen.count() * PAGE + length > self.memory {
            return bad(format!(
                "more memory in one round than the {} bytes that the guest has",
                self.memory
            ));
        }
        match content {
            Content::Bytes(bytes) => guest.write(address, bytes)?,
            Content::Zeros(_) | Content::Packed(..) => guest.zero(address, length)?,
        }
        if !self.seen.add(range) {
            return bad(format!("memory at {address:#x} came twice in one round"));
        }
        Ok(())
    }

    fn compare(
        &mut self,
        guest: &mut dyn Arriving,
        address: u64,
        length: u32,
        digest: &[u8; 32],
    ) -> Result<(), Bad> {
        let range = Range { address, length: u64::from(length) };
        let pages = (address | range.length).is_multiple_of(PAGE) && range.length > 0;
        if !self.granted.has(Features::VERIFY) || !pages {
            return bad("memory is to be compared in a way that was not agreed on");
        }
        let mut hash = blake3::Hasher::new();
        let mut buffer = vec![0; range.length.min(PIECE as u64) as usize];
        for piece in pieces(&[range], PIECE) {
            let into = &mut buffer[..piece.length as usize];
            guest.read(piece.address, into)?;
            hash.update(into);
        }
        if hash.finalize().as_bytes() != digest {
            let what = format!(
                "memory from {address:#x} to {:#x} is not what it is at the source: a change of it was not sent (the \
                 source's log of written pages lost one), or it was altered here; move it again, and report this",
                address + range.length
            );
            return Err(Bad(Reason::Digest, what));
        }
        if !self.compared.add(range) {
            return bad(format!("memory at {address:#x} is compared twice"));
        }
        Ok(())
    }

    fn lacks(&mut self, ranges: &[(u64, u64)]) -> Result<(), Bad> {
        let ranges = ranges.iter().map(|(address, length)| Range { address: *address, length: *length });
        self.missing.extend(ranges);
        let pages = self.missing.iter().all(|r| (r.address | r.length).is_multiple_of(PAGE));
        if !pages || self.missing.len() > MOST_MISSING || bytes(&self.missing) > self.memory {
            return bad("more memory is missing than the guest has, or parts of pages are");
        }
        Ok(())
    }

    fn section(&mut self, name: String, at: u64, total: u64, bytes: &[u8]) -> Result<(), Bad> {
        if self.sums.len() != self.streams || self.barriers.iter().any(Option::is_some) {
            return bad(format!("section `{name}` came before memory was complete"));
        }
        if at == 0 {
            if self.due != 0 || total > MOST_STATE - self.received || self.state.len() >= MOST_SECTIONS {
                return bad(format!("section `{name}` of {total} bytes: more than a guest's state is"));
            }
            if self.state.iter().any(|section| section.name == name) {
                return bad(format!("section `{name}` came twice"));
            }
            self.due = total;
            self.received += total;
            self.state.push(Section { name: name.clone(), bytes: Vec::new() });
        }
        let section = self.state.last_mut().filter(|s| s.name == name && s.bytes.len() as u64 == at);
        let Some(section) = section else {
            return bad(format!("section `{name}` does not go on at byte {at}"));
        };
        if bytes.is_empty() && total != 0 {
            return bad(format!("section `{name}` comes in pieces of nothing"));
        }
        let Some(due) = self.due.checked_sub(bytes.len() as u64) else {
            return bad(format!("section `{name}` is longer than it said"));
        };
        self.due = due;
        section.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// What the streams carried, with what the first one did by now.
    pub fn sums_with(&self, first: Digest) -> Vec<Digest> {
        let mut sums = self.sums.clone();
        sums.iter_mut().take(1).for_each(|sum| *sum = first);
        sums
    }

    /// The source says that this was all. Returns the state, and what is missing.
    pub fn complete(
        &mut self,
        said: Digest,
        first: Option<Digest>,
    ) -> Result<(Vec<Section>, Vec<Range>), Bad> {
        if self.sums.len() != self.streams || self.due != 0 || self.barriers.iter().any(Option::is_some) {
            return bad("the source says that this was all, and it was not");
        }
        let Some(first) = first else { return bad("what came is not known") };
        if combined(&self.sums_with(first)) != said {
            return Err(Bad(Reason::Digest, "what came is not what was sent".to_owned()));
        }
        let compared = self.compared.count() * PAGE;
        if self.granted.has(Features::VERIFY) && compared != self.memory {
            let what =
                format!("{compared} of {} bytes of memory were compared, and all were to be", self.memory);
            return Err(Bad(Reason::Digest, what));
        }
        Ok((std::mem::take(&mut self.state), std::mem::take(&mut self.missing)))
    }
}

/// What was sent on all streams: the same digest means the same guest.
pub(crate) fn combined(streams: &[Digest]) -> Digest {
    let mut hash = blake3::Hasher::new();
    for digest in streams {
        hash.update(&digest.0);
    }
    Digest(*hash.finalize().as_bytes())
}
