//! What a guest stops for.

use std::io::Write;

use crate::View;
use evenkeel_sys::{Exit, Runner};

use super::{PLUG_IRQ, Pc, lock};
use crate::Error;
use crate::devices::serial::PORTS;
use crate::devices::virtio::Transport;
use crate::devices::{keyboard, plug};
use crate::life::End;

/// The most bytes that one read of a port gives.
const MOST: usize = 4096;

impl<'b, W: Write + Send> Pc<'_, 'b, W> {
    /// Does what the guest asks for. Returns why it is over, if it is.
    pub(super) fn exit(&self, runner: &mut Runner<'_, 'b>, exit: Exit) -> Result<Option<End>, Error> {
        match exit {
            Exit::PortWrite { port, data, .. } if PORTS.contains(&port) => {
                lock(&self.devices).serial.write(port, &data);
            }
            Exit::PortRead { port, size, count } if PORTS.contains(&port) => {
                let length = usize::from(size).saturating_mul(count as usize).min(MOST);
                let data = lock(&self.devices).serial.read(port, length);
                runner.answer(&data);
            }
            Exit::PortWrite { port: port @ (keyboard::DATA | keyboard::COMMAND), data, .. } => {
                let mut devices = lock(&self.devices);
                if data.iter().any(|byte| devices.keyboard.write(port, *byte)) {
                    return Ok(Some(End::Reset));
                }
            }
            Exit::PortRead { port: port @ (keyboard::DATA | keyboard::COMMAND), .. } => {
                let byte = lock(&self.devices).keyboard.read(port);
                runner.answer(&[byte]);
            }
            Exit::PortWrite { port, data, .. } if plug::PORTS.contains(&port) => {
                let Some(plug) = &self.plug else { return Ok(None) };
                for (port, byte) in (port..plug::PORTS.end).zip(data) {
                    plug.write(port, byte, |high| self.interrupts.set(PLUG_IRQ, high));
                }
            }
            Exit::PortRead { port, size, count: 1 } if plug::PORTS.contains(&port) => {
                let Some(plug) = &self.plug else { return Ok(None) };
                let ports = (port..plug::PORTS.end).take(size.into());
                runner.answer(&ports.map(|port| plug.read(port)).collect::<Vec<u8>>());
            }
            Exit::IoapicEoi(vector) => self.interrupts.eoi(vector),
            Exit::MemoryWrite { address, data } if self.interrupts.write(address, &data) => {}
            Exit::MemoryWrite { address, data } => self.mmio(address, |transport, at, memory| {
                transport.write(at, &data, memory);
            }),
            Exit::MemoryRead { address, length } => {
                let mut data = vec![0xff; length];
                if !self.interrupts.read(address, &mut data) {
                    self.mmio(address, |transport, at, _| transport.read(at, &mut data));
                }
                runner.answer(&data);
            }
            Exit::PortRead { .. } => runner.answer(&[]),
            Exit::Interrupted | Exit::PortWrite { .. } => {}
            Exit::Shutdown => return Ok(Some(End::Reset)),
            other => return Err(Error::Ended(other)),
        }
        Ok(None)
    }

    /// An access to a virtio device's registers, and its interrupt line afterwards.
    fn mmio(&self, address: u64, access: impl FnOnce(&mut Transport, u64, &View)) {
        let access = |transport: &mut Transport, at| access(transport, at, &self.memory);
        lock(&self.devices).virtio.access(address, &self.interrupts, access);
    }
}
