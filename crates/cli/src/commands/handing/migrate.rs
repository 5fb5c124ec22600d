//! `evenkeel migrate`: moves a machine that runs to where `evenkeel receive` waits for it.

use std::cell::RefCell;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use evenkeel_handover::{Epoch, Token};
use evenkeel_migrate::{Address, Credentials, NotSent, Policy, Progress, Sent, Settled, Slow, send, settle};
use indicatif::{ProgressBar, ProgressStyle};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::journal::{Announced, open};
use super::leaving::{Leaver, Machine};
use crate::commands::control::failed;
use crate::failure::Failure;
use crate::{Format, Global, output};

/// How often progress is told where there is no terminal.
const TELL: Duration = Duration::from_millis(500);

/// How long a silent peer is waited for, in seconds, where nothing else is said.
pub const PATIENCE: u64 = 10;

/// Who is on the other side, and how it is known.
#[derive(clap::Args)]
pub struct Certificates {
    /// The certificate of the authority that signed the other side's (PEM): for `tls:`.
    #[arg(long, value_name = "FILE", requires = "certificate", requires = "key")]
    ca: Option<PathBuf>,
    /// This side's certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "ca")]
    certificate: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", requires = "ca")]
    key: Option<PathBuf>,
}

impl Certificates {
    /// All three, or none.
    pub fn credentials(&self) -> Option<Credentials> {
        let (ca, certificate, key) = (self.ca.clone()?, self.certificate.clone()?, self.key.clone()?);
        Some(Credentials { ca, certificate, key })
    }
}

/// Moves a machine that runs to another host or process. On any failure exactly one side can run it, and the message says which.
#[derive(clap::Args)]
pub struct Migrate {
    /// The machine's control socket.
    #[arg(long, value_name = "SOCKET")]
    control: PathBuf,
    /// Where `evenkeel receive` listens: unix:PATH, tls:HOST:PORT, or device:PATH.
    #[arg(long, value_name = "ADDRESS")]
    to: Address,
    #[command(flatten)]
    certificates: Certificates,
    /// The journal of this side; beside the control socket if not named.
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Do not move anything: find out what became of a move that was cut off after the right to run was given away, and let the guest
    /// go on where it belongs.
    #[arg(long)]
    settle: bool,
    /// The guest is paused when what is left takes at most so many milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 5)]
    downtime: u64,
    /// What to do with a guest that writes faster than the link carries.
    #[arg(long, default_value = "pause", value_parser = ["pause", "stop"])]
    slow: String,
    /// A destination that says nothing for so many seconds is lost, also one that restores the guest.
    #[arg(long, value_name = "SECONDS", default_value_t = PATIENCE, value_parser = clap::value_parser!(u64).range(1..=3600))]
    patience: u64,
    /// How many streams carry memory.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    streams: u8,
    /// Compress memory on the way.
    #[arg(long)]
    compress: bool,
    /// What is verified beyond every frame: `memory` hashes all of it on both sides in the pause.
    #[arg(long, value_name = "WHAT", value_parser = ["memory"])]
    verify: Option<String>,
}

/// What `migrate` and `update` print.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Moved {
    /// `evenkeel.moved/1`.
    pub schema: &'static str,
    /// Where the guest runs now: `there`, `here`; `nobody-knows` until it is settled; `stands`: here, and cannot go on.
    pub runs: &'static str,
    /// Why it did not move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// How it moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent: Option<Figures>,
}

/// How a guest moved.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Figures {
    /// From the beginning of the pause until the destination said that it runs, in microseconds.
    pub paused_us: u64,
    /// All of it, in microseconds.
    pub took_us: u64,
    /// Rounds of memory, the one in the pause among them.
    pub rounds: u32,
    /// Bytes on the wire.
    pub bytes: u64,
    /// How much of the pause all memory was hashed and compared for, in microseconds, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified_us: Option<u64>,
}

