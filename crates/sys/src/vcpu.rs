//! A vCPU: its CPUID, MSRs, registers by id and groups of state.

use std::ops::Deref;

use crate::layout::{ARM_VCPU_INIT, CpuidEntry, ONE_REG, X86_CPUID_ENTRY, X86_MSR_ENTRY, long};
use crate::requests::*;
use crate::{Arg, Backend, Error, Fd, FdKind, Handle, Refusal, Request};

/// A vCPU.
#[derive(Debug)]
pub struct Vcpu<'b>(Fd<'b>);

impl<'b> Vcpu<'b> {
    /// A vCPU that the backend has already: one that another VMM lent with [`crate::Live::lend`].
    pub fn of(backend: &'b dyn Backend, handle: Handle) -> Self {
        Vcpu(Fd::of(backend, handle, FdKind::Vcpu))
    }

    pub(crate) fn new(fd: Fd<'b>) -> Self {
        Vcpu(fd)
    }

    /// KVM_SET_CPUID2 (x86). Success does not mean that the kernel stored what it was given.
    pub fn set_cpuid(&self, entries: &[CpuidEntry]) -> Result<(), Error> {
        let mut bytes = vec![0u8; 8];
        bytes[..4].copy_from_slice(&(entries.len() as u32).to_ne_bytes());
        bytes.extend(entries.iter().flat_map(|entry| entry.to_bytes()));
        self.call(&KVM_SET_CPUID2, Arg::In(&bytes), format_args!("{} entries", entries.len())).map(drop)
    }

    /// KVM_GET_CPUID2 (x86).
    pub fn cpuid(&self) -> Result<Vec<CpuidEntry>, Error> {
        let bytes = self.list(&KVM_GET_CPUID2, 8, X86_CPUID_ENTRY, 256)?;
        let mut entries: Vec<CpuidEntry> =
            bytes.chunks_exact(X86_CPUID_ENTRY).map(CpuidEntry::from_bytes).collect();
        // Kernels up to 6.1 leave the count as it was given (kvm_vcpu_ioctl_get_cpuid2 sets it only when it fails), so
        // the room behind the last entry comes back as entries of nothing but zeroes.
        while entries.last().is_some_and(|last| *last == CpuidEntry::default()) {
            entries.pop();
        }
        Ok(entries)
    }

    /// MSRs of this vCPU (x86).
    pub fn msrs(&self) -> Msrs<'_, 'b> {
        Msrs(&self.0)
    }

    /// KVM_X86_SETUP_MCE (x86): the vCPU's MCG_CAP.
    pub fn setup_mce(&self, mcg_cap: u64) -> Result<(), Error> {
        let shown = format_args!("{mcg_cap:#x}");
        self.call(&KVM_X86_SETUP_MCE, Arg::In(&mcg_cap.to_ne_bytes()), shown).map(drop)
    }

    /// KVM_GET_REG_LIST: the ids of the registers, in the kernel's order.
    pub fn reg_list(&self) -> Result<Vec<u64>, Error> {
        let bytes = self.list(&KVM_GET_REG_LIST, 8, 8, 512)?;
        Ok(bytes.chunks_exact(8).map(|b| long(b, 0)).collect())
    }

    /// KVM_GET_ONE_REG: as many bytes as the id says.
    pub fn one_reg(&self, id: u64) -> Result<Vec<u8>, Error> {
        let mut payload = vec![0u8; reg_size(id)];
        let arg = Arg::Pointing { head: &reg_head(id), payload: &mut payload };
        self.call(&KVM_GET_ONE_REG, arg, format_args!("{id:#x}"))?;
        Ok(payload)
    }

    /// KVM_SET_ONE_REG.
    pub fn set_one_reg(&self, id: u64, value: &[u8]) -> Result<(), Error> {
        let mut payload = value.to_vec();
        if payload.len() != reg_size(id) {
            let why =
                Refusal::Nonsense(format!("{} bytes for a register of {}", payload.len(), reg_size(id)));
            return Err(self.error(&KVM_SET_ONE_REG, format_args!("{id:#x}"), why));
        }
        let arg = Arg::Pointing { head: &reg_head(id), payload: &mut payload };
        self.call(&KVM_SET_ONE_REG, arg, format_args!("{id:#x}")).map(drop)
    }

    /// KVM_ARM_VCPU_INIT (arm64): a target and the first word of features.
    pub fn init(&self, target: u32, features: u32) -> Result<(), Error> {
        let mut bytes = [0u8; ARM_VCPU_INIT];
        bytes[..4].copy_from_slice(&target.to_ne_bytes());
        bytes[4..8].copy_from_slice(&features.to_ne_bytes());
        let shown = format_args!("target {target}, features {features:#x}");
        self.call(&KVM_ARM_VCPU_INIT, Arg::In(&bytes), shown).map(drop)
    }

    /// KVM_ARM_VCPU_FINALIZE (arm64) of a feature.
    pub fn finalize(&self, feature: u32) -> Result<(), Error> {
        self.call(&KVM_ARM_VCPU_FINALIZE, Arg::In(&feature.to_ne_bytes()), feature).map(drop)
    }
}

