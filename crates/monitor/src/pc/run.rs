//! What a PC does for its threads.

use std::io::Write;
use std::os::fd::OwnedFd;

use evenkeel_sys::{Exit, Runner, System, Vcpu};

use super::{Pc, lock};
use crate::Error;
use crate::chassis::Chassis;
use crate::devices::virtio;
use crate::life::End;
use crate::threads::Rig;

impl<'b, W: Write + Send> Rig<'b> for Pc<'_, 'b, W> {
    fn chassis(&self) -> &Chassis {
        &self.chassis
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
