//! What goes into an emulated host and what comes out.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// One program to run under a kernel.
#[derive(Clone, Debug)]
pub struct Job {
    /// A static binary for the kernel's architecture.
    pub binary: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Files that it finds in its working folder: names without a folder, and contents.
    pub inputs: Vec<(String, Vec<u8>)>,
    /// Files that it writes and that are brought back: relative to its working folder, or absolute.
    pub outputs: Vec<String>,
}

impl Job {
    /// A job without arguments or files.
    pub fn new(binary: impl Into<PathBuf>) -> Job {
        Job { binary: binary.into(), args: Vec::new(), inputs: Vec::new(), outputs: Vec::new() }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl Into<String>) -> Job {
        self.args.push(arg.into());
        self
    }

    /// Adds a file for it to find in its working folder.
    pub fn input(mut self, name: impl Into<String>, content: impl Into<Vec<u8>>) -> Job {
        self.inputs.push((name.into(), content.into()));
        self
    }

    /// Adds a file to bring back.
    pub fn output(mut self, path: impl Into<String>) -> Job {
        self.outputs.push(path.into());
        self
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
    /// `uname -r`, as the emulated host said it.
    pub release: String,
    /// What the kernel wrote to its console; bytes that are no text are replaced.
    pub console: String,
    /// How long it took, on this machine's clock.
    pub durations: Durations,
}

/// Wall-clock times of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// From the emulator's start until the program started.
    pub boot: Duration,
    /// From there until results arrived.
    pub job: Duration,
    /// The whole, until the emulator was gone.
    pub total: Duration,
}
