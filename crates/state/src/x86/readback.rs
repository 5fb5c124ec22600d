//! Reading back, and accounting for every part of what was wanted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use evenkeel_catalog::Arch as CatalogArch;
use evenkeel_sys::layout::{X86_CLOCK, X86_SREGS2, X86_SREGS2_FLAGS, X86_XSAVE};
use evenkeel_sys::requests::{KVM_GET_CLOCK, KVM_GET_SREGS, KVM_GET_XSAVE};
use evenkeel_sys::{Error, Fd};

use super::clock::{Clock, Policy};
use super::host::Host;
use super::plan::{self, Read};
use super::restore::has_offset;
use super::{groups, msrs};
use crate::order::{Order, Phase};
use crate::view::{Value, view};
use crate::{Became, Elapsed, Image, Item, Left, NotKept, Owner, Parts, Report, compare_items};

/// The initial count of the APIC's timer.
const TMICT: &str = "TMICT";

/// The most time that can have gone by where the hosts do not tell it: a year.
const UNTOLD: Duration = Duration::from_secs(365 * 86400);

/// What was set, and what came of it.
pub(super) struct ReadBack<'r> {
    pub image: &'r Image,
    pub host: &'r Host,
    pub clocks: Policy,
    /// What failed while it was set: by item, or by MSR.
    pub failed: &'r BTreeMap<(Owner, String), Error>,
    /// When setting began.
    pub begin: Instant,
}

