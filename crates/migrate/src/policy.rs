//! What the user of a move wants, what he sees of it, and how it ended.

use std::time::Duration;

use evenkeel_handover::Token;
use serde::{Serialize, Serializer};

use crate::GuestError;

/// The most streams of one move.
pub const MOST_STREAMS: u8 = 8;

/// What to do with a guest that writes faster than the link carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slow {
    /// Pause it, however long that takes.
    Pause,
    /// End the move: it goes on here.
    Stop,
    /// Let its vCPUs stand for more and more of the time; if that does not help either, end the move.
    Throttle,
    /// Let it run on the other side before its memory is there.
    PostCopy,
}

/// How a guest is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The guest is paused when what is left takes no longer than this.
    pub downtime: Duration,
    /// After so many rounds it counts as one that writes too fast.
    pub rounds: u32,
    /// What happens then.
    pub slow: Slow,
    /// How many streams carry memory, 1 to [`MOST_STREAMS`].
    pub streams: u8,
    /// Memory is compressed, if the other side can take it.
    pub compress: bool,
    /// Both sides hash all memory in the pause, and the guest moves only if it is the same.
    pub verify: bool,
    /// A peer that is silent for so long is lost.
    pub patience: Duration,
    /// After the commit, a destination that cannot be reached for so long is left to an operator.
    pub decide: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            downtime: Duration::from_millis(5),
            rounds: 30,
            slow: Slow::Pause,
            streams: 1,
            compress: false,
            verify: false,
            patience: Duration::from_secs(10),
            decide: Duration::from_secs(60),
        }
    }
}

/// What a move is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Memory is copied while the guest runs.
    Copying,
    /// The guest stands, and the last of its memory is copied.
    Pausing,
    /// The guest stands, and all memory is hashed.
    Verifying,
    /// The guest stands, and the destination restores it.
    Restoring,
    /// The guest runs there, and gets its memory.
    Serving,
    /// The guest runs there and stands at what it needs: the connection is lost, and looked for.
    Waiting,
}

/// How far a move is. As JSON it is one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// What it is at.
    pub phase: Phase,
    /// Which round of memory, from 0 on.
    pub round: u32,
    /// Bytes of guest memory in this round.
    pub bytes: u64,
    /// How many of them are done.
    pub done: u64,
    /// How many are not, in this round.
    pub remaining: u64,
    /// Bytes of guest memory a second, in this round.
    pub rate: u64,
    /// How long the guest would be paused if it were paused now; in JSON as microseconds.
    #[serde(rename = "downtime_us", serialize_with = "microseconds")]
    pub downtime: Duration,
    /// For how much of the time its vCPUs are made to stand.
    pub throttle: u8,
}

fn microseconds<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(duration.as_micros().try_into().unwrap_or(u64::MAX))
}

/// A guest that runs elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// From the beginning of the pause until the destination said that it runs.
    #[serde(rename = "paused_us", serialize_with = "microseconds")]
    pub paused: Duration,
    /// From the first connection until nothing of the guest was needed here.
    #[serde(rename = "took_us", serialize_with = "microseconds")]
    pub took: Duration,
    /// Rounds of memory, the one in the pause among them.
    pub rounds: u32,
    /// Bytes on the wire.
    pub bytes: u64,
    /// How much of `paused` all memory was hashed and compared for, if that was asked for.
    #[serde(rename = "verified_us", serialize_with = "maybe_microseconds")]
    pub verified: Option<Duration>,
    /// Bytes of memory that came after the guest ran there.
    pub late: u64,
    /// For how much of the time its vCPUs were made to stand in the end.
    pub throttle: u8,
}

fn maybe_microseconds<S: Serializer>(duration: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => microseconds(duration, to),
        None => to.serialize_none(),
    }
}

/// A guest that does not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// The destination does not take it. It goes on here, and was not paused.
    #[error("the destination does not take the guest: {0}")]
    Refused(String),
    /// Something failed. It goes on here.
    #[error("{0}; the guest goes on here")]
    Failed(String),
    /// It was paused here and cannot go on.
    #[error("the guest stands here and does not go on: {0}")]
    Stands(GuestError),
    /// The right to run was given away, and nobody knows whether the guest runs. It stands here.
    #[error(
        "{why}; the right to run was given to the destination under token {token}, and the guest stands here until it says more"
    )]
    Undecided {
        /// The attempt.
        token: Token,
        /// What happened.
        why: String,
    },
    /// It runs there, and some of its memory was here when somebody ended this: it will stand at what it lacks.
    #[error("{why}; the guest runs on the destination and lacks {lacks} bytes of memory that were here only")]
    Abandoned {
        /// At most so many bytes.
        lacks: u64,
        /// What happened.
        why: String,
    },
}
