//! Memory while the guest runs, the pause, and what comes in it.

use std::time::{Duration, Instant};

use evenkeel_handover::greeting::Features;
use evenkeel_handover::wire::Frame;
use evenkeel_handover::{Input, SourceAt as At};

use crate::intake::combined;
use crate::memory::{PIECE, pieces};
use crate::ranges::{bytes, merged};
use crate::send::Sender;
use crate::serve::Pages;
use crate::spread::{Spread, Task};
use crate::{GuestError, Phase, Range, Section, Slow};

/// A guest that writes too fast stands for so many percent of the time, one step a round.
const STEPS: [u8; 7] = [20, 40, 60, 75, 90, 95, 99];

/// What follows a round.
enum Next {
    Round,
    Pause,
    /// Pause, and what is left comes after the commit.
    Late,
}

fn words(error: GuestError) -> String {
    error.to_string()
}

impl Sender<'_> {
    /// All rounds of memory, the pause, and the state. The automaton may have gone elsewhere meanwhile.
    pub fn copy(&mut self) -> Result<(), String> {
        self.open()?;
        self.touched = true;
        self.guest.track().map_err(words)?;
        let mut ranges = merged(&self.memory, &self.memory);
        let mut before = u64::MAX;
        let late = loop {
            let begin = Instant::now();
            let size = bytes(&ranges);
            let task = Task::Send(self.rounds);
            if !self.round(&ranges, task, Phase::Copying)? {
                return Ok(());
            }
            let rate = rate(size, begin);
            ranges = merged(&self.guest.written().map_err(words)?, &self.memory);
            let left = bytes(&ranges);
            match self.next(left, before, downtime(left, rate))? {
                Next::Round => before = left,
                Next::Pause => break false,
                Next::Late => break true,
            }
        };
        self.paused = Some(Instant::now());
        self.guest.pause().map_err(words)?;
        // Saving the state may write to memory.
        let state = self.guest.state().map_err(words)?;
        ranges.extend(self.guest.written().map_err(words)?);
        let ranges = merged(&ranges, &self.memory);
        if late {
            self.leave_behind(&ranges)?;
        } else if !self.round(&ranges, Task::Send(self.rounds), Phase::Pausing)? {
            return Ok(());
        }
        if self.policy.verify {
            let begin = Instant::now();
            let all = merged(&self.memory, &self.memory);
            if !self.round(&all, Task::Verify, Phase::Verifying)? {
                return Ok(());
            }
            self.verified = Some(begin.elapsed());
        }
        self.complete(&state)
    }

    /// The other streams, and the threads that send.
    fn open(&mut self) -> Result<(), String> {
        let Some(answer) = &self.answer else {
            return Err("the destination did not say what it can do".to_owned());
        };
        let (streams, granted) = (answer.streams.clamp(1, self.policy.streams), answer.features);
        if self.policy.verify && !granted.has(Features::VERIFY) {
            return Err("the destination does not compare memory, and that was asked for".to_owned());
        }
        if self.policy.slow == Slow::PostCopy && !granted.has(Features::POST_COPY) {
            return Err("the destination has no post-copy, and that was asked for".to_owned());
        }
        let compress = self.policy.compress && granted.has(Features::LZ4);
        for number in 1..streams {
            self.link(number)
                .map_err(|error| format!("stream {number} of {streams} cannot be opened: {error}"))?;
        }
        let writers = self.links.iter().map(|link| link.writer.clone()).collect();
        self.spread = Some(Spread::new(writers, compress));
        Ok(())
    }

    fn next(&mut self, left: u64, before: u64, downtime: Duration) -> Result<Next, String> {
        if downtime <= self.policy.downtime || left == 0 {
            return Ok(Next::Pause);
        }
        let shrinks = left < before / 10 * 7;
        let enough = self.rounds >= self.policy.rounds;
        let too_fast = |rounds: u32, what: &str| {
            format!(
                "after {rounds} rounds {left} bytes are left, which take {downtime:.1?}: the guest writes too fast{what}; \
                 allow a longer pause, or let it be slowed down or moved by post-copy"
            )
        };
        match self.policy.slow {
            Slow::Pause if enough => Ok(Next::Pause),
            Slow::Stop if enough => Err(too_fast(self.rounds, "")),
            Slow::PostCopy if enough => Ok(Next::Late),
            Slow::Throttle if enough || self.rounds > 1 && !shrinks => {
                let step = STEPS.into_iter().find(|step| *step > self.throttle);
                let Some(step) = step else {
                    return Err(too_fast(self.rounds, ", although its vCPUs stand nearly all the time"));
                };
                self.guest.throttle(step).map_err(|error| too_fast(self.rounds, &format!(" ({error})")))?;
                self.throttle = step;
                Ok(Next::Round)
            }
            _ => Ok(Next::Round),
        }
    }

    /// Sends this memory, or what it is, on all streams, up to a barrier. Whether the attempt is still under way.
    fn round(&mut self, ranges: &[Range], task: Task, phase: Phase) -> Result<bool, String> {
        const TICK: Duration = Duration::from_millis(5);
        let size = bytes(ranges);
        let begin = Instant::now();
        self.progress.phase = phase;
        (self.progress.round, self.progress.bytes) = (self.rounds, size);
        for piece in pieces(ranges, PIECE) {
            let mut buffer = loop {
                match self.step(|spread| spread.room(TICK)) {
                    None => return Ok(false),
                    Some(Some(buffer)) => break buffer,
                    Some(None) => self.look(),
                }
            };
            buffer.resize(piece.length as usize, 0);
            self.guest.read(piece.address, &mut buffer).map_err(words)?;
            let Some(spread) = &mut self.spread else { return Ok(false) };
            spread.give(task, piece.address, buffer);
            self.progress.done += piece.length;
            self.progress.remaining = size - self.progress.done;
            self.progress.rate = rate(self.progress.done, begin);
            self.progress.downtime = downtime(self.progress.remaining, self.progress.rate);
            self.look();
        }
        self.progress.done = 0;
        loop {
            match self.step(|spread| spread.idle(TICK)) {
                None => return Ok(false),
                Some(true) => break,
                Some(false) => self.look(),
            }
        }
        self.barrier()?;
        // Otherwise the pause would begin with all that is on its way.
        let waits = Instant::now();
        while phase == Phase::Copying
            && self.there < self.rounds
            && matches!(self.automaton.at(), At::Moving(_))
        {
            if waits.elapsed() > self.policy.patience {
                self.lose(format!("the destination takes nothing for {:?}", self.policy.patience));
                break;
            }
            self.hear(TICK);
            self.look();
        }
        Ok(matches!(self.automaton.at(), At::Moving(_)))
    }

    fn barrier(&mut self) -> Result<(), String> {
        for link in &self.links {
            link.tell(&Frame::Barrier(self.rounds)).map_err(|error| error.to_string())?;
        }
        self.rounds += 1;
        Ok(())
    }

    /// Listens, and asks the threads; `None` if the attempt is over.
    fn step<T>(&mut self, with: impl FnOnce(&mut Spread) -> Result<T, String>) -> Option<T> {
        self.hear(Duration::ZERO);
        if !matches!(self.automaton.at(), At::Moving(_)) {
            return None;
        }
        match with(self.spread.as_mut()?) {
            Ok(result) => Some(result),
            Err(why) => {
                let why = self.told(&why);
                self.lose(why);
                None
            }
        }
    }

    /// The destination gets this after the commit.
    fn leave_behind(&mut self, ranges: &[Range]) -> Result<(), String> {
        let link = self.links.first().ok_or("the connection is lost")?;
        let pairs: Vec<(u64, u64)> = ranges.iter().map(|range| (range.address, range.length)).collect();
        for some in pairs.chunks(1 << 15) {
            link.tell(&Frame::Missing(some.to_vec())).map_err(|error| error.to_string())?;
        }
        self.late = Some(Pages::new(ranges));
        self.barrier()
    }

    fn complete(&mut self, state: &[Section]) -> Result<(), String> {
        let lost = |error: std::io::Error| error.to_string();
        let mut sums = Vec::new();
        for link in &self.links {
            sums.push(link.writing().map_err(lost)?.digest());
        }
        let link = self.links.first().ok_or("the connection is lost")?;
        {
            let mut writer = link.writing().map_err(lost)?;
            for section in state {
                let total = section.bytes.len() as u64;
                // One that is empty is there as well.
                let count = section.bytes.len().div_ceil(PIECE).max(1);
                for n in 0..count {
                    let at = n * PIECE;
                    let bytes = section.bytes[at..section.bytes.len().min(at + PIECE)].to_vec();
                    let frame = Frame::Section { name: section.name.clone(), at: at as u64, total, bytes };
                    writer.put(&frame).map_err(lost)?;
                }
            }
            sums[0] = writer.digest();
        }
        if matches!(self.automaton.at(), At::Moving(_)) {
            self.feed(Input::Still(combined(&sums)));
        }
        Ok(())
    }
}

pub(crate) fn rate(bytes: u64, since: Instant) -> u64 {
    (bytes as f64 / since.elapsed().as_secs_f64().max(1e-6)) as u64
}

pub(crate) fn downtime(bytes: u64, rate: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64)
}
