//! What goes into an emulated host and what comes out.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use crate::error::Error;
use crate::frame::{self, Frame, Kind};

/// One program to run under a kernel.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// A static binary for the kernel's architecture.
    pub binary: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Files that it finds in its working folder: path there and content.
    pub inputs: Vec<(String, Vec<u8>)>,
    /// Files that it writes and that are brought back: relative to its working folder, or absolute.
    pub outputs: Vec<String>,
    /// The program talks to the console, and what it writes is not brought back.
    pub console: bool,
}

impl Job {
    /// A job without arguments or files.
    pub fn new(binary: impl Into<PathBuf>) -> Job {
        Job { binary: binary.into(), ..Job::default() }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl Into<String>) -> Job {
        self.args.push(arg.into());
        self
    }

    /// Adds a file that the program finds.
    pub fn input(mut self, path: impl Into<String>, content: impl Into<Vec<u8>>) -> Job {
        self.inputs.push((path.into(), content.into()));
        self
    }

    /// Adds a file to bring back.
    pub fn output(mut self, path: impl Into<String>) -> Job {
        self.outputs.push(path.into());
        self
    }

    /// The job as the init reads it.
    pub(crate) fn frames(&self) -> Result<Vec<u8>, Error> {
        let program = fs::read(&self.binary).map_err(Error::io("read", &self.binary))?;
        let mut bytes = Vec::with_capacity(program.len() + 1024);
        self.write(&program, &mut bytes).map_err(Error::io("write", "a job in memory"))?;
        Ok(bytes)
    }

    fn write(&self, program: &[u8], to: &mut impl Write) -> io::Result<()> {
        let name = self.binary.file_name().unwrap_or_default().to_string_lossy();
        frame::write(to, Kind::Program, &name, program)?;
        for arg in &self.args {
            frame::write(to, Kind::Arg, "", arg.as_bytes())?;
        }
        for (path, content) in &self.inputs {
            frame::write(to, Kind::Input, path, content)?;
        }
        for path in &self.outputs {
            frame::write(to, Kind::Output, path, b"")?;
        }
        if self.console {
            frame::write(to, Kind::Console, "", b"")?;
        }
        frame::write(to, Kind::Go, "", b"")
    }
}

/// How the program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// Everything that came back.
#[derive(Clone, Debug)]
pub struct Output {
    /// How the program ended.
    pub exit: Exit,
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error.
    pub stderr: Vec<u8>,
    /// The files that were asked for, by the name they were asked for with.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The files that were asked for and could not be read, with the reason.
    pub missing: BTreeMap<String, String>,
    /// How long the program took, with its way in and its results' way out, on this machine's clock.
    pub took: Duration,
}

/// The results of one job, as they arrive.
#[derive(Default)]
pub(crate) struct Results {
    exit: Option<Exit>,
    stdout: Option<Vec<u8>>,
    stderr: Option<Vec<u8>>,
    files: BTreeMap<String, Vec<u8>>,
    missing: BTreeMap<String, String>,
}

impl Results {
    /// Takes a frame that is neither the end nor a failure. Errors are words.
    pub fn take(&mut self, frame: Frame) -> Result<(), String> {
        let Frame { kind, name, body } = frame;
        let text = |body: &[u8]| String::from_utf8_lossy(body).into_owned();
        let number = |body: Vec<u8>| {
            body.try_into().map(i32::from_le_bytes).map_err(|_| "an exit of no size".to_owned())
        };
        match kind {
            Kind::Exited => self.exit = Some(Exit::Code(number(body)?)),
            Kind::Killed => self.exit = Some(Exit::Signal(number(body)?)),
            Kind::Stdout => self.stdout = Some(body),
            Kind::Stderr => self.stderr = Some(body),
            Kind::File => drop(self.files.insert(name, body)),
            Kind::Missing => drop(self.missing.insert(name, text(&body))),
            other => return Err(format!("a frame of the kind {other:?}, which is no result")),
        }
        Ok(())
    }

    /// The output, when all of it is there.
    pub fn output(self, took: Duration) -> Result<Output, String> {
        let lacks = |what: &str| format!("its results hold no {what}");
        Ok(Output {
            exit: self.exit.ok_or_else(|| lacks("exit status"))?,
            stdout: self.stdout.ok_or_else(|| lacks("standard output"))?,
            stderr: self.stderr.ok_or_else(|| lacks("standard error"))?,
            files: self.files,
            missing: self.missing,
            took,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(frames: &[(Kind, &str, &[u8])]) -> Result<Output, String> {
        let mut results = Results::default();
        for (kind, name, body) in frames {
            results.take(Frame { kind: *kind, name: (*name).into(), body: (*body).into() })?;
        }
        results.output(Duration::ZERO)
    }

    #[test]
    fn complete_results_are_an_output() {
        let output = results(&[
            (Kind::Killed, "", &[9, 0, 0, 0]),
            (Kind::Stdout, "", b"out"),
            (Kind::Stderr, "", b"err"),
            (Kind::File, "a", b"1"),
            (Kind::Missing, "b", b"gone"),
        ])
        .unwrap();
        assert_eq!(output.exit, Exit::Signal(9));
        assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out"[..], &b"err"[..]));
        assert_eq!(output.files["a"], b"1");
        assert_eq!(output.missing["b"], "gone");
    }

    #[test]
    fn incomplete_and_foreign_results_are_words() {
        assert!(results(&[]).unwrap_err().contains("no exit status"));
        assert!(results(&[(Kind::Exited, "", b"123")]).unwrap_err().contains("an exit of no size"));
        assert!(results(&[(Kind::Go, "", b"")]).unwrap_err().contains("Go"));
    }

    #[test]
    fn a_job_is_frames_that_end_with_go() {
        let mut bytes = Vec::new();
        let job = Job::new("/p").arg("-x").input("in", "text").output("out");
        job.write(b"elf", &mut bytes).unwrap();
        let mut rest = bytes.as_slice();
        let mut kinds = Vec::new();
        while let Ok(frame) = frame::read(&mut rest) {
            kinds.push(frame.kind);
        }
        assert_eq!(kinds, [Kind::Program, Kind::Arg, Kind::Input, Kind::Output, Kind::Go]);
    }
}
