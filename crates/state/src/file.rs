//! A saved guest as a capsule holds it, and out of one.
//!
//! Every item is a critical section: `vm/clock`, `vcpu.3/sregs2`, with the kernel's structure in it as it is. The manifest is
//! CBOR. Nothing is left over: a section `vm/…` or `vcpu.N/…` that the catalog does not have, or one of another architecture,
//! or a payload that is not cut as the catalog says, refuses the capsule; what is optional and unknown is kept as it is.

use std::io::{Read, Seek};

use evenkeel_capsule::cbor::{self, Bytes};
use evenkeel_capsule::{Draft, Entry, Id, Provenance, Reader, Refused, Section, names};
use evenkeel_catalog as catalog;
use evenkeel_surface::Arch;
use serde::{Deserialize, Serialize};

use crate::{Image, Item, Manifest, Noted, Owner, Role, view};

/// A saved guest with what travels beside its state; memory apart, which is streamed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// What was saved: random.
    pub id: Id,
    /// The state.
    pub image: Image,
    /// What the guest was promised: a contract as TOML.
    pub contract: Option<Vec<u8>>,
    /// The surface of the host that saved it: a capture as JSON.
    pub surface: Option<Vec<u8>>,
    /// Who saved it, where and when.
    pub provenance: Option<Provenance>,
    /// The board and its devices, where the guest has a machine around it: sections of the monitor's.
    pub machine: Vec<Section>,
    /// Optional sections that mean nothing to this version: carried through byte for byte.
    pub carried: Vec<Section>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Calls {
    calls: Vec<Call>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Call {
    on: String,
    call: String,
    argument: Bytes,
    payload: Bytes,
}

/// The newest version of a section that this crate reads: for [`Reader::open`].
pub fn known(name: &str) -> Option<u16> {
    evenkeel_capsule::known(name).or_else(|| {
        if of_machine(name) {
            return Some(1);
        }
        let (_, item) = split(name)?;
        catalog::section(item).map(|_| 1)
    })
}

/// Whether a section is the monitor's: what was decided when the machine was made, or a device of it. What is in them is for
/// the monitor to read.
pub fn of_machine(name: &str) -> bool {
    let device = |name: &str| !name.is_empty() && !name.contains('/');
    name == "board" || name.strip_prefix("device.").is_some_and(device)
}

/// Owner and item of a section's name; `None`: it is not the name of an item.
pub fn split(name: &str) -> Option<(Owner, &str)> {
    let (owner, item) = name.split_once('/')?;
    Some((owner_of(owner)?, item))
}

fn owner_of(text: &str) -> Option<Owner> {
    match text.strip_prefix("vcpu.") {
        None => (text == "vm").then_some(Owner::Vm),
        Some(index) => plain(index).map(Owner::Vcpu),
    }
}

/// A number in the one form that it is written in.
fn plain(text: &str) -> Option<u32> {
    let number: u32 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// What a call was made on, in a word: `vcpu.3`.
pub fn role(role: Role) -> String {
    match role {
        Role::System => "system".to_owned(),
        Role::Vm => "vm".to_owned(),
        Role::Vcpu(index) => format!("vcpu.{index}"),
        Role::Device(index) => format!("device.{index}"),
    }
}

fn role_of(text: &str) -> Option<Role> {
    match (text, text.split_once('.')) {
        ("system", _) => Some(Role::System),
        ("vm", _) => Some(Role::Vm),
        (_, Some(("vcpu", index))) => plain(index).map(Role::Vcpu),
        (_, Some(("device", index))) => plain(index).map(Role::Device),
        _ => None,
    }
}

/// The section of a manifest.
pub fn manifest_section(manifest: &Manifest) -> Section {
    let call = |noted: &Noted| Call {
        on: role(noted.on),
        call: noted.call.clone(),
        argument: Bytes(noted.argument.clone()),
        payload: Bytes(noted.payload.clone()),
    };
    let calls = Calls { calls: manifest.calls.iter().map(call).collect() };
    Section::new(names::MANIFEST, true, cbor::print(&calls))
}

/// The manifest in this section, which begins at `offset` in the file.
///
/// # Errors
/// It is not CBOR, or a call was made on what there is not.
pub fn manifest(bytes: &[u8], offset: u64) -> Result<Manifest, Refused> {
    let lies = |at: u64, what: String| Refused::lies(names::MANIFEST, offset + at, what);
    let calls: Calls = cbor::read(bytes).map_err(|(at, what)| lies(at, what))?;
    let noted = |call: Call| {
        let on = role_of(&call.on).ok_or_else(|| lies(0, format!("a call was made on `{}`", call.on)))?;
        Ok(Noted { on, call: call.call, argument: call.argument.0, payload: call.payload.0 })
    };
    Ok(Manifest { calls: calls.calls.into_iter().map(noted).collect::<Result<_, _>>()? })
}

/// The item that a section holds.
///
/// # Errors
/// The catalog does not have it for this architecture, or it is not cut as the catalog says.
pub fn item(arch: Arch, entry: &Entry, bytes: Vec<u8>) -> Result<Item, Refused> {
    let lies = |at: usize, what: String| Refused::lies(&entry.name, entry.offset + at as u64, what);
    let (owner, name) =
        split(&entry.name).ok_or_else(|| lies(0, "it belongs to neither the VM nor a vCPU".to_owned()))?;
    if !in_catalog(arch, name) {
        return Err(lies(0, format!("the catalog has no such state of {}", arch.name())));
    }
    let item = Item { owner, name: name.to_owned(), bytes };
    view(&item).map_err(|e| lies(e.at, e.what))?;
    Ok(item)
}

fn in_catalog(arch: Arch, name: &str) -> bool {
    let arch = match arch {
        Arch::X86_64 => catalog::Arch::X86_64,
        Arch::Aarch64 => catalog::Arch::Aarch64,
    };
    catalog::SECTIONS.iter().any(|section| section.name == name && section.arch == arch)
}

impl Guest {
    /// A guest that was just saved.
    pub fn new(id: Id, image: Image) -> Guest {
        Guest {
            id,
            image,
            contract: None,
            surface: None,
            provenance: None,
            machine: Vec::new(),
            carried: Vec::new(),
        }
    }

    /// The capsule to be written: contract and surface first.
    ///
    /// # Errors
    /// An item that [`Guest::read`] would refuse, or one that is there twice.
    pub fn draft(&self) -> Result<Draft, Refused> {
        let mut draft = Draft::new(self.image.arch, self.id);
        let documents = [(names::CONTRACT, &self.contract), (names::SURFACE, &self.surface)];
        for (name, document) in documents {
            if let Some(bytes) = document {
                draft.put(Section::new(name, name == names::CONTRACT, bytes.clone()));
            }
        }
        draft.put(manifest_section(&self.image.manifest));
        if let Some(provenance) = &self.provenance {
            draft.put(provenance.section());
        }
        let items = self.image.items.iter().map(|item| {
            let name = format!("{}/{}", item.owner, item.name);
            Section::new(name, true, item.bytes.clone())
        });
        for section in items.chain(self.machine.iter().chain(&self.carried).cloned()) {
            let lies = |what: String| Refused::lies(&section.name, 0, what);
            if draft.sections().iter().any(|other| other.name == section.name) {
                return Err(lies("it is there twice".to_owned()));
            }
            if let Some((owner, name)) = split(&section.name) {
                if !in_catalog(self.image.arch, name) {
                    return Err(lies(format!("the catalog has no such state of {}", self.image.arch.name())));
                }
                let item = Item { owner, name: name.to_owned(), bytes: section.bytes.clone() };
                view(&item).map_err(|e| lies(e.to_string()))?;
            }
            draft.put(section);
        }
        Ok(draft)
    }

    /// The guest in a capsule that was opened with [`known`].
    ///
    /// # Errors
    /// A section is damaged, or is not what it has to be.
    pub fn read<R: Read + Seek>(reader: &mut Reader<R>) -> Result<Guest, Refused> {
        let arch = reader.header().arch;
        let empty = Image { arch, manifest: Manifest::default(), items: Vec::new() };
        let mut guest = Guest::new(reader.header().id, empty);
        let mut manifested = false;
        for entry in reader.entries().to_vec() {
            if entry.name == names::INDEX || entry.chunked {
                continue;
            }
            let bytes = reader.bytes(&entry)?;
            // What is newer than this reader and optional is as unknown as what has no name here.
            let known = known(&entry.name).is_some_and(|newest| entry.version <= newest);
            match entry.name.as_str() {
                names::CONTRACT if known => guest.contract = Some(bytes),
                names::SURFACE if known => guest.surface = Some(bytes),
                names::MANIFEST if known => {
                    guest.image.manifest = manifest(&bytes, entry.offset)?;
                    manifested = true;
                }
                names::PROVENANCE if known => {
                    guest.provenance = Some(Provenance::read(&bytes, entry.offset)?)
                }
                name if known && of_machine(name) => {
                    let Entry { name, version, reader, critical, .. } = entry;
                    guest.machine.push(Section { name, version, reader, critical, bytes });
                }
                _ if known || entry.critical => guest.image.items.push(item(arch, &entry, bytes)?),
                _ => {
                    let Entry { name, version, reader, critical, .. } = entry;
                    guest.carried.push(Section { name, version, reader, critical, bytes });
                }
            }
        }
        if !manifested {
            return Err(Refused::new(names::MANIFEST, 0, evenkeel_capsule::Why::Missing));
        }
        Ok(guest)
    }
}
