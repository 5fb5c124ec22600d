//! A guest that was stopped and saved on one host, to go on on another.

use std::collections::BTreeMap;

use evenkeel_monitor::aarch64::Shape;
use evenkeel_state::{Image, Item, Manifest, Noted, Owner, Role};
use evenkeel_surface::{Arch, Hex64};
use evenkeel_sys::Slot;
use serde::{Deserialize, Serialize};

use super::scenarios::Left;
use super::vm::Copied;
use super::{Scenario, Trial};
use crate::aarch64::session::Batch;
use crate::observation::Saw;

/// The schema name.
pub const SCHEMA: &str = "evenkeel.round/1";
/// The longest that is read.
pub const MAX_BYTES: usize = 32 << 20;
const PAGE: usize = 4096;

/// A guest that was stopped and saved.
#[derive(Clone, Debug)]
pub struct Kept {
    /// What it was stopped in.
    pub trial: Trial,
    /// The state.
    pub image: Image,
    /// Its memory.
    pub memory: Copied,
    /// What it saw before.
    pub seen: BTreeMap<String, Saw>,
    /// Microseconds that saving took.
    pub took_us: u64,
    pub(super) left: Left,
}

/// As a file: JSON, with bytes in hexadecimal, and of memory only pages that are not all 0.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    schema: String,
    shape: String,
    vcpus: u64,
    scenario: String,
    calls: Vec<(String, String, String, String)>,
    items: Vec<(Option<u32>, String, String)>,
    slots: Vec<(u32, Hex64, Hex64)>,
    pages: Vec<(u32, Hex64, String)>,
    seen: BTreeMap<String, Saw>,
    batch: Option<(Hex64, Hex64, u32)>,
    counter: Hex64,
    took_us: u64,
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|d| d as u8);
    let pairs = text.as_bytes().chunks_exact(2);
    pairs.remainder().is_empty().then_some(())?;
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

fn role_name(role: Role) -> String {
    match role {
        Role::System => "system".to_owned(),
        Role::Vm => "vm".to_owned(),
        Role::Vcpu(n) => format!("vcpu.{n}"),
        Role::Device(n) => format!("device.{n}"),
    }
}

fn role(name: &str) -> Option<Role> {
    let number = |of: &str| name.strip_prefix(of)?.parse().ok();
    match name {
        "system" => Some(Role::System),
        "vm" => Some(Role::Vm),
        _ => number("vcpu.").map(Role::Vcpu).or_else(|| number("device.").map(Role::Device)),
    }
}

impl Kept {
    /// As a file.
    pub fn to_json(&self) -> String {
        let call = |c: &Noted| (role_name(c.on), c.call.clone(), hex(&c.argument), hex(&c.payload));
        let item = |i: &Item| {
            let owner = if let Owner::Vcpu(n) = i.owner { Some(n) } else { None };
            (owner, i.name.clone(), hex(&i.bytes))
        };
        let pages = self.memory.0.iter().flat_map(|(slot, bytes)| {
            let pages = bytes.chunks(PAGE).enumerate().filter(|(_, page)| page.iter().any(|byte| *byte != 0));
            pages.map(|(n, page)| (slot.number, Hex64((n * PAGE) as u64), hex(page)))
        });
        let file = File {
            schema: SCHEMA.to_owned(),
            shape: self.trial.shape.name().to_owned(),
            vcpus: self.trial.vcpus,
            scenario: self.trial.scenario.name().to_owned(),
            calls: self.image.manifest.calls.iter().map(call).collect(),
            items: self.image.items.iter().map(item).collect(),
            slots: self.memory.0.iter().map(|(s, _)| (s.number, Hex64(s.guest), Hex64(s.length))).collect(),
            pages: pages.collect(),
            seen: self.seen.clone(),
            batch: self.left.batch.map(|b| (Hex64(b.nonce), Hex64(b.results), b.count as u32)),
            counter: Hex64(self.left.counter),
            took_us: self.took_us,
        };
        // Strings and numbers: nothing in it can fail to be written.
        serde_json::to_string(&file).unwrap_or_default()
    }

