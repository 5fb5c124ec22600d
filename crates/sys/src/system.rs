//! `/dev/kvm`.

use std::ops::Deref;

use crate::layout::{CpuidEntry, X86_CPUID_ENTRY, word};
use crate::requests::*;
use crate::{Backend, Error, Fd, FdKind, Handle, Msrs, Request, Vm};

/// `/dev/kvm`, opened.
#[derive(Debug)]
pub struct System<'b>(Fd<'b>);

impl<'b> System<'b> {
    /// `/dev/kvm` that the backend has already: one that another VMM lent with [`crate::Live::lend`].
    pub fn of(backend: &'b dyn Backend, handle: Handle) -> Self {
        System(Fd::of(backend, handle, FdKind::System))
    }

    /// Opens `/dev/kvm`.
    pub fn open(backend: &'b dyn Backend) -> Result<Self, Error> {
        Fd::open(backend, "/dev/kvm", FdKind::System).map(System)
    }

    /// KVM_GET_API_VERSION.
    pub fn api_version(&self) -> Result<i32, Error> {
        self.int(&KVM_GET_API_VERSION, 0)
    }

    /// KVM_CREATE_VM: x86, a type; arm64, the address width in its low byte.
    pub fn create_vm(&self, kind: u64) -> Result<Vm<'b>, Error> {
        let number = self.int(&KVM_CREATE_VM, kind)?;
        Ok(Vm::new(self.adopt(number, FdKind::Vm)))
    }

    /// A CPUID table: KVM_GET_SUPPORTED_CPUID, KVM_GET_EMULATED_CPUID or KVM_GET_SUPPORTED_HV_CPUID, in the kernel's
    /// order.
    pub fn cpuid(&self, table: &Request) -> Result<Vec<CpuidEntry>, Error> {
        let bytes = self.list(table, 8, X86_CPUID_ENTRY, 100)?;
        Ok(bytes.chunks_exact(X86_CPUID_ENTRY).map(CpuidEntry::from_bytes).collect())
    }

    /// An MSR list: KVM_GET_MSR_INDEX_LIST or KVM_GET_MSR_FEATURE_INDEX_LIST, in the kernel's order.
    pub fn msr_list(&self, list: &Request) -> Result<Vec<u32>, Error> {
        let bytes = self.list(list, 4, 4, 512)?;
        Ok(bytes.chunks_exact(4).map(|b| word(b, 0)).collect())
    }

    /// KVM_GET_MSRS on the system fd: feature MSRs, each with a value or the reason.
    pub fn feature_msrs(&self, msrs: &[u32]) -> Vec<Result<u64, Error>> {
        Msrs(self).get(msrs)
    }
}

impl<'b> Deref for System<'b> {
    type Target = Fd<'b>;
    fn deref(&self) -> &Fd<'b> {
        &self.0
    }
}
