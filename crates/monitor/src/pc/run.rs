//! What a PC does for its threads.

use std::io::Write;
use std::os::fd::OwnedFd;

use evenkeel_sys::{Exit, Runner, System, Vcpu};

use super::{PLUG_IRQ, PLUG_SOURCE, Pc, lock};
use crate::Error;
use crate::chassis::Chassis;
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
        let mut all = lock(&self.devices).virtio.sources()?;
        if let Some(plug) = &self.plug {
            let bell = plug.bell().try_clone_to_owned();
            all.push((PLUG_SOURCE, bell.map_err(|e| Error::Device(format!("plugged vCPUs: {e}")))?));
        }
        Ok(all)
    }

    fn incoming(&self, device: usize) {
        if let (PLUG_SOURCE, Some(plug)) = (device, &self.plug) {
            plug.hear(|high| self.interrupts.set(PLUG_IRQ, high));
        } else {
            lock(&self.devices).virtio.incoming(device, &self.memory, &self.interrupts);
        }
    }

    fn quiesce(&self) -> Result<(), Error> {
        lock(&self.devices).virtio.quiesce(&self.interrupts)
    }
}
