//! Where the kernel's headers are, so that the test that extracts names from them (`tests/uapi`) is reported as ignored,
//! with the reason, where they are not. EVENKEEL_UAPI names a folder into which a `linux-libc-dev` package was
//! unpacked (`apt-get download linux-libc-dev`, `dpkg-deb -x FILE FOLDER`); without it the headers installed on this
//! machine are taken.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// Each header that the test reads: its `cfg` and variable, and the places where Debian's packages put it.
const HEADERS: &[(&str, &str, &[&str])] = &[
    ("uapi", "EVENKEEL_UAPI_KVM", &["usr/include/linux/kvm.h"]),
    (
        "uapi_x86",
        "EVENKEEL_UAPI_X86",
        &["usr/lib/linux/uapi/x86/asm/kvm.h", "usr/include/x86_64-linux-gnu/asm/kvm.h"],
    ),
    (
        "uapi_para",
        "EVENKEEL_UAPI_PARA",
        &["usr/lib/linux/uapi/x86/asm/kvm_para.h", "usr/include/x86_64-linux-gnu/asm/kvm_para.h"],
    ),
    (
        "uapi_arm64",
        "EVENKEEL_UAPI_ARM64",
        &[
            "usr/lib/linux/uapi/arm64/asm/kvm.h",
            "usr/include/aarch64-linux-gnu/asm/kvm.h",
            // linux-libc-dev-arm64-cross
            "usr/aarch64-linux-gnu/include/asm/kvm.h",
        ],
    ),
];

/// The release that the catalog was last brought up to: headers of it, and newer ones, have every name in the catalog.
const CAUGHT_UP: u64 = (7 << 16) + (3 << 8);

/// LINUX_VERSION_CODE of the headers in `root`: major, minor and patch level in a number.
fn version(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("usr/include/linux/version.h")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("#define LINUX_VERSION_CODE ")?.trim().parse().ok())
}

/// Tells the crate's tests which headers there are.
pub fn tell() {
    println!("cargo::rerun-if-env-changed=EVENKEEL_UAPI");
    let given = env::var_os("EVENKEEL_UAPI").map(PathBuf::from);
    let root = given.clone().unwrap_or_else(|| PathBuf::from("/"));
    for (cfg, variable, places) in HEADERS {
        println!("cargo::rustc-check-cfg=cfg({cfg})");
        match places.iter().map(|place| root.join(place)).find(|path| path.is_file()) {
            Some(path) => {
                println!("cargo::rustc-cfg={cfg}");
                println!("cargo::rustc-env={variable}={}", path.display());
                println!("cargo::rerun-if-changed={}", path.display());
            }
            // Somebody who names a folder wants the test to run; a package for one machine lacks the others' headers.
            None if given.is_some() && *cfg == "uapi" => {
                println!("cargo::error=EVENKEEL_UAPI is {}, and there is no {}", root.display(), places[0]);
            }
            None => {}
        }
    }
    println!("cargo::rustc-check-cfg=cfg(uapi_newest)");
    if version(&root).is_some_and(|version| version >= CAUGHT_UP) {
        println!("cargo::rustc-cfg=uapi_newest");
    }
}
