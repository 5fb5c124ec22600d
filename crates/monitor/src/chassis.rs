//! What every board has beside its devices: its life, what its threads may do, and its counters.

use std::sync::{Arc, Barrier, Mutex, OnceLock, PoisonError};

use crate::Error;
use crate::board::virtio_kind;
use crate::confine::{Confinement, Thread};
use crate::control::metrics::{Device, Metrics};
use crate::devices::virtio::Transport;
use crate::life::Life;

pub(crate) struct Chassis {
    /// What pauses and ends it.
    pub life: Life,
    /// What it did.
    pub metrics: Arc<Metrics>,
    confinement: OnceLock<Confinement>,
    /// What the devices had done when they were last asked.
    counted: Mutex<Vec<Device>>,
}

impl Chassis {
    /// # Errors
    /// There is no descriptor left.
    pub fn new() -> Result<Chassis, Error> {
        let (metrics, counted) = (Arc::default(), Mutex::default());
        Ok(Chassis { life: Life::new()?, metrics, confinement: OnceLock::new(), counted })
    }

    /// Its threads confine themselves by this before the guest executes anything. The first word counts.
    pub fn confine(&self, confinement: Confinement) {
        let _ = self.confinement.set(confinement);
    }

    /// Confines this thread, and waits until all the others have done the same.
    ///
    /// # Errors
    /// It cannot be confined.
    pub fn enter(&self, thread: Thread, gate: &Barrier) -> Result<(), Error> {
        let entered = self.confinement.get().map_or(Ok(()), |confinement| confinement.enter(thread));
        gate.wait();
        entered.map_err(|e| Error::Confinement(e.to_string()))
    }

    /// What the devices did; as they were asked the last time, where `devices` cannot be asked now.
    pub fn counts<'t>(&self, devices: Option<impl Iterator<Item = &'t Transport>>) -> Vec<Device> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(devices) = devices {
            let count = |(index, transport): (usize, &Transport)| {
                let device = transport.device();
                let name = format!("{}{index}", virtio_kind(device.kind()));
                let did = device.counts();
                Device { name, requests: did.requests, bytes: did.bytes }
            };
            *counted = devices.enumerate().map(count).collect();
        }
        counted.clone()
    }
}
