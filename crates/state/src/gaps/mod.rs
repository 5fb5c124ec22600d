//! State that KVM cannot save, found in what was saved: an image that shows that something is missing says so, rather than
//! being restored into a guest that has lost it. What cannot be seen in an image is in the catalog with the reason.

mod arm64;
mod x86;

use std::collections::BTreeMap;

use evenkeel_catalog::{self as catalog, Gap};
use evenkeel_surface::Arch;

use crate::clocks::word;
use crate::manifest::Noted;
use crate::pack::unpack_registers;
use crate::single::{number_of, numbers_of};
use crate::view::number;
use crate::{Found, Image, Item, Owner, Refused};

/// A gap that an image shows.
#[derive(Clone, Debug)]
pub struct FoundGap {
    /// What the catalog says of it: what a guest loses, and what is done about it.
    pub gap: &'static Gap,
    /// Whose state it is.
    pub owner: Owner,
    /// Where it was seen, in words.
    pub seen: String,
}

impl FoundGap {
    /// Saving must refuse: the image is not the guest.
    pub fn refuses(&self) -> bool {
        self.gap.handling == "refused"
    }
}

impl std::fmt::Display for FoundGap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}; {} ({})", self.gap.id, self.owner, self.seen, self.gap.title, self.gap.handling)
    }
}

/// How one gap is seen: whose it is, and where.
type Seen = Vec<(Owner, String)>;
/// What looks for a gap.
type Look = fn(&Shown<'_>) -> Seen;

/// The gaps that an image shows, by id. An empty answer does not say that there is none: some cannot be seen
/// (`Gap::in_image`).
pub fn gaps(image: &Image) -> Vec<FoundGap> {
    let shown = Shown::of(image);
    let looks = match image.arch {
        Arch::X86_64 => x86::LOOKS,
        Arch::Aarch64 => arm64::LOOKS,
    };
    let mut found = Vec::new();
    for (id, look) in looks {
        // A test holds the ids of the looks against the catalog.
        let Some(gap) = catalog::gap(id) else { continue };
        found.extend(look(&shown).into_iter().map(|(owner, seen)| FoundGap { gap, owner, seen }));
    }
    found
}

/// What saving does about the gaps of an image: it refuses, or tells of them.
///
/// # Errors
/// The first gap without which the image is not the guest.
pub(crate) fn told(image: &Image) -> Result<Vec<Found>, Refused> {
    let found = gaps(image);
    if let Some(gap) = found.iter().find(|g| g.refuses()) {
        let why = format!("{}: {} ({})", gap.seen, gap.gap.title, gap.gap.id);
        return Err(Refused::new(gap.owner, "", why).hint(gap.gap.loses));
    }
    Ok(found.into_iter().map(Found::from).collect())
}

impl From<FoundGap> for Found {
    fn from(found: FoundGap) -> Found {
        Found { gap: found.gap.id.to_owned(), owner: found.owner, what: found.seen }
    }
}

/// The ids of the gaps that [`gaps`] looks for.
pub fn looked_for() -> Vec<&'static str> {
    x86::LOOKS.iter().chain(arm64::LOOKS).map(|(id, _)| *id).collect()
}

/// An image, asked for single numbers. Nothing is decoded but what is asked for: a save looks for gaps while its guest stands still.
struct Shown<'a> {
    image: &'a Image,
    items: BTreeMap<Owner, Vec<&'a Item>>,
}

impl<'a> Shown<'a> {
    fn of(image: &'a Image) -> Shown<'a> {
        let mut items: BTreeMap<Owner, Vec<&Item>> = BTreeMap::new();
        for item in &image.items {
            items.entry(item.owner).or_default().push(item);
        }
        Shown { image, items }
    }

    fn item(&self, owner: Owner, section: &str) -> Option<&'a Item> {
        self.items.get(&owner)?.iter().find(|item| item.name == section).copied()
    }

    fn vcpus(&self) -> impl Iterator<Item = Owner> {
        self.items.keys().copied().filter(|owner| matches!(owner, Owner::Vcpu(_)))
    }

    /// A number by section and field; `None` where it was not saved, or where the payload does not reach so far.
    fn get(&self, owner: Owner, section: &str, field: &str) -> Option<u64> {
        number_of(self.item(owner, section)?, field)
    }

    /// As `get`, and 0 where it was not saved.
    fn or_0(&self, owner: Owner, section: &str, field: &str) -> u64 {
        self.get(owner, section, field).unwrap_or(0)
    }

    /// All numbers of a field that a structure has several of.
    fn all(&self, owner: Owner, section: &str, field: &str) -> Vec<u64> {
        self.item(owner, section).map(|item| numbers_of(item, field)).unwrap_or_default()
    }

    /// The value of a register by its id.
    fn register(&self, owner: Owner, section: &str, id: u64) -> Option<u64> {
        let registers = unpack_registers(self.bytes(owner, section)?).ok()?;
        let (_, value) = registers.into_iter().find(|(register, _)| *register == id)?;
        number(value, 0, value.len())
    }

    fn msr(&self, owner: Owner, msr: u32) -> Option<u64> {
        let entries = self.bytes(owner, "msrs")?.chunks_exact(16);
        let entry = entries.into_iter().find(|entry| word(entry, 0) == msr)?;
        number(entry, 8, 8)
    }

    /// The payload of an item.
    fn bytes(&self, owner: Owner, section: &str) -> Option<&'a [u8]> {
        self.item(owner, section).map(|i| i.bytes.as_slice())
    }

    /// The calls of this name in the manifest.
    fn calls(&self, name: &str) -> impl Iterator<Item = &'a Noted> {
        self.image.manifest.calls.iter().filter(move |c| c.call == name)
    }

    /// The type that KVM_CREATE_VM was given.
    fn vm_type(&self) -> u64 {
        let low_high = |c: &Noted| u64::from(word(&c.argument, 4)) << 32 | u64::from(word(&c.argument, 0));
        self.calls("KVM_CREATE_VM").last().map_or(0, low_high)
    }

    /// A capability was enabled.
    fn enabled(&self, cap: u32) -> bool {
        self.calls("KVM_ENABLE_CAP").any(|c| c.argument.len() >= 4 && word(&c.argument, 0) == cap)
    }

    /// A device of this type was made.
    fn device(&self, kind: u32) -> bool {
        self.calls("KVM_CREATE_DEVICE").any(|c| c.argument.len() >= 4 && word(&c.argument, 0) == kind)
    }

    /// Looks at each vCPU.
    fn each(&self, look: impl Fn(Owner) -> Option<String>) -> Seen {
        self.vcpus().filter_map(|owner| look(owner).map(|seen| (owner, seen))).collect()
    }
}

/// A gap of the VM, if so.
fn vm_if(there: bool, seen: &str) -> Seen {
    if there { vec![(Owner::Vm, seen.to_owned())] } else { Vec::new() }
}
