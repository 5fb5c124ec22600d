//! A machine from its first instruction here to its end or its saving.

use std::fs::File;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use evenkeel_memory::Loading;
use evenkeel_monitor::board::Runs;
use evenkeel_monitor::control::protocol::Leave;
use evenkeel_monitor::{End, Life};
use evenkeel_state::Noting;

use super::super::operate::Operator;
use super::leave::Leaver;
use super::live::Keeping;
use super::save::{Luggage, save};
use super::{Running, failed};
use crate::failure::Failure;

/// How often a wait for words of the guest looks whether it has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Standard output, which tells when it was given some text.
pub struct Console {
    text: Vec<u8>,
    /// The last bytes, one fewer than the text has.
    tail: Vec<u8>,
    found: SyncSender<()>,
}

impl Console {
    /// The console, and what is sent to when the text was seen.
    pub fn new(text: Option<&str>) -> (Console, Receiver<()>) {
        let (found, heard) = sync_channel(1);
        let text = text.unwrap_or_default().as_bytes().to_vec();
        (Console { text, tail: Vec::new(), found }, heard)
    }

    fn look(&mut self, bytes: &[u8]) {
        if self.text.is_empty() {
            return;
        }
        self.tail.extend_from_slice(bytes);
        if self.tail.windows(self.text.len()).any(|window| window == self.text) {
            // Once is enough.
            let _ = self.found.try_send(());
            self.text.clear();
        }
        let keep = self.text.len().saturating_sub(1).min(self.tail.len());
        self.tail.drain(..self.tail.len() - keep);
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = io::stdout().write(bytes)?;
        self.look(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

/// Runs a machine to its end, or saves it on the way. `loading`: its memory, as far as it is not there yet.
pub fn drive(
    pc: &impl Runs,
    noting: &Noting<'_>,
    luggage: &Luggage,
    running: &Running,
    heard: &Receiver<()>,
    operator: Operator,
    loading: Option<Loading>,
) -> Result<u8, Failure> {
    let begin = Instant::now();
    let limit = running.limit.map(Duration::from_secs);
    if running.snapshot.is_none() {
        let keeping = Keeping { noting, luggage };
        let leaver = Leaver::new(pc, noting, luggage);
        let leave = |step: &Leave, to: Option<&mut File>| leaver.step(step, to);
        return ended(operator.run(pc, limit, keeping, loading, &leave)?);
    }
    let (end, saved) = std::thread::scope(|scope| {
        let machine = scope.spawn(|| pc.run(limit));
        let saved = running.snapshot.as_deref().filter(|_| due(pc.life(), running, heard)).map(|path| {
            let saved = save(pc, noting, luggage, path, running.compress);
            pc.life().stop();
            saved
        });
        (machine.join().unwrap_or_else(|_| End::Failed("it panicked".to_owned())), saved)
    });
    if let Some(saved) = saved {
        return saved.map(|()| 0);
    }
    match end {
        End::Reset | End::Off => Err(failed(&format!(
            "the guest came to its end in {:.1} s, before it was to be saved",
            begin.elapsed().as_secs_f64()
        ))),
        other => ended(other),
    }
}

fn ended(end: End) -> Result<u8, Failure> {
    match end {
        End::Reset | End::Off | End::Stopped => Ok(0),
        End::TimeOver => Err(failed(&"the time is over")),
        End::Failed(why) => Err(failed(&why)),
    }
}

/// Waits until the machine is to be saved; false: it ended.
fn due(life: &Life, running: &Running, heard: &Receiver<()>) -> bool {
    if running.snapshot_at.is_some() {
        loop {
            match heard.recv_timeout(LOOK) {
                Ok(()) => break,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
            if life.ended_within(Some(Duration::ZERO)).is_some() {
                return false;
            }
        }
    }
    let after = Duration::try_from_secs_f64(running.snapshot_after.unwrap_or(0.0)).unwrap_or_default();
    life.ended_within(Some(after)).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_wherever_it_is_cut() {
        for cut in 0..=8 {
            let (mut console, heard) = Console::new(Some("pass 3"));
            let text = b"xpass 3y";
            console.look(&text[..cut]);
            console.look(&text[cut..]);
            assert!(heard.try_recv().is_ok(), "cut at {cut}");
        }
        let (mut console, heard) = Console::new(Some("pass 3"));
        console.look(b"pass 2 pass  3");
        assert!(heard.try_recv().is_err());
    }
}
