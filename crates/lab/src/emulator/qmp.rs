//! QEMU's machine protocol, as far as the lab needs it: one JSON object a line, each command answered before the next.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The longest answer in bytes.
const LONGEST: u64 = 1 << 20;

/// A control connection.
#[derive(Debug)]
pub(crate) struct Qmp {
    lines: BufReader<UnixStream>,
}

impl Qmp {
    /// Greets the emulator. Errors are words for a person.
    pub fn connect(stream: UnixStream) -> Result<Qmp, String> {
        stream.set_read_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
        let mut qmp = Qmp { lines: BufReader::new(stream) };
        qmp.line()?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn line(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        let read = (&mut self.lines).take(LONGEST).read_line(&mut line).map_err(|e| e.to_string())?;
        if read == 0 {
            return Err("the emulator closed its control connection".to_owned());
        }
        serde_json::from_str(&line).map_err(|e| format!("the emulator answered no JSON: {e}"))
    }

    /// Runs a command and returns its answer.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let text = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.lines.get_mut().write_all(text.as_bytes()).map_err(|e| e.to_string())?;
        loop {
            let mut answer = self.line()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(format!("{command}: {}", error["desc"].as_str().unwrap_or("no reason given")));
            }
            // Anything else is an event, which tells nothing that is not asked for.
        }
    }

    /// Asks `command` until its `status` is one of `wanted`.
    pub fn until(&mut self, command: &str, wanted: &[&str], patience: Duration) -> Result<String, String> {
        let start = Instant::now();
        loop {
            let answer = self.execute(command, json!({}))?;
            let status = answer["status"].as_str().unwrap_or("none").to_owned();
            if wanted.contains(&status.as_str()) {
                return Ok(status);
            }
            if start.elapsed() > patience {
                return Err(format!("{command} still says {status} after {} s", patience.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An emulator that says what it is told to.
    fn emulator(answers: &'static str) -> Result<Qmp, String> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answers.as_bytes()).unwrap();
        // Kept open for what we write; closing our view of its answers is what ends them.
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        std::mem::forget(theirs);
        Qmp::connect(ours)
    }

    #[test]
    fn events_are_passed_over_and_errors_are_words() {
        let answers = "{\"QMP\":{}}\n{\"return\":{}}\n{\"event\":\"STOP\"}\n{\"return\":{\"status\":\"paused\"}}\n\
                       {\"error\":{\"desc\":\"no cheese\"}}\n";
        let mut qmp = emulator(answers).unwrap();
        assert_eq!(qmp.execute("query-status", json!({})).unwrap()["status"], "paused");
        assert_eq!(qmp.execute("stop", json!({})).unwrap_err(), "stop: no cheese");
        assert!(qmp.execute("stop", json!({})).unwrap_err().contains("closed"));
    }

    #[test]
    fn garbage_is_words() {
        assert!(emulator("hello\n").unwrap_err().contains("no JSON"));
    }
}
