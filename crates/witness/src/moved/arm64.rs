//! The witness on arm64: one of the [rounds](crate::aarch64::rounds), saved and taken.

use evenkeel_monitor::aarch64::Configure;
use evenkeel_state::{Image, Noting};
use evenkeel_sys::Backend;

use super::{Kept, MoveError, Taken};
use crate::aarch64::rounds::{self, Trial};

/// Makes a machine for this trial, lets its guest look at everything, brings it to where it is to be stopped, and saves it.
/// `image` is the guest's program.
///
/// # Errors
/// There is no such machine, the host lacks what the trial takes, the guest is lost, or state cannot be saved.
pub fn keep(
    noting: &Noting<'_>,
    image: &[u8],
    trial: Trial,
    configure: &Configure<'_>,
) -> Result<Kept, MoveError> {
    Ok(rounds::keep(noting, image, trial, configure)?.moved())
}

/// Sets what was saved in a machine of this host, and lets the guest go on. `stopped` is what it was stopped in.
///
/// # Errors
/// The machine cannot be made, the guest is lost, or `stopped` makes no sense.
pub fn take(
    backend: &dyn Backend,
    image: &Image,
    memory: &[(u64, Vec<u8>)],
    stopped: Option<&[u8]>,
) -> Result<Taken, MoveError> {
    let kept = rounds::Kept::of(image.clone(), memory, stopped).map_err(MoveError::Stopped)?;
    rounds::take(backend, &kept)
}
