//! What a PC does for its threads.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::Duration;

use evenkeel_state::Manifest;
use evenkeel_sys::{Exit, Ram, Runner, System, Vcpu};

use super::{Pc, lock};
use crate::Error;
use crate::board::{Runs, SavedMachine};
use crate::devices::virtio;
use crate::life::{End, Life};
use crate::threads::{self, Rig};

impl<W: Write + Send> Pc<'_, '_, W> {
    /// Runs all vCPUs, a thread each, until the guest asks for a reset, somebody stops it, or the time is over.
    pub fn run(&self, limit: Option<Duration>) -> End {
        threads::run(self, limit)
    }
}

impl<'b, W: Write + Send> Rig<'b> for Pc<'_, 'b, W> {
    fn life(&self) -> &Life {
        &self.life
    }

    fn system(&self) -> &System<'b> {
        self.machine.system()
    }

    fn vcpus(&self) -> &[Vcpu<'b>] {
        self.vcpus
    }

    fn exit(&self, runner: &mut Runner<'_, 'b>, exit: Exit) -> Result<Option<End>, Error> {
        Pc::exit(self, runner, exit)
    }

    fn sources(&self) -> Result<Vec<(usize, OwnedFd)>, Error> {
        virtio::sources(lock(&self.devices).virtio.iter().map(|slot| &slot.transport))
    }

    fn incoming(&self, device: usize) {
        if let Some(slot) = lock(&self.devices).virtio.get_mut(device) {
            slot.transport.incoming(&self.memory);
            slot.wire(&self.interrupts);
        }
    }

    fn quiesce(&self) -> Result<(), Error> {
        lock(&self.devices).virtio.iter_mut().try_for_each(|slot| {
            let quiet = slot.transport.quiesce();
            slot.wire(&self.interrupts);
            quiet
        })
    }
}

impl<W: Write + Send> Runs for Pc<'_, '_, W> {
    fn life(&self) -> &Life {
        Pc::life(self)
    }

    fn run(&self, limit: Option<Duration>) -> End {
        Pc::run(self, limit)
    }

    fn save(&self, manifest: &Manifest) -> Result<SavedMachine, Error> {
        Pc::save(self, manifest)
    }

    fn ram(&self) -> &Ram {
        self.machine.ram()
    }
}
