//! What a guest's network cards leave to the host is a facet of its contract.

use evenkeel_capsule::cbor;
use evenkeel_catalog::{CHOICES, Choice};
use evenkeel_contract::Contract;
use evenkeel_monitor::devices::virtio::Device;
use evenkeel_monitor::devices::virtio::net::Config;
use evenkeel_surface::{Arch, Surface};

use crate::failure::Failure;

/// What the capture measured.
const MEASURED: &str = "net.tap.offloads";
/// A network card's kind.
const NET: u32 = 1;

/// The facet on this architecture, and its index.
fn facet(arch: Arch) -> Option<(u16, &'static Choice)> {
    let name = match arch {
        Arch::X86_64 => "x86.net.tap.offloads",
        Arch::Aarch64 => "arm64.net.tap.offloads",
    };
    CHOICES.iter().position(|c| c.name == name).map(|index| (index as u16, &CHOICES[index]))
}

/// The offloads that these cards were given: TUN_F_* bits.
fn given(devices: &[Box<dyn Device>]) -> u32 {
    let cards = devices.iter().filter(|device| device.kind() == NET);
    cards
        .filter_map(|card| cbor::read::<Config>(&card.config_record()).ok())
        .fold(0, |all, c| all | c.offloads)
}

/// Holds the cards of a new machine to its contract. One that this host gives of itself (`own`) promises what the cards have, where the
/// host was measured: elsewhere the tap said so itself when it was opened, and the cards' own records carry it.
///
/// # Errors
/// The contract does not promise what a card has.
pub fn settle(
    contract: &mut Contract,
    own: bool,
    host: &Surface,
    devices: &[Box<dyn Device>],
) -> Result<(), Failure> {
    settle_bits(contract, own, host, given(devices).into())
}

fn settle_bits(contract: &mut Contract, own: bool, host: &Surface, given: u64) -> Result<(), Failure> {
    let Some((index, facet)) = facet(contract.arch).filter(|_| given != 0) else { return Ok(()) };
    let at = contract.choices.binary_search_by_key(&index, |(choice, _)| *choice);
    let promised = at.ok().and_then(|at| facet.values.get(usize::from(contract.choices[at].1)));
    if given & !promised.map_or(facet.absent, |value| value.value) == 0 {
        return Ok(());
    }
    let enough = facet.values.iter().enumerate().filter(|(_, v)| given & !v.value == 0);
    match (own, enough.min_by_key(|(_, v)| v.value)) {
        (true, Some((value, _))) => {
            if host.offer.measured.iter().any(|m| m.facet == MEASURED) {
                contract.choices.retain(|(choice, _)| *choice != index);
                contract.choices.push((index, value as u8));
                contract.choices.sort_unstable();
            }
            Ok(())
        }
        _ => {
            let has = promised.map_or("none", |value| value.name);
            let what = format!("{}: a card has {given:#x}, the contract promises `{has}`", facet.name);
            let hint =
                format!("`evenkeel baseline HOST… --most {}` promises what all hosts take", facet.name);
            Err(Failure { exit: 1, ..Failure::bad(what, hint) })
        }
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_contract::View;
    use evenkeel_contract::baseline::{baseline, most};

    use super::*;

    const FACET: &str = "x86.net.tap.offloads";

    fn promised(contract: &Contract) -> Option<&'static str> {
        let (index, facet) = facet(Arch::X86_64).unwrap();
        let named = contract.choices.iter().find(|(choice, _)| *choice == index);
        named.map(|(_, value)| facet.values[usize::from(*value)].name)
    }

    #[test]
    fn cards_have_no_more_than_the_contract_promises() {
        let hosts = ["debian-5.10", "debian-7.3"].map(|name| evenkeel_hosts::load(name).unwrap());
        let views: Vec<&View> =
            hosts.iter().map(|host| host.views.iter().find(|v| v.shape == "kernel").unwrap()).collect();
        let surface = &hosts[0].surface;
        let mut contract = baseline(&views, "both").contract;
        assert_eq!(promised(&contract), None, "nobody asked");
        settle_bits(&mut contract, false, surface, 0).unwrap();
        let refused = settle_bits(&mut contract, false, surface, 0x3).unwrap_err();
        assert!(refused.message.contains(FACET) && refused.message.contains("`none`"), "{}", refused.message);
        assert!(refused.hint.contains("--most"), "{}", refused.hint);

        assert_eq!(most(&views, &mut contract, FACET), Some("csum-tso-ufo"));
        settle_bits(&mut contract, false, surface, 0x13).unwrap();
        assert!(settle_bits(&mut contract, false, surface, 0x61).is_err(), "5.10 has no USO");

        // Of itself a host promises what its guest was given.
        let mut own = baseline(&views[..1], "own").contract;
        settle_bits(&mut own, true, surface, 0x3).unwrap();
        assert_eq!(promised(&own), Some("csum-tso"));
        assert!(settle_bits(&mut own, true, surface, 0x400).is_err(), "nobody knows this bit");
        // Where it could not be measured, the tap was asked when it was opened.
        let mut unmeasured = surface.clone();
        unmeasured.offer.measured.retain(|m| m.facet != MEASURED);
        let mut own = baseline(&views[..1], "own").contract;
        settle_bits(&mut own, true, &unmeasured, 0x3).unwrap();
        assert_eq!(promised(&own), None);
    }
}