impl<'b> From<Vcpu<'b>> for Fd<'b> {
    fn from(it: Vcpu<'b>) -> Fd<'b> {
        it.0
    }
}

impl<'b> Deref for Vcpu<'b> {
    type Target = Fd<'b>;
    fn deref(&self) -> &Fd<'b> {
        &self.0
    }
}

/// The bytes of a register, from bits 52 to 55 of its id.
fn reg_size(id: u64) -> usize {
    // KVM_REG_SIZE_MAX is 2048 bits; larger codes are not defined.
    1 << (id >> 52 & 0xf).min(8)
}

fn reg_head(id: u64) -> [u8; ONE_REG] {
    let mut head = [0u8; ONE_REG];
    head[..8].copy_from_slice(&id.to_ne_bytes());
    head
}

/// MSRs of a vCPU, or feature MSRs on the system fd, in batches.
///
/// KVM_GET_MSRS and KVM_SET_MSRS stop at the first MSR that they refuse and return how many they did; the rest is
/// asked again behind it, so that one refusal costs one more ioctl and hides nothing.
#[derive(Debug)]
pub struct Msrs<'f, 'b>(pub(crate) &'f Fd<'b>);

/// KVM takes at most MAX_IO_MSRS (256), and 256 is one too many.
const BATCH: usize = 255;

impl Msrs<'_, '_> {
    /// Values, each with the reason where there is none.
    pub fn get(&self, msrs: &[u32]) -> Vec<Result<u64, Error>> {
        let mut wanted: Vec<(u32, u64)> = msrs.iter().map(|&msr| (msr, 0)).collect();
        let done = self.each(&KVM_GET_MSRS, &mut wanted);
        wanted.iter().zip(done).map(|(&(_, value), done)| done.map(|()| value)).collect()
    }

    /// Sets values, each with the reason where that failed. Success does not mean that the value was kept.
    pub fn set(&self, msrs: &[(u32, u64)]) -> Vec<Result<(), Error>> {
        self.each(&KVM_SET_MSRS, &mut msrs.to_vec())
    }

    /// One ioctl over at most 255 MSRs: how many were done. The index of the first that was not is that number.
    pub fn batch(&self, request: &Request, msrs: &mut [(u32, u64)]) -> Result<usize, Error> {
        let mut bytes = vec![0u8; 8 + msrs.len() * X86_MSR_ENTRY];
        bytes[..4].copy_from_slice(&(msrs.len() as u32).to_ne_bytes());
        for ((msr, value), entry) in msrs.iter().zip(bytes[8..].chunks_exact_mut(X86_MSR_ENTRY)) {
            entry[..4].copy_from_slice(&msr.to_ne_bytes());
            entry[8..].copy_from_slice(&value.to_ne_bytes());
        }
        let shown: Vec<u32> = msrs.iter().map(|&(msr, _)| msr).collect();
        let outgoing = request.flow.comes_out();
        let arg = if outgoing { Arg::Out(&mut bytes) } else { Arg::In(&bytes) };
        let done = self.0.backend().call(self.0.handle(), request, arg);
        let span = || match &*shown {
            [] => String::new(),
            [one] => format!("{one:#x}"),
            [first, .., last] => format!("{first:#x}..{last:#x}"),
        };
        let done = done.map_err(|why| self.0.error(request, span(), why))? as usize;
        if done > msrs.len() {
            let why = Refusal::Nonsense(format!("{done} done of {}", msrs.len()));
            return Err(self.0.error(request, span(), why));
        }
        if outgoing {
            for ((_, value), entry) in msrs.iter_mut().zip(bytes[8..].chunks_exact(X86_MSR_ENTRY)).take(done)
            {
                *value = long(entry, 8);
            }
        }
        Ok(done)
    }

    fn each(&self, request: &Request, msrs: &mut [(u32, u64)]) -> Vec<Result<(), Error>> {
        let mut results = Vec::with_capacity(msrs.len());
        // Refusals come in runs: what lies behind one is asked in smaller batches, so that little is asked twice.
        let mut size = BATCH;
        while results.len() < msrs.len() {
            let from = results.len();
            let to = msrs.len().min(from + size);
            match self.batch(request, &mut msrs[from..to]) {
                Ok(done) => {
                    results.resize_with(from + done, || Ok(()));
                    if from + done == to {
                        size = (size * 4).min(BATCH);
                    } else {
                        size = (size / 4).max(2);
                        let refused = format_args!("{:#x}", msrs[from + done].0).to_string();
                        results.push(Err(self.0.error(request, refused, Refusal::NotProcessed)));
                    }
                }
                // The whole ioctl failed: it says nothing about any one of them, so each is told the same.
                Err(error) => {
                    for (msr, _) in &msrs[from..to] {
                        results.push(Err(self.0.error(request, format_args!("{msr:#x}"), error.why.clone())));
                    }
                }
            }
        }
        results
    }
}
