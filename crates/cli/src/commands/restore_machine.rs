//! `evenkeel restore --run`: a machine out of its capsule, on this host, to its end.

use std::path::Path;

use evenkeel_contract::View;
use evenkeel_monitor::board::Board;
use evenkeel_state::translate::{Destination, translate};
use evenkeel_surface::Surface;

use super::guest::{
    Running,
    revive::{self, Found, Here},
};
use super::operate::Operator;
use super::restore::{Restore, Restored, lost, one_of, open, rewritten, text};
use crate::failure::Failure;
use crate::output;

/// What is said of a guest that goes on.
#[derive(clap::Args)]
pub struct Options {
    /// Let a guest of `evenkeel run` go on, its first serial port on standard output: one capsule.
    #[arg(long)]
    pub(super) run: bool,
    /// Let it go on before its memory is there: what it wants is read and verified first, the rest meanwhile. Needs a userfaultfd that
    /// takes the kernel's faults, and the capsule as it is until all is there.
    #[arg(long, requires = "run", conflicts_with = "snapshot")]
    pub(super) lazy: bool,
    /// Facets of its contract that this host need not keep.
    #[arg(long, value_name = "FACET", requires = "run")]
    pub(super) waive: Vec<String>,
    /// Parts of its state that need not be kept: `vcpu.0/msr.10`, or the end of that.
    #[arg(long, value_name = "PART", requires = "run")]
    pub(super) accept: Vec<String>,
    #[command(flatten)]
    pub(super) running: Running,
}

impl Restore {
    /// A machine out of its capsule, to its end.
    pub(super) fn go_on(
        &self,
        path: &Path,
        here: Option<&Surface>,
        operator: Operator,
        mut told: Restored,
    ) -> Result<u8, Failure> {
        let (mut reader, guest) = open(path)?;
        let machine = Board::read(&guest.machine).map_err(|e| Failure::file(path, &e))?;
        let Some((board, records)) = machine else {
            let what = format!("{} holds a guest without a machine", path.display());
            return Err(Failure::bad(what, "without --run it is restored and asked what it sees"));
        };
        let captured = match here {
            Some(_) => None,
            None => Some(evenkeel_hosts::capture_here()?),
        };
        let surface =
            here.or(captured.as_ref()).ok_or_else(|| Failure::bad("no capture of this host", ""))?;
        let mut one = one_of(path, &guest);
        let mut image = guest.image.clone();
        if let Some(here) = here {
            let views = View::all(here, "here");
            let view = views.iter().find(|view| view.shape == image.manifest.shape());
            let to = view.map(|view| Destination { view, offer: &here.offer });
            match to.map_or(Ok(None), |to| translate(&image, &to).map(Some)) {
                Ok(None) => {}
                Ok(Some(done)) => {
                    one.translated = done.log.iter().map(rewritten).collect();
                    image = done.image;
                }
                Err(why) => {
                    let lines: Vec<String> = why.iter().map(lost).collect();
                    let message =
                        format!("this host cannot take the guest's state:\n  {}", lines.join("\n  "));
                    return Err(Failure { exit: 1, ..Failure::bad(message, "") });
                }
            }
        }
        let (ram, loading) = match self.machine.lazy {
            true => {
                let (ram, loading) = revive::lazily(&mut reader, &board, path, operator.userfaultfd())?;
                (ram, Some(loading))
            }
            false => (revive::memory(&mut reader, &board, path)?, None),
        };
        drop(reader);
        let claim = self.claim(path, &guest, &told.kernel)?;
        let found = Found { path, guest: &guest, image: &image, board, records, ram, loading };
        let how = Here {
            surface,
            waive: &self.machine.waive,
            accept: &self.machine.accept,
            running: &self.machine.running,
        };
        let mut ran = false;
        let ended = revive::revive(found, &how, one, &mut ran, operator, |one| {
            told.guests.push(one.clone());
            anstream::eprint!("{}", text(&told));
            match &self.output {
                Some(path) => output::write(path, serde_json::to_string(&told).unwrap_or_default() + "\n"),
                None => Ok(()),
            }
        });
        // It never ran: it may be restored elsewhere.
        if let (Some(claim), false) = (claim, ran) {
            claim.release().map_err(|e| Failure::file(path, &e))?;
        }
        ended
    }
}