    /// From a file.
    ///
    /// # Errors
    /// It is no such file, and why.
    pub fn from_json(bytes: &[u8]) -> Result<Kept, String> {
        if bytes.len() > MAX_BYTES {
            return Err(format!("more than {MAX_BYTES} bytes"));
        }
        let file: File = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if file.schema != SCHEMA {
            return Err(format!("its schema is {:?}, and not {SCHEMA}", file.schema));
        }
        let bad = |what: &str| format!("{what} makes no sense");
        let mut manifest = Manifest::default();
        for (on, call, argument, payload) in &file.calls {
            let noted = (|| {
                Some(Noted {
                    on: role(on)?,
                    call: call.clone(),
                    argument: unhex(argument)?,
                    payload: unhex(payload)?,
                })
            })();
            manifest.calls.push(noted.ok_or_else(|| bad(call))?);
        }
        let mut items = Vec::new();
        for (owner, name, bytes) in &file.items {
            let bytes = unhex(bytes).ok_or_else(|| bad(name))?;
            items.push(Item { owner: owner.map_or(Owner::Vm, Owner::Vcpu), name: name.clone(), bytes });
        }
        let mut memory = Vec::new();
        for (number, guest, length) in &file.slots {
            if length.0 > MAX_BYTES as u64 {
                return Err(bad("a slot"));
            }
            let slot = Slot { number: *number, flags: 0, guest: guest.0, offset: 0, length: length.0 };
            memory.push((slot, vec![0; length.0 as usize]));
        }
        for (number, at, bytes) in &file.pages {
            let bytes = unhex(bytes).ok_or_else(|| bad("a page"))?;
            let slot = memory.iter_mut().find(|(slot, _)| slot.number == *number);
            let end = at.0.checked_add(bytes.len() as u64);
            let place = slot.zip(end).and_then(|((_, m), end)| m.get_mut(at.0 as usize..end as usize));
            place.ok_or_else(|| bad("a page"))?.copy_from_slice(&bytes);
        }
        let shape = Shape::by_name(&file.shape).ok_or_else(|| bad("the shape"))?;
        let scenario = Scenario::by_name(&file.scenario).ok_or_else(|| bad("the scenario"))?;
        let batch = file.batch.map(|(nonce, results, count)| Batch {
            nonce: nonce.0,
            results: results.0,
            count: count as usize,
        });
        Ok(Kept {
            trial: Trial { shape, vcpus: file.vcpus, scenario },
            image: Image { arch: Arch::Aarch64, manifest, items },
            memory: Copied(memory),
            seen: file.seen,
            took_us: file.took_us,
            left: Left { batch, counter: file.counter.0 },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_read_as_it_was_written() {
        let noted =
            |on, call: &str| Noted { on, call: call.to_owned(), argument: vec![1, 0xfe], payload: vec![] };
        let calls = vec![noted(Role::System, "KVM_CREATE_VM"), noted(Role::Device(1), "KVM_SET_DEVICE_ATTR")];
        let item = Item { owner: Owner::Vcpu(2), name: "arm64-mp-state".to_owned(), bytes: vec![3, 0, 0, 0] };
        let slot = Slot { number: 0, flags: 0, guest: 0x4000_0000, offset: 0, length: 3 * PAGE as u64 };
        let mut bytes = vec![0; 3 * PAGE];
        bytes[PAGE + 7] = 9;
        let kept = Kept {
            trial: Trial { shape: Shape::Pmu, vcpus: 3, scenario: Scenario::Wfi },
            image: Image { arch: Arch::Aarch64, manifest: Manifest { calls }, items: vec![item] },
            memory: Copied(vec![(slot, bytes)]),
            seen: BTreeMap::from([("arm64.midr-el1".to_owned(), Saw::Value(Hex64(0x414f_d0c1)))]),
            took_us: 5,
            left: Left { batch: Some(Batch { nonce: 1 << 63, results: 2, count: 1 }), counter: 77 },
        };
        let text = kept.to_json();
        assert!(text.len() < 3 * PAGE, "pages of zeroes are left out");
        let read = Kept::from_json(text.as_bytes()).unwrap();
        assert_eq!(format!("{read:?}"), format!("{kept:?}"));
        assert!(Kept::from_json(&text.as_bytes()[..text.len() - 2]).is_err());
        let outside = text.replace("\"0x1000\"", "\"0x3000\"");
        assert_ne!(outside, text);
        assert_eq!(Kept::from_json(outside.as_bytes()).unwrap_err(), "a page makes no sense");
    }
}
