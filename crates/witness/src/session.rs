//! A guest that is there to be asked: batches of probes in, outcomes out.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use evenkeel_monitor::x86_64::{Tables, jump};
use evenkeel_monitor::{Error as MonitorError, Machine, Next, run};
use evenkeel_sys::{Deadline, Exit, Ram, Runner, Vcpu};

use crate::Error;
use crate::abi;
use crate::probe::{Outcome, Probe};

/// Where the tables of the guest are.
const TABLES: Tables = Tables { gdt: abi::GDT, idt: abi::IDT, tss: abi::TSS, pages: abi::PAGES };

/// Copies the guest into a machine's memory.
///
/// # Errors
/// The memory is too small.
pub fn load(ram: &Ram, image: &[u8]) -> Result<(), Error> {
    ram.write(abi::CODE as usize, image)?;
    let end = (abi::REAL_MODE as usize + 0x400).min(image.len());
    ram.write(abi::TRAMPOLINE as usize, image.get(abi::REAL_MODE as usize..end).unwrap_or_default())?;
    let stack = u64::from(abi::AREA + abi::AREA_BYTES / 2);
    TABLES.write(ram, abi::CODE + abi::STUBS, abi::STUB_BYTES, stack)?;
    Ok(())
}

/// A vCPU whose guest takes probes.
#[derive(Debug)]
pub struct Session<'v, 'b> {
    machine_ram: std::sync::Arc<Ram>,
    runner: Runner<'v, 'b>,
    deadline: &'v Deadline,
    /// How long a batch may take.
    pub limit: Duration,
    area: u32,
    /// The guest's code, as it was at the beginning.
    image: Vec<u8>,
    /// Vectors that were ended and told to us (KVM_EXIT_IOAPIC_EOI), since the last look.
    pub ended: Vec<u8>,
}

impl<'v, 'b> Session<'v, 'b> {
    /// The guest on this vCPU: 0 or 1. What has to be configured of the vCPU has been by now.
    ///
    /// # Errors
    /// The vCPU cannot be run.
    pub fn new(
        machine: &Machine<'_, 'b>,
        vcpu: &'v Vcpu<'b>,
        number: u32,
        deadline: &'v Deadline,
    ) -> Result<Self, Error> {
        let runner = vcpu.runner(machine.system()).map_err(MonitorError::from)?;
        let area = abi::AREA + number.min(1) * abi::AREA_BYTES;
        let limit = Duration::from_secs(20);
        let machine_ram = machine.ram().clone();
        let mut image = vec![0; abi::CODE_BYTES];
        machine_ram.read(abi::CODE as usize, &mut image)?;
        Ok(Session { machine_ram, runner, deadline, limit, area, image, ended: Vec::new() })
    }

