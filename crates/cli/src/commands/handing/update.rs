//! `evenkeel update`: hands a machine that runs to a new process, of this or another version, on the same host.

use std::cell::RefCell;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::mpsc::{RecvTimeoutError, channel};

use evenkeel_handover::{DestinationAt as At, Epoch};
use evenkeel_migrate::{GuestError, Policy, Received, Stream, receive, send};

use super::arriving::Arrival;
use super::journal::{Announced, open};
use super::leaving::{Leaver, Machine};
use super::migrate::{Teller, Told, tell, token};
use super::receive::{code, own};
use crate::Global;
use crate::commands::control::failed;
use crate::failure::Failure;

/// Hands a machine that runs to a new process on this host. Its memory stays where it is.
#[derive(clap::Args)]
pub struct Update {
    /// The machine's control socket.
    #[arg(long, value_name = "SOCKET")]
    control: PathBuf,
    /// The program to go on in: another version of evenkeel, newer or older; this one if not named.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// The journals of both sides are FILE and FILE.new; beside the control socket if not named.
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Come back as soon as the guest runs in the new process, instead of staying until it ends.
    #[arg(long)]
    detach: bool,
    /// How the guest runs in the new process: the options of `evenkeel restore --run`, as --disk, --net, --control.
    #[arg(last = true, value_name = "OPTION")]
    options: Vec<String>,
}

impl Update {
    /// Hands it over.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        let words = |e: GuestError| Failure { exit: 3, ..Failure::bad(e.0, "") };
        let (journal, path) = open(self.journal.as_deref(), &self.control)?;
        let mut beside = path.into_os_string();
        beside.push(".new");
        let (mut journal_there, _) = open(Some(&PathBuf::from(beside)), &self.control)?;
        let machine = Machine::connect(&self.control).map_err(|e| failed(&self.control, &e))?;
        let machine = Rc::new(RefCell::new(machine));
        let (file, bytes) = machine.borrow_mut().memory().map_err(|e| failed(&self.control, &e))?;
        let epoch = machine.borrow_mut().status().map_err(|e| failed(&self.control, &e))?.epoch;
        let program = self.program.map_or_else(own, Ok)?;
        let mut arrival = Arrival::new(program, self.options).handed(file, bytes);
        // All that takes time is done while the guest runs.
        arrival.prepare().map_err(words)?;

        let policy = Policy::default();
        let (give, take) = channel::<UnixStream>();
        let (sent, received, mut arrival) = std::thread::scope(|scope| {
            let there = scope.spawn(move || {
                let mut accept = |wait| match take.recv_timeout(wait) {
                    Ok(stream) => Ok(Some(Box::new(stream) as Box<dyn Stream>)),
                    Err(RecvTimeoutError::Timeout) => Ok(None),
                    Err(RecvTimeoutError::Disconnected) => Err(std::io::Error::other("the move is over")),
                };
                let mut go_on = |at: At| !matches!(at, At::Runs(_));
                let received = receive(&mut arrival, &mut journal_there, &mut accept, policy, &mut go_on);
                (received, arrival)
            });
            let mut connect = || {
                let (own, other) = UnixStream::pair()?;
                give.send(other).map_err(|_| std::io::Error::other("the new process is gone"))?;
                Ok(Box::new(own) as Box<dyn Stream>)
            };
            let mut leaver = Leaver::handed(machine.clone());
            let mut announced = Announced { journal, machine };
            let mut teller = Teller::new(global);
            let attempt = token().map(|token| (token, Epoch(epoch)));
            let sent = attempt.map(|attempt| {
                send(&mut leaver, &mut announced, &mut connect, policy, attempt, &mut |p| teller.look(p))
            });
            drop(give);
            let (received, arrival) = there.join().unwrap_or_else(|_| {
                (
                    Received::Nothing(Some("its thread failed".to_owned())),
                    Arrival::new(PathBuf::new(), Vec::new()),
                )
            });
            (sent, received, arrival)
        });
        let to = if self.detach { Told::Out } else { Told::Aside };
        let code_of_move = tell(sent?, global, to)?;
        if let Received::Stranded(error) = received {
            return Err(words(error));
        }
        if self.detach {
            return Ok(code_of_move);
        }
        match arrival.wait() {
            Some(status) => code(status),
            None => Ok(code_of_move),
        }
    }
}
