//! `evenkeel inspect`.

use std::path::PathBuf;

use evenkeel_capsule::{Kind, names};
use evenkeel_state::Guest;
use schemars::JsonSchema;
use serde::Serialize;

use super::{FieldInfo, fields, open, refused, text};
use crate::failure::Failure;
use crate::{Format, Global, output};

/// What is in a capsule? Every section in named fields.
#[derive(clap::Args)]
pub struct Inspect {
    /// The capsule's file.
    capsule: PathBuf,
    /// Only sections whose name begins with this: `vcpu.0/`, `vm/clock`. The others are listed.
    #[arg(long, value_name = "NAME")]
    section: Option<String>,
    /// Look at every byte of memory too, whether it is as it was written.
    #[arg(long)]
    verify: bool,
}

/// What `inspect` prints.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct InspectReport {
    /// `evenkeel.inspect/1`.
    pub schema: &'static str,
    /// The file.
    pub file: String,
    /// What the header says.
    pub header: HeaderInfo,
    /// Every section, in the order of the file.
    pub sections: Vec<SectionInfo>,
    /// Guest memory, if it is there.
    pub memory: Option<MemoryInfo>,
    /// State that KVM could not save and that this capsule shows to be missing.
    pub gaps: Vec<GapInfo>,
    /// Every byte was looked at, memory too, and is as it was written.
    pub verified: bool,
}

/// What the header of a capsule says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct HeaderInfo {
    /// The capsule's identity: a digest over all of it.
    pub root: String,
    /// What was saved: random.
    pub id: String,
    /// The format's version.
    pub format: u16,
    /// The oldest reader that can read all of it.
    pub reader: u16,
    /// The guest's architecture.
    pub arch: String,
    /// How memory is held: `eager`, `eager, compressed` or `lazy`.
    pub layout: String,
    /// Page size in bytes.
    pub page: u32,
    /// Bytes of the file.
    pub length: u64,
}

/// A section.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct SectionInfo {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u16,
    /// A reader that does not know it must stop.
    pub critical: bool,
    /// Where it begins in the file.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
    /// BLAKE3; of memory, that of its index.
    pub digest: String,
    /// This version knows what it holds.
    pub known: bool,
    /// What it holds; empty for what is not known, for memory, and where another section was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldInfo>,
    /// Why what it holds cannot be named, although its name is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unreadable: String,
}

/// Guest memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct MemoryInfo {
    /// Guest-physical address and length of each region, hexadecimal.
    pub regions: Vec<(String, String)>,
    /// Bytes of guest memory.
    pub bytes: u64,
    /// Bytes of a chunk.
    pub chunk: u32,
    /// Chunks that are zero.
    pub zero: usize,
    /// Chunks that are stored as they are.
    pub raw: usize,
    /// Chunks that are compressed.
    pub zstd: usize,
    /// Chunks that are stored without their zero pages.
    pub pages: usize,
}

/// State that KVM cannot save.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct GapInfo {
    /// The catalog's name of it.
    pub id: String,
    /// Whose state it is, where it shows, and what is done about it.
    pub what: String,
}

impl Inspect {
    /// Shows it. Exits with 2 if it is damaged; also after what could be shown.
    pub fn run(self, global: Global) -> Result<u8, Failure> {
        let report = self.look()?;
        match global.format {
            Format::Json => output::json(&report)?,
            Format::Text => output::print(&text::inspect(&report, global.all))?,
        }
        Ok(if report.sections.iter().all(|section| section.unreadable.is_empty()) { 0 } else { 2 })
    }

    fn look(&self) -> Result<InspectReport, Failure> {
        let path = &self.capsule;
        let mut reader = open(path)?;
        let header = reader.header().clone();
        let mut sections = Vec::new();
        for entry in reader.entries().to_vec() {
            let memory = entry.chunked || entry.name == names::INDEX;
            let mut info = SectionInfo {
                name: entry.name.clone(),
                version: entry.version,
                critical: entry.critical,
                offset: entry.offset,
                length: entry.length,
                digest: evenkeel_capsule::Root(entry.digest).to_string(),
                known: memory,
                fields: Vec::new(),
                unreadable: String::new(),
            };
            if !memory {
                let bytes = reader.bytes(&entry).map_err(|e| refused(path, &e))?;
                match fields(&reader, &entry, &bytes) {
                    Ok(Some(fields)) => (info.known, info.fields) = (true, fields),
                    Ok(None) => {}
                    Err(e) => (info.known, info.unreadable) = (true, e.to_string()),
                }
            }
            if self.section.as_ref().is_some_and(|wanted| !entry.name.starts_with(wanted.as_str())) {
                info.fields.clear();
            }
            sections.push(info);
        }
        let gaps = match Guest::read(&mut reader) {
            Ok(guest) => evenkeel_state::gaps(&guest.image),
            // What stands in the way was said with the section.
            Err(_) => Vec::new(),
        };
        let memory = reader.index().map(|index| {
            let count = |kind| index.chunks.iter().filter(|chunk| chunk.kind == kind).count();
            MemoryInfo {
                regions: index
                    .regions
                    .iter()
                    .map(|r| (format!("{:#x}", r.address), format!("{:#x}", r.length)))
                    .collect(),
                bytes: index.bytes(),
                chunk: index.chunk,
                zero: count(Kind::Zero),
                raw: count(Kind::Raw),
                zstd: count(Kind::Zstd),
                pages: count(Kind::Pages),
            }
        });
        if self.verify {
            reader.verify().map_err(|e| refused(path, &e))?;
        }
        let layout = match (header.lazy, header.compressed) {
            (true, _) => "lazy",
            (false, true) => "eager, compressed",
            (false, false) => "eager",
        };
        Ok(InspectReport {
            schema: "evenkeel.inspect/1",
            file: path.display().to_string(),
            header: HeaderInfo {
                root: header.root.to_string(),
                id: header.id.to_string(),
                format: header.format,
                reader: header.reader,
                arch: header.arch.name().to_owned(),
                layout: layout.to_owned(),
                page: header.page,
                length: header.length,
            },
            sections,
            memory,
            gaps: gaps.iter().map(|g| GapInfo { id: g.gap.id.to_owned(), what: g.to_string() }).collect(),
            verified: self.verify,
        })
    }
}
