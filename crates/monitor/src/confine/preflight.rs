//! What needs more than a confined process without rights has, is asked for before a guest starts: it is passed as an open
//! descriptor, or the one feature that needs it is refused, with what to do.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use evenkeel_sys::{Errno, passed};

/// Descriptors that were passed, by name.
#[derive(Debug, Default)]
pub struct Passed(BTreeMap<String, OwnedFd>);

/// What a feature needs and is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{feature}: {why}")]
pub struct Missing {
    /// The feature that is refused.
    pub feature: &'static str,
    /// Why.
    pub why: String,
    /// What to do.
    pub remedy: String,
}

/// What may be needed from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// `/dev/kvm`: without it there is no machine.
    Kvm,
    /// A userfaultfd that takes faults of the kernel, for snapshots that do not stop the guest for long.
    Userfaultfd,
    /// A tap, for a network device.
    Tap,
}

impl Need {
    /// The feature.
    pub fn feature(self) -> &'static str {
        match self {
            Need::Kvm => "a machine",
            Need::Userfaultfd => "snapshots that copy before writes",
            Need::Tap => "a network device on a tap",
        }
    }

    /// The device node, whose name is also its descriptor's.
    pub fn path(self) -> &'static str {
        match self {
            Need::Kvm => "/dev/kvm",
            Need::Userfaultfd => "/dev/userfaultfd",
            Need::Tap => "/dev/net/tun",
        }
    }

    /// What to do when it is not there.
    fn remedy(self) -> &'static str {
        match self {
            Need::Kvm => "give this user the group that owns it, or pass it open: `--pass kvm=FD`",
            Need::Userfaultfd => {
                "pass one that may take the kernel's faults: `--pass userfaultfd=FD`; or give this user access to \
                 /dev/userfaultfd (Linux 6.1), or set vm.unprivileged_userfaultfd to 1"
            }
            Need::Tap => {
                "make one as root (`ip tuntap add mode tap user NAME vnet_hdr`), or pass one open: `--pass tap=FD`"
            }
        }
    }

    /// The refusal, for this reason.
    pub fn missing(self, why: impl std::fmt::Display) -> Missing {
        Missing {
            feature: self.feature(),
            why: format!("{}: {why}", self.path()),
            remedy: self.remedy().to_owned(),
        }
    }
}

impl Passed {
    /// Takes those that are named, as `NAME=FD`.
    ///
    /// # Errors
    /// Which one is no such thing, or is not open.
    pub fn take<'a>(named: impl IntoIterator<Item = &'a str>) -> Result<Passed, String> {
        let mut all = BTreeMap::new();
        for one in named {
            let (name, number) =
                one.split_once('=').ok_or_else(|| format!("`{one}` is not of the form NAME=FD"))?;
            let number: i32 =
                number.parse().map_err(|_| format!("`{number}` is no number of a descriptor"))?;
            if name.is_empty() || all.contains_key(name) {
                return Err(format!("`{one}`: the name is empty, or there are two of it"));
            }
            let fd = passed(number).map_err(|e| match e {
                Errno::EBADF => format!("`{one}`: descriptor {number} was not passed to this process"),
                e => format!("`{one}`: {e}"),
            })?;
            all.insert(name.to_owned(), fd);
        }
        Ok(Passed(all))
    }

    /// Takes the one of this name out.
    pub fn get(&mut self, name: &str) -> Option<OwnedFd> {
        self.0.remove(name)
    }

    /// Names that nobody took: who passed them expected something of it.
    pub fn left(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_of_the_form_or_not_open_is_refused_by_name() {
        for (bad, says) in [
            ("kvm", "not of the form"),
            ("kvm=three", "no number"),
            ("=9", "the name is empty"),
            ("kvm=7777", "descriptor 7777 was not passed"),
            ("kvm=1", "was not passed"),
        ] {
            let error = Passed::take([bad]).unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
        }
        assert!(Passed::take([]).unwrap().left().is_empty());
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        for need in [Need::Kvm, Need::Userfaultfd, Need::Tap] {
            let missing = need.missing("Permission denied");
            assert!(missing.remedy.contains("--pass"), "{missing:?}");
            assert!(missing.to_string().contains(need.path()));
        }
    }
}
