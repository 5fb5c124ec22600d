//! KVM_GET_REG_LIST and each register of it, in every shape.

use std::collections::BTreeMap;

use evenkeel_surface::{Hex64, Register, Write};
use evenkeel_sys::Vcpu;

use crate::book::Book;
use crate::shapes::indices;

/// What was found of a register in one shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    reset: Option<u64>,
    running: bool,
    write: Write,
    holds: Option<u64>,
}

/// Registers of the vCPUs of all shapes.
#[derive(Default)]
pub(crate) struct Registers(BTreeMap<u64, Vec<(Found, Vec<u8>)>>);

impl Registers {
    /// Asks one vCPU. Everything is read before anything is written: some registers change others. What is set to another
    /// value than its own comes last, for the same reason.
    pub(crate) fn ask(&mut self, vcpu: &Vcpu<'_>, shape: u8, name: &str, book: &mut Book) {
        let Some(ids) = book.ask_in("registers", vcpu.reg_list(), name) else { return };
        let first: Vec<_> = ids.iter().map(|&id| vcpu.one_reg(id)).collect();
        let second: Vec<_> = ids.iter().map(|&id| vcpu.one_reg(id)).collect();
        let mut found = Vec::with_capacity(ids.len());
        for ((&id, first), second) in ids.iter().zip(first).zip(second) {
            let what = format_args!("reg.{id:x}").to_string();
            let (Some(first), Some(second)) =
                (book.ask_in(&what, first, name), book.ask_in(&what, second, name))
            else {
                continue;
            };
            let running = first != second || evenkeel_catalog::reg(id).is_some_and(|reg| reg.running);
            let write =
                if running { Write::Unasked } else { write_back(vcpu, id, &first, &what, name, book) };
            let reset = (!running).then(|| value(&first)).flatten();
            found.push((id, Found { reset, running, write, holds: None }));
        }
        for (id, mut found) in found {
            if evenkeel_catalog::reg(id).is_some_and(|reg| reg.counters) && found.write == Write::Kept {
                found.holds = all_set(vcpu, id, name, book);
            }
            self.add(id, found, shape);
        }
    }

    fn add(&mut self, id: u64, found: Found, shape: u8) {
        let known = self.0.entry(id).or_default();
        match known.iter_mut().find(|(other, _)| *other == found) {
            Some((_, shapes)) => shapes.push(shape),
            None => known.push((found, vec![shape])),
        }
    }

    /// Ascending by id, where `of` shapes there are; `mask` tells the bits that userspace may choose.
    pub(crate) fn finish(self, of: usize, mask: impl Fn(u64) -> Option<u64>) -> Vec<Register> {
        let entries =
            self.0.into_iter().flat_map(|(id, known)| known.into_iter().map(move |found| (id, found)));
        entries
            .map(|(id, (found, shapes))| Register {
                id: Hex64(id),
                shapes: indices(&shapes, of),
                reset: found.reset.map(Hex64),
                running: found.running,
                mask: mask(id).or(found.holds).map(Hex64),
                write: found.write,
            })
            .collect()
    }
}

/// The value of a register of at most 64 bits.
pub(crate) fn value(bytes: &[u8]) -> Option<u64> {
    let mut word = [0u8; 8];
    word.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(u64::from_le_bytes(word))
}

/// The bits that stay when all are set: bits of counters that there are not may be stored, or cleared.
fn all_set(vcpu: &Vcpu<'_>, id: u64, shape: &str, book: &mut Book) -> Option<u64> {
    let what = format!("reg.{id:x}");
    book.ask_in(&what, vcpu.set_one_reg(id, &u64::MAX.to_le_bytes()), shape)?;
    value(&book.ask_in(&what, vcpu.one_reg(id), shape)?)
}

fn write_back(vcpu: &Vcpu<'_>, id: u64, bytes: &[u8], what: &str, shape: &str, book: &mut Book) -> Write {
    if let Err(error) = vcpu.set_one_reg(id, bytes) {
        if error.is_off_script() {
            book.note_in(what, &error, shape);
        }
        return Write::Refused;
    }
    match book.ask_in(what, vcpu.one_reg(id), shape) {
        Some(now) if now == bytes => Write::Kept,
        Some(_) => Write::Altered,
        None => Write::Unasked,
    }
}
