//! A host that does something else than it is told, and answers as though it had done what it was told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use crate::layout::{CpuidEntry, ENABLE_CAP, X86_CPUID_ENTRY, X86_MSR_ENTRY, long, word};
use crate::requests::*;
use crate::{Arg, Backend, FdKind, Handle, Ram, Refusal, Request, RunPage, Slot, Source};

/// Something that is set otherwise than asked (x86).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alteration {
    /// Bits of a word of KVM_SET_CPUID2 are turned over; an entry that is not there is made.
    Cpuid {
        /// EAX on input.
        leaf: u32,
        /// ECX on input.
        subleaf: u32,
        /// 0 to 3: EAX to EDX.
        register: u8,
        /// The bits.
        flip: u32,
    },
    /// Bits of an MSR's value in KVM_SET_MSRS are turned over; of one that nobody sets, those of what it holds when its
    /// vCPU is made ready to run.
    Msr {
        /// Which.
        msr: u32,
        /// The bits.
        flip: u64,
    },
    /// KVM_SET_MSRS does nothing.
    NoMsrs,
    /// KVM_ENABLE_CAP of this capability gets this argument, also where nobody makes the call: on a VM before its first
    /// vCPU, on a vCPU before its CPUID. Without an argument, the call is not made.
    Cap {
        /// [`FdKind::Vm`] or [`FdKind::Vcpu`].
        on: FdKind,
        /// The capability.
        cap: u32,
        /// `args[0]`.
        argument: Option<u64>,
    },
    /// KVM_X86_SETUP_MCE gets this argument; as with capabilities of a vCPU.
    Mce(u64),
}

/// What became of one [`Alteration`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// How many ioctls were altered, made besides, or left out.
    pub calls: usize,
    /// The first refusal of one that was altered.
    pub refused: Option<Refusal>,
}

/// Wraps a backend. Each VM has a twin that gets what was asked for and never runs: it answers every ioctl that reads
/// configuration. [`Lying::honest`] makes a host that alters all the same and has no twins: it answers what is so.
pub struct Lying<B> {
    inner: B,
    alterations: Vec<Alteration>,
    lies: bool,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    twins: BTreeMap<Handle, Handle>,
    kinds: BTreeMap<Handle, FdKind>,
    made: Vec<Made>,
    /// What has been done to which file descriptor.
    done: BTreeSet<(Handle, usize)>,
}

/// What configures a VM or a vCPU, and is asked of the twin as well.
const CONFIGURE: [Request; 8] = [
    KVM_SET_TSS_ADDR,
    KVM_SET_IDENTITY_MAP_ADDR,
    KVM_CREATE_IRQCHIP,
    KVM_CREATE_PIT2,
    KVM_ENABLE_CAP,
    KVM_X86_SETUP_MCE,
    KVM_SET_CPUID2,
    KVM_SET_MSRS,
];

/// What reads configuration, and is answered by the twin.
const READ: [Request; 6] =
    [KVM_CHECK_EXTENSION, KVM_GET_CPUID2, KVM_GET_MSRS, KVM_GET_LAPIC, KVM_GET_VCPU_EVENTS, KVM_GET_IRQCHIP];

impl<B: Backend> Lying<B> {
    /// Alters, and answers as though it had not.
    pub fn new(inner: B, alterations: Vec<Alteration>) -> Self {
        let made = vec![Made::default(); alterations.len()];
        let books = Mutex::new(Books { made, ..Books::default() });
        Lying { inner, alterations, lies: true, books }
    }

    /// Alters, and answers what is so.
    pub fn honest(inner: B, alterations: Vec<Alteration>) -> Self {
        Lying { lies: false, ..Self::new(inner, alterations) }
    }

    /// What became of the alterations, in their order.
    pub fn made(&self) -> Vec<Made> {
        self.with(|books| books.made.clone())
    }

