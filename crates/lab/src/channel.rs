//! The way between the lab and an init: both ways through a socket, or jobs with the boot and results in a file that
//! grows.
//!
//! The file is what Bochs writes of a serial port. Measured: 256 KiB in 2.7, 9.6 and 17.3 s on a machine that others used
//! too, 15 to 93 KiB/s, though the port has 115200 baud (11.25 KiB/s) by the emulated clock: while the emulated CPU waits
//! for it, that clock runs ahead. A capture is 25 KiB.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::emulator::bochs::Files;
use crate::emulator::{Console, Emulator};

/// The most that a console may write in bytes. A kernel that prints for ever must not fill the memory.
const LONGEST_CONSOLE: u64 = 64 << 20;

/// How often a wait looks whether the emulator still lives and the time is up.
pub(crate) const LOOK: Duration = Duration::from_millis(100);

/// How long a person waits without a word.
const SILENCE: Duration = Duration::from_secs(10);

/// The channel to an init.
#[derive(Debug)]
pub(crate) enum Channel {
    /// A virtio-serial port's other end; its reads give up after [`LOOK`].
    Port(UnixStream),
    /// A serial port's output, of which so much is read.
    File(Files, u64),
}

impl Channel {
    /// What has come; an error of the kind `WouldBlock` or `TimedOut` when nothing has for a while.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Channel::Port(socket) => socket.read(buffer),
            Channel::File(files, offset) => {
                let read = files.results.read_at(buffer, *offset)?;
                if read == 0 && !buffer.is_empty() {
                    sleep(LOOK);
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                *offset += read as u64;
                Ok(read)
            }
        }
    }

    /// Sends a job. A file takes none: its init has had all of them since its boot.
    pub fn send(&mut self, bytes: &[u8], patience: Duration) -> io::Result<()> {
        match self {
            Channel::Port(socket) => {
                socket.set_write_timeout(Some(patience))?;
                socket.write_all(bytes)
            }
            Channel::File(..) => Err(io::Error::other("its jobs are given when it boots")),
        }
    }
}

/// Why a wait was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Late,
    Flood,
}

/// A reader of the channel that looks up from time to time.
pub(crate) struct Patient<'a> {
    pub channel: &'a mut Channel,
    pub console: &'a Console,
    pub emulator: &'a mut Emulator,
    pub deadline: Instant,
    pub progress: Progress<'a>,
    /// Why it was given up.
    pub why: Option<Why>,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // Looked at before the read: what arrived before the end is still there after it.
            let over = self.emulator.ended().map_err(io::Error::other)?.is_some();
            match self.channel.read(buffer) {
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                // The other end went without reading all that we sent.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(0),
                done => return done,
            }
            if over {
                return Ok(0);
            }
            if let Console::Kept(file) = self.console
                && file.len() > LONGEST_CONSOLE
            {
                self.why = Some(Why::Flood);
                return Ok(0);
            }
            if Instant::now() > self.deadline {
                self.why = Some(Why::Late);
                return Ok(0);
            }
            self.progress.look(self.console);
        }
    }
}

/// Words about a wait that takes long.
pub(crate) struct Progress<'a> {
    pub host: &'a str,
    /// Where words go, if anywhere.
    pub say: Option<fn(&str)>,
    /// Since when the host is up.
    pub started: Instant,
    /// Whether its init has said that it is ready.
    pub ready: bool,
    spoke: Instant,
}

