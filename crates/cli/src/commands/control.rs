//! `evenkeel status`, `pause`, `resume`, `stop`, `metrics`, and the other half of `snapshot --control`.

use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use evenkeel_monitor::control::client::ClientError;
use evenkeel_monitor::control::protocol::{
    Answer, Code, DiskHow, Event, Happened, Method, Plug, Reply, Saved, Snapshot, Status, Vcpus,
};
use evenkeel_monitor::control::{Client, Command};
use indicatif::{ProgressBar, ProgressStyle};

use crate::failure::Failure;
use crate::{Format, Global, output};

/// Asks a machine that runs, through its control socket.
#[derive(clap::Args)]
pub struct Ask {
    /// The socket: what `evenkeel run --control` was given.
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
    /// Wait for at most this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
}

impl Ask {
    /// Asks, and tells the answer.
    pub fn run(self, command: Command, global: Global) -> Result<u8, Failure> {
        let mut client = connect(&self.socket)?;
        let limit = Duration::from_secs(self.wait.max(1));
        client.set_limit(Some(limit)).map_err(|e| failed(&self.socket, &e))?;
        let answer = client.ask(command, &[], &mut |_| {}).map_err(|e| failed(&self.socket, &e))?;
        tell(answer, global)
    }
}

/// Gives the guest of a machine that runs more vCPUs.
#[derive(clap::Args)]
pub struct PlugIn {
    #[command(flatten)]
    ask: Ask,
    /// How many it is to have in all: at most what `evenkeel run --most-vcpus` was given.
    #[arg(value_name = "VCPUS")]
    vcpus: u32,
}

impl PlugIn {
    /// Asks for it, and tells the answer.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        self.ask.run(Command::Plug(Plug { vcpus: self.vcpus }), global)
    }
}

