//! A guest that was stopped and saved on one host, to go on on another.

use std::time::Duration;

use evenkeel_monitor::aarch64::Shape;
use evenkeel_state::{Image, Role, Saved};
use evenkeel_surface::{Arch, Hex64};
use evenkeel_sys::Slot;
use serde::{Deserialize, Serialize};

use super::scenarios::Left;
use super::vm::Copied;
use super::{Scenario, Trial};
use crate::aarch64::session::Batch;
use crate::moved;
use crate::observation::{Observation, Record, Volatile};

/// The schema name of what a guest was stopped in.
pub const SCHEMA: &str = "evenkeel.stopped/1";

/// A guest that was stopped and saved.
#[derive(Clone, Debug)]
pub struct Kept {
    /// What it was stopped in.
    pub trial: Trial,
    /// The state.
    pub saved: Saved,
    /// Its memory.
    pub memory: Copied,
    /// Its memory before it was saved, where somebody wants to know what saving writes into it.
    pub early: Option<Copied>,
    /// What it saw before.
    pub seen: Observation,
    /// Saving took this long.
    pub took: Duration,
    pub(super) left: Left,
}

/// What a guest was stopped in, and what of that is to be finished.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stopped {
    schema: String,
    scenario: String,
    /// A batch that is in its memory: nonce, address of the results, number of probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    batch: Option<(Hex64, Hex64, u32)>,
    /// The virtual counter then.
    counter: Hex64,
}

impl Kept {
    /// For a capsule.
    pub fn moved(self) -> moved::Kept {
        let stopped = Stopped {
            schema: SCHEMA.to_owned(),
            scenario: self.trial.scenario.name().to_owned(),
            batch: self.left.batch.map(|b| (Hex64(b.nonce), Hex64(b.results), b.count as u32)),
            counter: Hex64(self.left.counter),
        };
        // Strings and numbers: nothing in it can fail to be written.
        let stopped = serde_json::to_vec(&stopped).unwrap_or_default();
        let memory = self.memory.0.into_iter().map(|(slot, bytes)| (slot.guest, bytes)).collect();
        moved::Kept { saved: self.saved, memory, seen: self.seen, stopped: Some(stopped), took: self.took }
    }

    /// Out of a capsule. A guest of which nobody says what it was stopped in was idle.
    ///
    /// # Errors
    /// The shape is none of the witness's, or what it was stopped in makes no sense.
    pub fn of(image: Image, memory: &[(u64, Vec<u8>)], stopped: Option<&[u8]>) -> Result<Kept, String> {
        let shape = Shape::by_name(image.manifest.shape()).ok_or("no such shape")?;
        let made = image.manifest.calls.iter();
        let vcpus = made.filter(|c| c.on == Role::Vm && c.call == "KVM_CREATE_VCPU").count() as u64;
        let (scenario, left) = match stopped {
            None => (Scenario::Idle, Left::default()),
            Some(bytes) => {
                let stopped: Stopped = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
                if stopped.schema != SCHEMA {
                    return Err(format!("its schema is {:?}, and not {SCHEMA}", stopped.schema));
                }
                let scenario = Scenario::by_name(&stopped.scenario);
                let scenario = scenario.ok_or_else(|| format!("nobody knows `{}`", stopped.scenario))?;
                let batch = stopped.batch.map(|(nonce, results, count)| Batch {
                    nonce: nonce.0,
                    results: results.0,
                    count: count as usize,
                });
                (scenario, Left { batch, counter: stopped.counter.0 })
            }
        };
        if left.batch.is_some_and(|batch| batch.count > crate::aarch64::abi::BATCH) {
            return Err("a batch that is longer than the guest's table".to_owned());
        }
        let slots = memory.iter().zip(0..).map(|((guest, bytes), number)| {
            let length = bytes.len() as u64;
            (Slot { number, flags: 0, guest: *guest, offset: 0, length }, bytes.clone())
        });
        Ok(Kept {
            trial: Trial { shape, vcpus, scenario },
            saved: Saved { image, gaps: Vec::new(), absent: Vec::new() },
            memory: Copied(slots.collect()),
            early: None,
            seen: Record::default().finish(Arch::Aarch64, shape.name(), Volatile::default()),
            took: Duration::ZERO,
            left,
        })
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_state::{Manifest, Noted};

    use super::*;

    fn image(vcpus: usize) -> Image {
        let noted = |on, call: &str, argument: Vec<u8>| Noted {
            on,
            call: call.to_owned(),
            argument,
            payload: Vec::new(),
        };
        let mut calls = vec![noted(Role::System, "KVM_CREATE_VM", vec![0; 8])];
        calls.extend((0..vcpus).map(|_| noted(Role::Vm, "KVM_CREATE_VCPU", vec![0; 8])));
        let mut init = vec![0; 32];
        init[4] = 1 << 3;
        calls.push(noted(Role::Vcpu(0), "KVM_ARM_VCPU_INIT", init));
        Image { arch: Arch::Aarch64, manifest: Manifest { calls }, items: Vec::new() }
    }

    #[test]
    fn what_a_guest_was_stopped_in_is_read_as_it_was_written() {
        let memory = [(0x4000_0000, vec![7; 4096])];
        let mut kept = Kept::of(image(3), &memory, None).unwrap();
        assert_eq!(kept.trial, Trial { shape: Shape::Pmu, vcpus: 3, scenario: Scenario::Idle });
        kept.trial.scenario = Scenario::Wfi;
        kept.left = Left { batch: Some(Batch { nonce: 1 << 63, results: 2, count: 1 }), counter: 77 };
        let moved = kept.clone().moved();
        let stopped = moved.stopped.clone().unwrap();
        let read = Kept::of(moved.saved.image, &moved.memory, Some(&stopped)).unwrap();
        assert_eq!(format!("{read:?}"), format!("{kept:?}"));

        let text = String::from_utf8(stopped).unwrap();
        let refused = |from: &str, to: &str| {
            let other = text.replace(from, to);
            assert_ne!(other, text);
            Kept::of(image(1), &memory, Some(other.as_bytes())).unwrap_err()
        };
        assert_eq!(refused("\"wfi\"", "\"sleep\""), "nobody knows `sleep`");
        assert!(refused("stopped/1", "stopped/2").starts_with("its schema is"));
        assert!(refused(",1]", ",70000]").starts_with("a batch that is longer"));
        assert!(Kept::of(image(1), &memory, Some(&text.as_bytes()[1..])).is_err());
    }
}