impl<'a> Progress<'a> {
    /// Of `host`, which is up since `started`.
    pub fn new(host: &'a str, say: Option<fn(&str)>, started: Instant, ready: bool) -> Progress<'a> {
        Progress { host, say, started, ready, spoke: Instant::now() }
    }

    fn look(&mut self, console: &Console) {
        if let Some(say) = self.say
            && self.spoke.elapsed() >= SILENCE
        {
            self.spoke = Instant::now();
            say(&self.words(console));
        }
    }

    /// How long it is up and what it last did.
    fn words(&self, console: &Console) -> String {
        let last = match console {
            Console::Kept(file) => file.last_line(),
            Console::Terminal => String::new(),
        };
        let phase = match (self.ready, last.is_empty()) {
            (true, _) => "the program runs".to_owned(),
            (false, true) => "nothing on its console yet".to_owned(),
            (false, false) => format!("boots: {last}"),
        };
        format!("{}: {} s, {phase}", self.host, self.started.elapsed().as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulator::{Plan, bochs};
    use crate::frame::{self, FrameError, Kind};
    use crate::memfile::MemFile;

    /// An emulator that is this shell script, whose `$1` is the results' file and `$2` the console's.
    fn read(script: &str, patience: Duration) -> (Vec<Kind>, FrameError, Option<Why>) {
        let console = MemFile::new("console", b"").unwrap();
        let files = bochs::Files::of_nothing().unwrap();
        let args = ["-c", script, "sh", &files.results.path(), &console.path()].map(str::to_owned);
        let plan = Plan {
            program: "sh",
            package: "dash",
            offline: false,
            farewell: None,
            args: args.into(),
            hand_over: vec![],
        };
        let console = Console::Kept(console);
        let mut emulator = Emulator::start(plan, &console).unwrap();
        let mut channel = Channel::File(files, 0);
        let started = Instant::now();
        let mut patient = Patient {
            channel: &mut channel,
            console: &console,
            emulator: &mut emulator,
            deadline: started + patience,
            progress: Progress::new("test", None, started, false),
            why: None,
        };
        let mut kinds = Vec::new();
        loop {
            match frame::read(&mut patient) {
                Ok(frame) => kinds.push(frame.kind),
                Err(error) => return (kinds, error, patient.why),
            }
        }
    }

    fn frames() -> String {
        let mut bytes = Vec::new();
        frame::write(&mut bytes, Kind::Ready, "", b"6.12").unwrap();
        bytes.iter().map(|byte| format!("\\{byte:03o}")).collect()
    }

    #[test]
    fn what_a_file_grows_by_is_read_to_the_end_of_the_emulator() {
        // Half a frame now and half later; a second one just before the end.
        let frames = frames();
        let (one, two) = frames.split_at(40);
        let script =
            format!("printf '{one}' >> $1; sleep 0.3; printf '{two}' >> $1; printf '{frames}' >> $1");
        let (kinds, error, why) = read(&script, Duration::from_secs(20));
        assert_eq!((kinds.as_slice(), why), (&[Kind::Ready, Kind::Ready][..], None));
        assert!(matches!(error, FrameError::Closed), "{error}");
        let (kinds, error, _) = read(&format!("printf '{one}' >> $1"), Duration::from_secs(20));
        assert!(kinds.is_empty() && matches!(error, FrameError::Truncated), "{error}");
    }

    #[test]
    fn a_file_that_does_not_grow_is_given_up() {
        let (_, error, why) = read("exec sleep 600", Duration::from_millis(300));
        assert!(matches!(error, FrameError::Closed), "{error}");
        assert_eq!(why, Some(Why::Late));
    }

    #[test]
    fn a_console_that_floods_is_given_up() {
        let (_, _, why) = read("head -c 70000000 /dev/zero >> $2; exec sleep 600", Duration::from_secs(60));
        assert_eq!(why, Some(Why::Flood));
    }

    #[test]
    fn words_tell_the_phase() {
        let words = |text: &str, ready| {
            let console = Console::Kept(MemFile::new("console", text.as_bytes()).unwrap());
            Progress::new("h", None, Instant::now(), ready).words(&console)
        };
        assert_eq!(words("", false), "h: 0 s, nothing on its console yet");
        assert_eq!(words("one\r\n[ 1.0] two\r\n\r\n", false), "h: 0 s, boots: [ 1.0] two");
        assert_eq!(words("one\n", true), "h: 0 s, the program runs");
    }
}
