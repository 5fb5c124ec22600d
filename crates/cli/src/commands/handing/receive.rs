//! `evenkeel receive`: waits for a guest that `evenkeel migrate` moves here, and stays until it ends.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use evenkeel_handover::DestinationAt as At;
use evenkeel_migrate::{Address, Listener, Policy, Received, receive};

use super::arriving::Arrival;
use super::journal::open;
use super::migrate::{Certificates, PATIENCE};
use crate::Global;
use crate::failure::Failure;

/// Waits for one guest that is moved here, and runs it in a process of its own.
#[derive(clap::Args)]
pub struct Receive {
    /// Where to listen: unix:PATH, tls:HOST:PORT, or device:PATH.
    #[arg(long, value_name = "ADDRESS")]
    from: Address,
    #[command(flatten)]
    certificates: Certificates,
    /// The journal of this side; `evenkeel.journal` beside a unix socket, or in the current directory, if not named.
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// A source that says nothing for so many seconds is lost.
    #[arg(long, value_name = "SECONDS", default_value_t = PATIENCE, value_parser = clap::value_parser!(u64).range(1..=3600))]
    patience: u64,
    /// Give up when no guest has come for so many seconds.
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
    /// How the guest runs here: the options of `evenkeel restore --run`, as --disk, --net, --control.
    #[arg(last = true, value_name = "OPTION")]
    options: Vec<String>,
}

/// This program.
pub fn own() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|e| Failure { exit: 3, ..Failure::bad(format!("this program: {e}"), "") })
}

/// How the process of a guest ended, as an exit code.
pub fn code(status: std::io::Result<ExitStatus>) -> Result<u8, Failure> {
    let status = status.map_err(|e| Failure { exit: 3, ..Failure::bad(e.to_string(), "") })?;
    match status.code() {
        Some(code) => Ok(u8::try_from(code).unwrap_or(3)),
        None => Err(Failure { exit: 3, ..Failure::bad(format!("the guest's process ended: {status}"), "") }),
    }
}

impl Receive {
    /// Waits, and stays until the guest ends.
    pub fn run(self, _global: Global) -> Result<u8, Failure> {
        let refused = |e: std::io::Error| Failure { exit: 3, ..Failure::bad(e.to_string(), "") };
        let policy = Policy { patience: Duration::from_secs(self.patience), ..Policy::default() };
        let beside = match &self.from {
            Address::Unix(path) => path.clone(),
            _ => PathBuf::from("evenkeel"),
        };
        let (mut journal, path) = open(self.journal.as_deref(), Path::new(&beside))?;
        let credentials = self.certificates.credentials();
        let listener = Listener::bind(&self.from, credentials.as_ref(), policy.patience).map_err(refused)?;
        let mut arrival = Arrival::new(own()?, self.options);
        // It is ready before anybody comes.
        arrival.prepare().map_err(|e| Failure { exit: 3, ..Failure::bad(e.0, "") })?;
        anstream::eprintln!("waiting on {}, journal {}", listener.address(), path.display());
        let begin = Instant::now();
        let limit = self.wait.map(Duration::from_secs);
        let mut accept = |wait: Duration| {
            let came = listener.accept(wait);
            for why in listener.refused() {
                anstream::eprintln!("refused: {why}");
            }
            came
        };
        let (lives, mut told) = (arrival.lives(), false);
        // On a device nobody comes twice, and somebody else may want it.
        let again = !matches!(self.from, Address::Device(_) | Address::Stdio);
        let mut go_on = |at: At| match at {
            At::Empty | At::Lost(_) => limit.is_none_or(|limit| begin.elapsed() < limit),
            // A source that did not hear of it can ask for as long as the guest runs.
            At::Runs(_) => {
                if !std::mem::replace(&mut told, true) {
                    anstream::eprintln!("it runs here");
                }
                again && lives.on()
            }
            _ => true,
        };
        let received = receive(&mut arrival, &mut journal, &mut accept, policy, &mut go_on);
        match received {
            Received::Runs(_) => {
                drop(listener);
                match arrival.wait() {
                    Some(status) => code(status),
                    None => Ok(0),
                }
            }
            Received::Nothing(why) => {
                let why = why.map_or_else(
                    || "no guest came".to_owned(),
                    |why| format!("no guest came to stay: {why}"),
                );
                Err(Failure { exit: 1, ..Failure::bad(why, "") })
            }
            Received::Stranded(error) => {
                let hint = "the right to run it is here, and its memory was: docs/handover.md";
                Err(Failure {
                    exit: 3,
                    ..Failure::bad(format!("the guest does not run here: {error}"), hint)
                })
            }
        }
    }
}