impl From<Sent> for Figures {
    fn from(sent: Sent) -> Figures {
        let us = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        Figures {
            paused_us: us(sent.paused),
            took_us: us(sent.took),
            rounds: sent.rounds,
            bytes: sent.bytes,
            verified_us: sent.verified.map(us),
        }
    }
}

/// A token that was never used.
pub fn token() -> Result<Token, Failure> {
    let id = crate::commands::snapshot::random()?;
    Ok(Token(id.0))
}

/// Tells how far a move is; false once somebody asked for its end.
pub struct Teller {
    bar: Option<ProgressBar>,
    lines: bool,
    told: Option<Instant>,
    cancelled: Arc<AtomicBool>,
}

impl Teller {
    /// A bar on a terminal, JSON lines on standard error with `--format json`, nothing otherwise.
    pub fn new(global: Global) -> Teller {
        let terminal = std::io::stderr().is_terminal();
        let style =
            ProgressStyle::with_template("{msg} {bytes:>10} of {total_bytes} {bar:30} {bytes_per_sec}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = (terminal && global.format == Format::Text).then(|| ProgressBar::new(0).with_style(style));
        Teller { bar, lines: global.format == Format::Json, told: None, cancelled: Arc::default() }
    }

    /// Sees how far it is.
    pub fn look(&mut self, progress: &Progress) -> bool {
        if let Some(bar) = &self.bar {
            bar.set_length(progress.bytes);
            bar.set_position(progress.done);
            bar.set_message(format!(
                "round {}, pause {:.1} ms",
                progress.round,
                progress.downtime.as_secs_f64() * 1e3
            ));
        } else if self.lines && self.told.is_none_or(|at| at.elapsed() >= TELL) {
            self.told = Some(Instant::now());
            if let Ok(line) = serde_json::to_string(progress) {
                anstream::eprintln!("{line}");
            }
        }
        !self.cancelled.load(Ordering::Relaxed)
    }
}

/// Where it is told how a move ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// On standard output.
    Out,
    /// On standard error: standard output is the guest's from now on.
    Aside,
}

impl Told {
    fn print(self, text: &str) -> Result<(), Failure> {
        match self {
            Told::Out => output::print(text),
            Told::Aside => {
                anstream::eprint!("{text}");
                Ok(())
            }
        }
    }
}

/// Tells how it ended.
pub fn tell(outcome: Result<Sent, NotSent>, global: Global, to: Told) -> Result<u8, Failure> {
    let (runs, why, exit) = match &outcome {
        Ok(_) => ("there", None, 0),
        Err(NotSent::Abandoned { .. }) => ("there", outcome.as_ref().err(), 1),
        Err(NotSent::Refused(_) | NotSent::Failed(_)) => ("here", outcome.as_ref().err(), 1),
        Err(NotSent::Stands(_)) => ("stands", outcome.as_ref().err(), 3),
        Err(NotSent::Undecided { .. }) => ("nobody-knows", outcome.as_ref().err(), 3),
    };
    let why = why.map(ToString::to_string);
    if global.format == Format::Json {
        let sent = outcome.ok().map(Figures::from);
        let moved = Moved { schema: "evenkeel.moved/1", runs, why, sent };
        match (to, serde_json::to_string(&moved)) {
            (Told::Aside, Ok(line)) => to.print(&(line + "\n"))?,
            _ => output::json(&moved)?,
        }
        return Ok(exit);
    }
    match (outcome, why) {
        (Ok(sent), _) => {
            let ms = |d: Duration| d.as_secs_f64() * 1e3;
            let verified = sent.verified.map_or_else(String::new, |took| {
                format!(" (all memory was compared for {:.2} ms of that)", ms(took))
            });
            to.print(&format!(
                "moved: paused for {:.2} ms{verified}, {} bytes in {} rounds, {:.2} s in all\n",
                ms(sent.paused),
                sent.bytes,
                sent.rounds,
                sent.took.as_secs_f64()
            ))?;
            Ok(0)
        }
        (Err(_), why) => {
            let hint = match runs {
                "nobody-knows" => {
                    "`evenkeel migrate --settle` with the same --control, --to and --journal asks the destination; docs/handover.md"
                }
                "stands" => "its process says more; docs/handover.md",
                _ => "",
            };
            Err(Failure { exit, ..Failure::bad(why.unwrap_or_default(), hint) })
        }
    }
}

