//! A machine that runs confined, and is operated through its control socket.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::Duration;

use evenkeel_memory::{Guard, Lazy, Loading};
use evenkeel_monitor::board::Runs;
use evenkeel_monitor::confine::preflight::{Missing, Need, Passed};
use evenkeel_monitor::confine::{Audited, Confinement, Mode, Thread};
use evenkeel_monitor::control::metrics::Device;
use evenkeel_monitor::control::protocol::{Leave, Phase, Saved, Vcpus};
use evenkeel_monitor::control::{About, Operated, Targets, listen, serve};
use evenkeel_monitor::{End, Error, Phase as Life};
use evenkeel_sys::{Live, Uffd};

use super::guest::live::{Keeping, Saver};
use crate::failure::Failure;

/// How long listeners are given to hear of the end.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Who may do what with a machine, and what it may do.
#[derive(clap::Args)]
pub struct Operating {
    /// Serve this control socket: for `evenkeel pause`, `status` and so on, and programs (docs/control.md).
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// What the process may still do once the guest runs: `enforce` ends it for a system call that it does not need, `audit`
    /// counts the calls and prints the counts as JSON at the end on standard error, `off` takes nothing away.
    /// `enforce` if not given.
    #[arg(long, value_name = "HOW", value_parser = ["enforce", "audit", "off"])]
    confine: Option<String>,
    /// An open descriptor in place of what this user may not open: `kvm`, `control` (a socket that listens), `userfaultfd` (an open
    /// /dev/userfaultfd, for snapshots that do not stop the guest, and `--lazy`). May be given several times.
    #[arg(long, value_name = "NAME=FD")]
    pass: Vec<String>,
}

/// What was opened for it.
pub struct Operator {
    mode: Mode,
    listener: Option<UnixListener>,
    /// For copy before write, where there is a socket to ask for a snapshot; or why there is none.
    uffd: Option<Result<Uffd, String>>,
    /// An open `/dev/userfaultfd` that was passed.
    device: Option<OwnedFd>,
    /// How often its guest moved, and once more.
    pub epoch: u64,
}

/// Does a step of a guest that moves away.
pub type Leaves<'s> = dyn Fn(&Leave, Option<&mut File>) -> Result<(u64, Option<OwnedFd>), Error> + Sync + 's;

impl From<Missing> for Failure {
    fn from(missing: Missing) -> Failure {
        Failure { exit: 3, ..Failure::bad(missing.to_string(), missing.remedy) }
    }
}

fn failed(e: &dyn std::fmt::Display) -> Failure {
    Failure { exit: 3, ..Failure::bad(e.to_string(), "") }
}

impl Operating {
    /// Takes what was passed and opens the socket. Comes first: before anything else is opened, and before there are threads.
    ///
    /// # Errors
    /// `saves_to_path`: a file is to be opened while the guest runs. What was passed is not there, or what is needed cannot be opened.
    pub fn prepare(&self, saves_to_path: bool) -> Result<Operator, Failure> {
        let mode = match self.confine.as_deref() {
            Some("off") => Mode::Off,
            // It is written where the guest says, and a confined process opens nothing by then.
            None if saves_to_path => {
                anstream::eprintln!("not confined: --snapshot opens its file while the guest runs");
                Mode::Off
            }
            Some("audit") => Mode::Audit,
            _ => Mode::Enforce,
        };
        if saves_to_path && (mode != Mode::Off || self.control.is_some()) {
            let hint = "`evenkeel snapshot --control SOCKET -o FILE` saves a machine that is confined";
            return Err(Failure::bad(
                "--snapshot opens its file while the guest runs: it goes with --confine off, and without --control",
                hint,
            ));
        }
        let mut passed = Passed::take(self.pass.iter().map(String::as_str)).map_err(|e| {
            Failure::bad(format!("--pass: {e}"), "the descriptor must be open in whoever starts this")
        })?;
        if let Some(kvm) = passed.get("kvm") {
            Live::stand_in(Need::Kvm.path(), kvm);
        } else {
            let tried = File::options().read(true).write(true).open(Need::Kvm.path());
            tried.map_err(|e| Need::Kvm.missing(e))?;
        }
        let listener = match (&self.control, passed.get("control")) {
            (Some(_), Some(_)) => {
                return Err(Failure::bad(
                    "--control and --pass control=FD are two sockets",
                    "one of them is enough",
                ));
            }
            (None, None) => None,
            (None, Some(fd)) => Some(UnixListener::from(fd)),
            (Some(path), None) => Some(listen(path).map_err(|e| Failure::file(path, &e))?),
        };
        let device = passed.get("userfaultfd");
        let uffd = listener.is_some().then(|| {
            let tried = Guard::descriptor(device.as_ref().map(AsFd::as_fd));
            tried.map_err(|e| Need::Userfaultfd.missing(e))
        });
        let uffd = match uffd {
            // Whoever passed it relies on it.
            Some(Err(missing)) if device.is_some() => return Err(missing.into()),
            Some(Err(missing)) => {
                anstream::eprintln!("{missing}; {}", missing.remedy);
                Some(Err(missing.to_string()))
            }
            Some(Ok(uffd)) => Some(Ok(uffd)),
            None => None,
        };
        let left = passed.left();
        if !left.is_empty() {
            let hint = "names are `kvm`, `control` and `userfaultfd`";
            return Err(Failure::bad(format!("--pass: nothing here takes {}", left.join(", ")), hint));
        }
        Ok(Operator { mode, listener, uffd, device, epoch: 1 })
    }
}

