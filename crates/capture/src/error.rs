//! The failures that leave no capture.

use std::fmt;

use evenkeel_sys::Errno;

/// There is nothing to capture: no KVM, or no VM of any shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Which part of the surface was to be asked: `system`, `shape.kernel`.
    pub facet: String,
    /// The call that failed.
    pub cause: evenkeel_sys::Error,
}

impl Error {
    pub(crate) fn new(facet: impl Into<String>, cause: evenkeel_sys::Error) -> Self {
        Error { facet: facet.into(), cause }
    }

    /// What to do about it; empty when nothing general can be said.
    pub fn hint(&self) -> &'static str {
        if self.cause.is_off_script() {
            return "the recording was made by another version of the capture, or of another host; record again";
        }
        match (self.cause.ioctl, self.cause.errno()) {
            ("open", Some(Errno::ENOENT)) => {
                "there is no /dev/kvm: load kvm_intel or kvm_amd, enable virtualization in the firmware, \
                 or pass the device into the container"
            }
            ("open", Some(Errno::EACCES | Errno::EPERM)) => {
                "add the user to the group that owns /dev/kvm (often `kvm`), or run as root"
            }
            ("open", Some(Errno::ENODEV | Errno::ENXIO)) => {
                "the kernel has no KVM back-end for this CPU: virtualization may be off in the firmware, or this is a guest \
                 without nested virtualization"
            }
            ("KVM_CREATE_VM", Some(Errno::ENODEV | Errno::EOPNOTSUPP | Errno::EIO)) => {
                "the CPU's virtualization may be in use by another hypervisor, or be off in the firmware"
            }
            ("KVM_CREATE_VM", Some(Errno::EBUSY)) => {
                "another hypervisor holds the CPU's virtualization extension"
            }
            (_, Some(Errno::ENOMEM)) => {
                "the host is out of memory, or a limit on locked or kernel memory is too low"
            }
            (_, Some(Errno::EMFILE | Errno::ENFILE)) => "raise the limit of open files",
            _ => "",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot capture {}: {}", self.facet, self.cause)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}
