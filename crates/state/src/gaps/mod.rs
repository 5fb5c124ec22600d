//! State that KVM cannot save, found in what was saved: an image that shows that something is missing says so, rather than
//! being restored into a guest that has lost it. What cannot be seen in an image is in the catalog with the reason.

mod arm64;
mod x86;

use std::collections::BTreeMap;

use evenkeel_catalog::{self as catalog, Gap};
use evenkeel_surface::Arch;

use crate::clocks::word;
use crate::manifest::Noted;
use crate::view::{Value, view};
use crate::{Image, Owner};

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

/// The ids of the gaps that [`gaps`] looks for.
pub fn looked_for() -> Vec<&'static str> {
    x86::LOOKS.iter().chain(arm64::LOOKS).map(|(id, _)| *id).collect()
}

/// An image in named numbers.
struct Shown<'a> {
    image: &'a Image,
    numbers: BTreeMap<(Owner, &'a str), BTreeMap<String, u64>>,
    raw: BTreeMap<(Owner, &'a str), BTreeMap<u64, u64>>,
}

impl<'a> Shown<'a> {
    fn of(image: &'a Image) -> Shown<'a> {
        let mut shown = Shown { image, numbers: BTreeMap::new(), raw: BTreeMap::new() };
        for item in &image.items {
            // What has no view is refused where it is set; here it shows nothing.
            for field in view(item).unwrap_or_default() {
                if let Value::Number(number) = field.value {
                    let key = (item.owner, item.name.as_str());
                    shown.raw.entry(key).or_default().insert(field.raw, number);
                    shown.numbers.entry(key).or_default().insert(field.name, number);
                }
            }
        }
        shown
    }

    fn vcpus(&self) -> impl Iterator<Item = Owner> {
        let mut owners: Vec<Owner> = self.image.items.iter().map(|i| i.owner).collect();
        owners.sort_unstable();
        owners.dedup();
        owners.into_iter().filter(|o| matches!(o, Owner::Vcpu(_)))
    }

    /// A number by section and field; `None` where it was not saved.
    fn get(&self, owner: Owner, section: &'a str, field: &str) -> Option<u64> {
        self.numbers.get(&(owner, section))?.get(field).copied()
    }

    /// As `get`, and 0 where it was not saved.
    fn or_0(&self, owner: Owner, section: &'a str, field: &str) -> u64 {
        self.get(owner, section, field).unwrap_or(0)
    }

    /// The value of an MSR, a register or an attribute by its number.
    fn by_number(&self, owner: Owner, section: &'a str, number: u64) -> Option<u64> {
        self.raw.get(&(owner, section))?.get(&number).copied()
    }

    fn msr(&self, owner: Owner, number: u32) -> Option<u64> {
        self.by_number(owner, "msrs", u64::from(number))
    }

    /// The payload of an item.
    fn bytes(&self, owner: Owner, section: &str) -> Option<&'a [u8]> {
        self.image.item(owner, section).map(|i| i.bytes.as_slice())
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