struct Machine<'r, R> {
    pc: &'r R,
    saver: &'r Saver<'r, R>,
    leave: &'r Leaves<'r>,
}

impl<R: Runs> Operated for Machine<'_, R> {
    fn phase(&self) -> (Phase, Option<String>) {
        match self.pc.life().phase() {
            Life::Ready => (Phase::Ready, None),
            Life::Running => (Phase::Running, None),
            Life::Paused => (Phase::Paused, None),
            Life::Ended(End::Reset) => (Phase::Ended, Some("the guest asked for a reset".to_owned())),
            Life::Ended(End::Off) => (Phase::Ended, Some("the guest switched itself off".to_owned())),
            Life::Ended(End::TimeOver) => (Phase::Ended, Some("the time was over".to_owned())),
            Life::Ended(End::Stopped) => (Phase::Ended, Some("stopped".to_owned())),
            Life::Ended(End::Failed(why)) => (Phase::Ended, Some(why)),
        }
    }

    fn pause(&self) -> Result<Duration, Error> {
        self.pc.life().pause()
    }

    fn resume(&self) -> Result<(), Error> {
        // They may have been given away, for a guest that was to move.
        self.pc.claim()?;
        self.pc.life().resume()
    }

    fn stop(&self) {
        self.pc.life().stop();
    }

    fn vcpus(&self) -> Option<Vcpus> {
        self.pc.plug().map(|plug| Vcpus { vcpus: plug.plugged(), most: plug.most() })
    }

    fn plug(&self, vcpus: u32) -> Result<Vcpus, Error> {
        let none = || Error::Device("this machine has all the vCPUs that it can have".to_owned());
        let plug = self.pc.plug().ok_or_else(none)?;
        plug.plug(vcpus)?;
        Ok(Vcpus { vcpus: plug.plugged(), most: plug.most() })
    }

    fn devices(&self) -> Vec<Device> {
        self.pc.device_counts()
    }

    fn save(&self, to: &mut Targets, progress: &dyn Fn(u64, u64)) -> Result<Saved, Error> {
        self.saver.save(to, progress)
    }

    fn leave(&self, step: &Leave, to: Option<&mut File>) -> Result<(u64, Option<OwnedFd>), Error> {
        if matches!(step, Leave::Offer | Leave::Memory) {
            // Who moves it reads its memory in its file.
            self.saver.whole()?;
        }
        (self.leave)(step, to)
    }
}

