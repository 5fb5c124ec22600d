//! A guest on arm64 that is there to be asked: batches of probes in, outcomes out.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use evenkeel_monitor::aarch64::{MEMORY_BASE, Machine, enter, map};
use evenkeel_monitor::{Error as MonitorError, Next, run};
use evenkeel_sys::{Deadline, Exit, Ram, Runner};

use crate::Error;
use crate::aarch64::abi;
use crate::aarch64::probe::{Outcome, Probe};

/// Copies the guest into a machine's memory.
///
/// # Errors
/// The memory is too small.
pub fn load(ram: &Ram, image: &[u8]) -> Result<(), Error> {
    ram.write((abi::CODE - MEMORY_BASE) as usize, image)?;
    Ok(map(ram, abi::PAGES)?)
}

/// A vCPU whose guest takes probes.
#[derive(Debug)]
pub struct Session<'m, 's, 'b> {
    machine: &'m Machine<'s, 'b>,
    ram: Arc<Ram>,
    runner: Runner<'m, 'b>,
    deadline: &'m Deadline,
    number: usize,
    /// How long a batch may take.
    pub limit: Duration,
    /// How many probes were given.
    pub probes: u64,
}

impl<'m, 's, 'b> Session<'m, 's, 'b> {
    /// The guest on this vCPU: one of the first [`abi::AREAS`].
    ///
    /// # Errors
    /// The vCPU cannot be run.
    pub fn new(machine: &'m Machine<'s, 'b>, number: usize, deadline: &'m Deadline) -> Result<Self, Error> {
        let runner = machine.runner(number)?;
        let limit = Duration::from_secs(20);
        Ok(Session { machine, ram: machine.ram().clone(), runner, deadline, number, limit, probes: 0 })
    }

    /// The address of the vCPU's area: what its guest has in X0 when it begins.
    pub fn area(&self) -> u64 {
        area(self.number)
    }

