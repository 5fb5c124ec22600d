//! Hosts: a kernel in a lane, which is an emulated CPU with virtualization. The lane is part of a host's name, because
//! what one kernel offers on two CPUs are two offers.

use std::fmt;
use std::time::Duration;

use crate::error::Error;
use crate::kernel::{Arch, Kernel, LISTED};

/// What emulates the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// x86 with AMD's SVM and nested paging: QEMU's EPYC.
    Svm,
    /// x86 with Intel's VMX and extended page tables: Bochs' Broadwell. Minutes a run, one job a boot.
    Vmx,
    /// arm64 with EL2 and a GICv3, KVM in VHE mode: QEMU's `max`. Always booted anew: such a host does not survive
    /// being resumed.
    Arm64,
    /// arm64 with EL2 and a GICv3, KVM in nVHE mode: QEMU's Neoverse N1, which is faster and can be resumed.
    Arm64Nvhe,
}

impl Lane {
    /// All of them.
    pub const ALL: [Lane; 4] = [Lane::Svm, Lane::Vmx, Lane::Arm64, Lane::Arm64Nvhe];

    /// The lane's name.
    pub fn name(self) -> &'static str {
        match self {
            Lane::Svm => "svm",
            Lane::Vmx => "vmx",
            Lane::Arm64 => "arm64",
            Lane::Arm64Nvhe => "arm64-nvhe",
        }
    }

    /// The architecture of its hosts.
    pub fn arch(self) -> Arch {
        match self {
            Lane::Svm | Lane::Vmx => Arch::X86_64,
            Lane::Arm64 | Lane::Arm64Nvhe => Arch::Aarch64,
        }
    }

    /// What a kernel's name gets to be a host's name in this lane; nothing in the usual lane of an architecture.
    pub fn suffix(self) -> &'static str {
        match self {
            Lane::Svm | Lane::Arm64 => "",
            Lane::Vmx => "-vmx",
            Lane::Arm64Nvhe => "-nvhe",
        }
    }

    /// Whether a host is up within seconds.
    pub fn quick(self) -> bool {
        !self.one_job()
    }

    /// Whether two hosts can be joined by a link.
    pub fn links(self) -> bool {
        !self.one_job()
    }

    /// What emulates it.
    pub fn emulator(self) -> &'static str {
        match self {
            Lane::Svm | Lane::Arm64 | Lane::Arm64Nvhe => "QEMU",
            Lane::Vmx => "Bochs",
        }
    }

    /// The module that makes its kernels hosts; nothing where KVM is built in.
    pub(crate) fn kvm_module(self) -> Option<&'static str> {
        match self {
            Lane::Svm => Some("kvm_amd"),
            Lane::Vmx => Some("kvm_intel"),
            Lane::Arm64 | Lane::Arm64Nvhe => None,
        }
    }

    /// Whether a host takes one job, when it boots, and powers off after it: there is no way in but its disc, and no
    /// way out but a serial port. Such hosts cannot be linked.
    pub fn one_job(self) -> bool {
        self == Lane::Vmx
    }

    /// How long a boot or a job may take unless somebody says otherwise. Measured boots: seconds under QEMU, one to two
    /// minutes under Bochs, on two idle cores.
    pub fn patience(self) -> Duration {
        Duration::from_secs(if self == Lane::Vmx { 600 } else { 120 })
    }

    /// Whether a host that is booted and idle can be kept as a file and resumed.
    ///
    /// Measured with QEMU 7.2: hosts whose KVM runs in VHE mode hang after it (their EL2 timers are not in the
    /// emulator's state).
    pub fn resumable(self) -> bool {
        match self {
            Lane::Svm | Lane::Arm64Nvhe => true,
            Lane::Arm64 | Lane::Vmx => false,
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A kernel in a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// `debian-6.12`, `debian-6.12-arm64-nvhe`.
    pub name: String,
    /// Its kernel.
    pub kernel: Kernel,
    /// What it runs on.
    pub lane: Lane,
}

impl Host {
    /// `kernel` in `lane`.
    ///
    /// # Errors
    /// The lane emulates another architecture.
    pub fn new(kernel: &Kernel, lane: Lane) -> Result<Host, Error> {
        if kernel.arch != lane.arch() {
            return Err(Error::Lane { kernel: kernel.name.clone(), arch: kernel.arch.name(), lane });
        }
        Ok(Host { name: format!("{}{}", kernel.name, lane.suffix()), kernel: kernel.clone(), lane })
    }
}

/// The hosts of the compiled-in list: each kernel in the usual lane of its architecture, then those in other lanes that
/// the list asks for.
pub fn hosts() -> Vec<Host> {
    let usual = LISTED.iter().map(|(kernel, _)| (kernel, usual_lane(kernel.arch)));
    let further = LISTED.iter().flat_map(|(kernel, lanes)| {
        let lane = |name: &String| Lane::ALL.into_iter().find(|lane| lane.name() == name);
        lanes.iter().filter_map(lane).map(move |lane| (kernel, lane))
    });
    usual.chain(further).filter_map(|(kernel, lane)| Host::new(kernel, lane).ok()).collect()
}

/// The lane that a kernel's name alone means.
pub(crate) fn usual_lane(arch: Arch) -> Lane {
    match arch {
        Arch::X86_64 => Lane::Svm,
        Arch::Aarch64 => Lane::Arm64,
    }
}

/// The host that `name` means among `kernels`: a kernel's name and a lane's suffix.
pub fn host<'a>(name: &str, kernels: impl IntoIterator<Item = &'a Kernel>) -> Result<Host, Error> {
    let mut known = Vec::new();
    for kernel in kernels {
        for lane in Lane::ALL.into_iter().filter(|lane| lane.arch() == kernel.arch) {
            if name.strip_prefix(kernel.name.as_str()) == Some(lane.suffix()) {
                return Host::new(kernel, lane);
            }
        }
        known.push(kernel.name.as_str());
    }
    Err(Error::UnknownHost { name: name.to_owned(), known: known.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::kernels;

    #[test]
    fn names_and_hosts_go_both_ways() {
        for expected in hosts() {
            assert_eq!(host(&expected.name, kernels()).unwrap(), expected);
        }
        let nvhe = host("debian-6.12-arm64-nvhe", kernels()).unwrap();
        assert_eq!((nvhe.kernel.name.as_str(), nvhe.lane), ("debian-6.12-arm64", Lane::Arm64Nvhe));
    }

    #[test]
    fn the_list_names_only_lanes_that_fit() {
        for (kernel, lanes) in LISTED.iter() {
            for name in lanes {
                let lane = Lane::ALL.into_iter().find(|lane| lane.name() == name);
                let lane = lane.unwrap_or_else(|| panic!("{}: no lane is called {name}", kernel.name));
                assert_eq!(lane.arch(), kernel.arch, "{}", kernel.name);
            }
        }
    }

    #[test]
    fn a_lane_of_another_architecture_is_refused() {
        let error = host("debian-6.12-nvhe", kernels()).unwrap_err().to_string();
        assert!(error.contains("debian-6.12-nvhe"), "{error}");
        let error = Host::new(crate::kernel("debian-6.12").unwrap(), Lane::Arm64).unwrap_err().to_string();
        assert!(error.contains("x86_64") && error.contains("arm64"), "{error}");
    }
}
