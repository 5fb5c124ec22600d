//! The first serial port of a PC.

use std::io::Write;

use evenkeel_sys::requests::KVM_IRQ_LINE;
use evenkeel_sys::{Errno, Vm};
use vm_superio::{Serial, Trigger};

/// Its ports.
pub const PORTS: std::ops::Range<u16> = 0x3f8..0x400;
/// Its interrupt.
const IRQ: u32 = 4;

/// Raises and lowers an interrupt line.
pub struct Line<'v, 'b> {
    vm: &'v Vm<'b>,
    irq: u32,
}

impl Trigger for Line<'_, '_> {
    type E = Errno;

    fn trigger(&self) -> Result<(), Errno> {
        for level in [1_u32, 0] {
            let mut argument = [0; 8];
            argument[..4].copy_from_slice(&self.irq.to_ne_bytes());
            argument[4..].copy_from_slice(&level.to_ne_bytes());
            self.vm.set(&KVM_IRQ_LINE, &argument).map_err(|e| e.errno().unwrap_or(Errno::EIO))?;
        }
        Ok(())
    }
}

/// The port, whose output goes to `W`.
pub struct Port<'v, 'b, W: Write>(Serial<Line<'v, 'b>, vm_superio::serial::NoEvents, W>);

impl<'v, 'b, W: Write> Port<'v, 'b, W> {
    /// A port of this VM.
    pub fn new(vm: &'v Vm<'b>, output: W) -> Self {
        Port(Serial::new(Line { vm, irq: IRQ }, output))
    }

    /// A write of the guest. What the output refuses is lost, as on a line that nobody listens to.
    pub fn write(&mut self, port: u16, data: &[u8]) {
        for byte in data {
            let _ = self.0.write((port - PORTS.start) as u8, *byte);
        }
    }

    /// A read of the guest.
    pub fn read(&mut self, port: u16, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.0.read((port - PORTS.start) as u8)).collect()
    }
}
