//! What was asked and answered, in order: JSON, a call a line.

use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

use crate::{Arg, Errno, FdKind, Handle, Refusal, Request, Source};

/// One call and its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Entry {
    /// The ioctl's name, `open` or `read`.
    pub call: String,
    /// What was opened or read.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub of: String,
    /// The file descriptor's handle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd: Option<u32>,
    /// What it stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<FdKind>,
    /// An integer argument.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub int: Option<u64>,
    /// The bytes that went in.
    #[serde(rename = "in", skip_serializing_if = "Option::is_none")]
    pub bytes_in: Option<Bytes>,
    /// What the pointer in them pointed at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_in: Option<Bytes>,
    /// What was returned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ret: Option<i32>,
    /// The errno, by symbol or number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<String>,
    /// The bytes that came out (of an ioctl that points: what the pointer pointed at).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out: Option<Bytes>,
}

impl Entry {
    pub(crate) fn open(path: &str, kind: FdKind) -> Self {
        Entry { call: "open".into(), of: path.into(), kind: Some(kind), ..Entry::default() }
    }

    pub(crate) fn read(source: Source<'_>) -> Self {
        Entry { call: "read".into(), of: source.to_string(), ..Entry::default() }
    }

    pub(crate) fn ioctl(fd: Handle, request: &Request, arg: &Arg<'_>) -> Self {
        let mut entry = Entry { call: request.name.into(), fd: Some(fd.0), ..Entry::default() };
        match arg {
            Arg::Int(value) => entry.int = Some(*value),
            Arg::In(bytes) => entry.bytes_in = Some(Bytes::new(bytes)),
            Arg::Out(bytes) if request.flow.goes_in() => entry.bytes_in = Some(Bytes::new(bytes)),
            // Only its size is an input.
            Arg::Out(bytes) => entry.bytes_in = Some(Bytes { len: bytes.len(), head: Vec::new() }),
            Arg::Pointing { head, payload } => {
                entry.bytes_in = Some(Bytes::new(head));
                entry.payload_in = Some(Bytes::new(payload));
            }
        }
        entry
    }

    /// The two are the same question.
    pub(crate) fn asks_as(&self, other: &Entry) -> bool {
        (&self.call, &self.of, self.fd, self.int, &self.bytes_in, &self.payload_in)
            == (&other.call, &other.of, other.fd, other.int, &other.bytes_in, &other.payload_in)
            && (self.kind.is_none() || self.kind == other.kind)
    }

    /// Equal for equal questions.
    pub(crate) fn question(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.call, &self.of, self.fd, self.int, &self.bytes_in, &self.payload_in).hash(&mut hasher);
        hasher.finish()
    }

    pub(crate) fn refuse(&mut self, why: &Refusal) {
        self.errno = Some(match why {
            Refusal::Errno(errno) => errno.name().map_or_else(|| errno.0.to_string(), str::to_owned),
            other => other.to_string(),
        });
    }

    /// The answer: what was returned, or why not.
    pub(crate) fn answer(&self) -> Result<i32, Refusal> {
        match &self.errno {
            None => Ok(self.ret.unwrap_or(0)),
            Some(text) => Err(Errno::by_name(text)
                .or_else(|| text.parse().ok().map(Errno))
                .map_or_else(|| Refusal::Nonsense(text.clone()), Refusal::Errno)),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.call)?;
        f.write_char('(')?;
        if let Some(fd) = self.fd {
            write!(f, "fd {fd}")?;
        }
        f.write_str(&self.of)?;
        if let Some(int) = self.int {
            write!(f, ", {int:#x}")?;
        }
        for bytes in [&self.bytes_in, &self.payload_in].into_iter().flatten() {
            write!(f, ", {bytes}")?;
        }
        f.write_char(')')
    }
}

/// Bytes as `LENGTH:HEX`, trailing zeros left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Bytes {
    len: usize,
    head: Vec<u8>,
}

impl Bytes {
    /// No log holds a longer one: the largest structure is an XSAVE area or a list of some hundred elements.
    const MOST: usize = 4 << 20;

    /// Of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        let end = bytes.iter().rposition(|&b| b != 0).map_or(0, |at| at + 1);
        Bytes { len: bytes.len(), head: bytes[..end].to_vec() }
    }

    /// Writes them to the beginning of a buffer; false when it is of another length.
    pub fn copy_to(&self, buffer: &mut [u8]) -> bool {
        if buffer.len() != self.len {
            return false;
        }
        buffer.fill(0);
        buffer[..self.head.len()].copy_from_slice(&self.head);
        true
    }

    /// As they were.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = self.head.clone();
        bytes.resize(self.len, 0);
        bytes
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 24;
        write!(f, "{} bytes ", self.len)?;
        self.head.iter().take(SHOWN).try_for_each(|b| write!(f, "{b:02x}"))?;
        if self.head.len() > SHOWN { f.write_str("…") } else { Ok(()) }
    }
}

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> String {
        let mut text = format!("{}:", bytes.len);
        for byte in bytes.head {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

impl TryFrom<String> for Bytes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bad = || "bytes are written LENGTH:HEX".to_owned();
        let (len, digits) = text.split_once(':').ok_or_else(bad)?;
        let len: usize = len.parse().map_err(|_| bad())?;
        if len > Self::MOST || digits.len() % 2 != 0 || digits.len() / 2 > len || !digits.is_ascii() {
            return Err(bad());
        }
        let digit = |b: u8| (b as char).to_digit(16).ok_or_else(bad);
        let mut head = Vec::with_capacity(digits.len() / 2);
        for pair in digits.as_bytes().chunks_exact(2) {
            head.push((digit(pair[0])? << 4 | digit(pair[1])?) as u8);
        }
        Ok(Bytes { len, head })
    }
}

/// An ordered log of calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// The calls, first to last.
    pub entries: Vec<Entry>,
}

/// A log that cannot be read, and where.
#[derive(Debug)]
pub struct LogError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for LogError {}

impl Log {
    /// One line a call.
    pub fn to_json_lines(&self) -> String {
        let mut text = String::new();
        for entry in &self.entries {
            // An entry is strings and numbers; there is nothing in it that JSON cannot say.
            text.push_str(&serde_json::to_string(entry).unwrap_or_default());
            text.push('\n');
        }
        text
    }

    /// The reverse; empty lines do not count.
    pub fn from_json_lines(text: &str) -> Result<Self, LogError> {
        let mut entries = Vec::new();
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let entry =
                serde_json::from_str(line).map_err(|e| LogError { line: at + 1, what: e.to_string() })?;
            entries.push(entry);
        }
        Ok(Log { entries })
    }
}
