//! Capture of an arm64 host.

use evenkeel_sys::{Error as CallError, Refusal, System};

use crate::{Error, Parts, Timings};

pub(crate) fn capture(_: &System<'_>, _: &mut Parts, _: &mut Timings) -> Result<(), Error> {
    let why = Refusal::Nonsense("arm64 hosts cannot be captured yet".to_owned());
    Err(Error::new("arch", CallError { ioctl: "read", argument: "architecture".to_owned(), why }))
}