    /// Puts the vCPU at the guest's beginning. One that CPU_ON starts needs no such thing.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn start(&mut self) -> Result<(), Error> {
        Ok(enter(self.runner.vcpu(), abi::CODE, self.area())?)
    }

    /// The vCPU's runner, for whoever saves its state.
    pub fn runner(&mut self) -> &mut Runner<'m, 'b> {
        &mut self.runner
    }

    /// Does all of these, in order.
    ///
    /// # Errors
    /// The guest hangs, dies, or faults where it must not.
    pub fn ask(&mut self, probes: &[Probe]) -> Result<Vec<Outcome>, Error> {
        let mut outcomes = Vec::with_capacity(probes.len());
        for batch in probes.chunks(abi::BATCH / 2) {
            outcomes.extend(self.batch(batch)?);
        }
        Ok(outcomes)
    }

    /// Does one.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub fn one(&mut self, probe: Probe) -> Result<Outcome, Error> {
        Ok(self.batch(&[probe])?.remove(0))
    }

    fn batch(&mut self, probes: &[Probe]) -> Result<Vec<Outcome>, Error> {
        let batch = self.begin(probes)?;
        self.finish(&batch)
    }

    /// Puts a batch into memory, so that the guest does it when it runs.
    ///
    /// # Errors
    /// The memory is too small.
    pub fn begin(&mut self, probes: &[Probe]) -> Result<Batch, Error> {
        self.probes += probes.len() as u64;
        let nonce = RandomState::new().hash_one("evenkeel witness") | 1 << 63;
        let half = self.number.min(1) * abi::BATCH / 2;
        let table = abi::TABLE + (half * abi::PROBE_BYTES) as u64;
        let results = abi::OUTCOMES + (half * abi::RESULT_BYTES) as u64;
        let bytes: Vec<u8> = probes.iter().flat_map(Probe::encode).collect();
        self.ram.write(offset(table), &bytes)?;
        self.ram.write(offset(results), &vec![0; probes.len() * abi::RESULT_BYTES])?;
        for (at, value) in [
            (abi::INDEX, (probes.len() as u64) << 32),
            (abi::RUNNING, 0),
            (abi::NONCE, nonce),
            (abi::PROBES, table),
            (abi::RESULTS, results),
        ] {
            self.ram.write(offset(self.area() + at), &value.to_le_bytes())?;
        }
        Ok(Batch { nonce, results, count: probes.len() })
    }

    /// Runs until a batch is done: one that was begun here, or in the machine that this one's state was saved from.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub fn finish(&mut self, batch: &Batch) -> Result<Vec<Outcome>, Error> {
        let exits = self.run_all(batch.count)?;
        let (nonce, mut bytes) = (batch.nonce, vec![0; batch.count * abi::RESULT_BYTES]);
        self.ram.read(offset(batch.results), &mut bytes)?;
        let outcomes = bytes.chunks_exact(abi::RESULT_BYTES).enumerate().map(|(index, bytes)| {
            let outcome = Outcome::decode(bytes, nonce, index as u32);
            match exits.get(&(index as u32)) {
                Some(Left::For(what)) if outcome.registers().is_some() => Outcome::Exited(what.clone()),
                Some(Left::Ended(how)) => Outcome::Ended(how.clone()),
                _ => outcome,
            }
        });
        Ok(outcomes.collect())
    }

    /// Runs until the batch in memory is done. A probe that ends the guest is passed over, and the guest started again
    /// behind it, as a VMM resets a machine.
    fn run_all(&mut self, count: usize) -> Result<BTreeMap<u32, Left>, Error> {
        let mut exits = BTreeMap::new();
        for _ in 0..=count {
            let how = match self.run(&mut exits) {
                Err(Error::Monitor(MonitorError::Ended(exit))) => match exit {
                    // The data is for the VMM; a guest sees nothing of it.
                    Exit::SystemEvent(kind, _) => event(kind),
                    exit => return Err(MonitorError::Ended(exit).into()),
                },
                done => return done.map(|()| exits),
            };
            let at = index(&self.ram, self.area());
            if at as usize >= count {
                return Err(MonitorError::Ended(Exit::Other(at)).into());
            }
            exits.insert(at, Left::Ended(how));
            self.ram.write(offset(self.area() + abi::INDEX), &(at + 1).to_le_bytes())?;
            self.ram.write(offset(self.area() + abi::RUNNING), &[0; 8])?;
            self.machine.reset()?;
            self.start()?;
        }
        Err(MonitorError::Hung(self.limit).into())
    }

    fn run(&mut self, exits: &mut BTreeMap<u32, Left>) -> Result<(), Error> {
        let (ram, area) = (self.ram.clone(), self.area());
        let mut word = 0;
        let mut handler = |_: &Runner<'_, '_>, exit: &Exit| {
            let mut note = |what: String| {
                if exits.len() <= abi::BATCH {
                    exits.entry(index(&ram, area)).or_insert(Left::For(what));
                }
            };
            match exit {
                Exit::MemoryWrite { address: abi::DOORBELL, data } => {
                    word = data.iter().rev().fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
                    return Next::Stop;
                }
                Exit::MemoryWrite { address, .. } => note(format!("write of {address:#x}")),
                Exit::MemoryRead { address, length } => {
                    note(format!("read of {address:#x}"));
                    return Next::Answer(vec![0xff; *length]);
                }
                Exit::Hypercall(number, _) => note(format!("hypercall {number:#x}")),
                _ => return Next::Stop,
            }
            Next::Go
        };
        match run(&mut self.runner, self.deadline, self.limit, &mut handler)? {
            Exit::MemoryWrite { .. } if word == abi::DONE => Ok(()),
            Exit::MemoryWrite { .. } => Err(Error::Fault { vector: word & 0xff, index: index(&ram, area) }),
            exit => Err(MonitorError::Ended(exit).into()),
        }
    }
}

/// Probes that the guest has in its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    pub(crate) nonce: u64,
    pub(crate) results: u64,
    pub(crate) count: usize,
}

/// How a probe left KVM.
#[derive(Clone, Debug)]
enum Left {
    /// For this; the guest went on.
    For(String),
    /// The guest ended.
    Ended(String),
}

/// KVM_SYSTEM_EVENT_*.
fn event(kind: u32) -> String {
    match kind {
        1 => "shutdown".to_owned(),
        2 => "reset".to_owned(),
        3 => "crash".to_owned(),
        5 => "suspend".to_owned(),
        other => format!("system event {other}"),
    }
}

/// The area of a vCPU.
pub fn area(number: usize) -> u64 {
    abi::AREA + number.min(abi::AREAS - 1) as u64 * abi::AREA_BYTES
}

fn offset(address: u64) -> usize {
    (address - MEMORY_BASE) as usize
}

fn index(ram: &Ram, area: u64) -> u32 {
    let mut bytes = [0; 4];
    // Whatever the guest wrote there: it is only a key.
    let _ = ram.read(offset(area + abi::INDEX), &mut bytes);
    u32::from_le_bytes(bytes)
}
