//! What is said on the control socket: a JSON object a line, in both directions. See docs/control.md.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::confine::Report;

/// The version of what is said here. It grows when something is taken away or comes to mean something else.
pub const PROTOCOL: u32 = 1;
/// The longest line of a client, in bytes with its end.
pub const LONGEST: usize = 4096;

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Comes back in the reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// What is to be done.
    #[serde(rename = "do")]
    pub command: Command,
}

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Where the machine is.
    Status,
    /// Stop every vCPU and device; the machine can go on.
    Pause,
    /// Go on.
    Resume,
    /// Save the machine into the file that was passed with this line (SCM_RIGHTS), or under a path.
    Snapshot(Snapshot),
    /// From now on the guest has so many vCPUs: where the machine was made for more than it has.
    Plug(Plug),
    /// End the machine.
    Stop,
    /// Counters, as Prometheus reads them.
    Metrics,
    /// From now on, tell this client what happens.
    Subscribe,
    /// A step of a guest that moves away: what `evenkeel migrate` and `evenkeel update` say (docs/handover.md).
    Leave(Leave),
}

/// The steps of a guest that moves away. Who asks for the first one is the mover: until it lets go, the machine refuses what
/// others want of it, and if it goes away, the guest goes on here, unless the right to run was given away by then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Leave {
    /// What the machine is, without what it is at, goes into the file that was passed: a capsule without memory.
    Offer,
    /// The file of its memory comes with the answer (SCM_RIGHTS).
    Memory,
    /// From now on, what is written to memory is remembered.
    Track,
    /// What was written since the last time goes into the file that was passed: for each 64 pages a little-endian word, from the
    /// beginning of memory on.
    Written,
    /// Every vCPU and device stands.
    Pause,
    /// What it is at goes into the file that was passed: a capsule without memory.
    State,
    /// The right to run is about to be given away under this token (in hexadecimal): the guest goes on here only if somebody
    /// who knows the token says so.
    Commit(String),
    /// The guest goes on here; with the token, where the right to run was about to be given away.
    Back(Option<String>),
    /// The guest runs elsewhere: it ends here. With the token.
    Gone(String),
}

/// Where a snapshot goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// A path, as the monitor sees it: only where it is not confined. Without one, a descriptor comes with the line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What becomes of disks that the guest writes to, if it runs: its memory is only of use with what is on them at the same instant.
    #[serde(default, skip_serializing_if = "is_default")]
    pub disks: Disks,
}

fn is_default<T: Default + PartialEq>(it: &T) -> bool {
    *it == T::default()
}

/// What becomes of disks when a machine that runs is saved, and goes on writing to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Disks {
    /// The snapshot is refused, if there is such a disk.
    #[default]
    Refuse,
    /// Each is copied within the pause, into the files that come with the line behind that of the snapshot, in the order of the
    /// machine's disks: shared blocks (reflink) where the file system can, else byte by byte while the guest stands still.
    Copy,
    /// Whoever asks sees to them.
    Leave,
}

/// How many vCPUs a guest is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Plug {
    /// In all; not fewer than it has.
    pub vcpus: u32,
}

/// A line of the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Line {
    /// To a request.
    Reply(Reply),
    /// For those who subscribed.
    Event(Event),
}

/// What a request led to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    /// Of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// What it led to.
    pub reply: Answer,
}

/// What a request can lead to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// To `status`.
    Status(Status),
    /// To `pause`: every vCPU is out of the guest, and the devices are quiet.
    Paused(Took),
    /// To `resume`.
    Resumed(Took),
    /// To `snapshot`: all of it is in the file.
    Saved(Saved),
    /// To `plug`: the guest is told when it runs, and takes them online itself.
    Plugged(Vcpus),
    /// To `stop`: the machine comes to its end.
    Stopping(Nothing),
    /// To `metrics`.
    Metrics(Metrics),
    /// To `subscribe`.
    Subscribed(Nothing),
    /// To `leave`: the step is done.
    Left(Left),
    /// To anything that was not done.
    Error(Refused),
}

/// Nothing more to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// How many vCPUs a machine has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Vcpus {
    /// That its guest was told of, or is about to be.
    pub vcpus: u32,
    /// That it can have.
    pub most: u32,
}

/// How long something took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Took {
    /// In seconds.
    pub seconds: f64,
}