/// Saves a machine that runs into a file, which is whole or not there.
pub fn snapshot(
    socket: &Path,
    to: &Path,
    what: Snapshot,
    copies: &[PathBuf],
    global: Global,
) -> Result<u8, Failure> {
    let mut client = connect(socket)?;
    // Progress is told by events. Where it is not wanted nobody has to read them.
    let bar = (global.format == Format::Text && std::io::stderr().is_terminal()).then(bar);
    if bar.is_some() {
        client.ask(Command::Subscribe, &[], &mut |_| {}).map_err(|e| failed(socket, &e))?;
    }
    let mut answer = None;
    let mut files = vec![to.to_path_buf()];
    files.extend_from_slice(copies);
    let written = all_or_none(&files, &mut Vec::new(), &mut |files| {
        let mut happened = |event: Event| {
            if let (Some(bar), Happened::Progress(work)) = (&bar, event.event) {
                bar.set_length(work.of);
                bar.set_position(work.done);
            }
        };
        let fds: Vec<BorrowedFd<'_>> = files.iter().map(File::as_fd).collect();
        let asked = client.ask(Command::Snapshot(what.clone()), &fds, &mut happened);
        let done = match &asked {
            Ok(_) => Ok(()),
            Err(e) => Err(std::io::Error::other(e.to_string())),
        };
        answer = Some(asked);
        done
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    match (written, answer) {
        (Ok(()), Some(Ok(answer))) => tell(answer, global),
        (_, Some(Err(e))) => Err(failed(socket, &e)),
        (Err(e), _) => Err(Failure::file(to, &e)),
        (Ok(()), None) => Err(Failure::file(to, &"nothing was written")),
    }
}

/// New files under these names, the first one last: what it speaks of is there when it is.
fn all_or_none(
    paths: &[PathBuf],
    open: &mut Vec<File>,
    fill: &mut dyn FnMut(&[File]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    match paths.get(open.len()) {
        None => fill(open),
        Some(path) => evenkeel_files::replace(path, |file| {
            open.push(file.try_clone()?);
            all_or_none(paths, open, fill)
        }),
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bytes:>10} of {total_bytes} {bar:30} {bytes_per_sec} {eta}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn connect(socket: &Path) -> Result<Client, Failure> {
    Client::connect(socket).map_err(|e| failed(socket, &e))
}

pub fn failed(socket: &Path, error: &ClientError) -> Failure {
    let hint = match error {
        ClientError::Refused(refused) => refused.hint.clone(),
        ClientError::Io(e) => match e.kind() {
            std::io::ErrorKind::NotFound => {
                "the machine is started with `evenkeel run --control SOCKET`".to_owned()
            }
            std::io::ErrorKind::ConnectionRefused => {
                "its machine is over, and the file was left behind".to_owned()
            }
            std::io::ErrorKind::PermissionDenied => {
                "it belongs to the user who started the machine".to_owned()
            }
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
                "there was no answer in time; --wait waits for longer".to_owned()
            }
            _ => String::new(),
        },
        ClientError::Gone => "its process has ended".to_owned(),
        ClientError::Nonsense(_) => String::new(),
    };
    let bad_use = matches!(error, ClientError::Refused(refused) if refused.code == Code::Malformed);
    let exit = if bad_use { 2 } else { 3 };
    Failure { exit, ..Failure::bad(format!("{}: {error}", socket.display()), hint) }
}

fn tell(answer: Answer, global: Global) -> Result<u8, Failure> {
    if global.format == Format::Json {
        return output::json(&Reply { id: None, reply: answer }).map(|()| 0);
    }
    let text = match answer {
        Answer::Status(status) => words(&status),
        Answer::Paused(took) => format!("paused in {:.3} ms\n", took.seconds * 1e3),
        Answer::Resumed(_) => "resumed\n".to_owned(),
        Answer::Plugged(Vcpus { vcpus, most }) => {
            format!("{vcpus} vCPUs of {most}: the guest takes those online that are new to it\n")
        }
        Answer::Stopping(_) => "stopping\n".to_owned(),
        Answer::Subscribed(_) => String::new(),
        Answer::Metrics(metrics) => metrics.text,
        Answer::Saved(saved) => saved_words(&saved),
        Answer::Left(_) => String::new(),
        Answer::Error(refused) => {
            return Err(Failure { exit: 3, ..Failure::bad(refused.message, refused.hint) });
        }
    };
    output::print(&text).map(|()| 0)
}

fn saved_words(saved: &Saved) -> String {
    let how = match saved.method {
        Method::CopyBeforeWrite => "copy before write",
        Method::LivePreCopy => "live pre-copy",
        Method::StoodStill => "it stood still meanwhile",
    };
    let because = if saved.because.is_empty() { String::new() } else { format!(" ({})", saved.because) };
    let mut text = format!(
        "saved: {} bytes in {:.3} s; the guest stood still for {:.3} ms of it: {how}{because}\n",
        saved.bytes,
        saved.seconds,
        saved.paused_seconds * 1e3
    );
    for disk in &saved.disks {
        let how = match disk.how {
            DiskHow::Reflinked => "copied at that instant, sharing its blocks",
            DiskHow::Copied => "copied at that instant",
            DiskHow::Left => "not copied",
        };
        text += &format!("{}: {how}\n", disk.name);
    }
    text
}

fn words(status: &Status) -> String {
    let end = status.end.as_ref().map_or_else(String::new, |why| format!(": {why}"));
    let work = status.work.as_ref().map_or_else(String::new, |work| {
        format!("at work:     {} ({} of {} bytes)\n", work.name, work.done, work.of)
    });
    let most = status.most_vcpus.map_or_else(String::new, |most| format!(" of {most}"));
    format!(
        "phase:       {}{end}\nsince:       {:.1} s\nvCPUs:       {}{most}\nmemory:      {} MiB\n{work}confinement: {}\n\
         process:     {}, evenkeel {}\n",
        status.phase.name(),
        status.uptime_seconds,
        status.vcpus,
        status.memory_bytes >> 20,
        status.confinement.line(),
        status.pid,
        status.version,
    )
}
