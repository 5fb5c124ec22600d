//! Running other programs: found or not, failed or not, and why.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::error::Error;

/// Runs `command` to its end and returns its standard output. `package` is the Debian package that brings it.
pub(crate) fn output(command: &mut Command, package: &'static str) -> Result<Vec<u8>, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let tool = |why: String, hint: String| Error::Tool { program: program.clone(), why, hint };
    let output: Output = command
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .map_err(|e| tool(e.to_string(), format!("apt-get install {package}")))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(tool(
        format!("{}: {}", output.status, tail(&words, 6)),
        "the words above are the program's own".to_owned(),
    ))
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
    fn the_tail_skips_empty_lines() {
        assert_eq!(tail("a\n\nb\n \nc\n", 2), "b\nc");
    }
}
