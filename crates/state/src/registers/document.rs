//! The files: what was saved on a host, and what became of it on another. JSON; whatever does not belong is refused.

use std::collections::BTreeSet;

use evenkeel_surface::{Arch, Hex64};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::Malformed;
use super::gic::GicRevisions;
use super::shape::Shape;
use super::value::Value;

/// The schema name of a [`RegisterFile`].
pub const FILE_SCHEMA: &str = "evenkeel.registers/1";
/// The schema name of a [`LoadReport`].
pub const LOADED_SCHEMA: &str = "evenkeel.registers-loaded/1";

/// The longest document that is read. A host's file of all shapes has some 200 KiB.
pub const MAX_BYTES: usize = 8 << 20;
/// The most vCPUs in a file, and the most registers of one: KVM lists fewer than a thousand.
const MAX_VCPUS: usize = 64;
const MAX_REGISTERS: usize = 8192;

/// The registers of vCPUs of one host, as they were saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterFile {
    /// [`FILE_SCHEMA`].
    pub schema: String,
    /// The architecture.
    pub arch: Arch,
    /// `uname -r` where it was saved: a name, never a reason for anything.
    pub kernel: String,
    /// The vCPUs: each of a VM of its own.
    pub vcpus: Vec<VcpuRegisters>,
}

/// The registers of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VcpuRegisters {
    /// What it was made with.
    pub shape: Shape,
    /// What of that the host had: vCPU features and the interrupt controller.
    pub features: Vec<String>,
    /// Its registers were given other values than KVM's own before they were saved.
    pub filled: bool,
    /// All that KVM_GET_REG_LIST named, in the kernel's order.
    pub registers: Vec<Saved>,
}

/// One register.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// The ONE_REG id.
    pub id: Hex64,
    /// The value; absent when it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// Why it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<String>,
}

/// What one host made of files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadReport {
    /// [`LOADED_SCHEMA`].
    pub schema: String,
    /// The architecture.
    pub arch: Arch,
    /// `uname -r` here.
    pub kernel: String,
    /// Every vCPU of every file, in their order.
    pub loads: Vec<FileLoad>,
    /// The revisions of the interrupt controller here.
    pub gic: GicRevisions,
}

/// One vCPU of one file, on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileLoad {
    /// The file's name without its folder.
    pub file: String,
    /// `uname -r` where it was saved.
    pub from: String,
    /// What the vCPU was made with.
    pub shape: Shape,
    /// What became of it; absent when no vCPU could be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded: Option<Loaded>,
    /// Why no vCPU could be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// What became of the registers of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Loaded {
    /// What the vCPU was made with.
    pub shape: Shape,
    /// What of that this host has.
    pub features: Vec<String>,
    /// The saved vCPU had been filled.
    pub filled: bool,
    /// Registers that were set, and hold the saved value when all were.
    pub kept: u32,
    /// Counters that were set and went on from there.
    pub running: u32,
    /// The others, in the order in which they were set.
    pub not_kept: Vec<NotKept>,
    /// Registers that were kept when they were set, and had another value when all were.
    pub overwritten: Vec<Overwritten>,
    /// Registers that read back different when they were set, and had the saved value when all were: they count as kept.
    pub settled: Vec<Hex64>,
    /// Registers that this host lists and the file does not hold, in the kernel's order.
    pub unsaved: Vec<Hex64>,
}

/// A register that was not kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NotKept {
    /// The ONE_REG id.
    pub id: Hex64,
    /// What became of it.
    pub became: Became,
    /// The saved value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<Value>,
    /// The value that is there instead; absent where there is no such register.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<Value>,
    /// The errno of what failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<String>,
}

/// What became of a register that was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Became {
    /// KVM_SET_ONE_REG failed, and KVM_GET_REG_LIST does not name the register here.
    Unlisted,
    /// KVM_SET_ONE_REG failed, though the register is here.
    Refused,
    /// KVM_SET_ONE_REG succeeded, and another value was read back, also when all registers were set.
    Altered,
    /// KVM_SET_ONE_REG succeeded, and the register could not be read back.
    Unreadable,
    /// It could not be read when it was saved: there is nothing to set.
    NotSaved,
}

impl Became {
    /// The set failed.
    pub fn is_refusal(self) -> bool {
        matches!(self, Became::Unlisted | Became::Refused)
    }
}

/// A register that setting others changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Overwritten {
    /// The ONE_REG id.
    pub id: Hex64,
    /// The value that was set and read back.
    pub saved: Value,
    /// The value at the end.
    pub now: Value,
}

/// Reads a saved file.
///
/// # Errors
/// It is too long, no JSON, another document, or says what no kernel can have said.
pub fn parse_file(bytes: &[u8]) -> Result<RegisterFile, Malformed> {
    let file: RegisterFile = parse(bytes, FILE_SCHEMA)?;
    if file.arch != Arch::Aarch64 {
        return Err(Malformed(format!("registers of {} are not known here", file.arch.name())));
    }
    if file.vcpus.len() > MAX_VCPUS {
        return Err(Malformed(format!("{} vCPUs; at most {MAX_VCPUS}", file.vcpus.len())));
    }
    for (index, vcpu) in file.vcpus.iter().enumerate() {
        check(vcpu).map_err(|why| Malformed(format!("vCPU {index} ({}): {why}", vcpu.shape.name())))?;
    }
    Ok(file)
}

fn check(vcpu: &VcpuRegisters) -> Result<(), String> {
    if vcpu.registers.len() > MAX_REGISTERS {
        return Err(format!("{} registers; at most {MAX_REGISTERS}", vcpu.registers.len()));
    }
    let mut seen = BTreeSet::new();
    for register in &vcpu.registers {
        let id = register.id;
        if !seen.insert(id) {
            return Err(format!("register {id} is there twice"));
        }
        let size = size(id.0).ok_or_else(|| format!("{id} is no register: its size is not defined"))?;
        match (&register.value, &register.unread) {
            (Some(value), None) if value.to_bytes(size).is_none() => {
                return Err(format!("register {id} has {size} bytes, and its value does not fit"));
            }
            (Some(_), None) | (None, Some(_)) => {}
            _ => return Err(format!("register {id} needs a value or a reason why there is none")),
        }
    }
    Ok(())
}

/// The bytes of a register, from bits 52 to 55 of its id; none where KVM defines no size.
pub(crate) fn size(id: u64) -> Option<usize> {
    let code = id >> 52 & 0xf;
    (code <= 8).then(|| 1 << code)
}

/// Reads what a host made of files.
///
/// # Errors
/// It is too long, no JSON, or another document.
pub fn parse_report(bytes: &[u8]) -> Result<LoadReport, Malformed> {
    parse(bytes, LOADED_SCHEMA)
}

/// A document whose first key names the schema.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8], schema: &str) -> Result<T, Malformed> {
    if bytes.len() > MAX_BYTES {
        return Err(Malformed(format!("{} bytes; at most {MAX_BYTES}", bytes.len())));
    }
    /// So that a document of another kind is called that, rather than wrong in some key.
    #[derive(Deserialize)]
    struct Head {
        schema: String,
    }
    let words = |e: serde_json::Error| Malformed(e.to_string());
    let head: Head = serde_json::from_slice(bytes).map_err(words)?;
    if head.schema != schema {
        let found: String = head.schema.chars().take(60).collect();
        return Err(Malformed(format!("the schema is {found:?}, not {schema:?}")));
    }
    serde_json::from_slice(bytes).map_err(words)
}