impl ReadBack<'_> {
    /// Reads every item of the image, in the order of saving, and compares.
    pub fn read(&self, parts: &Parts<'_, '_>, report: &mut Report) {
        let elapsed = self.elapsed(parts, report);
        let order = Order::catalogued(CatalogArch::X86_64, Phase::Save);
        for (owner, name) in plan::all(order, parts.cpus.len()) {
            let Some(item) = self.image.item(owner, name) else { continue };
            let failed = self.failed.get(&(owner, name.to_owned()));
            if name == "tsc-offset" && !self.host.tsc_offset {
                self.offset(item, &[], report);
                continue;
            }
            match self.look(parts, item) {
                Ok(Some(bytes)) if name == "tsc-offset" => self.offset(item, &bytes, report),
                Ok(Some(bytes)) => self.compare(item, bytes, elapsed, report),
                Ok(None) => not_kept(report, item, "", &item.bytes, None, failed),
                Err(_) if name == "msrs" => self.one_by_one(parts, item, elapsed, report),
                Err(error) => not_kept(report, item, "", &item.bytes, None, Some(failed.unwrap_or(&error))),
            }
        }
    }

    /// How far the guest's clocks may have gone since they were read.
    fn elapsed(&self, parts: &Parts<'_, '_>, report: &mut Report) -> Elapsed {
        let none = Elapsed::of(Duration::from_millis(50));
        let Some(clock) = self.image.item(Owner::Vm, "clock") else { return none };
        let mut here = [0; X86_CLOCK];
        if self.clocks == Policy::Stands {
            return none;
        }
        if let Err(error) = groups::fill(parts.vm, &KVM_GET_CLOCK, &mut here, 0) {
            not_kept(report, clock, "", &clock.bytes, None, Some(&error));
            return none;
        }
        let between = Clock::read(&here).after(Clock::read(&clock.bytes));
        // Where nobody tells how long it was, clocks may have gone on by any time, and not back.
        Elapsed { most: none.most + between.unwrap_or(UNTOLD), ..none }
    }

    /// Reads an item in the form that it was saved in; none where this kernel does not have it.
    fn look(&self, parts: &Parts<'_, '_>, item: &Item) -> Result<Option<Vec<u8>>, Error> {
        let numbers: Vec<u32> = match item.name.as_str() {
            "msrs" => msrs::unpack(&item.bytes).iter().map(|(msr, _)| *msr).collect(),
            _ => Vec::new(),
        };
        let fd = || -> &Fd<'_> {
            match item.owner {
                Owner::Vm => parts.vm,
                Owner::Vcpu(index) => parts.cpus[index as usize].vcpu,
            }
        };
        let mut bytes = match (item.name.as_str(), self.host) {
            // Whoever has the newer form has the older one as well.
            ("sregs", _) | ("sregs2", Host { sregs2: false, .. }) => fd().get(&KVM_GET_SREGS, 0)?,
            ("xsave", _) | ("xsave2", Host { xsave2: 0, .. }) => fd().get(&KVM_GET_XSAVE, X86_XSAVE)?,
            (name, host) => match plan::read(parts, host, item.owner, name, Some(&numbers))? {
                Read::Bytes(bytes) => bytes,
                Read::Absent(_) => return Ok(None),
            },
        };
        match item.name.as_str() {
            "sregs2" if bytes.len() != X86_SREGS2 => {
                // The PDPTRs cannot be read here: where they count, they come from memory.
                bytes.truncate(X86_SREGS2_FLAGS);
                bytes.extend(&item.bytes[X86_SREGS2_FLAGS..]);
            }
            // What one host has room for and the other has not holds nothing there.
            "xsave2" => bytes.resize(item.bytes.len().max(bytes.len()), 0),
            _ => {}
        }
        Ok(Some(bytes))
    }

    /// The offset is another on each host; what was set has to be there.
    fn offset(&self, item: &Item, got: &[u8], report: &mut Report) {
        if !has_offset(self.image, self.host, item.owner) {
            let why = "MSR_IA32_TSC was written instead";
            report.left.push(Left { owner: item.owner, item: item.name.clone(), why });
        } else if let Some(error) = self.failed.get(&(item.owner, item.name.clone())) {
            not_kept(report, item, "offset", &item.bytes, Some(got), Some(error));
        } else {
            report.running += 1;
        }
    }

    fn compare(&self, item: &Item, mut got: Vec<u8>, elapsed: Elapsed, report: &mut Report) {
        let mut wanted = item.clone();
        if item.name == "xsave2" {
            wanted.bytes.resize(got.len(), 0);
        } else if item.name == "nested-state" {
            got.resize(got.len().max(wanted.bytes.len()), 0);
        }
        let there = Item { bytes: got, ..item.clone() };
        // Reading takes its time as well.
        let elapsed = Elapsed { most: elapsed.most + self.begin.elapsed(), ..elapsed };
        let different = compare_items(self.image, &wanted, &there, elapsed);
        let (Ok(before), Ok(after)) = (view(&wanted), view(&there)) else {
            // What has no view is compared as it is.
            if different.is_empty() {
                report.kept += 1;
            } else {
                let failed = self.failed.get(&(item.owner, item.name.clone()));
                not_kept(report, item, "", &item.bytes, Some(&there.bytes), failed);
            }
            return;
        };
        let mut kept = before.len();
        for difference in different {
            let field = before.iter().find(|f| f.name == difference.field);
            kept -= usize::from(field.is_some());
            let part = match field {
                Some(field) if item.name == "msrs" => format!("msr.{:x}", field.raw),
                _ => item.name.clone(),
            };
            let cleared = difference.field == TMICT
                && report.gaps.iter().any(|gap| gap.gap == "G06" && gap.owner == item.owner);
            let left = report.left.iter().any(|left| left.owner == item.owner && left.item == part);
            if cleared || left {
                continue;
            }
            let of = |side: &[crate::view::Named<'_>]| {
                side.iter().find(|f| f.name == difference.field).map(|f| bytes_of(f.value))
            };
            let failed = self.failed.get(&(item.owner, part));
            not_kept(
                report,
                item,
                &difference.field,
                &of(&before).unwrap_or_default(),
                of(&after).as_deref(),
                failed,
            );
        }
        let running = before.iter().filter(|f| !f.rule.clock.is_empty()).count().min(kept);
        report.running += running as u32;
        report.kept += (kept - running) as u32;
    }

    /// MSRs one by one, because one of them cannot be read.
    fn one_by_one(&self, parts: &Parts<'_, '_>, item: &Item, elapsed: Elapsed, report: &mut Report) {
        let Owner::Vcpu(index) = item.owner else { return };
        let wanted = msrs::unpack(&item.bytes);
        let numbers: Vec<u32> = wanted.iter().map(|(msr, _)| *msr).collect();
        let answers = parts.cpus[index as usize].vcpu.msrs().get(&numbers);
        let mut there = (Vec::new(), Vec::new());
        for ((msr, value), answer) in wanted.into_iter().zip(answers) {
            match answer {
                Ok(got) => {
                    there.0.push((msr, value));
                    there.1.push((msr, got));
                }
                Err(error) => {
                    let part = format!("msr.{msr:x}");
                    let failed = self.failed.get(&(item.owner, part.clone())).unwrap_or(&error);
                    not_kept(report, item, &part, &value.to_ne_bytes(), None, Some(failed));
                }
            }
        }
        let readable = Item { bytes: msrs::pack(&there.0), ..item.clone() };
        self.compare(&readable, msrs::pack(&there.1), elapsed, report);
    }
}

fn bytes_of(value: Value<'_>) -> Vec<u8> {
    match value {
        Value::Number(number) => number.to_le_bytes().to_vec(),
        Value::Bytes(bytes) => bytes.to_vec(),
    }
}

/// Notes a part that is not as it was wanted.
pub(super) fn not_kept(
    report: &mut Report,
    item: &Item,
    field: &str,
    wanted: &[u8],
    now: Option<&[u8]>,
    failed: Option<&Error>,
) {
    let became = match (now, failed) {
        (_, Some(_)) => Became::Refused,
        (Some(_), None) => Became::Altered,
        (None, None) => Became::Unreadable,
    };
    report.not_kept.push(NotKept {
        owner: item.owner,
        item: item.name.clone(),
        field: field.to_owned(),
        became,
        wanted: wanted.to_vec(),
        now: now.map(<[u8]>::to_vec),
        error: failed.map(ToString::to_string),
    });
}