impl Operator {
    /// An open `/dev/userfaultfd` that was passed.
    pub fn userfaultfd(&self) -> Option<BorrowedFd<'_>> {
        self.device.as_ref().map(AsFd::as_fd)
    }

    /// Runs a machine to its end, confined and operated. Everything that it needs is open.
    ///
    /// # Errors
    /// The process cannot be confined.
    pub fn run<R: Runs>(
        self,
        pc: &R,
        limit: Option<Duration>,
        keeping: Keeping<'_>,
        loading: Option<Loading>,
        leave: &Leaves<'_>,
    ) -> Result<End, Failure> {
        // A snapshot or a disk that grows too long fails, and the guest goes on.
        evenkeel_sys::outlive_file_limit();
        let confinement = Confinement::begin(self.mode).map_err(|e| {
            let hint = "--confine off runs it unconfined";
            Failure { exit: 3, ..Failure::bad(format!("the process cannot be confined: {e}"), hint) }
        })?;
        if self.mode != Mode::Off {
            anstream::eprintln!("confined: {}", confinement.report().line());
        }
        pc.confine(confinement.clone());
        let board = pc.board();
        let (vcpus, memory_bytes) = (board.vcpus, board.memory);
        let about =
            About { vcpus, memory_bytes, epoch: self.epoch, confinement: confinement.report().clone() };
        // It is kept while the guest runs: without it, what is missing is zero.
        let loading = loading.map(|loading| load(pc, loading, &confinement)).transpose()?;
        let filling = loading.as_ref().map(Lazy::watch);
        let uffd = self.uffd.unwrap_or_else(|| Err("there is no control socket".to_owned()));
        let saver = Saver::new(pc, keeping, uffd, filling, &confinement).map_err(|e| failed(&e))?;
        let machine = Machine { pc, saver: &saver, leave };
        let served = self.listener.map(|listener| serve(listener, about, pc.metrics().clone())).transpose();
        let served = served.map_err(|e| failed(&e))?;
        let end = std::thread::scope(|scope| {
            let mut ending = None;
            if let Some((server, worker, end)) = served {
                let (entered, all) = channel();
                let (also, confined, machine) = (entered.clone(), confinement.clone(), &machine);
                scope.spawn(move || {
                    if also.send(confined.enter(Thread::Control)).is_ok() {
                        drop(also);
                        server.run(machine);
                    }
                });
                let confined = confinement.clone();
                scope.spawn(move || {
                    if entered.send(confined.enter(Thread::Snapshot)).is_ok() {
                        drop(entered);
                        worker.run(machine);
                    }
                });
                ending = Some(end);
                // Until both have said how it went.
                if let Some(Err(error)) = all.iter().find(Result::is_err) {
                    pc.life().stop();
                    if let Some(ending) = ending {
                        ending.end(Duration::ZERO);
                    }
                    return Err(failed(&error));
                }
            }
            let end = pc.run(limit);
            // Nobody waits for the rest of its memory any more, and who wants all of it hears that it will not be there.
            drop(loading);
            if let Some(ending) = ending {
                ending.end(LAST_WORDS);
            }
            Ok(end)
        })?;
        drop(saver);
        if self.mode == Mode::Audit {
            // Threads are joined a moment before they make their last calls.
            std::thread::park_timeout(Duration::from_millis(200));
        }
        if let Some(audited) = confinement.audited() {
            tell(&audited)?;
        }
        Ok(end)
    }
}

/// Begins to fill a machine's memory, by threads that are confined. One that is damaged ends the machine.
fn load(pc: &impl Runs, loading: Loading, confinement: &Confinement) -> Result<Lazy, Failure> {
    let (damaged, unconfined) = (pc.life().clone(), pc.life().clone());
    let alarm = move |e: &evenkeel_memory::Error| damaged.fail(format!("memory: {e}"));
    let confinement = confinement.clone();
    let enter = move || {
        if let Err(error) = confinement.enter(Thread::Memory) {
            unconfined.fail(format!("a thread cannot be confined: {error}"));
        }
    };
    loading.start(alarm, enter).map_err(|e| failed(&e))
}

fn tell(audited: &Audited) -> Result<(), Failure> {
    let text = serde_json::to_string(audited).map_err(|e| failed(&e))?;
    anstream::eprintln!("{text}");
    Ok(())
}
