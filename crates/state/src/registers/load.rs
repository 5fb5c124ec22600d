//! Setting saved registers on a fresh vCPU, and what became of each.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_surface::{Arch, Hex64};
use evenkeel_sys::{Backend, Error as CallError, Vcpu};

use super::document::{
    Became, FileLoad, LOADED_SCHEMA, LoadReport, Loaded, NotKept, Overwritten, RegisterFile, Saved,
    VcpuRegisters, size,
};
use super::error::Error;
use super::gic::gic_revisions;
use super::order::{Group, SVE_VECTOR_LENGTHS, group, rank};
use super::shape::{Guest, open, release};
use super::value::Value;

/// Loads every vCPU of files that are known by name, and tries the revisions of the interrupt controller.
///
/// # Errors
/// There is no KVM, or no GICv3 can be made. A vCPU that cannot be made is told in its place.
pub fn load_all(backend: &dyn Backend, files: &[(String, RegisterFile)]) -> Result<LoadReport, Error> {
    let gic = gic_revisions(backend)?;
    let one = |name: &str, file: &RegisterFile, vcpu: &VcpuRegisters| {
        let (loaded, failed) = match load(backend, vcpu) {
            Ok(loaded) => (Some(loaded), None),
            Err(error) => (None, Some(error.to_string())),
        };
        FileLoad { file: name.to_owned(), from: file.kernel.clone(), shape: vcpu.shape, loaded, failed }
    };
    let loads = files.iter().flat_map(|(name, file)| file.vcpus.iter().map(move |v| one(name, file, v)));
    Ok(LoadReport {
        schema: LOADED_SCHEMA.to_owned(),
        arch: Arch::Aarch64,
        kernel: release(&open(backend)?)?,
        loads: loads.collect(),
        gic,
    })
}

/// Makes a vCPU of the same shape on this host, sets every saved register in the catalog's order, reads each back when
/// it was set and once more when all were.
///
/// # Errors
/// There is no KVM, or no such vCPU can be made. A register that is refused is no error.
pub fn load(backend: &dyn Backend, saved: &VcpuRegisters) -> Result<Loaded, Error> {
    let system = open(backend)?;
    let lengths = saved.registers.iter().find(|r| r.id.0 == SVE_VECTOR_LENGTHS);
    let mut early = None;
    let guest = Guest::make(&system, saved.shape, |vcpu| {
        early = lengths.and_then(bytes_of).map(|bytes| vcpu.set_one_reg(SVE_VECTOR_LENGTHS, &bytes));
    })?;

    let mut order: Vec<&Saved> = saved.registers.iter().collect();
    order.sort_by_key(|r| rank(r.id.0));
    let (identity, others): (Vec<_>, Vec<_>) =
        order.into_iter().partition(|r| matches!(group(r.id.0), Group::VectorLengths | Group::Identity));
    let mut loading = Loading { vcpu: &guest.vcpu, listed: list(&guest.vcpu)?, ..Loading::new(&guest.vcpu) };
    for register in identity {
        let done = if register.id.0 == SVE_VECTOR_LENGTHS { early.take() } else { None };
        loading.set(register, done);
    }
    // Which registers there are follows from the ID registers.
    loading.listed = list(&guest.vcpu)?;
    for register in others {
        loading.set(register, None);
    }

    let held: BTreeSet<u64> = saved.registers.iter().map(|r| r.id.0).collect();
    let now = guest.vcpu.reg_list().map_err(Error::call("the list of registers"))?;
    let unsaved = now.into_iter().filter(|id| !held.contains(id)).map(Hex64).collect();
    let overwritten = loading.look_again();
    let settled = loading.settle();
    Ok(Loaded {
        shape: saved.shape,
        features: guest.features.clone(),
        filled: saved.filled,
        kept: (loading.kept.len() + settled.len()) as u32,
        running: loading.running,
        not_kept: loading.not_kept,
        overwritten,
        settled,
        unsaved,
    })
}

fn list(vcpu: &Vcpu<'_>) -> Result<BTreeSet<u64>, Error> {
    let ids = vcpu.reg_list().map_err(Error::call("the list of registers"))?;
    Ok(ids.into_iter().collect())
}