    /// Puts the vCPU at the guest's beginning, in 64-bit mode: what a VMM does at power-on and at a reset.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn start(&mut self) -> Result<(), Error> {
        let stack = u64::from(self.area + abi::AREA_BYTES - 64);
        TABLES.enter(self.runner.vcpu(), u64::from(abi::CODE + abi::ENTRY), stack)?;
        Ok(())
    }

    /// The vCPU.
    pub fn vcpu(&self) -> &'v Vcpu<'b> {
        self.runner.vcpu()
    }

    /// What runs it: to save its state between two questions.
    pub fn runner(&mut self) -> &mut Runner<'v, 'b> {
        &mut self.runner
    }

    /// The guest's memory.
    pub fn ram(&self) -> &Ram {
        &self.machine_ram
    }

    /// Does all of these, in order.
    ///
    /// # Errors
    /// The guest hangs, dies, or faults where it must not.
    pub fn ask(&mut self, probes: &[Probe]) -> Result<Vec<Outcome>, Error> {
        let mut outcomes = Vec::with_capacity(probes.len());
        for batch in probes.chunks(abi::BATCH) {
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

    /// How often an interrupt arrived since the guest was loaded.
    ///
    /// # Errors
    /// Never, in memory of the right size.
    pub fn arrivals(&self, vector: u8) -> Result<u32, Error> {
        self.word(self.area + abi::ARRIVALS + 4 * u32::from(vector))
    }

    /// A word of the guest's memory.
    ///
    /// # Errors
    /// It is not there.
    pub fn word(&self, at: u32) -> Result<u32, Error> {
        let mut bytes = [0; 4];
        self.machine_ram.read(at as usize, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn batch(&mut self, probes: &[Probe]) -> Result<Vec<Outcome>, Error> {
        let ram = self.machine_ram.clone();
        let nonce = nonce();
        let table: Vec<u8> = probes.iter().flat_map(Probe::encode).collect();
        // The second vCPU has the upper half of both tables.
        let half = if self.area == abi::AREA { 0 } else { abi::BATCH as u32 / 2 };
        let at_table = abi::TABLE + half * abi::PROBE_BYTES as u32;
        let at_results = abi::OUTCOMES + half * abi::RESULT_BYTES as u32;
        ram.write(at_table as usize, &table)?;
        let mut results = vec![0; probes.len() * abi::RESULT_BYTES];
        ram.write(at_results as usize, &results)?;
        let put = |at: u32, value: u64| ram.write((self.area + at) as usize, &value.to_le_bytes());
        put(abi::INDEX, (probes.len() as u64) << 32)?;
        put(abi::RUNNING, 0)?;
        put(abi::NONCE, nonce)?;
        put(abi::PROBES, u64::from(at_table))?;
        put(abi::RESULTS, u64::from(at_results))?;
        let exits = self.run_all(probes)?;
        ram.read(at_results as usize, &mut results)?;
        // A probe that wrote over the guest makes it tell anything.
        let mut image = vec![0; self.image.len()];
        ram.read(abi::CODE as usize, &mut image)?;
        if let Some(at) = image.iter().zip(&self.image).position(|(now, then)| now != then) {
            return Err(Error::Changed(at));
        }
        let outcomes = results.chunks_exact(abi::RESULT_BYTES).enumerate().map(|(index, bytes)| {
            let index = index as u32;
            let outcome = Outcome::decode(bytes, nonce, index);
            match exits.get(&index) {
                Some(exit) if exit.starts_with(ENDS) => Outcome::Ended(exit[ENDS.len()..].to_owned()),
                // What came from the host half says nothing about KVM.
                Some(exit) if outcome.registers().is_some() => Outcome::Exited(exit.clone()),
                _ => outcome,
            }
        });
        Ok(outcomes.collect())
    }

    /// Runs until the batch in memory is done; returns what came to the host, by probe. A probe that ends the guest is
    /// passed over, and the guest started again behind it, as a VMM resets a machine.
    fn run_all(&mut self, probes: &[Probe]) -> Result<BTreeMap<u32, String>, Error> {
        let mut exits = BTreeMap::new();
        let mut hung = 0;
        for _ in 0..=probes.len() {
            let (how, error) = match self.run(probes.len(), &mut exits) {
                Err(Error::Monitor(MonitorError::Ended(exit))) => {
                    (format!("{exit:?}"), MonitorError::Ended(exit))
                }
                Err(Error::Monitor(MonitorError::Hung(limit))) => {
                    hung += 1;
                    (format!("no end within {limit:?}"), MonitorError::Hung(limit))
                }
                done => return done.map(|()| exits),
            };
            let at = self.word(self.area + abi::INDEX)?;
            let running = self.word(self.area + abi::RUNNING)? == 1;
            if !running || at as usize >= probes.len() || hung > MOST_HUNG {
                let code = probes.get(at as usize).or(probes.last()).map(|p| p.code.clone());
                let (of, code) = (probes.len(), code.unwrap_or_default());
                return Err(Error::Lost { index: at, of, code, why: error });
            }
            exits.insert(at, format!("{ENDS}{how}"));
            self.ram().write((self.area + abi::INDEX) as usize, &(at + 1).to_le_bytes())?;
            self.start()?;
        }
        Err(MonitorError::Hung(self.limit).into())
    }

    fn run(&mut self, count: usize, exits: &mut BTreeMap<u32, String>) -> Result<(), Error> {
        let (ram, area) = (self.machine_ram.clone(), self.area);
        let index = || {
            let mut bytes = [0; 4];
            // Whatever the guest wrote there: it is only a key.
            let _ = ram.read((area + abi::INDEX) as usize, &mut bytes);
            u32::from_le_bytes(bytes)
        };
        let mut word = 0;
        let mut gave_up = 0;
        let mut failed = None;
        let ended = &mut self.ended;
        let mut handler = |runner: &Runner<'_, '_>, exit: &Exit| {
            let mut note = |what: String| {
                if exits.len() <= abi::BATCH {
                    exits.entry(index()).or_insert(what);
                }
            };
            match exit {
                Exit::PortWrite { port, data, .. } if *port == u16::from(abi::PORT) => {
                    word = data.iter().rev().fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
                    return Next::Stop;
                }
                Exit::PortWrite { port, .. } if *port == u16::from(abi::BREATH) => {}
                Exit::PortWrite { port, .. } => note(format!("write of port {port:#x}")),
                Exit::PortRead { port, size, count } => {
                    note(format!("read of port {port:#x}"));
                    return Next::Answer(vec![0xff; usize::from(*size) * (*count).min(64) as usize]);
                }
                Exit::MemoryWrite { address, .. } => note(format!("write of {address:#x}")),
                Exit::MemoryRead { address, length } => {
                    note(format!("read of {address:#x}"));
                    return Next::Answer(vec![0xff; *length]);
                }
                Exit::Halted => note("halt".to_owned()),
                Exit::Hypercall(number, _) => note(format!("hypercall {number:#x}")),
                Exit::Msr { index, .. } => {
                    note(format!("msr {index:#x}"));
                    return Next::Answer(vec![0; 8]);
                }
                Exit::SystemEvent(kind, _) => note(format!("system event {kind}")),
                Exit::IoapicEoi(vector) => {
                    if ended.len() < abi::BATCH {
                        ended.push(*vector);
                    }
                }
                // KVM has no way to execute it: go on behind it, once a probe.
                Exit::InternalError(..) if gave_up <= count => {
                    gave_up += 1;
                    if let Err(error) = jump(runner.vcpu(), u64::from(abi::CODE + abi::GAVE_UP)) {
                        failed = Some(error);
                        return Next::Stop;
                    }
                }
                _ => return Next::Stop,
            }
            Next::Go
        };
        let exit = run(&mut self.runner, self.deadline, self.limit, &mut handler)?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        match exit {
            Exit::PortWrite { port, .. } if port == u16::from(abi::PORT) && word == u64::from(abi::DONE) => {
                Ok(())
            }
            Exit::PortWrite { .. } => Err(Error::Fault { vector: word & 0xff, index: index() }),
            exit => Err(Error::Monitor(MonitorError::Ended(exit))),
        }
    }
}

/// How many probes of a batch may hang: each takes all of the time that a batch has.
const MOST_HUNG: usize = 3;

/// Marks the exit of a guest that did not go on.
const ENDS: &str = "!";

/// Something that no earlier run had.
fn nonce() -> u64 {
    RandomState::new().hash_one("evenkeel witness") | 1 << 63
}
