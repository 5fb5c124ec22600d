//! Where devices' interrupts go: to the controllers in the kernel, or to an I/O APIC here whose messages KVM delivers.

use std::sync::{Mutex, MutexGuard, PoisonError};

use evenkeel_sys::Vm;
use evenkeel_sys::requests::{KVM_IRQ_LINE, KVM_SET_GSI_ROUTING, KVM_SIGNAL_MSI};

use super::ioapic::{self, Ioapic, Message};
use crate::{Error, Irqchip};

/// KVM_IRQ_ROUTING_MSI.
const ROUTE_MSI: u32 = 2;

/// The interrupt lines of a machine. It is shared by all of its threads.
#[derive(Debug)]
pub struct Interrupts<'v, 'b> {
    vm: &'v Vm<'b>,
    /// With a split irqchip.
    ioapic: Option<Mutex<Ioapic>>,
}

impl<'v, 'b> Interrupts<'v, 'b> {
    /// Those of a machine with this irqchip.
    ///
    /// # Errors
    /// The machine has none for devices, or KVM takes no routes.
    pub fn new(vm: &'v Vm<'b>, irqchip: Irqchip) -> Result<Self, Error> {
        match irqchip {
            Irqchip::None => Err(Error::Device("interrupts need an irqchip: kernel or split".to_owned())),
            Irqchip::Kernel => Ok(Interrupts { vm, ioapic: None }),
            Irqchip::Split => {
                let ioapic = Ioapic::default();
                route(vm, &ioapic)?;
                Ok(Interrupts { vm, ioapic: Some(Mutex::new(ioapic)) })
            }
        }
    }

    /// The level of a pin's wire.
    pub fn set(&self, pin: u32, high: bool) {
        match &self.ioapic {
            Some(ioapic) => {
                let mut ioapic = lock(ioapic);
                let sent = ioapic.set(pin, high);
                self.send(sent);
            }
            None => {
                let mut line = [0; 8];
                line[..4].copy_from_slice(&pin.to_ne_bytes());
                line[4..].copy_from_slice(&u32::from(high).to_ne_bytes());
                // A pin of the IOAPIC that KVM made takes any level.
                let _ = self.vm.set(&KVM_IRQ_LINE, &line);
            }
        }
    }

    /// An edge at a pin.
    pub fn pulse(&self, pin: u32) {
        self.set(pin, true);
        self.set(pin, false);
    }

    /// A read of the guest; false if nothing here is at this address.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let (Some(ioapic), Some(at)) = (&self.ioapic, within(address)) else { return false };
        lock(ioapic).read(at, data);
        true
    }

    /// A write of the guest; false if nothing here is at this address.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let (Some(ioapic), Some(at)) = (&self.ioapic, within(address)) else { return false };
        // The lock is kept until KVM knows: two vCPUs that write at once must not set an older route behind a newer one.
        let mut ioapic = lock(ioapic);
        let effect = ioapic.write(at, data);
        if effect.rerouted {
            // The same number of routes was taken when the machine was made; the kernel only lacks memory now.
            let _ = route(self.vm, &ioapic);
        }
        self.send(effect.messages);
        true
    }

    /// KVM_EXIT_IOAPIC_EOI.
    pub fn eoi(&self, vector: u8) {
        if let Some(ioapic) = &self.ioapic {
            let mut ioapic = lock(ioapic);
            let sent = ioapic.eoi(vector);
            self.send(sent);
        }
    }

    /// What the I/O APIC is made from and what it is at, where it is here: both CBOR.
    pub fn records(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        self.ioapic.as_ref().map(|ioapic| {
            let ioapic = lock(ioapic);
            (ioapic.config_record(), ioapic.state())
        })
    }

    /// Puts the I/O APIC where a record says, and tells KVM the routes. What was sent before was sent: local APICs have it in
    /// their own state.
    ///
    /// # Errors
    /// There is none here, or it cannot be at this.
    pub fn set_state(&self, bytes: &[u8]) -> Result<(), Error> {
        let Some(own) = &self.ioapic else {
            return Err(Error::Device(
                "saved state of an IOAPIC for a machine whose is in the kernel".to_owned(),
            ));
        };
        let ioapic = Ioapic::at(bytes)?;
        route(self.vm, &ioapic)?;
        *lock(own) = ioapic;
        Ok(())
    }

    fn send(&self, messages: impl IntoIterator<Item = Message>) {
        for message in messages {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&message.address.to_ne_bytes());
            bytes[8..12].copy_from_slice(&message.data.to_ne_bytes());
            // A destination that is not there, or a vector that none has: lost, as on the bus.
            let _ = self.vm.set(&KVM_SIGNAL_MSI, &bytes);
        }
    }
}

fn within(address: u64) -> Option<u64> {
    address.checked_sub(ioapic::BASE).filter(|at| *at < ioapic::LENGTH)
}

fn lock(ioapic: &Mutex<Ioapic>) -> MutexGuard<'_, Ioapic> {
    ioapic.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells KVM each pin's message, as the routes that were reserved when the irqchip was split: KVM then tells of the EOI of those
/// that are level-triggered (`kvm_scan_ioapic_routes` in `arch/x86/kvm/irq_comm.c`).
fn route(vm: &Vm<'_>, ioapic: &Ioapic) -> Result<(), Error> {
    let routes = ioapic.routes();
    let mut bytes = (routes.len() as u64).to_ne_bytes().to_vec();
    for (gsi, message) in (0_u32..).zip(routes) {
        // gsi, type, flags, padding; then address, its upper half, data, and what is left of the union.
        for word in [gsi, ROUTE_MSI, 0, 0, message.address, 0, message.data, 0, 0, 0, 0, 0] {
            bytes.extend(word.to_ne_bytes());
        }
    }
    vm.set(&KVM_SET_GSI_ROUTING, &bytes)?;
    Ok(())
}
