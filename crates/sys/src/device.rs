//! A device in the kernel, such as an interrupt controller.

use std::ops::Deref;

use crate::Fd;

/// From KVM_CREATE_DEVICE; all that can be done with it are attributes, see [`Fd::get_attr`].
#[derive(Debug)]
pub struct Device<'b>(Fd<'b>);

impl<'b> Device<'b> {
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
