//! A device in the kernel, such as an interrupt controller.

use std::ops::Deref;

use crate::{Backend, Fd, FdKind, Handle};

/// From KVM_CREATE_DEVICE; all that can be done with it are attributes, see [`Fd::get_attr`].
#[derive(Debug)]
pub struct Device<'b>(Fd<'b>);

impl<'b> Device<'b> {
    /// A device that the backend has already: one that another VMM lent with [`crate::Live::lend`].
    pub fn of(backend: &'b dyn Backend, handle: Handle) -> Self {
        Device(Fd::of(backend, handle, FdKind::Device))
    }

    pub(crate) fn new(fd: Fd<'b>) -> Self {
        Device(fd)
    }
}

impl<'b> From<Device<'b>> for Fd<'b> {
    fn from(it: Device<'b>) -> Fd<'b> {
        it.0
    }
}

impl<'b> Deref for Device<'b> {
    type Target = Fd<'b>;
    fn deref(&self) -> &Fd<'b> {
        &self.0
    }
}
