//! What a guest's network cards and its console are plugged into.

use std::os::fd::OwnedFd;

use evenkeel_monitor::devices::virtio::Device;
use evenkeel_monitor::devices::virtio::console::Console;
use evenkeel_monitor::devices::virtio::net::{Config, Link, Net};
use evenkeel_sys::inherited;

use super::failed;
use crate::failure::Failure;

const HINT: &str =
    "--net tap:NAME or --net fd:NUMBER, with ,mac=02:65:6b:00:00:01 and ,offloads=csum+tso4 behind it";

/// TUN_F_* bits by their names.
const OFFLOADS: [(&str, u32); 7] =
    [("csum", 1), ("tso4", 2), ("tso6", 4), ("ecn", 8), ("ufo", 0x10), ("uso4", 0x20), ("uso6", 0x40)];

/// Cards and a console.
#[derive(clap::Args)]
pub struct Links {
    /// A network card: `tap:NAME`, or `fd:NUMBER` of an open tap or of a socket with a frame a message. May be given several
    /// times. `,mac=ADDRESS` gives its address; `,offloads=csum+tso4+…` promises the guest that it can leave these to the
    /// host, here and wherever it goes.
    #[arg(long, value_name = "LINK")]
    pub net: Vec<String>,
    /// A virtio console (hvc0): input from the file of this number, none with `-`, and output to the file of the other one.
    #[arg(long, value_name = "IN:OUT")]
    pub console: Option<String>,
}

/// A card that was asked for.
struct Wanted {
    link: Link,
    mac: Option<[u8; 6]>,
    offloads: Option<u32>,
}

fn number(text: &str) -> Result<OwnedFd, Failure> {
    let number = text.parse().map_err(|_| Failure::bad(format!("`{text}` is no number of a file"), HINT))?;
    inherited(number)
        .map_err(|e| Failure::bad(format!("file {text}: {e}"), "it has to be open when this is started"))
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let parts: Vec<&str> = text.split(':').collect();
    let bytes: Option<Vec<u8>> =
        parts.iter().map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2)).collect();
    bytes?.try_into().ok()
}

fn offloads(text: &str) -> Option<u32> {
    let named = |name: &str| OFFLOADS.iter().find(|(known, _)| *known == name).map(|(_, bit)| bit);
    text.split('+').try_fold(0, |all, name| named(name).map(|bit| all | bit))
}

fn wanted(text: &str) -> Result<Wanted, Failure> {
    let wrong = |what: &str| Failure::bad(format!("`{text}`: {what}"), HINT);
    let mut parts = text.split(',');
    let link = match parts.next().unwrap_or_default().split_once(':') {
        Some(("tap", name)) => Link::tap(name),
        Some(("fd", text)) => Link::passed(number(text)?),
        _ => return Err(wrong("this is no link")),
    };
    let mut it = Wanted { link: link.map_err(|e| failed(&e))?, mac: None, offloads: None };
    for part in parts {
        match part.split_once('=') {
            Some(("mac", value)) => it.mac = Some(mac(value).ok_or_else(|| wrong("this is no address"))?),
            Some(("offloads", value)) => {
                let known = offloads(value);
                it.offloads = Some(known.ok_or_else(|| {
                    wrong("the offloads are csum, tso4, tso6, ecn, ufo, uso4 and uso6, with + between them")
                })?);
            }
            _ => return Err(wrong("behind the link there is mac= and offloads=")),
        }
    }
    Ok(it)
}

impl Links {
    /// Cards and console of a new machine.
    pub fn new_devices(&self) -> Result<Vec<Box<dyn Device>>, Failure> {
        let mut devices: Vec<Box<dyn Device>> = Vec::new();
        for (index, text) in (1_u8..).zip(&self.net) {
            let Wanted { link, mac, offloads } = wanted(text)?;
            // An address that its owner made up (the second bit), for as many cards as a machine can have.
            let mac = mac.unwrap_or([0x02, b'e', b'k', 0, 0, index]);
            let config = Config { mac, offloads: offloads.unwrap_or(0) };
            devices.push(Box::new(Net::new(link, config).map_err(|e| failed(&e))?));
        }
        if self.console.is_some() {
            devices.push(self.console()?);
        }
        Ok(devices)
    }

    /// The card of this number again, as it was: only its link is another one.
    pub fn card(&self, index: usize, config: Config) -> Result<Box<dyn Device>, Failure> {
        let text = self.net.get(index).ok_or_else(|| {
            let shown: Vec<String> = config.mac.iter().map(|byte| format!("{byte:02x}")).collect();
            Failure::bad(format!("no link for the network card {}", shown.join(":")), HINT)
        })?;
        let Wanted { link, mac, offloads } = wanted(text)?;
        if mac.is_some_and(|mac| mac != config.mac) || offloads.is_some_and(|bits| bits != config.offloads) {
            return Err(Failure::bad(
                format!("`{text}`: the guest was promised another address, or other offloads"),
                "leave mac= and offloads= away: the capsule has them",
            ));
        }
        Ok(Box::new(Net::new(link, config).map_err(|e| failed(&e))?))
    }

    /// The console.
    pub fn console(&self) -> Result<Box<dyn Device>, Failure> {
        let wrong = || {
            Failure::bad(
                "the guest has a console",
                "--console IN:OUT, such as --console 0:1 or --console -:1",
            )
        };
        let (input, output) =
            self.console.as_ref().and_then(|text| text.split_once(':')).ok_or_else(wrong)?;
        let input = if input == "-" { None } else { Some(number(input)?) };
        let output = std::fs::File::from(number(output)?);
        Ok(Box::new(Console::new(input, Box::new(output)).map_err(|e| failed(&e))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_offloads_are_read() {
        assert_eq!(mac("02:65:6b:00:00:01"), Some([2, 0x65, 0x6b, 0, 0, 1]));
        for wrong in ["", "02:65:6b:00:00", "02:65:6b:00:00:01:02", "2:65:6b:00:00:01", "02-65-6b-00-00-01"] {
            assert_eq!(mac(wrong), None, "{wrong}");
        }
        assert_eq!(offloads("csum+tso4+uso4+uso6"), Some(0x63));
        assert_eq!(offloads("csum+tunnel"), None);
    }

    #[test]
    fn what_is_no_link_is_refused() {
        for text in ["", "tap", "fd:", "fd:x", "fd:999999", "pipe:3", "fd:-1"] {
            assert!(wanted(text).is_err(), "{text}");
        }
        let links = Links { net: Vec::new(), console: None };
        assert!(links.card(0, Config { mac: [2; 6], offloads: 0 }).is_err());
        assert!(links.console().is_err());
        assert!(links.new_devices().unwrap().is_empty());
    }
}