/// The saved value as KVM_SET_ONE_REG wants it; a file that was read with its checks has none that does not fit.
fn bytes_of(register: &Saved) -> Option<Vec<u8>> {
    register.value.as_ref()?.to_bytes(size(register.id.0)?)
}

struct Loading<'g, 'b> {
    vcpu: &'g Vcpu<'b>,
    listed: BTreeSet<u64>,
    kept: BTreeMap<u64, Vec<u8>>,
    running: u32,
    not_kept: Vec<NotKept>,
}

impl<'g, 'b> Loading<'g, 'b> {
    fn new(vcpu: &'g Vcpu<'b>) -> Self {
        Loading { vcpu, listed: BTreeSet::new(), kept: BTreeMap::new(), running: 0, not_kept: Vec::new() }
    }

    /// Sets one register, unless that was `done` already, and reads it back.
    fn set(&mut self, register: &Saved, done: Option<Result<(), CallError>>) {
        let id = register.id.0;
        let mut not_kept = |became, now: Option<Vec<u8>>, errno: Option<String>| {
            let now = now.as_deref().map(Value::from_bytes);
            self.not_kept.push(NotKept {
                id: register.id,
                became,
                saved: register.value.clone(),
                now,
                errno,
            });
        };
        let Some(bytes) = bytes_of(register) else {
            return not_kept(Became::NotSaved, self.vcpu.one_reg(id).ok(), register.unread.clone());
        };
        let done = done.unwrap_or_else(|| self.vcpu.set_one_reg(id, &bytes));
        let now = self.vcpu.one_reg(id);
        match (done, now) {
            (Err(error), now) => {
                let became = if self.listed.contains(&id) { Became::Refused } else { Became::Unlisted };
                not_kept(became, now.ok(), Some(error.why.short()));
            }
            (Ok(()), Err(error)) => not_kept(Became::Unreadable, None, Some(error.why.short())),
            (Ok(()), Ok(now)) if group(id) == Group::Counter && went_on(&bytes, &now) => self.running += 1,
            (Ok(()), Ok(now)) if now == bytes => drop(self.kept.insert(id, bytes)),
            (Ok(()), Ok(now)) => not_kept(Became::Altered, Some(now), None),
        }
    }

    /// What was kept and is not there any more.
    fn look_again(&mut self) -> Vec<Overwritten> {
        let mut overwritten = Vec::new();
        for (id, bytes) in &self.kept {
            let (id, saved) = (Hex64(*id), Value::from_bytes(bytes));
            match self.vcpu.one_reg(id.0) {
                Ok(now) if now == *bytes => {}
                Ok(now) => overwritten.push(Overwritten { id, saved, now: Value::from_bytes(&now) }),
                Err(error) => self.not_kept.push(NotKept {
                    id,
                    became: Became::Unreadable,
                    saved: Some(saved),
                    now: None,
                    errno: Some(error.why.short()),
                }),
            }
        }
        let gone = |id: u64| {
            overwritten.iter().any(|o| o.id.0 == id)
                || self.not_kept.iter().any(|n| n.id.0 == id && n.became == Became::Unreadable)
        };
        self.kept.retain(|id, _| !gone(*id));
        overwritten
    }
}

impl Loading<'_, '_> {
    /// What was altered and is right now that others were set; the rest is told with its value at the end.
    fn settle(&mut self) -> Vec<Hex64> {
        let mut settled = Vec::new();
        let vcpu = self.vcpu;
        self.not_kept.retain_mut(|n| {
            if n.became != Became::Altered {
                return true;
            }
            if let Ok(now) = vcpu.one_reg(n.id.0) {
                n.now = Some(Value::from_bytes(&now));
            }
            let right = n.now == n.saved;
            if right {
                settled.push(n.id);
            }
            !right
        });
        settled.sort();
        settled
    }
}

/// A counter goes on from where it was set. An hour at 1 GHz is 2^41: what lies further off was not set.
fn went_on(set: &[u8], now: &[u8]) -> bool {
    let number = |bytes: &[u8]| Value::from_bytes(bytes).as_u64();
    matches!((number(set), number(now)), (Some(set), Some(now)) if now.wrapping_sub(set) < 1 << 41)
}
