//! `evenkeel arrive`: the process that a guest comes to. Whoever moves the guest starts it, with one end of a [`Channel`] as its
//! standard input.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use evenkeel_contract::View;
use evenkeel_monitor::board::{Board, MEMORY_BEGINS};
use evenkeel_state::translate::{Destination, translate};
use evenkeel_state::{Guest, Image, Noting};
use evenkeel_surface::Surface;
use evenkeel_sys::{Live, Ram, Slot, System};

use super::bundle;
use super::channel::{Ask, Channel, Told};
use super::formats::OURS;
use crate::Global;
use crate::commands::guest::engine::{self, Again};
use crate::commands::guest::save::Luggage;
use crate::commands::guest::{Console, Running, contract, drive, failed, revive};
use crate::commands::restore::{lost, not_kept};
use crate::failure::Failure;
use crate::output;

/// Waits for a guest and runs it. Started by `evenkeel receive` and `evenkeel update`, not by people.
#[derive(clap::Args)]
pub struct Arrive {
    /// Facets of its contract that this host need not keep.
    #[arg(long, value_name = "FACET")]
    waive: Vec<String>,
    /// Parts of its state that need not be kept: `vcpu.0/msr.10`, or the end of that.
    #[arg(long, value_name = "PART")]
    accept: Vec<String>,
    /// Say which formats are spoken with who moves a guest, and do nothing else.
    #[arg(long)]
    formats: bool,
    #[command(flatten)]
    running: Running,
}

/// A mover that is gone before it gave the guest away: nothing is here.
fn left() -> Failure {
    Failure { exit: 1, ..Failure::bad("no guest came", "the process that moves it says why") }
}

/// What the mover asks next: what goes wrong with it is told to the mover, too.
struct Waiting(Channel);

impl Waiting {
    fn hear(&self) -> Result<(Ask, Option<File>), Failure> {
        let heard = self.0.hear::<Ask>().map_err(|e| failed(&e))?;
        heard.map(|(ask, fd)| (ask, fd.map(File::from))).ok_or_else(left)
    }

    fn say(&self, told: &Told, fd: Option<std::os::fd::BorrowedFd<'_>>) -> Result<(), Failure> {
        self.0.say(told, fd).map_err(|_| left())
    }

    /// Hands on what was done, or says why it was not.
    fn tell<T>(&self, done: Result<T, Failure>) -> Result<T, Failure> {
        if let Err(failure) = &done {
            // A mover that is gone does not need to know.
            let _ = self.0.say(&Told::Failed(failure.message.clone()), None);
        }
        done
    }
}

impl Arrive {
    /// Waits for a guest and runs it to its end.
    pub fn run(self, _global: Global) -> Result<u8, Failure> {
        if self.formats {
            let text = serde_json::to_string(&OURS).map_err(|e| failed(&e))?;
            output::print(&(text + "\n"))?;
            return Ok(0);
        }
        let end: io::Result<OwnedFd> = io::stdin().as_fd().try_clone_to_owned();
        let mover = Waiting(Channel::of(end.map_err(|e| failed(&e))?));
        let mut operator = mover.tell(self.running.operator())?;
        // It takes a while, and needs no guest.
        let surface = mover.tell(evenkeel_hosts::capture_here().map_err(Failure::from))?;
        let live = Live::new();
        let noting = Noting::new(&live);
        let system = mover.tell(System::open(&noting).map_err(|e| failed(&e)))?;

        let mut handed = None;
        let offered = loop {
            match mover.hear()? {
                (Ask::Memory(bytes), Some(file)) => {
                    handed = Some(mover.tell(memory(file, bytes))?);
                    mover.say(&Told::Done, None)?;
                }
                (Ask::Accept, Some(file)) => break file,
                (other, _) => {
                    return mover.tell(Err(failed(&format!("{other:?} before a guest was offered"))));
                }
            }
        };
        let Taken { guest, board, ram, made, luggage } =
            mover.tell(self.take(offered, handed, &surface, &system))?;
        mover.say(&Told::Memory(ram.len() as u64), Some(ram.fd()))?;

        let (state, mut file) = match mover.hear()? {
            (Ask::Restore, Some(mut file)) => (bundle::bytes(&mut file).map_err(|e| failed(&e)), file),
            (other, _) => return mover.tell(Err(failed(&format!("{other:?} before any state")))),
        };
        let _ = &mut file;
        let restored = mover.tell(state.and_then(|bytes| self.image(&bytes, &guest, &surface)))?;
        let (saved, image) = restored;
        let (made, report) = mover.tell(made.set(&system, &image).map_err(|e| failed(&e)))?;
        let lost: Vec<String> = report
            .not_kept
            .iter()
            .map(|part| not_kept(part, &image))
            .filter(|change| !self.accept.iter().any(|accepted| change.what.ends_with(accepted.as_str())))
            .map(|change| format!("{} ({}): {} → {}", change.what, change.how, change.before, change.after))
            .collect();
        if !lost.is_empty() {
            let message = format!("this host does not keep the guest's state:\n  {}", lost.join("\n  "));
            return mover.tell(Err(Failure { exit: 1, ..Failure::bad(message, "") }));
        }
        let (_, records) =
            mover.tell(Board::read(&saved.machine).map_err(|e| failed(&e)))?.ok_or_else(left)?;
        let devices = mover.tell(revive::devices(&board, &records, &self.running))?;
        let (console, heard) = Console::new(self.running.snapshot_at.as_deref());
        let machine = mover.tell(engine::machine(&system, made, ram, &board, &image))?;
        let machine = engine::board(&machine, &board, &records, devices, console).map_err(|e| failed(&e));
        let machine = mover.tell(machine)?;
        mover.say(&Told::Done, None)?;

        match mover.hear()? {
            (Ask::Run(epoch), _) => operator.epoch = epoch,
            (other, _) => return mover.tell(Err(failed(&format!("{other:?} where it is to run")))),
        }
        mover.say(&Told::Done, None)?;
        drop(mover);
        drive(&machine, &noting, &luggage, &self.running, &heard, operator, None)
    }

