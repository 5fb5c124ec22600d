//! The guest on the side that it leaves, seen through its control socket.

use std::cell::RefCell;
use std::fs::File;
use std::io::Read as _;
use std::io::Seek as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::rc::Rc;

use evenkeel_handover::Token;
use evenkeel_migrate::{GuestError, Leaving, Range, Section};
use evenkeel_monitor::board::MEMORY_BEGINS;
use evenkeel_monitor::control::client::ClientError;
use evenkeel_monitor::control::protocol::{Answer, Leave, Left, Status};
use evenkeel_monitor::control::{Client, Command};
use evenkeel_sys::Ram;

use super::bundle;

/// The name of the section that all of a guest's state travels in.
pub const STATE: &str = "guest";
const PAGE: u64 = 4096;

/// A machine that runs, through its control socket.
pub struct Machine {
    client: Client,
    /// The right to run was, or was about to be, given away.
    pub given: Option<Token>,
}

impl Machine {
    /// Connects.
    pub fn connect(socket: &Path) -> Result<Machine, ClientError> {
        Ok(Machine { client: Client::connect(socket)?, given: None })
    }

    /// Where it is.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.client.ask(Command::Status, &[], &mut |_| {})? {
            Answer::Status(status) => Ok(status),
            other => Err(ClientError::Nonsense(format!("{other:?}"))),
        }
    }

    /// A step of a move.
    pub fn step(&mut self, step: Leave, fd: Option<BorrowedFd<'_>>) -> Result<Left, ClientError> {
        match self.client.ask(Command::Leave(step), fd.as_slice(), &mut |_| {})? {
            Answer::Left(left) => Ok(left),
            other => Err(ClientError::Nonsense(format!("{other:?}"))),
        }
    }

    /// Its memory.
    pub fn memory(&mut self) -> Result<(File, u64), ClientError> {
        let left = self.step(Leave::Memory, None)?;
        let fd = self.client.passed();
        let fd = fd.ok_or_else(|| ClientError::Nonsense("no descriptor came with its memory".to_owned()))?;
        Ok((File::from(fd), left.bytes))
    }

    /// It goes on, whatever happened.
    pub fn back(&mut self) -> Result<(), ClientError> {
        let token = self.given.take().map(|token| token.to_string());
        self.step(Leave::Back(token), None).map(drop)
    }

    /// It runs elsewhere.
    pub fn gone(&mut self) -> Result<(), ClientError> {
        match self.given {
            Some(token) => self.step(Leave::Gone(token.to_string()), None).map(drop),
            None => Err(ClientError::Nonsense("the right to run was not given away".to_owned())),
        }
    }
}

/// The guest, for the engine.
pub struct Leaver {
    machine: Rc<RefCell<Machine>>,
    /// Its memory; none where it stays in the same file.
    ram: Option<Ram>,
}

fn failed(e: &dyn std::fmt::Display) -> GuestError {
    GuestError(e.to_string())
}

impl Leaver {
    /// Whose memory is copied.
    pub fn copied(machine: Rc<RefCell<Machine>>) -> Result<Leaver, GuestError> {
        let (file, bytes) = machine.borrow_mut().memory().map_err(|e| failed(&e))?;
        let length = usize::try_from(bytes).map_err(|e| failed(&e))?;
        let ram = Ram::of(file.into(), length).map_err(|e| failed(&format!("its memory: {e:?}")))?;
        Ok(Leaver { machine, ram: Some(ram) })
    }

    /// Whose memory is handed over.
    pub fn handed(machine: Rc<RefCell<Machine>>) -> Leaver {
        Leaver { machine, ram: None }
    }

    fn step(&self, step: Leave) -> Result<Left, GuestError> {
        self.machine.borrow_mut().step(step, None).map_err(|e| failed(&e))
    }

    /// A step that fills a file.
    fn filled(&self, step: Leave) -> Result<File, GuestError> {
        let mut file = bundle::empty().map_err(|e| failed(&e))?;
        self.machine.borrow_mut().step(step, Some(file.as_fd())).map_err(|e| failed(&e))?;
        file.rewind().map_err(|e| failed(&e))?;
        Ok(file)
    }
}

impl Leaving for Leaver {
    fn offer(&mut self) -> Result<Vec<u8>, GuestError> {
        bundle::bytes(&mut self.filled(Leave::Offer)?).map_err(|e| failed(&e))
    }

    fn memory(&self) -> Vec<Range> {
        let range = |ram: &Ram| Range { address: MEMORY_BEGINS, length: ram.len() as u64 };
        self.ram.iter().map(range).collect()
    }

    fn track(&mut self) -> Result<(), GuestError> {
        if self.ram.is_some() { self.step(Leave::Track).map(drop) } else { Ok(()) }
    }

    fn written(&mut self) -> Result<Vec<Range>, GuestError> {
        let Some(ram) = &self.ram else { return Ok(Vec::new()) };
        let mut file = self.filled(Leave::Written)?;
        let mut words = Vec::with_capacity(ram.len() / 4096 / 8);
        file.read_to_end(&mut words).map_err(|e| failed(&e))?;
        Ok(ranges(&words, ram.len() as u64))
    }

    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), GuestError> {
        let at = address.checked_sub(MEMORY_BEGINS).and_then(|at| usize::try_from(at).ok());
        let (Some(ram), Some(at)) = (&self.ram, at) else {
            return Err(GuestError(format!("no memory at {address:#x}")));
        };
        ram.read(at, into).map_err(|e| failed(&e))
    }

    fn pause(&mut self) -> Result<(), GuestError> {
        self.step(Leave::Pause).map(drop)
    }

    fn state(&mut self) -> Result<Vec<Section>, GuestError> {
        let bytes = bundle::bytes(&mut self.filled(Leave::State)?).map_err(|e| failed(&e))?;
        Ok(vec![Section { name: STATE.to_owned(), bytes }])
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.machine.borrow_mut().back().map_err(|e| failed(&e))
    }

    fn free(&mut self) {
        // A process that is gone has freed it.
        let _ = self.machine.borrow_mut().gone();
    }
}

/// The pages whose bits are set, from the beginning of memory on.
fn ranges(words: &[u8], length: u64) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for (index, word) in (0..).zip(words.chunks_exact(8)) {
        let mut word = u64::from_le_bytes(word.try_into().unwrap_or_default());
        while word != 0 {
            let first = word.trailing_zeros();
            let run = (word >> first).trailing_ones();
            word &= u64::MAX.checked_shl(first + run).unwrap_or(0);
            let begin = (index * 64 + u64::from(first)) * PAGE;
            let end = (begin + u64::from(run) * PAGE).min(length);
            let address = MEMORY_BEGINS + begin;
            match ranges.last_mut() {
                Some(last) if last.address + last.length == address => last.length += end - begin,
                _ if begin < end => ranges.push(Range { address, length: end - begin }),
                _ => {}
            }
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_follow_each_other_are_one_range() {
        let words: Vec<u8> = [0b1011_u64, 0, 1 << 63, 1].iter().flat_map(|word| word.to_le_bytes()).collect();
        let found = ranges(&words, 1 << 30);
        let plain: Vec<(u64, u64)> =
            found.iter().map(|r| ((r.address - MEMORY_BEGINS) / PAGE, r.length / PAGE)).collect();
        assert_eq!(plain, [(0, 2), (3, 1), (191, 2)]);
        let all: Vec<u8> = [u64::MAX; 2].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(ranges(&all, 100 * PAGE), [Range { address: MEMORY_BEGINS, length: 100 * PAGE }]);
    }
}