impl Migrate {
    /// Moves it.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        let credentials = self.certificates.credentials();
        let policy = Policy {
            downtime: Duration::from_millis(self.downtime),
            slow: if self.slow == "stop" { Slow::Stop } else { Slow::Pause },
            streams: self.streams,
            compress: self.compress,
            verify: self.verify.is_some(),
            patience: Duration::from_secs(self.patience),
            ..Policy::default()
        };
        let mut connect = || self.to.connect(credentials.as_ref(), policy.patience);
        let (mut journal, path) = open(self.journal.as_deref(), &self.control)?;
        if self.settle {
            return self.settled(settle(&mut journal, &mut connect, policy), &journal, &path, global);
        }
        let machine = Machine::connect(&self.control).map_err(|e| failed(&self.control, &e))?;
        let machine = Rc::new(RefCell::new(machine));
        let words = |e: evenkeel_migrate::GuestError| Failure { exit: 3, ..Failure::bad(e.0, "") };
        let mut leaver = Leaver::copied(machine.clone()).map_err(words)?;
        let epoch = machine.borrow_mut().status().map_err(|e| failed(&self.control, &e))?.epoch;
        let mut announced = Announced { journal, machine };
        let mut teller = Teller::new(global);
        let attempt = (token()?, Epoch(epoch));
        let sent = send(&mut leaver, &mut announced, &mut connect, policy, attempt, &mut |p| teller.look(p));
        if let Some(bar) = &teller.bar {
            bar.finish_and_clear();
        }
        tell(sent, global, Told::Out)
    }

    /// What became of a move that was cut off.
    fn settled(
        &self,
        settled: Settled,
        journal: &evenkeel_migrate::JournalFile,
        path: &Path,
        global: Global,
    ) -> Result<u8, Failure> {
        let machine = || Machine::connect(&self.control).map_err(|e| failed(&self.control, &e));
        let given = given(journal);
        match settled {
            Settled::Runs => {
                // Where it is still there, it stands: it ends, because it runs there.
                if let (Ok(mut machine), Some(token)) = (machine(), given) {
                    machine.given = Some(token);
                    let _ = machine.gone();
                }
                output::print("it runs on the destination\n")?;
                Ok(0)
            }
            Settled::NeverRan => {
                let mut machine = machine()?;
                machine.given = given;
                machine.back().map_err(|e| failed(&self.control, &e))?;
                output::print("it never ran on the destination, and goes on here\n")?;
                Ok(0)
            }
            Settled::Lost => {
                let mut machine = machine()?;
                let leaving = machine.status().map_err(|e| failed(&self.control, &e))?.leaving;
                if leaving.is_none() {
                    output::print("nothing is to be settled: the guest is here\n")?;
                    return Ok(0);
                }
                // It was announced, and not written down: the right never left.
                machine.given = leaving.and_then(|l| l.token).and_then(|token| token.parse().ok());
                machine.back().map_err(|e| failed(&self.control, &e))?;
                output::print("the right to run never left: it goes on here\n")?;
                Ok(0)
            }
            Settled::Undecided(undecided) => tell(Err(undecided), global, Told::Out).map_err(|failure| {
                Failure { message: format!("{}: {}", path.display(), failure.message), ..failure }
            }),
        }
    }
}

/// The token of the last attempt in which the right to run was given away.
fn given(journal: &evenkeel_migrate::JournalFile) -> Option<Token> {
    use evenkeel_handover::Record;
    use evenkeel_migrate::Journaling as _;
    journal.records().records.iter().rev().find_map(|record| match record {
        Record::Committed(token, _) => Some(*token),
        _ => None,
    })
}
