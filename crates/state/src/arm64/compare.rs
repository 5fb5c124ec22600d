//! Two images of one VM, part by part.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::{self, Part, What};
use super::restore::same;
use super::sections::Devices;
use crate::image::Image;
use crate::outcome::Refused;
use crate::registers::{Group, group};

/// In what two images differ, beside what runs by itself; a line for each part.
///
/// # Errors
/// One of them makes no sense.
pub fn differences(a: &Image, b: &Image) -> Result<Vec<String>, Refused> {
    let (a, b) = (taken_apart(a)?, taken_apart(b)?);
    let parts: BTreeSet<&Part> = a.keys().chain(b.keys()).collect();
    let mut lines = Vec::new();
    for part in parts {
        let (before, after) = (a.get(part), b.get(part));
        let alike = match (part.1, before, after) {
            ("arm64-counters", Some(_), Some(_)) => true,
            (_, Some(before), Some(after)) if part.2 == 0 => same(part.3, before, after),
            _ => before == after,
        };
        if !alike {
            let name = plan::name(part);
            lines.push(format!("{}/{}/{name}: {before:x?}, {after:x?}", part.0, part.1));
        }
    }
    Ok(lines)
}

fn taken_apart(image: &Image) -> Result<BTreeMap<Part, Vec<u8>>, Refused> {
    let devices = Devices::of(&image.manifest)?;
    let mut parts = BTreeMap::new();
    for item in &image.items {
        for (section, what) in plan::parts_of(item, &devices)? {
            let step = plan::Step { rank: 0, owner: item.owner, section, what };
            if let What::Register(id, _) = step.what
                && group(id) == Group::VectorLengths
            {
                continue;
            }
            parts.insert(step.part(), step.wanted().to_vec());
        }
    }
    Ok(parts)
}