    fn with<T>(&self, work: impl FnOnce(&mut Books) -> T) -> T {
        work(&mut self.books.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note<T>(&self, fd: Handle, index: usize, result: &Result<T, Refusal>) {
        self.with(|books| {
            books.done.insert((fd, index));
            books.made[index].calls += 1;
            if let (None, Err(why)) = (&books.made[index].refused, result) {
                books.made[index].refused = Some(why.clone());
            }
        });
    }

    /// Alterations that `matches`, which have not been made on this file descriptor.
    fn due(&self, fd: Handle, matches: impl Fn(&Alteration) -> bool) -> Vec<(usize, Alteration)> {
        let all = self.alterations.iter().cloned().enumerate().filter(|(_, a)| matches(a));
        self.with(|books| all.filter(|(index, _)| !books.done.contains(&(fd, *index))).collect())
    }

    fn enable(&self, fd: Handle, cap: u32, argument: u64) -> Result<i32, Refusal> {
        let mut bytes = [0; ENABLE_CAP];
        bytes[..4].copy_from_slice(&cap.to_ne_bytes());
        bytes[8..16].copy_from_slice(&argument.to_ne_bytes());
        self.inner.call(fd, &KVM_ENABLE_CAP, Arg::In(&bytes))
    }

    /// Makes the calls that nobody made, before `fd` goes on to its next stage.
    fn make(&self, fd: Handle, kind: FdKind) {
        for (index, alteration) in self.due(fd, |a| match a {
            Alteration::Cap { on, .. } => *on == kind,
            Alteration::Mce(_) => kind == FdKind::Vcpu,
            _ => false,
        }) {
            let result = match alteration {
                Alteration::Cap { cap, argument: Some(argument), .. } => self.enable(fd, cap, argument),
                Alteration::Mce(value) => {
                    self.inner.call(fd, &KVM_X86_SETUP_MCE, Arg::In(&value.to_ne_bytes()))
                }
                _ => continue,
            };
            self.note(fd, index, &result);
        }
    }

    /// KVM_ENABLE_CAP or KVM_X86_SETUP_MCE, altered; none when it is not to be.
    fn replaced(&self, fd: Handle, request: &Request, bytes: &[u8]) -> Option<Result<i32, Refusal>> {
        let kind = self.with(|books| books.kinds.get(&fd).copied())?;
        let enable = *request == KVM_ENABLE_CAP;
        let (index, alteration) = self
            .due(fd, |a| match a {
                Alteration::Cap { on, cap, .. } => enable && *on == kind && *cap == word(bytes, 0),
                Alteration::Mce(_) => !enable,
                _ => false,
            })
            .into_iter()
            .next()?;
        let result = match alteration {
            Alteration::Cap { argument: None, .. } => Ok(0),
            Alteration::Cap { cap, argument: Some(argument), .. } => self.enable(fd, cap, argument),
            Alteration::Mce(value) => self.inner.call(fd, request, Arg::In(&value.to_ne_bytes())),
            _ => return None,
        };
        self.note(fd, index, &result);
        Some(result)
    }

    fn cpuid(&self, fd: Handle, bytes: &[u8]) -> Result<i32, Refusal> {
        let mut table: Vec<CpuidEntry> =
            bytes[8..].chunks_exact(X86_CPUID_ENTRY).map(CpuidEntry::from_bytes).collect();
        let mut altered = Vec::new();
        for (index, alteration) in self.alterations.iter().enumerate() {
            let Alteration::Cpuid { leaf, subleaf, register, flip } = *alteration else { continue };
            let place = (leaf, subleaf);
            let at = table.iter().position(|e| (e.function, e.index) == place).unwrap_or_else(|| {
                let indexed = subleaf != 0 || table.iter().any(|e| e.function == leaf && e.flags & 1 != 0);
                let flags = u32::from(indexed);
                table.push(CpuidEntry { function: leaf, index: subleaf, flags, output: [0; 4] });
                table.len() - 1
            });
            table[at].output[usize::from(register & 3)] ^= flip;
            altered.push(index);
        }
        let mut bytes = vec![0; 8];
        bytes[..4].copy_from_slice(&(table.len() as u32).to_ne_bytes());
        bytes.extend(table.iter().flat_map(|entry| entry.to_bytes()));
        let result = self.inner.call(fd, &KVM_SET_CPUID2, Arg::In(&bytes));
        altered.into_iter().for_each(|index| self.note(fd, index, &result));
        result
    }

    /// KVM_SET_MSRS, altered. One that is refused holds none of the others up.
    fn msrs(&self, fd: Handle, bytes: &[u8]) -> Result<i32, Refusal> {
        if let Some(index) = self.alterations.iter().position(|a| *a == Alteration::NoMsrs) {
            self.note(fd, index, &Ok(()));
            return Ok(word(bytes, 0) as i32);
        }
        for entry in bytes[8..].chunks_exact(X86_MSR_ENTRY) {
            let (msr, value) = (word(entry, 0), long(entry, 8));
            let mine = |a: &&Alteration| matches!(a, Alteration::Msr { msr: other, .. } if *other == msr);
            let flips = self.alterations.iter().filter(mine).fold(0, |all, a| match a {
                Alteration::Msr { flip, .. } => all ^ flip,
                _ => all,
            });
            let result = self.set_msr(fd, msr, value ^ flips);
            for (index, _) in self.alterations.iter().enumerate().filter(|(_, a)| mine(a)) {
                self.note(fd, index, &result);
            }
        }
        Ok(word(bytes, 0) as i32)
    }

    fn set_msr(&self, fd: Handle, msr: u32, value: u64) -> Result<(), Refusal> {
        let mut bytes = one_msr(msr);
        bytes[16..24].copy_from_slice(&value.to_ne_bytes());
        match self.inner.call(fd, &KVM_SET_MSRS, Arg::In(&bytes))? {
            1 => Ok(()),
            _ => Err(Refusal::NotProcessed),
        }
    }

    /// MSRs that nobody set.
    fn make_msrs(&self, fd: Handle) {
        for (index, alteration) in self.due(fd, |a| matches!(a, Alteration::Msr { .. })) {
            let Alteration::Msr { msr, flip } = alteration else { continue };
            let mut bytes = one_msr(msr);
            let result = match self.inner.call(fd, &KVM_GET_MSRS, Arg::Out(&mut bytes)) {
                Ok(1) => self.set_msr(fd, msr, long(&bytes, 16) ^ flip),
                Ok(_) => Err(Refusal::NotProcessed),
                Err(why) => Err(why),
            };
            self.note(fd, index, &result);
        }
    }

    fn create(&self, fd: Handle, request: &Request, kind: FdKind, value: u64) -> Result<i32, Refusal> {
        if kind == FdKind::Vcpu {
            self.make(fd, FdKind::Vm);
        }
        let number = self.inner.call(fd, request, Arg::Int(value))?;
        let real = Handle(number as u32);
        self.with(|books| books.kinds.insert(real, kind));
        if self.lies {
            let parent = if kind == FdKind::Vm { Some(fd) } else { self.twin(fd) };
            let made = parent.map(|parent| self.inner.call(parent, request, Arg::Int(value)));
            match made {
                Some(Ok(twin)) => drop(self.with(|books| books.twins.insert(real, Handle(twin as u32)))),
                Some(Err(why)) => {
                    self.close(real);
                    return Err(why);
                }
                None => {}
            }
        }
        Ok(number)
    }

    fn twin(&self, fd: Handle) -> Option<Handle> {
        self.with(|books| books.twins.get(&fd).copied())
    }
}

/// A list of one MSR.
fn one_msr(msr: u32) -> [u8; 8 + X86_MSR_ENTRY] {
    let mut bytes = [0; 8 + X86_MSR_ENTRY];
    bytes[0] = 1;
    bytes[8..12].copy_from_slice(&msr.to_ne_bytes());
    bytes
}

impl<B: Backend> Backend for Lying<B> {
    fn open(&self, path: &str, kind: FdKind) -> Result<Handle, Refusal> {
        self.inner.open(path, kind)
    }

    fn call(&self, fd: Handle, request: &Request, arg: Arg<'_>) -> Result<i32, Refusal> {
        match (*request, &arg) {
            (KVM_CREATE_VM, Arg::Int(value)) => return self.create(fd, request, FdKind::Vm, *value),
            (KVM_CREATE_VCPU, Arg::Int(value)) => return self.create(fd, request, FdKind::Vcpu, *value),
            _ => {}
        }
        let twin = self.twin(fd);
        if let Some(twin) = twin.filter(|_| READ.contains(request)) {
            return self.inner.call(twin, request, arg);
        }
        if !CONFIGURE.contains(request) {
            return self.inner.call(fd, request, arg);
        }
        let asked = twin.map(|twin| match &arg {
            Arg::Int(value) => self.inner.call(twin, request, Arg::Int(*value)),
            Arg::In(bytes) => self.inner.call(twin, request, Arg::In(bytes)),
            _ => Err(Refusal::Nonsense(format!("{} does not take such an argument", request.name))),
        });
        let done = match arg {
            Arg::In(bytes) if *request == KVM_SET_CPUID2 => {
                self.make(fd, FdKind::Vcpu);
                self.cpuid(fd, bytes)
            }
            Arg::In(bytes) if *request == KVM_SET_MSRS && !self.alterations.is_empty() => {
                self.msrs(fd, bytes)
            }
            Arg::In(bytes) if [KVM_ENABLE_CAP, KVM_X86_SETUP_MCE].contains(request) => self
                .replaced(fd, request, bytes)
                .unwrap_or_else(|| self.inner.call(fd, request, Arg::In(bytes))),
            arg => self.inner.call(fd, request, arg),
        };
        asked.unwrap_or(done)
    }

    fn read(&self, source: Source<'_>) -> Result<Vec<u8>, Refusal> {
        self.inner.read(source)
    }

    fn close(&self, fd: Handle) {
        if let Some(twin) = self.with(|books| books.twins.remove(&fd)) {
            self.inner.close(twin);
        }
        self.inner.close(fd);
    }

    fn set_memory(&self, vm: Handle, slot: Slot, ram: Option<&Arc<Ram>>) -> Result<(), Refusal> {
        self.inner.set_memory(vm, slot, ram)
    }

    fn map_run(&self, vcpu: Handle, length: usize) -> Result<Arc<RunPage>, Refusal> {
        self.make_msrs(vcpu);
        self.inner.map_run(vcpu, length)
    }
}