/// A machine was saved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// The length of the file.
    pub bytes: u64,
    /// All of it, in seconds.
    pub seconds: f64,
    /// For how long of that the guest stood still, in seconds; nothing if it was paused before.
    pub paused_seconds: f64,
    /// How memory of one instant was come by.
    pub method: Method,
    /// Why by no better one; nothing where there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub because: String,
    /// What became of disks that the guest writes to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<SavedDisk>,
}

/// How memory of one instant is come by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The guest went on at once; what it wanted to write to was copied before (userfaultfd).
    CopyBeforeWrite,
    /// It was copied before the pause, and what was written meanwhile within it (KVM's dirty log).
    LivePreCopy,
    /// The guest stood still until all was written.
    #[default]
    StoodStill,
}

/// A disk that the guest writes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SavedDisk {
    /// Its name.
    pub name: String,
    /// What became of it.
    pub how: DiskHow,
}

/// What became of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskHow {
    /// The copy shares its blocks.
    Reflinked,
    /// It was copied byte by byte.
    Copied,
    /// Nothing: the guest goes on writing to it, or stands.
    Left,
}

/// A step of a move is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Left {
    /// Bytes in the file that was passed, or of the one that comes.
    pub bytes: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// Prometheus text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Text format 0.0.4.
    pub text: String,
}

/// Where a machine's life is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Made, not yet run.
    Ready,
    /// Its vCPUs run.
    Running,
    /// It stands still.
    Paused,
    /// It is over.
    Ended,
}

impl Phase {
    /// All of them.
    pub const ALL: [Phase; 4] = [Phase::Ready, Phase::Running, Phase::Paused, Phase::Ended];

    /// Its name in documents.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Ready => "ready",
            Phase::Running => "running",
            Phase::Paused => "paused",
            Phase::Ended => "ended",
        }
    }
}

/// Where a machine is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// The version of what is said here.
    pub protocol: u32,
    /// The program's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Where its life is.
    pub phase: Phase,
    /// Why it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// Since the control socket is served, in seconds.
    pub uptime_seconds: f64,
    /// How many vCPUs it has.
    pub vcpus: u32,
    /// How many it can have, where that is more than it was started with: see `plug`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_vcpus: Option<u32>,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// How often it moved, and once more: who has an older epoch must not write to its storage.
    pub epoch: u64,
    /// It is about to move away, or did not hear whether it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<Leaving>,
    /// Work in progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
    /// What the process is confined to.
    pub confinement: Report,
}

/// A guest that is about to move away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Leaving {
    /// The token under which the right to run was, or was about to be, given away. The guest stands, and goes on only with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// What something in progress is at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// What: `pause`, `resume`, `snapshot`.
    pub name: String,
    /// Bytes that are done, where that means anything.
    pub done: u64,
    /// Bytes in all, as far as is known.
    pub of: u64,
}

/// Something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    /// Which kind.
    pub code: Code,
    /// One line.
    pub message: String,
    /// What to do; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

impl Refused {
    /// Without a hint.
    pub fn new(code: Code, message: impl Into<String>) -> Refused {
        Refused { code, message: message.into(), hint: String::new() }
    }

    /// With what to do.
    pub fn hinting(self, hint: impl Into<String>) -> Refused {
        Refused { hint: hint.into(), ..self }
    }
}

/// The kinds of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The line is no request. The connection goes on.
    Malformed,
    /// The line is longer than is read; or a descriptor too many came with it. The connection is closed.
    TooLong,
    /// There are as many clients as are served. The connection is closed.
    TooManyClients,
    /// A client of another user. The connection is closed.
    NotYou,
    /// As much is waiting to be done as is kept.
    Busy,
    /// The descriptor or path is none that a snapshot can go to.
    Target,
    /// The guest goes on writing to its disks, and nobody said what becomes of them.
    Disks,
    /// The process cannot open paths any more.
    Confined,
    /// Not from where the machine is.
    Phase,
    /// The guest is moving away, and this is not for whoever asked.
    Leaving,
    /// It was tried, and did not succeed.
    Failed,
}

/// Something happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// When: seconds since the control socket is served.
    pub at: f64,
    /// What.
    pub event: Happened,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Happened {
    /// The machine is somewhere else in its life.
    Phase(Phased),
    /// Work goes on.
    Progress(Work),
    /// Events that this client did not read fast enough were not kept for it.
    Lost(Lost),
}

/// Where it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Phased {
    /// Where.
    pub phase: Phase,
    /// Why it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
}

/// How many events are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lost {
    /// How many.
    pub events: u64,
}