    /// Makes the machine that is offered, if this host keeps what it was promised.
    fn take<'b>(
        &self,
        mut offered: File,
        handed: Option<Arc<Ram>>,
        surface: &Surface,
        system: &System<'b>,
    ) -> Result<Taken<'b>, Failure> {
        let bytes = bundle::bytes(&mut offered).map_err(|e| failed(&e))?;
        let guest = bundle::guest(&bytes).map_err(|e| failed(&e))?;
        let board = Board::read(&guest.machine).map_err(|e| failed(&e))?;
        let (board, _) = board.ok_or_else(|| failed(&"a guest without a machine is offered"))?;
        let promised = guest.contract.as_deref().ok_or_else(|| failed(&"the guest has no contract"))?;
        let promised = contract::carried(promised, Path::new("the offer"))?;
        contract::try_out(&promised, surface, board.vcpus, &self.waive)?;

        let length = usize::try_from(board.memory).map_err(|e| failed(&e))?;
        let ram = match handed {
            Some(ram) if ram.len() == length => ram,
            Some(ram) => {
                return Err(failed(&format!(
                    "{} bytes of memory are handed over, {length} offered",
                    ram.len()
                )));
            }
            None => Arc::new(Ram::new(length).map_err(|e| failed(&format!("memory for the guest: {e:?}")))?),
        };
        let slot = Slot { number: 0, flags: 0, guest: MEMORY_BEGINS, offset: 0, length: ram.len() as u64 };
        let made = Again::make(system, &guest.image.manifest, slot, &ram).map_err(|e| failed(&e))?;
        let before = guest.provenance.as_ref().map_or(&[][..], |p| &p.exposure);
        let luggage = Luggage::new(promised, before, surface);
        Ok(Taken { guest, board, ram, made, luggage })
    }

    /// The state that came, as it is to be set here.
    fn image(&self, bytes: &[u8], offered: &Guest, surface: &Surface) -> Result<(Guest, Image), Failure> {
        let saved = bundle::guest(bytes).map_err(|e| failed(&e))?;
        if saved.image.manifest != offered.image.manifest || saved.contract != offered.contract {
            return Err(failed(&"the state that came is of another guest than the one that was offered"));
        }
        let views = View::all(surface, "here");
        let view = views.iter().find(|view| view.shape == saved.image.manifest.shape());
        let image = match view
            .map(|view| translate(&saved.image, &Destination { view, offer: &surface.offer }))
        {
            None => saved.image.clone(),
            Some(Ok(done)) => done.image,
            Some(Err(why)) => {
                let lines: Vec<String> = why.iter().map(lost).collect();
                let message = format!("this host cannot take the guest's state:\n  {}", lines.join("\n  "));
                return Err(Failure { exit: 1, ..Failure::bad(message, "") });
            }
        };
        Ok((saved, image))
    }
}

/// A machine that was accepted; what it is at is not set yet.
struct Taken<'b> {
    guest: Guest,
    board: Board,
    ram: Arc<Ram>,
    made: Again<'b>,
    luggage: Luggage,
}

fn memory(file: File, bytes: u64) -> Result<Arc<Ram>, Failure> {
    let length = usize::try_from(bytes).map_err(|e| failed(&e))?;
    let held = file.metadata().map_err(|e| failed(&e))?.len();
    if held != bytes {
        return Err(failed(&format!("{bytes} bytes of memory are handed over in a file of {held}")));
    }
    Ram::of(file.into(), length).map(Arc::new).map_err(|e| failed(&format!("memory: {e:?}")))
}
