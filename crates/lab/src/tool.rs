//! Running other programs: found or not, failed or not, and why.

use std::io::{BufReader, Read};
use std::path::PathBuf;
use std::process::{ChildStdout, Command, Output, Stdio};

use crate::error::Error;

/// Runs `command` to its end and returns its standard output. `package` is the Debian package that brings it.
pub(crate) fn output(command: &mut Command, package: &'static str) -> Result<Vec<u8>, Error> {
    output_from(command, package, Stdio::null())
}

/// The same with something to read.
pub(crate) fn output_from(
    command: &mut Command,
    package: &'static str,
    input: Stdio,
) -> Result<Vec<u8>, Error> {
    let output: Output =
        command.stdin(input).env("LC_ALL", "C").output().map_err(|e| missing(command, package, &e))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(failed(command, &output.status.to_string(), &String::from_utf8_lossy(&output.stderr)))
}

/// Runs `command` and hands its standard output to `read` as it comes.
pub(crate) fn stream<T>(
    command: &mut Command,
    package: &'static str,
    read: impl FnOnce(BufReader<ChildStdout>) -> std::io::Result<T>,
) -> Result<T, Error> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("LC_ALL", "C")
        .spawn()
        .map_err(|e| missing(command, package, &e))?;
    let done = match child.stdout.take() {
        Some(stdout) => read(BufReader::with_capacity(1 << 20, stdout)),
        None => Err(std::io::Error::other("its output is not there")),
    };
    // It is quiet until it fails, so reading its words after its output cannot block it for ever.
    let mut words = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut words);
    }
    let status = child.wait().map_err(Error::io("wait for", command.get_program()))?;
    match done {
        Ok(done) if status.success() => Ok(done),
        Ok(_) => Err(failed(command, &status.to_string(), &words)),
        Err(e) => Err(failed(command, &e.to_string(), &words)),
    }
}

/// The error of a program that could not be started.
pub(crate) fn missing(command: &Command, package: &str, error: &std::io::Error) -> Error {
    let program = command.get_program().to_string_lossy().into_owned();
    let (why, hint) = match (error.kind(), package) {
        // Nothing installs apt on a machine that is no Debian.
        (std::io::ErrorKind::NotFound, "apt") => (
            "not found: kernels are fetched with Debian's apt".to_owned(),
            "on a machine without apt, `evenkeel lab import FILE.deb` and `evenkeel lab add` take kernels"
                .to_owned(),
        ),
        (std::io::ErrorKind::NotFound, package) => {
            ("not found".to_owned(), format!("apt-get install {package}"))
        }
        _ => (error.to_string(), format!("Debian's package {package} brings it")),
    };
    Error::Tool { program, why, hint }
}

fn failed(command: &Command, how: &str, words: &str) -> Error {
    Error::Tool {
        program: command.get_program().to_string_lossy().into_owned(),
        why: format!("{how}: {}", tail(words, 6)),
        hint: "the words above are the program's own".to_owned(),
    }
}

/// The last `lines` lines that hold anything.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let kept: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    kept[kept.len().saturating_sub(lines)..].join("\n")
}

/// Where `program` is on the search path.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_program_is_quoted() {
        let error = output(Command::new("sh").args(["-c", "echo broken >&2; exit 3"]), "dash").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("broken") && text.contains('3'), "{text}");
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let error = output(&mut Command::new("evenkeel-no-such-program"), "some-package").unwrap_err();
        assert!(error.to_string().contains("apt-get install some-package"), "{error}");
    }

    #[test]
    fn without_apt_there_are_other_ways() {
        let error = output(&mut Command::new("evenkeel-no-such-apt"), "apt").unwrap_err().to_string();
        assert!(error.contains("lab import") && error.contains("lab add"), "{error}");
    }

    #[test]
    fn a_stream_that_ends_in_failure_is_a_failure() {
        let run = |script: &str| {
            stream(Command::new("sh").args(["-c", script]), "dash", |mut out| {
                let mut text = String::new();
                out.read_to_string(&mut text).map(|_| text)
            })
        };
        assert_eq!(run("echo a; echo b").unwrap(), "a\nb\n");
        let error = run("echo a; echo broken >&2; exit 4").unwrap_err().to_string();
        assert!(error.contains("broken") && error.contains('4'), "{error}");
    }

    #[test]
    fn the_tail_skips_empty_lines() {
        assert_eq!(tail("a\n\nb\n \nc\n", 2), "b\nc");
    }
}
