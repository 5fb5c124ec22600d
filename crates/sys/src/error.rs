//! Errors that say which ioctl, with which argument, and why.

use std::fmt;

/// A number from `errno.h`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        impl Errno {
            $(#[doc = $text] pub const $name: Errno = Errno($number);)*

            /// The symbol (`EINVAL`); `None` for a number that KVM, tun and vhost do not use.
            pub fn name(self) -> Option<&'static str> {
                match self.0 { $($number => Some(stringify!($name)),)* _ => None }
            }

            /// What it says, in words; empty when unknown.
            pub fn text(self) -> &'static str {
                match self.0 { $($number => $text,)* _ => "" }
            }

            /// The number that a symbol stands for.
            pub fn by_name(name: &str) -> Option<Errno> {
                match name { $(stringify!($name) => Some(Errno($number)),)* _ => None }
            }
        }
    };
}

errnos! {
    EPERM = 1, "Operation not permitted";
    ENOENT = 2, "No such file or directory";
    EINTR = 4, "Interrupted system call";
    EIO = 5, "Input/output error";
    ENXIO = 6, "No such device or address";
    E2BIG = 7, "Argument list too long";
    EBADF = 9, "Bad file descriptor";
    EAGAIN = 11, "Resource temporarily unavailable";
    ENOMEM = 12, "Cannot allocate memory";
    EACCES = 13, "Permission denied";
    EFAULT = 14, "Bad address";
    EBUSY = 16, "Device or resource busy";
    EEXIST = 17, "File exists";
    ENODEV = 19, "No such device";
    ENOTDIR = 20, "Not a directory";
    EISDIR = 21, "Is a directory";
    EINVAL = 22, "Invalid argument";
    ENFILE = 23, "Too many open files in system";
    EMFILE = 24, "Too many open files";
    ENOTTY = 25, "Inappropriate ioctl for device";
    ENOSPC = 28, "No space left on device";
    ERANGE = 34, "Numerical result out of range";
    ENOSYS = 38, "Function not implemented";
    EBADFD = 77, "File descriptor in bad state";
    EOPNOTSUPP = 95, "Operation not supported";
    ETIMEDOUT = 110, "Connection timed out";
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({}, {})", self.0, self.text()),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name().unwrap_or("errno "))?;
        if self.name().is_none() { write!(f, "{}", self.0) } else { Ok(()) }
    }
}

/// Why a call was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The kernel said so.
    Errno(Errno),
    /// The ioctl returned, but did not get as far as this item of a batch (an MSR that it refused: the kernel does
    /// not say why).
    NotProcessed,
    /// What came back makes no sense, and how.
    Nonsense(String),
    /// A replayed log has another call here, or none; both are named. Nothing about a host can be learned from it.
    OffScript(String),
}

impl Refusal {
    /// The short form for a table: an errno's name, or words.
    pub fn short(&self) -> String {
        match self {
            Refusal::Errno(errno) => errno.name().map_or_else(|| errno.to_string(), str::to_owned),
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Errno(errno) => errno.fmt(f),
            Refusal::NotProcessed => f.write_str("refused (the ioctl stopped at it)"),
            Refusal::Nonsense(what) | Refusal::OffScript(what) => f.write_str(what),
        }
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Refusal::Errno(errno)
    }
}

/// A call that failed: `KVM_GET_MSRS(0x10a): EINVAL (22, Invalid argument)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The ioctl's name, or `open`, or `read`.
    pub ioctl: &'static str,
    /// Its argument, as far as it tells something; may be empty.
    pub argument: String,
    /// Why.
    pub why: Refusal,
}

impl Error {
    /// The call in words: `KVM_GET_MSRS(0x10a)`.
    pub fn call(&self) -> String {
        format!("{}({})", self.ioctl, self.argument)
    }

    /// The errno, where the kernel gave one.
    pub fn errno(&self) -> Option<Errno> {
        match self.why {
            Refusal::Errno(errno) => Some(errno),
            _ => None,
        }
    }

    /// The error is about a replayed log, not about a host.
    pub fn is_off_script(&self) -> bool {
        matches!(self.why, Refusal::OffScript(_))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({}): {}", self.ioctl, self.argument, self.why)
    }
}

impl std::error::Error for Error {}
