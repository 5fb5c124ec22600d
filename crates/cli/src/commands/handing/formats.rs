//! Which formats of a [`Channel`](super::channel::Channel) a build speaks. The program that a guest comes to may be older or newer
//! than the one that moves it: the two speak the newest format that both know.
//!
//! | format | what is said |
//! |---|---|
//! | 1 | [`Ask`](super::channel::Ask) from `Memory` to `Run`; also builds that cannot be asked for their formats |

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

/// The formats from `oldest` to `newest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Formats {
    /// Nothing older is spoken.
    pub oldest: u32,
    /// Nothing newer is known.
    pub newest: u32,
}

/// What this build speaks.
pub const OURS: Formats = Formats { oldest: 1, newest: 1 };
/// What builds speak that were made before there was a question.
const UNASKED: Formats = Formats { oldest: 1, newest: 1 };
/// How a program ends that does not know an option.
const BAD_USE: i32 = 2;

impl Formats {
    /// Asks a program.
    ///
    /// # Errors
    /// It cannot be started, or is not this kind of program.
    pub fn of(program: &Path) -> io::Result<Formats> {
        let mut command = Command::new(program);
        let asked =
            command.args(["arrive", "--formats"]).stdin(Stdio::null()).stderr(Stdio::null()).output()?;
        heard(asked.status.code(), &asked.stdout)
            .ok_or_else(|| io::Error::other(format!("no guest can come to it ({})", asked.status)))
    }

    /// The newest format that both speak.
    ///
    /// # Errors
    /// There is none: in words.
    pub fn with(self, other: Formats) -> Result<u32, String> {
        let common = self.newest.min(other.newest);
        if common < self.oldest.max(other.oldest) {
            return Err(format!(
                "it speaks the formats {} to {} with who moves a guest, and this build {} to {}: go by way of a build in between",
                other.oldest, other.newest, self.oldest, self.newest
            ));
        }
        Ok(common)
    }
}

/// What a program that ended with this code meant by this.
fn heard(code: Option<i32>, said: &[u8]) -> Option<Formats> {
    match code {
        Some(0) => serde_json::from_slice(said).ok(),
        Some(BAD_USE) => Some(UNASKED),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formats(oldest: u32, newest: u32) -> Formats {
        Formats { oldest, newest }
    }

    #[test]
    fn two_builds_speak_the_older_of_the_newest_that_they_know() {
        for (ours, theirs, common) in [
            (formats(1, 3), formats(1, 1), Some(1)),
            (formats(1, 1), formats(1, 3), Some(1)),
            (formats(2, 4), formats(1, 3), Some(3)),
            (formats(2, 4), formats(1, 1), None),
            (formats(1, 2), formats(3, 4), None),
            // Nonsense of a peer.
            (formats(1, 2), formats(2, 1), None),
        ] {
            assert_eq!(ours.with(theirs).ok(), common, "{ours:?} {theirs:?}");
        }
        assert_eq!(OURS.with(UNASKED), Ok(1), "what was built before still takes guests");
    }

    #[test]
    fn a_program_says_what_it_speaks_or_is_one_that_knows_no_such_question() {
        let said = br#"{"oldest":3,"newest":5,"more":0}"#;
        assert_eq!(heard(Some(0), said), Some(formats(3, 5)));
        assert_eq!(heard(Some(BAD_USE), b""), Some(UNASKED));
        assert_eq!(heard(Some(0), b"nonsense"), None);
        assert_eq!(heard(Some(1), said), None);
        assert_eq!(heard(None, said), None, "a signal ended it");
    }
}
